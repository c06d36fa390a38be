"""Passes that hand out again what a block gave before, so that blocks before a cut are computed once.

::

    recorded   embed ─ b0 ─ b1 ─ b2 ─ b3 ─ norm ─ head        each block's output is kept
    replayed   embed ─ ·  ─ ·  ─ b2 ─ b3 ─ norm ─ head        b0 and b1 are not computed: they give what they gave

The model's own forward makes masks, positions, norm and head, so nothing of it need be known but the blocks. A block
that hands something on beside its output (keys and values to be read by later blocks, say) would be missed: therefore
`Replay` is believed for a model only after all its replays equalled plain skipping on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shortgpt.blocks import Cut

if TYPE_CHECKING:
    from shortgpt.blocks import TokenBatch
    from shortgpt.modules import TorchBlockSequence

PROBE_TOKENS = 12


class Enough(Exception):
    """Ends a pass behind the last block. Never leaves this package."""


class Replay:
    """A pass over one batch without the blocks `removed`, and the blocks' outputs in it.

    Args:
        batch: on the model's device.
    """

    def __init__(self, model: TorchBlockSequence, batch: TokenBatch, removed: Sequence[int] = ()) -> None:
        self.model, self.batch, self.removed = model, batch, removed
        self.streams: list[Tensor] = []
        self.outputs: list[Any] = []

        def before(index: int) -> Callable[..., None]:
            return lambda module, args, kwargs: self.streams.append(model.stream(index, args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs.append(output)
            if module is model.blocks[-1]:
                raise Enough

        with torch.no_grad(), model.skipping(removed), ExitStack() as hooks:
            for index, block in enumerate(model.blocks):  # hooks run in the order in which they came: after skipping's
                hooks.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            with suppress(Enough):
                model.forward(batch)
        self.streams.append(model.stream_out(len(model) - 1, self.outputs[-1]))

    def without(self, cut: Cut) -> Tensor:
        """The logits without a cut as well, [batch, tokens, vocabulary]."""
        model = self.model
        with (
            torch.no_grad(),
            model.skipping(self.removed),
            model.cutting(cut),
            _giving(model.blocks[: cut.block], self.outputs),
        ):
            return model.forward(self.batch)

    def readout(self, boundary: int) -> Tensor:
        """What final norm and head make of a boundary, [batch, tokens, vocabulary]."""
        last = len(self.model) - 1
        end = self.model.with_stream(last, self.outputs[last], self.streams[boundary])
        with torch.no_grad(), _giving(self.model.blocks, [*self.outputs[:last], end]):
            return self.model.forward(self.batch)


def can_replay(model: TorchBlockSequence) -> bool:
    """Whether replays of a model are what skipping gives, block by block, on a few tokens."""
    return _equal(model, lambda replay: (replay.without(Cut(i)) for i in range(len(model))), _skipped)


def can_read_out(model: TorchBlockSequence) -> bool:
    """Whether the readout of the last boundary is the model's own logits, and those of the others can be had."""
    return _equal(
        model,
        lambda replay: (replay.readout(i) for i in range(len(model), -1, -1)),
        lambda model, batch: [model.logits(batch)],
    )


def _skipped(model: TorchBlockSequence, batch: TokenBatch) -> Iterator[Tensor]:
    for block in range(len(model)):
        with model.skipping((block,)):
            yield model.logits(batch)


def _equal(
    model: TorchBlockSequence,
    replayed: Callable[[Replay], Iterator[Tensor]],
    expected: Callable[[TorchBlockSequence, TokenBatch], Iterator[Tensor] | list[Tensor]],
) -> bool:
    """Whether the first replays of a probe are what is expected, and the others run."""
    from shortgpt.verification import probe

    ids = probe(model.vocab_size)[:, : min(PROBE_TOKENS, model.max_tokens or PROBE_TOKENS)]
    batch: TokenBatch = {"input_ids": ids.to(model.device)}
    wanted = list(expected(model, batch))
    try:
        found = list(replayed(Replay(model, batch)))
    except Exception:  # code of any kind runs here, in an order that it was not written for
        return False
    eps = 0.0 if model.device.type == "cpu" else 16 * torch.finfo(wanted[0].dtype).eps
    return all(
        bool((one - other).abs().max() <= eps * other.abs().max()) for one, other in zip(found, wanted, strict=False)
    )


@contextmanager
def _giving(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Inside it these blocks compute nothing and give these outputs."""

    def giver(output: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: output

    kept = [vars(block).get("forward") for block in blocks]
    try:
        for block, output in zip(blocks, outputs, strict=False):
            block.forward = giver(output)
        yield
    finally:
        for block, own in zip(blocks, kept, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own
