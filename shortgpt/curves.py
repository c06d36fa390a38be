"""Quality against the number of blocks removed, for any criteria and any models: Figure 5 of ShortGPT
(arXiv:2403.03853).

::

    source ─┬─ windows to score on ─▶ Scores ─▶ the n least influential, n = 0, 1, 2, ... ─┐
            └─ as many others, held out ─────────────────────────▶ quality without them ◀──┘

The blocks are skipped; no model is rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt import plugins
from shortgpt.blocks import BlockSequence
from shortgpt.calibration import Calibration, CalibrationInfo, calibrate_and_hold_out, items_of
from shortgpt.errors import SelectionError, ShortGPTError
from shortgpt.evaluation import DEFAULT_EVALUATOR, Evaluator, evaluate_sets, open_evaluator
from shortgpt.loading import tried
from shortgpt.scores import DEFAULT_CRITERION, Progress, Scores, blocks_for_ratio
from shortgpt.scoring import score
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shortgpt.tables import Table

CONTROL = "random"
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class Point(Value):
    """A model without some of its blocks.

    Attributes:
        removed: the blocks, in the order of the model.
        quality: the evaluator's summary without them, on held-out text.
        refusal: why they can be skipped, as here, but not be removed; None where they can be.
    """

    removed: tuple[int, ...]
    quality: float
    refusal: str | None = None


@dataclass(frozen=True)
class Line(Value):
    """What comes of removing blocks in the order of one criterion.

    Attributes:
        criterion: its name.
        points: without 0, 1, 2, ... blocks.
    """

    criterion: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curve(Value):
    """One model's lines.

    Attributes:
        scores: by which the blocks were chosen.
        held_out: the text that the quality was measured on; nothing of it was scored.
        lines: one a criterion.
    """

    scores: Scores
    held_out: CalibrationInfo
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class CurveRow(Value):
    """A model.

    Attributes:
        model: as it was named.
        curve: None where it could not be measured.
        error: why it could not be; None where it was.
    """

    model: str
    curve: Curve | None = None
    error: str | None = None


@dataclass(frozen=True)
class Curves(Value):
    """Models, each with its curve. `print()` shows them as tables.

    Attributes:
        evaluator: what the quality is.
        lower_is_better: whether a smaller one is the better one.
        rows: one a model.
    """

    evaluator: str
    lower_is_better: bool
    rows: tuple[CurveRow, ...]

    def check(self) -> None:
        """Raise a `ShortGPTError` where a line is not of one block more at each point, or of no criterion scored."""
        for name, curve in self.measured():
            for line in curve.lines:
                steps = [len(point.removed) for point in line.points]
                if not steps or steps != list(range(len(steps))) or line.criterion not in curve.scores.criteria:
                    raise ShortGPTError(f"Curves: the line of {line.criterion} is no curve of {name}")

    def measured(self) -> tuple[tuple[str, Curve], ...]:
        """The models that could be measured, by name."""
        return tuple((row.model, row.curve) for row in self.rows if row.curve is not None)

    def failures(self) -> tuple[tuple[str, str], ...]:
        """What could not be measured: the model, and the reason without its name."""
        failed = []
        for row in self.rows:
            if row.curve is None:
                failed.append((row.model, (row.error or "no reason is known").removeprefix(f"{row.model}: ")))
            else:
                failed += [(row.model, f"{name}: {why}") for name, why in row.curve.scores.refused.items()]
        return tuple(failed)

    def tables(self) -> tuple[Table, ...]:
        from shortgpt.reports.curve import tables

        return tables(self)

    def tidy(self) -> Table:
        from shortgpt.reports.curve import tidy

        return tidy(self)

    def __rich__(self) -> RenderableType:
        from shortgpt.reports.curve import curve_tables

        return curve_tables(self)

    def __str__(self) -> str:
        from shortgpt.reports import as_text

        return as_text(self)


def curve(
    models: BlockSequence | str | Path | Iterable[BlockSequence | str | Path],
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] | None = None,
    evaluator: str = DEFAULT_EVALUATOR,
    most: float | None = None,
    sequences: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    field: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Curves:
    """Measure how well models do without 0, 1, 2, ... blocks, one model after the other.

    Each criterion chooses by scores taken on the calibration's windows; the quality is that on as many others of the
    same source, which come after them (see `shortgpt.calibration.calibrate_and_hold_out`). A perplexity is one a token:
    between models of different tokenizers the shapes of the curves compare, not their heights.

    Args:
        models: one or several: block sequences, or names and paths, each loaded, measured and let go again.
        criteria: names of installed criteria. Default: Block Influence, and beside it the random order, one draw of it.
        evaluator: the name of an installed evaluator.
        most: the largest number of blocks to remove (an int), or a share of them (a float below 1); default: half of
            them. Never more than may go: pinned blocks stay, and at least one.
        tokenizer: for those models that bring none.
        calibration and the rest: as for `shortgpt.score` and `shortgpt.load`.
        progress: also called with "models" before each one, and with "cuts" after each removal of each batch.

    Returns:
        A row a model. One that fails is a row that says why, and the others still run.

    Raises:
        UnknownNameError: no criterion or evaluator of that name is installed.
        SelectionError: `most` is no number of blocks and no share of them.
    """
    names = default_criteria() if criteria is None else tuple(criteria)
    for name in names:
        plugins.lookup("criterion", plugins.registry().criteria, name)
    judge = open_evaluator(evaluator)
    number_of_blocks(most, 100)
    asked: list[Any] = [models] if isinstance(models, (BlockSequence, str, Path)) else list(models)
    if not isinstance(calibration, (str, Path, Calibration)):
        calibration = items_of(calibration)  # each model reads it
    loading: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "tokenizer": tokenizer,
    }
    texts: dict[str, Any] = {
        "sequences": sequences,
        "tokens": tokens,
        "seed": seed,
        "field": field,
        "batch_size": batch_size,
    }

    def measure(model: BlockSequence) -> Curve:
        data, held_out = calibrate_and_hold_out(calibration, model, **texts)
        return _measured(model, data, held_out, names, judge, most, progress)

    rows = []
    for number, model in enumerate(asked):
        if progress is not None:
            progress("models", number, len(asked))
        rows.append(CurveRow(*tried(model, measure, **loading)))
    return Curves(evaluator, judge.lower_is_better, tuple(rows))


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
    criteria: Sequence[str],
    evaluator: Evaluator,
    most: float | None,
    progress: Progress | None,
) -> Curve:
    scores = score(model, data, criteria=criteria, progress=progress)
    limit = number_of_blocks(most, len(model))
    chosen = {name: _choices(scores.of(name), limit) for name in scores.criteria}
    sets = list(dict.fromkeys(blocks for choices in chosen.values() for blocks in choices))
    found = evaluate_sets(model, held_out, evaluator, sets, progress)
    points = {
        blocks: Point(blocks, evaluator.summary(quality.mean), model.refuse_removal(blocks) if blocks else None)
        for blocks, quality in zip(sets, found, strict=True)
    }
    lines = tuple(Line(name, tuple(points[blocks] for blocks in choices)) for name, choices in chosen.items())
    return Curve(scores, held_out.info, lines)


def _choices(scores: Scores, limit: int) -> list[tuple[int, ...]]:
    """The sets of 0, 1, 2, ... blocks that a criterion would remove, as long as that many may go."""
    choices: list[tuple[int, ...]] = [()]
    for n in range(1, limit + 1):
        try:
            choices.append(scores.least_influential(n))
        except SelectionError:
            break
    return choices
