"""The sums that a pass takes at the boundaries of one batch.

::

    boundary i     ─┐                        ┌─ the criteria that norms tell ─┐
                    ├─▶ norms, a token each ─┤                                ├─▶ float64 sums [sequence, block]
    boundary i + 1 ─┤                        └─ what was not finite, or zero ─┤
                    └─▶ float64 chunks ─────── any other criterion ───────────┘

One boundary is held at a time, with the norms of its tokens, which serve the block before it and the block after it;
wider than it is, there is never more of the stream than a chunk. On CUDA the norms come out of one kernel, without a
copy; a CPU takes them in float64, and of a stream in half precision in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import repeat
from typing import TYPE_CHECKING

from shortgpt.errors import AdapterError
from shortgpt.measuring.criteria import Criterion, StepCriterion
from shortgpt.measuring.scoring.batch_sums import BatchSums
from shortgpt.measuring.scoring.pairs import Pairs, version
from shortgpt.measuring.step import Step
from shortgpt.models.memory import is_lack_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.scoring.requested import RequestedCriterion
    from shortgpt.models.sequence import BlockSequence, TokenBatch

BLOCKS = 8
"""For how many blocks what is known of each token is kept before it is summed: of 8, some 20 float64 numbers, it is
small beside a boundary, and there are a few large sums in place of many small ones."""


class Workspace:
    """Memory in a wide float for chunks of the stream: one for all batches, for they look in turn."""

    held: Tensor | None = None

    def of(self, like: Tensor, *shape: int) -> Tensor:
        """Of the dtype and on the device of `like`."""
        held, size = self.held, 1
        for length in shape:
            size *= length
        if held is None or (held.device, held.dtype) != (like.device, like.dtype) or held.numel() < size:
            held = self.held = like.new_empty(size)
        return held[:size].view(shape)


class BatchTap:
    """The sums of one batch, taken by its `tap` as the boundaries come by.

    Args:
        requested: the criteria; of those that look at no stream nothing is taken here.
        spans: the one to be measured between all pairs of boundaries too.
    """

    def __init__(
        self,
        model: BlockSequence,
        requested: Sequence[RequestedCriterion],
        spans: RequestedCriterion | None,
        report: Progress,
        workspace: Workspace,
        batch: TokenBatch,
    ) -> None:
        import torch

        self.model, self.spans, self.report, self.workspace = model, spans, report, workspace
        looking = [(one, one.criterion) for one in requested if isinstance(one.criterion, Criterion)]
        self.every = [one for one, criterion in looking if criterion.tokens == "all"]
        self.at_last = [one for one, criterion in looking if criterion.tokens == "last"]
        mask = batch.get("attention_mask")
        self.shape = batch["input_ids"].shape
        real = torch.ones(self.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
        self.lengths: list[int] = real.sum(1).tolist()
        self.count = sum(self.lengths)
        # The mask selects and never multiplies: whatever the padding holds, NaN too, is not looked at.
        self.chosen = None if bool(real.all()) else real.flatten().nonzero().squeeze(1)
        self.ends = torch.tensor(self.lengths).cumsum(0) - 1
        self.held: Tensor | None = None
        self.version = 0
        self.pairs: Pairs | None = None
        self.due = 0  # the boundary that comes next
        self.full = 0  # blocks that are not summed yet

    def tap(self, boundary: int, hidden: Tensor) -> None:
        if boundary != self.due:
            raise AdapterError(self._crossed(f"boundary {boundary} came where {self.due} was due"))
        if boundary == 0:
            self._begin(hidden)
        hidden = hidden.to(self.norms.device)  # a model may be spread over several devices
        if hidden.shape[:2] != self.shape:
            raise AdapterError(
                f"{self.model.name}: boundary {boundary} has the shape {tuple(hidden.shape)}, but the batch has "
                f"{tuple(self.shape)} tokens; a boundary is [batch, tokens, width]"
            )
        if self.held is not None and version(self.held) != self.version:
            raise AdapterError(f"{self.model.block_names[boundary - 1]} wrote into the stream that it was given")
        self._look(hidden)
        if self.others_at_last:
            self._look_at_last(boundary - 1, hidden)
        if self.pairs is not None:
            self.pairs.keep(hidden)
        if boundary > 0:
            self.full += 1
            if self.full == BLOCKS or boundary == len(self.model):
                self._sum_up(boundary - self.full)
            self.report("blocks", boundary, len(self.model))
        self.held, self.version = hidden, version(hidden)
        self.dtype = str(hidden.dtype).removeprefix("torch.")  # in the end the last boundary's, the widest
        self.due += 1

    def result(self, number: int) -> BatchSums:
        """What it came to. The last boundary is let go."""
        if self.due != len(self.model) + 1:
            raise AdapterError(self._crossed(f"it ended before boundary {self.due}"))
        self.held = None
        every = len(self.every)
        sums = {one.name: self.rows[..., k] for k, one in enumerate(self.every)}
        sums |= {one.name: self.last_rows[..., k] for k, one in enumerate(self.at_last)}
        counts = {one.name: self.lengths for one in self.every}
        counts |= {one.name: [1] * len(self.lengths) for one in self.at_last}
        spans = None
        if self.pairs is not None and self.spans is not None:
            spans = self.pairs.sums(sums[self.spans.name])
        norms, broken = self.rows[..., every : every + 2], self.rows[..., every + 2 :]
        return BatchSums(number, sums, counts, norms, broken, self.lengths, self.dtype, spans)

    def _crossed(self, found: str) -> str:
        return (
            f"{self.model.name}: a pass must cross the boundaries 0 to {len(self.model)} once each and in order, but "
            f"{found}"
        )

    def _begin(self, hidden: Tensor) -> None:
        import torch

        from shortgpt.measuring.angles import precise, tokens_at_a_time

        self.wide = precise(hidden[:0])
        # Of a half precision float32 has enough, and costs a CPU half as much; in it turns tell angles, updates do not.
        half = hidden.device.type == "cpu" and hidden.dtype.itemsize == 2
        known = self.wide.float() if half else self.wide
        self.by_turns = known.dtype == torch.float32
        self.chunk = max(1, min(tokens_at_a_time(hidden, known.dtype), self.count))
        # Sums are float64, on the CPU where the device has none.
        home = hidden.device if self.wide.dtype == torch.float64 else torch.device("cpu")
        if self.chosen is not None:
            self.chosen = self.chosen.to(hidden.device)
        self.places = (self.ends if self.chosen is None else self.chosen.cpu()[self.ends]).to(hidden.device)
        self.ends = self.ends.to(home)
        self.others = [one for one in self.every if not isinstance(one.criterion, StepCriterion)]
        self.others_at_last = [one for one in self.at_last if not isinstance(one.criterion, StepCriterion)]
        depth = min(BLOCKS, len(self.model))
        self.norms = known.new_empty(depth + 1, self.count)
        self.moved = known.new_empty(depth, self.count)
        self.values = {one.name: self.wide.new_empty(depth, self.count) for one in self.others}
        shape = (len(self.lengths), len(self.model))
        self.rows = torch.zeros(*shape, len(self.every) + 4, dtype=torch.float64, device=home)
        self.last_rows = self.rows.new_zeros(*shape, len(self.at_last))
        self.kernel = _kernel_for(hidden)
        if self.spans is not None:
            only_last = self.spans in self.at_last
            lengths, places = ([1] * shape[0], self.places) if only_last else (self.lengths, self.chosen)
            self.pairs = Pairs(self.spans, lengths, places)

    def _look(self, hidden: Tensor) -> None:
        """Take the norms of a boundary; and where a boundary came before it, what is known of the block between."""
        from shortgpt.measuring.angles import squares_fit

        slot = self.full
        norms = slot if self.held is None else slot + 1
        if self.kernel is not None:
            self.kernel(self.held, hidden, self.chosen, self.norms[norms], self.moved[slot])
        else:
            self._take_norms(hidden, norms)
            enough = self.norms.dtype == self.wide.dtype or (
                hidden.dtype.itemsize == 2 and squares_fit(self.norms[norms])
            )
            if not enough:  # from here on in float64
                self.norms, self.moved = self._known(len(self.moved))
                self.by_turns = False
                self._take_norms(hidden, norms)
        if self.others and self.held is not None:
            begin = 0
            for pieces in zip(self._pieces(self.held), self._pieces(hidden), strict=True):
                before, after = (piece.to(self.wide, copy=True) for piece in pieces)
                here = slice(begin, begin := begin + len(after))
                for one in self.others:
                    self.values[one.name][slot, here] = one.values(before, after)

    def _take_norms(self, hidden: Tensor, norms: int) -> None:
        """Those of a boundary, at `norms`, and of what leads to it; a piece at a time."""
        from shortgpt.measuring.angles import norm, turn_

        before_wide, after_wide = self.workspace.of(self.norms, 2, self.chunk, hidden.shape[-1])
        tables = (self.norms[self.full], self.norms[norms], self.moved[self.full])
        known = zip(*(table.split(self.chunk) for table in tables), strict=True)
        held = repeat(None) if self.held is None else self._pieces(self.held)
        for (before_norms, after_norms, moved), now, then in zip(known, self._pieces(hidden), held, strict=False):
            after = after_wide[: len(now)].copy_(now)
            norm(after, out=after_norms)
            if then is None:
                continue
            before = before_wide[: len(now)].copy_(then)
            if self.by_turns:
                turn_(after, before, after_norms, before_norms)
            else:
                after.sub_(before)
            norm(after, out=moved)

    def _pieces(self, boundary: Tensor) -> Iterable[Tensor]:
        """The real tokens of a boundary, some at a time, [tokens, width]."""
        flat = boundary.flatten(0, 1)
        if self.chosen is None:
            return flat.split(self.chunk)
        return (flat[places] for places in self.chosen.split(self.chunk))

    def _look_at_last(self, block: int, hidden: Tensor) -> None:
        """The values of criteria that look at the last token of each sequence only."""
        from shortgpt.measuring.angles import precise

        if self.held is None:
            return
        before, after = (precise(part.flatten(0, 1)[self.places]) for part in (self.held, hidden))
        for one in self.others_at_last:
            self.last_rows[:, block, self.at_last.index(one)] = one.values(before, after).to(self.last_rows)

    def _known(self, blocks: int) -> tuple[Tensor, Tensor]:
        """The norms of the boundaries around some blocks, and of what those blocks add, float64."""
        from shortgpt.measuring.angles import update_of

        norms, moved = self.norms[: blocks + 1].to(self.rows), self.moved[:blocks].to(self.rows)
        return norms, update_of(norms[:-1], norms[1:], moved) if self.by_turns else moved

    def _sum_up(self, first: int) -> None:
        """Sum what is known of the tokens at the last blocks, `first` and those after it, by sequence."""
        import torch

        from shortgpt.measuring.angles import distance_of

        count = self.full
        blocks = slice(first, first + count)
        norms, update = self._known(count)
        before, after = norms[:-1], norms[1:]
        step = Step(before, after, update, distance_of(before, after, update))
        flat = Step(*(part.flatten() for part in step))
        values = [
            self.values[one.name][:count].to(norms) if one in self.others else one.of_step(flat).view(count, -1)
            for one in self.every
        ]
        infinite = ~(before.isfinite() & after.isfinite())
        zero = (before == 0) | (after == 0)
        table = torch.stack([*values, before, update, infinite.to(norms), zero.to(norms)], -2)
        sums = [part.sum(-1) for part in table.split(self.lengths, -1)]
        self.rows[:, blocks] = torch.stack(sums)
        for k, one in enumerate(self.at_last):
            if one not in self.others_at_last:
                ends = Step(*(part[:, self.ends].flatten() for part in step))
                self.last_rows[:, blocks, k] = one.of_step(ends).view(count, -1).T
        self.norms[0] = self.norms[count]
        self.full = 0


Kernel = Callable[["Tensor | None", "Tensor", "Tensor | None", "Tensor", "Tensor"], None]


def _kernel_for(hidden: Tensor) -> Kernel | None:
    """What takes all norms of a boundary at once, where there is such a thing."""
    if hidden.device.type != "cuda" or find_spec("triton") is None:
        return None
    return _working_kernel(hidden.device)


@cache
def _working_kernel(device: torch.device) -> Kernel | None:
    """The kernel, where it runs: Triton needs a C compiler and Python's headers, and does not know every device."""
    import torch

    try:
        from shortgpt.measuring.scoring.kernel import norms_of

        norms_of(None, torch.ones(1, 1, 1, device=device), None, *torch.zeros(2, 1, device=device, dtype=torch.float64))
        torch.zeros(1, device=device).item()  # waits for it
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        warnings.warn(f"Triton cannot run here, so scoring goes without it, slower ({reason})", stacklevel=2)
        return None
    return norms_of
