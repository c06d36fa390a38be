"""The changes that make up for a removal, fitted run by run.

::

    removed 2, 3, 7, 8, 9    ──▶ runs {2, 3} and {7, 8, 9}, in order of depth

    whole model ──────────────────────────▶ x behind the run          ┐
    without the earlier runs, changed ────▶ y before it, u inside it  ┴─▶ normal equations ─▶ ridge, scale ─▶ change
                                                                            held-out text says which, or none

What a change is worth is judged by the log-perplexity of the whole shorter model, on text that was not fitted. It is
kept where the gain is more than its standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shortgpt.basics import statistics
from shortgpt.basics.block_lists import block_numbers
from shortgpt.errors import CalibrationError
from shortgpt.measuring.calibration import Calibration
from shortgpt.measuring.compensation.fitted import Fitted
from shortgpt.measuring.compensation.normal_equations import NormalEquations, Solution
from shortgpt.measuring.compensation.walk import Passes, Walk, stream_at
from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, Quality, evaluate, open_evaluator
from shortgpt.models.projections import Change, Projection
from shortgpt.values.compensation import Compensation, RunFit

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.models.sequence import BlockSequence

RIDGES = (0.01, 0.1, 0.001)
SCALES = (1.0, 0.5)
"""What is tried: the ridges at the full scale, in this order, and then the other scales with the best of them."""

Refuse = Callable[[Projection], "str | None"]
"""Why a projection cannot be changed for another reason, as in a checkpoint's files; None where it can."""


