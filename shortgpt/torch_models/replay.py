"""Passes that hand out again what a block gave before, so that blocks before a cut are computed once.

::

    recorded      embed ─ b0 ─ b1 ─ b2 ─ b3                      each block's output is kept
    without b1    embed ─ ·  ─ ╳  ─ b2 ─ b3 ─ norm ─ head        b0 gives what it gave; b1 is passed by
    read at 2     embed ─ ·  ─ ·  ─ ·  ─ ▸2 ─ norm ─ head        the last block gives boundary 2

What is drawn as a dot, a cross or an arrow is not computed. Sets of blocks, one after another, also share what comes
before the first block in which a set differs from the one before it: in the order of a depth-first walk
every distinct beginning is computed once. The model's own forward makes masks, positions, norm and
head, so nothing of it need be known but the blocks. A block that hands something on beside its output (keys and values
to be read by later blocks, say) would be missed: therefore `Replay` is believed for a model only after all its replays
equalled plain skipping on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shortgpt.models.probing.logit_comparison import EXACT, SAME_PROCESS, compare_logits
from shortgpt.models.sequence import Cut

if TYPE_CHECKING:
    from shortgpt.models.sequence import TokenBatch
    from shortgpt.torch_models.interface import TorchModel

PROBE_TOKENS = 12


class PassEnded(Exception):
    """Ends a pass behind the last block. Never leaves this package."""


class Replay:
    """A pass over one batch without the blocks `removed`, and the blocks' outputs in it.

    Args:
        batch: on the model's device.
    """

    def __init__(self, model: TorchModel, batch: TokenBatch, removed: Sequence[int] = ()) -> None:
        self.model, self.batch, self.removed = model, batch, removed
        self.streams: list[Tensor] = []
        self.outputs: list[Any] = []

        def before(index: int) -> Callable[..., None]:
            return lambda module, args, kwargs: self.streams.append(model.stream(index, args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs.append(output)
            if module is model.blocks[-1]:
                raise PassEnded

        with torch.no_grad(), model.skipping(removed), ExitStack() as hooks:
            for index, block in enumerate(model.blocks):  # hooks run in the order in which they came: after skipping's
                hooks.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            with suppress(PassEnded):
                model.forward(batch)
        self.streams.append(model.stream_out(len(model) - 1, self.outputs[-1]))
        self.latest, self.latest_gone = list(self.outputs), frozenset(removed)

    def without(self, cut: Cut) -> Tensor:
        """The logits without a cut as well, [batch, tokens, vocabulary]."""
        model = self.model
        left_out = {*range(cut.block), *self.removed, *([cut.block] if cut.part is None else [])}
        given = {block: self.outputs[block] for block in left_out}
        with torch.no_grad(), model.skipping(self.removed), model.cutting(cut), giving(self.model, given):
            return model.forward(self.batch)

    def without_blocks(self, blocks: Iterable[int]) -> Tensor:
        """The logits without these blocks as well, [batch, tokens, vocabulary]."""
        gone = frozenset(blocks).union(self.removed)
        shared = first_difference(gone, self.latest_gone, len(self.model))
        recorded = first_difference(gone, frozenset(self.removed), len(self.model))
        if recorded >= shared:
            shared, self.latest = recorded, list(self.outputs)
        self.latest_gone = frozenset()  # holds nothing that may be shared, should the pass fail
        given = {block: self.latest[block] for block in range(shared)}
        given |= {block: self.outputs[block] for block in gone}  # they are passed by; nothing of their stream is read

        def keep(index: int) -> Callable[..., None]:
            return lambda module, args, output: self.latest.__setitem__(index, output)

        with torch.no_grad(), self.model.skipping(gone), giving(self.model, given), ExitStack() as hooks:
            for index in range(shared, len(self.model)):
                if index not in gone:
                    hooks.callback(self.model.blocks[index].register_forward_hook(keep(index)).remove)
            logits = self.model.forward(self.batch)
        self.latest_gone = gone
        return logits

    def readout(self, boundary: int) -> Tensor:
        """What final norm and head make of a boundary, [batch, tokens, vocabulary]."""
        last = len(self.model) - 1
        given = dict(enumerate(self.outputs))
        given[last] = self.model.with_stream(last, self.outputs[last], self.streams[boundary])
        with torch.no_grad(), giving(self.model, given):
            return self.model.forward(self.batch)


@contextmanager
def giving(model: TorchModel, outputs: Mapping[int, Any]) -> Iterator[None]:
    """Inside it these blocks compute nothing and give these outputs.

    Hooks on them run as ever, so a block that is skipped is passed by what it is given.
    """

    def giver(output: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: output

    with ExitStack() as undo:
        for index, output in outputs.items():
            block = model.blocks[index]
            undo.callback(_restore, block, vars(block).get("forward"))
            block.forward = giver(output)
        yield


def first_difference(one: Collection[int], other: Collection[int], depth: int) -> int:
    """The first block that is in one of two sets only; `depth` where they are equal."""
    return min({*one} ^ {*other}, default=depth)


def blocks_run(sets: Iterable[Collection[int]], depth: int) -> int:
    """How many blocks are computed where a `Replay` leaves out each of these sets in turn, with the recorded pass."""
    count, before = depth, frozenset[int]()
    for blocks in sets:
        gone = frozenset(blocks)
        shared = max(first_difference(gone, before, depth), first_difference(gone, (), depth))
        count += sum(block not in gone for block in range(shared, depth))
        before = gone
    return count


def can_replay(model: TorchModel) -> bool:
    """Whether replays of a model are what skipping gives, on a few tokens: for each block, for every second one while
    those between them are gone, and for sets that begin as the one before."""
    return all(_is_skipping(model, removed) for removed in ((), range(1, len(model), 2))) and _is_shared(model)


def _is_shared(model: TorchModel) -> bool:
    """Whether sets that grow by every second block, each of which begins as the one before, are plain skipping."""
    batch = probe_batch(model)
    sets = [range(1, end, 2) for end in range(2, len(model) + 1, 2)]
    expected = []
    try:
        for blocks in sets:
            with model.skipping(blocks):
                expected.append(model.logits(batch)[:, -1].clone())
        replay = Replay(model, batch)
        found = [replay.without_blocks(blocks)[:, -1].clone() for blocks in sets]
    except Exception:  # as below
        return False
    return all(map(equal_logits, found, expected))


def _is_skipping(model: TorchModel, removed: Sequence[int]) -> bool:
    batch = probe_batch(model)
    blocks = [block for block in range(len(model)) if block not in removed]
    expected = []
    try:
        for block in blocks:
            with model.skipping((*removed, block)):
                expected.append(model.logits(batch)[:, -1].clone())
        # Not before all of these: what a block leaves lying somewhere must not be that of the same pass.
        replay = Replay(model, batch, removed)
        replayed = [replay.without(Cut(block))[:, -1].clone() for block in blocks]
    except Exception:  # code of any kind runs here, without blocks and in an order that it was not written for
        return False
    return all(map(equal_logits, replayed, expected))


def can_read_out(model: TorchModel) -> bool:
    """Whether the readout of the last boundary is the model's own logits, and those of the others can be had."""
    batch = probe_batch(model)
    expected = model.logits(batch)
    try:
        replay = Replay(model, batch)
        shapes = {replay.readout(boundary).shape for boundary in range(len(model))}
        read_out = replay.readout(len(model))
    except Exception:  # as above
        return False
    return shapes == {expected.shape} and equal_logits(read_out, expected)


def probe_batch(model: TorchModel) -> TokenBatch:
    """A few tokens on the model's device."""
    from shortgpt.models.probing.probes import probe

    ids = probe(model.vocab_size)[:, : min(PROBE_TOKENS, model.max_tokens or PROBE_TOKENS)]
    return {"input_ids": ids.to(model.device)}


def equal_logits(found: Tensor, expected: Tensor) -> bool:
    """Whether two passes of one model gave the same."""
    return compare_logits(found, expected, EXACT if expected.device.type == "cpu" else SAME_PROCESS).equal


def _restore(block: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Give a block the `forward` back that was set on itself; where there was none, its class's shows again."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward
