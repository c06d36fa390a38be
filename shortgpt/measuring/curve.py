"""Quality against the number of blocks removed, for any criteria and any models: Figure 5 of ShortGPT
(arXiv:2403.03853).

::

    source ─┬─ windows to score on ─▶ Scores ─▶ the n least influential, n = 0, 1, 2, ... ─┐
            │                      └▶ search ─▶ the best n that it finds ──────────────────┤
            └─ as many others, held out ─────────────────────────▶ quality without them ◀──┘

The blocks are skipped; no model is rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from shortgpt import plugins
from shortgpt.basics.inputs import MeasuringOptions, Progress, apart
from shortgpt.basics.progress import shown
from shortgpt.errors import SelectionError
from shortgpt.measuring.calibration import Calibration, calibrate_and_hold_out, items_of
from shortgpt.measuring.compensation.fit import fit
from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR
from shortgpt.measuring.scoring.resuming import folder_for, journal_of
from shortgpt.measuring.scoring.score import score
from shortgpt.measuring.search.measurements import Measurements
from shortgpt.measuring.search.resuming import FILE
from shortgpt.measuring.search.search import best_sets, measuring
from shortgpt.measuring.tasks.judges import Judge, open_judge
from shortgpt.models.loading import listed, tried
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.choosing.search import SearchOptions
from shortgpt.values.curves import COMPENSATED, Curve, CurveRow, Curves, Line, Point
from shortgpt.values.scores import DEFAULT_CRITERION, Scores, blocks_for_ratio

CONTROL = "random"
DEFAULT_SHARE = 0.5


def curve(
    models: BlockSequence | str | Path | Iterable[BlockSequence | str | Path],
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] | None = None,
    evaluator: str = DEFAULT_EVALUATOR,
    most: float | None = None,
    search: str | None = None,
    objective: str | None = None,
    evaluations: int | None = None,
    width: int | None = None,
    resume: str | Path | None = None,
    compensate: bool = False,
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Curves:
    """Measure how well models do without 0, 1, 2, ... blocks, one model after the other.

    Each criterion chooses by scores taken on the calibration's windows; the quality is that on as many others of the
    same source, which come after them (see `shortgpt.measuring.calibration.calibrate_and_hold_out`). A perplexity is
    one a token: between models of different tokenizers the shapes of the curves compare, not their heights.

    Args:
        models: one or several: block sequences, or names and paths, each loaded, measured and let go again.
        criteria: names of installed criteria. Default: Block Influence, and beside it the random order, one draw of it.
        evaluator: the name of an installed evaluator, or of a task of `shortgpt.evaluate`, whose items are then made
            from the held-out windows.
        most: the largest number of blocks to remove (an int), or a share of them (a float below 1); default: half of
            them. Never more than may go: pinned blocks stay, and at least one.
        search: a method of `shortgpt.search`: a line more, of the best sets of 1, 2, ... blocks that it finds on the
            windows that the criteria look at. `objective`, `evaluations` and `width` are its options.
        resume: a folder in which each batch is kept as it is measured, and from which it is taken (see
            `shortgpt.score`), and every measurement of a search too; of several models each has a place of its own in
            it. A .jsonl file keeps those of a search alone.
        compensate: a line more beside that of the first criterion, and beside that of a search: each removal is made up
            for by maps that are fitted on the calibration's windows (`shortgpt.compensate`).
        calibration, options: as for `shortgpt.score` and `shortgpt.load`; a `tokenizer` serves the models that bring
            none.
        progress: True for bars; or it is also called with "models" before each one, with "cuts" after each removal of
            each batch, and by a search.

    Returns:
        A row a model. One that fails is a row that says why, and the others still run.

    Raises:
        UnknownNameError: no criterion, evaluator or task of that name is installed; or there is no such search.
        SelectionError: `most` is no number of blocks and no share of them; or an option of a search makes no sense.
    """
    shown_progress = shown(progress)
    kept = resume if search is not None else None
    wanted = SearchOptions.of(search, objective=objective, evaluations=evaluations, width=width, resume=kept)
    names = default_criteria() if criteria is None else tuple(criteria)
    for name in names:
        plugins.lookup("criterion", plugins.registry().criteria, name)
    judge = open_judge(evaluator)
    number_of_blocks(most, 100)
    given = listed(models)
    if not isinstance(calibration, (str, Path, Calibration)):
        calibration = items_of(calibration)  # each model reads it
    texts, loading = apart(options)
    settings = _Settings(names, judge, most, wanted, compensate, texts.get("seed", 0), shown_progress)

    rows = []
    for number, model in enumerate(given):
        if shown_progress is not None:
            shown_progress("models", number, len(given))
        file = FILE if len(given) == 1 else f"search-{number + 1}.jsonl"

        folder = folder_for(resume, number, len(given))

        def measure(model: BlockSequence, file: str = file, folder: Path | None = folder) -> Curve:
            data, held_out = calibrate_and_hold_out(calibration, model, **texts)
            return _measured(model, data, held_out, settings, file, folder)

        rows.append(CurveRow(*tried(model, measure, **loading)))
    return Curves(evaluator, judge.lower_is_better, tuple(rows))


@dataclass(frozen=True)
class _Settings:
    """What is measured of every model alike.

    Attributes:
        most: the largest number of blocks to remove, or a share of them; None for half.
        search: of the line of best sets; None for no such line.
        compensate: whether lines are added with each removal made up for.
        seed: of what a judge draws.
    """

    criteria: Sequence[str]
    judge: Judge
    most: float | None
    search: SearchOptions | None
    compensate: bool
    seed: int
    progress: Progress | None


def default_criteria() -> tuple[str, ...]:
    """Block Influence, and the random order as the control, where that is installed."""
    installed = {entry.name for entry in plugins.registry().criteria}
    return tuple(name for name in (DEFAULT_CRITERION, CONTROL) if name in installed)


def number_of_blocks(most: float | None, depth: int) -> int:
    """How many blocks to remove at most: `most` of them, or that share of them; half of them where it is None.

    Raises:
        SelectionError: it is neither.
    """
    if most is None or isinstance(most, float):
        return blocks_for_ratio(DEFAULT_SHARE if most is None else most, depth)
    if most < 1:
        raise SelectionError(f"a curve to {most} blocks has no length; give a number from 1 on, or a share such as 0.5")
    return most


def _measured(
    model: BlockSequence,
    data: Calibration,
    held_out: Calibration,
    settings: _Settings,
    file: str,
    resume: Path | None,
) -> Curve:
    """One model's curve.

    Args:
        data: what blocks are chosen on; `held_out`: what judges.
        file: in which a search keeps what it measures, of the folder `resume`.
    """
    search, judge, progress = settings.search, settings.judge, settings.progress
    scores = score(model, data, criteria=settings.criteria, resume=resume, progress=progress)
    limit = number_of_blocks(settings.most, len(model))
    chosen = {name: _choices(scores.of(name), limit) for name in scores.criteria}
    spent: dict[str, Measurements] = {}
    if search is not None:
        with measuring(model, data, search, progress, file) as measurements:
            chosen[search.line] = best_sets(measurements, search, limit)
        spent[search.line] = measurements
    sets = list(dict.fromkeys(blocks for choices in chosen.values() for blocks in choices))
    with journal_of(resume, "quality", model, held_out) as journal:
        qualities = judge.qualities(model, held_out, sets, settings.seed, progress, journal)
    points = {
        blocks: Point(blocks, quality, model.refuse_removal(blocks) if blocks else None)
        for blocks, quality in zip(sets, qualities, strict=True)
    }
    lines = []
    for name, choices in chosen.items():
        evaluations = spent[name].evaluations if name in spent else None
        lines.append(Line(name, tuple(points[blocks] for blocks in choices), evaluations))
    curve = Curve(scores, held_out.info, tuple(lines))
    return with_compensation(curve, model, data, held_out, judge, settings.seed) if settings.compensate else curve


def with_compensation(
    curve: Curve, model: BlockSequence, data: Calibration, held_out: Calibration, judge: Judge, seed: int
) -> Curve:
    """The curve with a line more for its first criterion, and for its search: each removal made up for."""

    def compensated(point: Point) -> Point:
        with fit(model, point.removed, data).on(model):
            (quality,) = judge.qualities(model, held_out, [point.removed], seed, None)
        return replace(point, quality=quality)

    lines = []
    for line in curve.lines:
        lines.append(line)
        if line is curve.lines[0] or line.criterion not in curve.scores.criteria:
            points = tuple(compensated(point) if point.removed else point for point in line.points)
            lines.append(Line(f"{line.criterion}{COMPENSATED}", points, line.evaluations))
    return replace(curve, lines=tuple(lines))


def _choices(scores: Scores, limit: int) -> list[tuple[int, ...]]:
    """The sets of 0, 1, 2, ... blocks that a criterion would remove, as long as that many may go."""
    choices: list[tuple[int, ...]] = [()]
    for n in range(1, limit + 1):
        try:
            choices.append(scores.least_influential(n))
        except SelectionError:
            break
    return choices