def fit(
    model: BlockSequence,
    blocks: Iterable[int],
    data: Calibration,
    chosen_on: Calibration | None = None,
    *,
    refuse: Refuse = lambda projection: None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit what makes up for a removal. The model is left as it was.

    Args:
        blocks: what is removed.
        data: the text to fit on.
        chosen_on: the text that ridge and scale are chosen on, and whether a change is kept. Without it a quarter of
            the sequences of `data`, which are then not fitted.
        progress: called with "runs" after each of them.

    Raises:
        CalibrationError: there is one sequence only, and no text to choose on.
        HiddenStateError: the shorter model gives NaN or infinity.
    """
    gone = block_numbers(blocks, len(model))
    if chosen_on is None:
        data, chosen_on = split(data)
    fitting = _Fitting(model, gone, data, chosen_on, refuse)
    runs = runs_of(gone)
    for number, run in enumerate(runs, start=1):
        fitting.add(run)
        if progress is not None:
            progress("runs", number, len(runs))
    return fitting.fitted()


def worth_it(gain: float, stderr: float) -> bool:
    """Whether a change is kept: it lowers log-perplexity by more than the standard error of that. Of a single sequence
    there is none, NaN."""
    return gain > 0 and not gain <= stderr


def runs_of(blocks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Neighbouring blocks together, in order of depth."""
    runs: list[tuple[int, ...]] = []
    for block in sorted(blocks):
        if runs and runs[-1][-1] == block - 1:
            runs[-1] = (*runs[-1], block)
        else:
            runs.append((block,))
    return tuple(runs)


def split(data: Calibration) -> tuple[Calibration, Calibration]:
    """Three quarters of the sequences, and the last quarter, one at least; they may be of one document.

    Raises:
        CalibrationError: there is one sequence only.
    """
    total = sum(len(batch["input_ids"]) for batch in data.batches)
    if total < 2:
        raise CalibrationError(
            "compensation is fitted on some sequences and chosen on others, found one; give two or more"
        )
    first = total - max(1, total // 4)
    return part_of(data, 0, first), part_of(data, first, total)


def part_of(data: Calibration, begin: int, end: int) -> Calibration:
    """Some of the sequences."""
    from shortgpt.measuring.batch_parts import rows_of

    batches, at = [], 0
    for batch in data.batches:
        size = len(batch["input_ids"])
        first, last = max(begin - at, 0), min(end - at, size)
        if first < last:
            batches.append(rows_of(batch, first, last - first))
        at += size
    documents = data.documents[begin:end]
    info = replace(data.info, sequences=end - begin, documents=len({*documents}) or None)
    return Calibration(tuple(batches), info, documents)


class _Fitting:
    """Runs so far, and what they left of the model's stream."""

    def __init__(
        self, model: BlockSequence, gone: tuple[int, ...], data: Calibration, chosen_on: Calibration, refuse: Refuse
    ) -> None:
        self.model, self.gone, self.data, self.chosen_on, self.refuse = model, gone, data, chosen_on, refuse
        self.walk, self.choosing = Walk(model, data), Passes(model, chosen_on)
        self.evaluator = open_evaluator(DEFAULT_EVALUATOR)
        self.changes: list[Change] = []
        self.runs: list[RunFit] = []
        self.quality: Quality | None = None

    def fitted(self) -> Fitted:
        record = Compensation(tuple(self.runs), self.data.info, self.chosen_on.info)
        return Fitted(self.gone, tuple(self.changes), record)

    def add(self, run: tuple[int, ...]) -> None:
        """Fit the next run."""
        if run[0] == 0:
            self.runs.append(RunFit(run, reason="the run begins at block 0, and no block stands in front of it"))
            return
        found = self.model.projection(run[0] - 1, self.data.batches[0])
        reason = found if isinstance(found, str) else self.refuse(found)
        if reason is not None or isinstance(found, str):
            self.runs.append(RunFit(run, run[0] - 1, reason=reason))
            return
        equations = self._equations(run, found)
        self._walk_to(run[0] - 1)
        self._choose(run, found, equations)

    def _equations(self, run: tuple[int, ...], projection: Projection) -> NormalEquations:
        """The sums over all tokens."""
        earlier = [block for block in self.gone if block < run[0]]
        equations: NormalEquations | None = None
        for batch, addition, whole in self.walk.past(run, projection, earlier, self.changes):
            if equations is None:
                equations = NormalEquations(projection, addition.behind.device)
            equations.add(addition, whole, batch.get("attention_mask"))
        assert equations is not None
        return equations

    def _choose(self, run: tuple[int, ...], projection: Projection, equations: NormalEquations) -> None:
        """Take the ridge and scale of least log-perplexity, or no change."""
        before = self.quality or self._quality(())
        solutions: dict[float, Solution] = {}
        tried: dict[tuple[float, float], Quality] = {}

        def attempt(ridge: float, scale: float) -> None:
            if ridge not in solutions:
                solutions.clear()  # one at a time is held
                solution = equations.solve(ridge)
                if solution is None:
                    return
                solutions[ridge] = solution
            tried[ridge, scale] = self._quality((solutions[ridge].change(scale),))

        for ridge in RIDGES:
            attempt(ridge, SCALES[0])
        about = RunFit(
            run,
            run[0] - 1,
            projection.form,
            tuple(projection.tensors),
            error_before=equations.error,
            before=before.mean,
        )
        self.quality = before
        if not tried:
            self.runs.append(replace(about, reason="its projection adds nothing on this text"))
            return
        best = min(tried, key=lambda pair: tried[pair].mean)
        for scale in SCALES[1:]:
            attempt(best[0], scale)
        ridge, scale = min(tried, key=lambda pair: tried[pair].mean)
        after = tried[ridge, scale]
        gain, stderr = statistics.difference(after.sums, before.sums, after.counts, self.chosen_on.documents)
        solution = solutions.get(ridge) or equations.solve(ridge)
        assert solution is not None
        about = replace(
            about,
            ridge=ridge,
            scale=scale,
            error_after=solution.error(scale),
            after=after.mean,
            gain_stderr=stderr,
            reason=projection.reason,
        )
        if worth_it(gain, stderr):
            change = solution.change(scale)
            self.changes.append(change)
            self.quality = after
            self.runs.append(replace(about, kept=True, hash=change.hash))
        else:
            told = f"the best change moves log-perplexity on held-out text by {-gain:+.3g} ± {stderr:.2g}"
            self.runs.append(replace(about, reason=told))

    def _walk_to(self, front: int) -> None:
        """Take the shorter model's passes over the text that chooses up to a block: all that is tried shares them."""
        for number, batch in enumerate(self.chosen_on.batches):
            with (
                self.model.changing(self.changes),
                self.model.skipping(self.gone),
                self.choosing.over(number, front),
            ):
                stream_at(self.model, batch, front)

    def _quality(self, more: Sequence[Change]) -> Quality:
        """The shorter model's on the text that chooses, with the changes so far and more."""
        with self.model.changing((*self.changes, *more)):
            return evaluate(self.model, self.chosen_on, self.evaluator, self.gone, held=self.choosing.held)
