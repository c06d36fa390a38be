"""The objective without sets of blocks: each measured once, counted, and kept.

Sets are taken in the order of a depth-first walk through what they begin with, so that the model computes every
beginning that several share once (`BlockSequence.logits_without`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shortgpt.errors import CalibrationError, HiddenStateError
from shortgpt.measuring.batch_parts import parts_of, rows_of
from shortgpt.measuring.search.resuming import Kept
from shortgpt.models.memory import is_lack_of_memory, keep_freed_memory, release_memory
from shortgpt.values.choosing.search import Sums

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.basics.journal import Journal
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.measuring.search.objective import Objective
    from shortgpt.measuring.search.space import Blocks
    from shortgpt.models.sequence import BlockSequence, TokenBatch

LOGITS = 1 << 25
"""As many are had at a time, 128 MiB of float32; of the whole model's there are as many again."""
Row = tuple[float, int]
"""The sum of a sequence, and the tokens that it is of."""


class Measurements:
    """What was measured of a model on a text.

    Args:
        journal: holds what an earlier run measured, and is told what this one does.

    Attributes:
        evaluations: how many sets were asked for, each once.
        passes: what these take, in passes of the whole model; whether they were measured now or stood in the journal.
    """

    def __init__(
        self,
        model: BlockSequence,
        data: Calibration,
        objective: Objective,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.model, self.data, self.objective, self.journal = model, data, objective, journal
        self.evaluations, self.passes = 0, 0.0
        self._progress, self._expected, self._asked = progress, 0, 0
        self._rows: dict[Blocks, dict[int, Row]] = {}
        self._known: dict[Blocks, Sums] = {}
        self._units = self.parts_of(data)
        self.sequences = sum(len(part["input_ids"]) for _, part in self._units)
        self._kept = Kept(journal)
        for blocks, first, (sums, counts) in self._kept.rows():
            self._take(blocks, first, sums, counts)
        keep_freed_memory()

    def parts_of(self, data: Calibration) -> list[tuple[int, TokenBatch]]:
        """The batches of a text in parts of no more than `LOGITS`, each with the number of its first sequence."""
        parts: list[tuple[int, TokenBatch]] = []
        first = 0
        for batch in data.batches:
            for part in parts_of(batch, max(1, LOGITS // batch["input_ids"].shape[1] // self.model.vocab_size)):
                parts.append((first, part))
                first += len(part["input_ids"])
        return parts

    def expect(self, sets: int) -> None:
        """Tell how many sets will be asked for from now on, at most, for the time that is left."""
        self._expected = self.evaluations + sets

    def whole(self) -> float:
        """The objective of the whole model.

        Raises:
            CalibrationError: no sequence has two tokens.
            HiddenStateError: it is NaN or infinite.
        """
        mean = self.of([()])[()].mean
        if not math.isfinite(mean):
            raise HiddenStateError(
                f"{self.model.name}: its logits give NaN or infinity; load the model in a wider dtype "
                "(--dtype bfloat16 or float32), or check its weights"
            )
        return mean

    def of(self, sets: Iterable[Sequence[int]]) -> dict[Blocks, Sums]:
        """The objective without each of these sets, in their order; infinite where that gives no number."""
        asked = [tuple(sorted(blocks)) for blocks in sets]
        depth = len(self.model)
        new = sorted({*asked} - self._known.keys(), key=lambda gone: [block in gone for block in range(depth)])
        if new:
            self.evaluations += len(new)
            self._expected = max(self._expected, self.evaluations)
            self.passes += self.model.blocks_run(new) / depth
            for first, part in self._units:
                self._measure(first, part, new)
            for blocks in new:
                self._known[blocks] = self._sums(blocks)
        return {blocks: self._known[blocks] for blocks in asked}

    def _measure(self, first: int, part: TokenBatch, sets: Sequence[Blocks]) -> None:
        """Measure what is not known of a part's sequences; in halves where they do not fit into memory."""
        total = len(part["input_ids"])
        places = range(first, first + total)
        missing = [blocks for blocks in sets if not all(place in self._rows.get(blocks, {}) for place in places)]
        self._tell(0 if missing else len(sets))
        if not missing:
            return
        try:
            self._run(first, part, missing)
        except RuntimeError as error:  # torch's OutOfMemoryError is one
            if total == 1 or not is_lack_of_memory(error):
                raise
        else:
            return
        release_memory()  # outside the `except`, whose error holds what the work held
        half = (total + 1) // 2
        self._measure(first, rows_of(part, 0, half), sets)
        self._measure(first + half, rows_of(part, half, total - half), sets)

    def _run(self, first: int, part: TokenBatch, sets: Sequence[Blocks]) -> None:
        needs_whole = self.objective.needs_whole
        logits = self.model.logits_without(part, [(), *sets] if needs_whole else sets)
        whole = next(logits).clone() if needs_whole else None
        for blocks, found in zip(sets, logits, strict=True):
            sums, counts = self.objective.sums(found, whole, part)
            sums = [value if math.isfinite(value) else math.inf for value in sums]
            self._take(blocks, first, sums, counts)
            self._kept.add(blocks, first, sums, counts)
            self._tell(1)

    def _take(self, blocks: Blocks, first: int, sums: Sequence[float], counts: Sequence[int]) -> None:
        rows = self._rows.setdefault(blocks, {})
        rows.update(enumerate(zip(sums, counts, strict=True), start=first))

    def _sums(self, blocks: Blocks) -> Sums:
        rows = self._rows[blocks]
        sums, counts = zip(*(rows[place] for place in range(self.sequences)), strict=True)
        if not sum(counts):
            raise CalibrationError("no sequence has two tokens, so there is nothing to predict; give longer texts")
        return Sums(sums, counts)

    def _tell(self, sets: int) -> None:
        """One or more sets of one part are done."""
        self._asked += sets
        if self._progress is not None and sets:
            total = self._expected * len(self._units)
            self._progress("sets", min(self._asked, total), total)
