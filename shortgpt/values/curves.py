"""Quality on held-out text against the number of blocks removed."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Rows, Value
from shortgpt.errors import ShortGPTError
from shortgpt.values.choosing.search import LINES
from shortgpt.values.scores import Scores

COMPENSATED = ", compensated"
"""Behind the name of a line whose removals were made up for."""


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
    """What comes of removing blocks in the order of one criterion, or the best sets that a search finds.

    Attributes:
        criterion: its name; of a search, "exact-search", "pairs-search" or "beam-search"; ", compensated" behind it
            where each removal was made up for (`shortgpt.compensate`).
        points: without 0, 1, 2, ... blocks.
        evaluations: how many sets a search measured to find all of these; None for a criterion.
    """

    criterion: str
    points: tuple[Point, ...]
    evaluations: int | None = None


@dataclass(frozen=True)
class Curve(Value):
    """One model's lines.

    Attributes:
        scores: by which the blocks were chosen.
        held_out: the text that the quality was measured on; nothing of it was scored.
        lines: one a criterion, and one of a search.
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
    rows: tuple[CurveRow, ...]  # type: ignore[assignment]  # called, as any value's `rows`

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", Rows(self.rows).of(self))

    def check(self) -> None:
        """Raise a `ShortGPTError` where a line is not of one block more at each point, or of no criterion scored."""
        for name, curve in self.measured():
            for line in curve.lines:
                known = (*curve.scores.criteria, *LINES)
                steps = [len(point.removed) for point in line.points]
                name_of_line = line.criterion.removesuffix(COMPENSATED)
                if not steps or steps != list(range(len(steps))) or name_of_line not in known:
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
