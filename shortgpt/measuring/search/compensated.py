"""Of the best sets, the one that is best when what its removal did is made up for.

::

    sequences ─┬─ three quarters ─▶ maps fitted for each of the best few sets ─┐
               └─ the others ────────────────────────────────▶ objective ◀─────┘

Which set is best before compensation is not always best after it. Maps are many numbers, so the text that they were
fitted to says little of what they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from shortgpt.measuring.compensation.fit import fit, split
from shortgpt.measuring.search.resuming import Kept
from shortgpt.values.choosing.search import Candidate, Search, Sums, best_set

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.measuring.search.measurements import Measurements
    from shortgpt.measuring.search.space import Blocks
    from shortgpt.models.projections import Projection

FINALISTS = 4
"""How many of the best sets are compensated."""
VARIANT = "compensated"
"""What a journal calls these measurements."""


def best_compensated(
    found: Search,
    measurements: Measurements,
    besides: Iterable[Blocks] = (),
    refuse: Callable[[Projection], str | None] | None = None,
    progress: Progress | None = None,
) -> Search:
    """A search whose choice is the best of its `FINALISTS` best sets when each is compensated.

    Args:
        besides: sets that may go and are compensated, too.
        refuse: why a projection cannot be changed for another reason than the model's own; None where it can.
        progress: called with "compensated" after each of them.

    Raises:
        CalibrationError: there is one sequence only.
    """
    fitted_on, judged_on = split(measurements.data)
    known = {one.blocks for one in found.candidates}
    others = measurements.of([blocks for blocks in besides if blocks not in known])
    entrants = [*found.candidates, *(Candidate(blocks, sums.mean) for blocks, sums in others.items())]
    taken = [*entrants[:FINALISTS], *(one for one in entrants[FINALISTS:] if one.blocks in {*besides})]
    finalists = [one.blocks for one in taken if math.isfinite(one.value)]
    sums: dict[Blocks, Sums] = {}
    for blocks in finalists:
        sums[blocks] = _compensated(blocks, measurements, fitted_on, judged_on, refuse)
        if progress is not None:
            progress(VARIANT, len(sums), len(finalists))
    best, choice = best_set(sums, found.method, judged_on.documents)
    candidates = [replace(one, compensated=sums[one.blocks].mean if one.blocks in sums else None) for one in entrants]
    candidates.sort(key=lambda one: (one.blocks != best, one.value))
    return replace(
        found,
        blocks=best,
        choice=choice,
        candidates=tuple(candidates),
        measured=found.measured + len(others),
        evaluations=measurements.evaluations,
        passes=measurements.passes,
    )


def _compensated(
    blocks: Blocks,
    measurements: Measurements,
    fitted_on: Calibration,
    judged_on: Calibration,
    refuse: Callable[[Projection], str | None] | None,
) -> Sums:
    """The objective of a compensated removal on the text that was not fitted; from the journal where it is known."""
    model, objective, journal = measurements.model, measurements.objective, measurements.journal
    kept = Kept(journal, VARIANT)
    for known, _, (values, predictions) in kept.rows():
        if known == blocks:
            return Sums(tuple(values), tuple(predictions))
    fitted = fit(model, blocks, fitted_on, judged_on, refuse=refuse or (lambda projection: None))
    sums: list[float] = []
    counts: list[int] = []
    for _, part in measurements.parts_of(judged_on):
        whole = model.logits(part).clone() if objective.needs_whole else None
        with fitted.on(model):
            (logits,) = model.logits_without(part, [blocks])
            values, predictions = objective.sums(logits, whole, part)
        sums += [value if math.isfinite(value) else math.inf for value in values]
        counts += predictions
    kept.add(blocks, 0, sums, counts)
    return Sums(tuple(sums), tuple(counts))
