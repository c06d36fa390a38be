"""The parts of a block: what of it adds to the stream, told apart by name and proven by what is left without them.

::

    x ─●─ norm ─ mixer ─(+)─●─ norm ─ mlp ─(+)─ x'         without both: x' = x, to the bit
       └────────────────┘   └──────────────┘

A part is made of modules of the block that have parameters and are no norm; a module without parameters (an activation
between two layers, say) only passes on what others made. Where a block without any of its parts is not the identity
(after a norm on the stream itself, or a part that adds its input to its output), its parts are not known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from shortgpt.torch_models.interface import TorchModel

MIXER, MLP = "mixer", "mlp"
MLP_NAMES = re.compile(r"mlp|ffn|feed_?forward|^ff|moe|expert|^fc\d|^channel_mix", re.IGNORECASE)
NO_PART = re.compile(r"norm(\d\w*)?$|embedding$", re.IGNORECASE)

Parts = tuple[dict[str, list[nn.Module]], ...]
"""For each block, its modules by part; a part that a block lacks is not there."""


class PartsOrRefusal(NamedTuple):
    """The parts of a model's blocks, or none and why."""

    parts: Parts
    refusal: str | None = None


def find_parts(model: TorchModel) -> PartsOrRefusal:
    """The parts of every block, where there are both kinds and they are all that the blocks do."""
    by_block: Parts = tuple(_by_name(block) for block in model.blocks)
    kinds = {label for parts in by_block for label in parts}
    if kinds != {MIXER, MLP} or all(len(parts) < 2 for parts in by_block):
        kind = type(model.blocks[0]).__name__
        return PartsOrRefusal((), f"a {kind} has no two parts that are known by their names for a mixer and an MLP")
    uses = Counter(id(module) for parts in by_block for modules in parts.values() for module in modules)
    if max(uses.values()) > 1:
        return PartsOrRefusal((), "several blocks share a part, so it cannot be left out of one alone")
    refusal = _refusal(model, by_block)
    return PartsOrRefusal((), refusal) if refusal else PartsOrRefusal(by_block)


def _by_name(block: nn.Module) -> dict[str, list[nn.Module]]:
    parts: dict[str, list[nn.Module]] = {}
    for name, child in block.named_children():
        if not NO_PART.search(type(child).__name__) and any(True for _ in child.parameters()):
            parts.setdefault(MLP if MLP_NAMES.search(name) else MIXER, []).append(child)
    return dict(sorted(parts.items()))


def _refusal(model: TorchModel, by_block: Parts) -> str | None:
    """Why those are not the parts, None where every block without them is the identity, on a few tokens."""
    from shortgpt.models.probing.probes import probe
    from shortgpt.torch_models.replay import PROBE_TOKENS

    ids = probe(model.vocab_size)[:, : min(PROBE_TOKENS, model.max_tokens or PROBE_TOKENS)]
    streams: list[Tensor] = []  # on the host, for blocks may be on several devices

    def see(boundary: int, hidden: Tensor) -> None:
        streams.append(hidden.clone().cpu())

    try:
        with silent([module for parts in by_block for modules in parts.values() for module in modules]):
            model.trace({"input_ids": ids.to(model.device)}, see)
    except Exception as error:  # code of any kind runs here, on values that it was not written for
        return f"the blocks do not run without what looks like their parts ({type(error).__name__}: {error})"
    changing = next((i for i, stream in enumerate(streams[1:]) if not torch.equal(stream, streams[i])), None)
    if changing is None:
        return None
    return (
        f"a {type(model.blocks[changing]).__name__} changes the stream even without what looks like its mixer and its "
        "MLP (by a norm behind them, or because one of them adds what it was given)"
    )


@contextmanager
def silent(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside it the first tensor that each of these modules gives is zero."""

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        if hasattr(output, "_replace"):
            return output._replace(**{output._fields[0]: torch.zeros_like(output[0])})
        return type(output)([torch.zeros_like(output[0]), *output[1:]])

    hook: Callable[..., Any] = zero
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(hook).remove)
        yield
