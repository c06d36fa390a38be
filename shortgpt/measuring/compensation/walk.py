"""The whole model's stream and the shorter one's over a text, from one removed run to the next.

::

    removed 2, 3, 7, 8, 9        front of the first run: block 1        front of the second: block 6

    whole      ─ 0 ─ 1 ─ 2 ─ 3 ─●─ 4 ─ 5 ─ 6 ─ 7 ─ 8 ─ 9 ─●      x behind each run
    shorter            ●─ 1' ─────── 4 ─ 5 ─●─ 6                 y and u in front of it; 1' is block 1 changed

What lies before a dot is not computed again for the next run. The streams at one boundary of each model are kept for
all of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.projections import Addition, Change, Projection
    from shortgpt.models.sequence import BlockSequence, TokenBatch


class Passes:
    """Passes over a text that go on where the ones before them were held.

    Attributes:
        held: for each batch, a boundary, and what is held there; None for nothing.
    """

    def __init__(self, model: BlockSequence, data: Calibration) -> None:
        self.model, self.batches = model, data.batches
        self.held: list[tuple[int, Tensor | None]] = [(0, None)] * len(data.batches)

    @contextmanager
    def over(self, number: int, *boundaries: int) -> Iterator[Mapping[int, Tensor]]:
        """Inside it a pass over the batch of that number, which is held at boundaries; the next one goes on from the
        last of them."""
        inner = [boundary for boundary in boundaries if 0 < boundary < len(self.model)]
        with self.model.resuming(*self.held[number]), self.model.holding(inner) as held:
            yield held
        self.keep(number, boundaries[-1], held)

    def keep(self, number: int, boundary: int, held: Mapping[int, Tensor]) -> None:
        """Have the next pass over a batch go on at a boundary, where something is held there."""
        stream = held.get(boundary)
        if stream is not None and len(stream) == len(self.batches[number]["input_ids"]):  # it may be taken in parts
            self.held[number] = (boundary, stream)


class Walk:
    """Both models' passes over the text that is fitted."""

    def __init__(self, model: BlockSequence, data: Calibration) -> None:
        self.model = model
        self.whole, self.shorter = Passes(model, data), Passes(model, data)

    def past(
        self, run: Sequence[int], projection: Projection, earlier: Sequence[int], changes: Sequence[Change]
    ) -> Iterator[tuple[TokenBatch, Addition, Tensor]]:
        """Of each batch what the block in front of a run adds to the shorter model's stream, and the whole model's
        stream behind the run.

        Args:
            earlier: the blocks of earlier runs.
            changes: that make up for them.
        """
        front, end = run[0] - 1, run[-1] + 1
        for number, batch in enumerate(self.whole.batches):
            with self.whole.over(number, front, end) as held:
                stream = stream_at(self.model, batch, end)
            if not earlier:  # so far both are the same
                self.shorter.keep(number, front, held)
            with self.model.changing(changes), self.model.skipping(earlier), self.shorter.over(number, front):
                addition = self.model.addition(batch, projection, earlier)
            yield batch, addition, stream


class _Reached(Exception):
    """Ends a pass at a boundary. Never leaves `stream_at`."""


def stream_at(model: BlockSequence, batch: TokenBatch, last: int) -> Tensor:
    """The stream at a boundary, [batch, tokens, width]; the pass ends there."""
    found: list[Any] = []

    def see(boundary: int, hidden: Tensor) -> None:
        if boundary == last:
            found.append(hidden.detach().clone())
            raise _Reached

    with suppress(_Reached):
        model.trace(batch, see)
    return found[0]
