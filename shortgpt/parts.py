"""The parts of a block: what of it adds to the stream, told apart by name and proven by what is left without them.

::

    x ─●─ norm ─ mixer ─(+)─●─ norm ─ mlp ─(+)─ x'         without both: x' = x, to the bit
       └────────────────┘   └──────────────┘

A part is a module of the block that is not a norm. Where a block without any of its parts is not the identity (after a
norm on the stream itself, or a part that adds its input to its output), its parts are not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from shortgpt.modules import TorchBlockSequence

MIXER, MLP = "mixer", "mlp"
MLP_NAMES = re.compile(r"mlp|ffn|feed_?forward|^ff|moe|expert|^fc\d|^channel_mix", re.IGNORECASE)
NO_PART = re.compile(r"norm(\d\w*)?$|dropout|^identity$|embedding$", re.IGNORECASE)

Parts = tuple[dict[str, list[nn.Module]], ...]
"""For each block, its modules by part."""


def find_parts(model: TorchBlockSequence) -> Parts:
    """The parts of every block, where there are both kinds and they are all that the blocks do; else nothing."""
    found: Parts = tuple({MIXER: [], MLP: []} for _ in model.blocks)
    for block, parts in zip(model.blocks, found, strict=True):
        for name, child in block.named_children():
            if not NO_PART.search(type(child).__name__):
                parts[MLP if MLP_NAMES.search(name) else MIXER].append(child)
    if not all(any(parts[label] for parts in found) for label in (MIXER, MLP)):
        return ()
    return found if _is_all(model, found) else ()


def _is_all(model: TorchBlockSequence, found: Parts) -> bool:
    """Whether every block without its parts is the identity, on a few tokens."""
    from shortgpt.replay import PROBE_TOKENS
    from shortgpt.verification import probe

    ids = probe(model.vocab_size)[:, : min(PROBE_TOKENS, model.max_tokens or PROBE_TOKENS)]
    streams: list[Tensor] = []
    try:
        with silent([module for parts in found for modules in parts.values() for module in modules]):
            model.trace({"input_ids": ids.to(model.device)}, lambda boundary, hidden: streams.append(hidden.clone()))
    except Exception:  # code of any kind runs here, on values that it was not written for
        return False
    return all(torch.equal(stream, streams[0]) for stream in streams)


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
