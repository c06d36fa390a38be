"""The best set of blocks to remove, looked for by what the model does without it.

::

    text ─▶ objective without a set ─▶ exact | pairs | beam ─▶ the best measured set, and how sure that is

Scores of single blocks miss how blocks work together; a search measures sets. Blocks are skipped; nothing is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import MeasuringOptions, Progress, apart
from shortgpt.basics.progress import shown
from shortgpt.errors import SelectionError
from shortgpt.measuring.calibration import Calibration, calibrate
from shortgpt.measuring.search import methods
from shortgpt.measuring.search.compensated import best_compensated
from shortgpt.measuring.search.measurements import Measurements
from shortgpt.measuring.search.objective import open_objective
from shortgpt.measuring.search.resuming import FILE, journal_of
from shortgpt.measuring.search.space import NothingMayGo, Space
from shortgpt.models.loading import opened
from shortgpt.values.choosing.search import (
    BEAM,
    EVALUATIONS,
    EXACT,
    PAIRS,
    PERPLEXITY,
    SHOWN,
    WIDTH,
    Candidate,
    Search,
    SearchOptions,
    best_set,
)
from shortgpt.values.scores import KEPT, check_kept

if TYPE_CHECKING:
    from shortgpt.models.projections import Projection
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.values.choosing.budget import Bound
    from shortgpt.values.choosing.choice import Refuse
    from shortgpt.values.selection import Selection


def search(
    model: Any,
    blocks: int | None,
    calibration: Any = "stdlib",
    *,
    method: str = PAIRS,
    objective: str = PERPLEXITY,
    evaluations: int = EVALUATIONS,
    width: int = WIDTH,
    keep: Iterable[int] = (),
    contiguous: bool = False,
    refuse: Refuse | None = None,
    compensate: bool = False,
    besides: Iterable[Iterable[int]] = (),
    bounds: Sequence[Bound] = (),
    refuse_change: Callable[[Projection], str | None] | None = None,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Search:
    """Look for the set of so many blocks that a model misses least.

    What is best on the calibration looks better there than it is elsewhere, the more so the more sets were measured:
    judge it on other text (`shortgpt.effect`).

    Args:
        model, calibration, options: as for `shortgpt.score`.
        blocks: how many go; None where bounds say how much must.
        method: "exact" measures every set; "pairs" all single blocks and pairs, and then the sets that these say are
            best; "beam" the `width` best sets of one block more, step by step.
        objective: "perplexity", or "kl", the divergence of the next token's distribution from the whole model's, which
            is as sure with fewer tokens (docs/searching.md).
        evaluations: how many sets may be measured; a search that may take more does not begin.
        width: of the beam.
        keep: blocks that stay, besides those that the model pins.
        contiguous: only neighbouring blocks go.
        refuse: why a set cannot be removed, None where it can. Default: what the model's family says.
        compensate: take of the best few sets the one that is best when what it did is made up for
            (`shortgpt.compensate`); fitted to three quarters of the sequences, and measured on the others.
        besides: sets that may go and are compensated beside the best few: compensation can make more of a set
            that is worse before it.
        bounds: of what the model costs without the blocks (`shortgpt.values.choosing.budget`).
        refuse_change: why a projection cannot be changed for another reason, as in a checkpoint's files.
        resume: a file, or a folder, in which every measurement is kept. Where it holds some of the same model, text,
            objective and version, the search goes on from there and ends as if it had not been stopped.
        progress: True for bars; or it is called with "sets" after each set of each batch.

    Raises:
        UnknownNameError: there is no such method or objective.
        SelectionError: that many blocks cannot go, the search takes too many evaluations, or the family refuses every
            set that looked best.
        HiddenStateError: the whole model gives NaN or infinity.
        CalibrationError: see `shortgpt.calibrate`.
        ShortGPTError: what `resume` names is of another search, or damaged.
        ModelError: the model cannot be opened, or is streamed.
    """
    progress = shown(progress)
    wanted = SearchOptions(method, objective, evaluations, width, resume)
    wanted.check()
    texts, opening = apart(options)
    model = opened(model, opening)
    if (blocks is None) != bool(bounds):
        raise SelectionError("say how many blocks go, or give bounds: one of the two")
    space = space_of(model, blocks or 0, keep, contiguous, refuse, bounds)
    data = calibrate(calibration, model, **texts)
    with measuring(model, data, wanted, progress) as measurements:
        found = find(space, measurements, wanted)
        if not compensate:
            return _with_budgets(found, space)
        others = [block_numbers(other, len(model)) for other in besides]
        allowed = dict.fromkeys(other for other in others if space.holds(other) and space.refusal(other) is None)
        return _with_budgets(best_compensated(found, measurements, tuple(allowed), refuse_change, progress), space)


def _with_budgets(found: Search, space: Space) -> Search:
    met = tuple(bound.met(found.blocks) for bound in space.bounds)
    return replace(found, choice=replace(found.choice, budgets=met))


def searched(
    selection: Selection,
    model: BlockSequence,
    calibration: Any,
    wanted: SearchOptions,
    progress: Progress | None = None,
    **options: Any,
) -> Search:
    """The search for the best set of as many blocks as a selection says.

    Args:
        options: those of `search` that neither of the two says.
    """
    neighbours = selection.contiguous
    number = None
    if selection.target is None:
        number = selection.number(len(model)) if neighbours is None else neighbours
    return search(
        model,
        number,
        calibration,
        method=wanted.method,
        objective=wanted.objective,
        evaluations=wanted.evaluations,
        width=wanted.width,
        keep=selection.keep,
        contiguous=neighbours is not None,
        resume=wanted.resume,
        progress=progress,
        **options,
    )


def space_of(
    model: BlockSequence,
    blocks: int,
    keep: Iterable[int] = (),
    contiguous: bool = False,
    refuse: Refuse | None = None,
    bounds: Sequence[Bound] = (),
) -> Space:
    """The sets that a search may choose from.

    Raises:
        SelectionError: that many blocks cannot go, or there are no such blocks to keep.
    """
    kept = block_numbers(keep, len(model))
    check_kept(kept, len(model), model.pinned)
    stays = dict(sorted((dict.fromkeys(kept, KEPT) | dict(model.pinned)).items()))
    return Space(len(model), blocks, stays, contiguous, refuse or model.refuse_removal, tuple(bounds))


@contextmanager
def measuring(
    model: BlockSequence,
    data: Calibration,
    wanted: SearchOptions,
    progress: Progress | None = None,
    file: str = FILE,
) -> Iterator[Measurements]:
    """Measurements of a model on a text, kept in a file where that is wanted.

    Args:
        file: its name, where a folder is named.
    """
    objective = open_objective(wanted.objective)
    if wanted.resume is None:
        yield Measurements(model, data, objective, progress)
        return
    with journal_of(wanted.resume, model, data, wanted.objective, file) as journal:
        yield Measurements(model, data, objective, progress, journal)


def find(space: Space, measurements: Measurements, wanted: SearchOptions) -> Search:
    """One search. What was measured before, of another number of blocks say, is not measured again."""
    if wanted.method == EXACT:
        outcome = methods.exact(space, measurements, wanted.evaluations)
    elif wanted.method == PAIRS:
        outcome = methods.pairs(space, measurements, wanted.evaluations)
    else:
        outcome = methods.beam(space, measurements, wanted.evaluations, wanted.width)
    best, choice = best_set(outcome.measured, wanted.method, measurements.data.documents)
    means = {blocks: sums.mean for blocks, sums in outcome.measured.items()}
    order = sorted(means, key=lambda blocks: (blocks != best, means[blocks], blocks))
    return Search(
        model=measurements.model.name,
        architecture=measurements.model.architecture,
        depth=space.depth,
        method=wanted.method,
        objective=measurements.objective.name,
        blocks=best,
        choice=choice,
        whole=measurements.whole(),
        candidates=tuple(Candidate(one, means[one], outcome.predicted.get(one)) for one in order[:SHOWN]),
        measured=len(means),
        evaluations=measurements.evaluations,
        passes=measurements.passes,
        calibration=measurements.data.info,
        stays=dict(space.stays),
        contiguous=space.contiguous,
        width=wanted.width if wanted.method == BEAM else None,
        optimal=outcome.optimal,
    )


def best_sets(measurements: Measurements, wanted: SearchOptions, limit: int) -> list[tuple[int, ...]]:
    """The best sets of 0, 1, 2, ... blocks, to `limit` or as long as that many may go; measured together.

    Raises:
        SelectionError: one of the searches takes more evaluations than are allowed.
    """
    sets: list[tuple[int, ...]] = [()]
    for n in range(1, limit + 1):
        if n > min(len(measurements.model) - len(measurements.model.pinned), len(measurements.model) - 1):
            break
        try:
            sets.append(find(space_of(measurements.model, n), measurements, wanted).blocks)
        except NothingMayGo:
            break
    return sets
