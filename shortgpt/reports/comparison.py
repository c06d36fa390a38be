"""Comparisons: a strip and a row a model, for each criterion."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.value import Cell, Table
from shortgpt.reports.cells import STRIP, UNIT, Scale, legend, number, strip
from shortgpt.reports.grid import Grid
from shortgpt.reports.scores import TIDY
from shortgpt.reports.scores import tidy as scores_tidy
from shortgpt.values.comparison import THRESHOLDS, Comparison, Summary
from shortgpt.values.scores import DEFAULT_CRITERION, Scores

OTHER_TEXT = "measured on other text than the first model"


def comparison_tables(comparison: Comparison) -> RenderableType:
    """For each criterion a heat strip over relative depth for each model, then its numbers; then what failed."""
    parts: list[RenderableType] = []
    for criterion, measured in comparison.measured().items():
        if measured:
            parts += [*([Text()] if parts else []), *_by_criterion(comparison, criterion, measured)]
    if comparison.mismatched():
        parts.append(Text(f"* {OTHER_TEXT}: compare with care", style="yellow"))
    if parts and comparison.failures():
        parts.append(Text())
    parts += [Text.assemble((f"{model}: ", "bold red"), why) for model, why in comparison.failures()]
    return Group(*parts)


def _by_criterion(
    comparison: Comparison, criterion: str, measured: tuple[tuple[str, Scores], ...]
) -> list[RenderableType]:
    influence = criterion == DEFAULT_CRITERION
    scale = UNIT if influence else Scale.within(value for _, scores in measured for value in scores.values)
    shares = THRESHOLDS if influence else ()
    strips = Grid()
    strips.add_column("model", overflow="fold")
    strips.add_column("norm")
    strips.add_column("blocks", justify="right")
    strips.add_column("first" + "last".rjust(STRIP - 5), width=STRIP, no_wrap=True)
    numbers = Grid()
    numbers.add_column("model", overflow="fold")
    for name in ("mean", "min", "max", *(f"<{t:g}" for t in shares), "most redundant span"):
        numbers.add_column(name, justify="right")
    for model, scores in measured:
        summary = Summary.of(scores)
        label = Text(model + (" *" if comparison.on_other_text(scores) else ""))
        strips.add_row(label, scores.norm_placement, str(len(scores)), strip(scores.values, scale))
        numbers.add_row(
            label,
            *(number(v) for v in (summary.mean, summary.least, summary.most)),
            *(f"{share:.0%}" for share in summary.shares[: len(shares)]),
            f"{summary.span[0]}-{summary.span[1]} ({number(summary.span_mean)})",
        )
    deepest = max(len(scores) for _, scores in measured)
    told = Text(f"of models of more than {STRIP} blocks a cell is the mean of those under it")
    means = [told] if deepest > STRIP else []
    return [strips, Text(f"{criterion}: ").append_text(legend(scale)), *means, Text(), numbers]


def tables(comparison: Comparison) -> tuple[Table, ...]:
    """For each criterion a row a model; then what failed."""
    marked = ("text",) if comparison.mismatched() else ()
    made = []
    for criterion, measured in comparison.measured().items():
        shares = THRESHOLDS if criterion == DEFAULT_CRITERION else ()
        below = tuple(f"share below {t:g}" for t in shares)
        columns = ("model", "norm", "blocks", "mean", "min", "max", *below, "most redundant span", "its mean")
        rows: list[tuple[Cell, ...]] = []
        for model, scores in measured:
            told = Summary.of(scores)
            first, last = told.span
            row: tuple[Cell, ...] = (
                model,
                scores.norm_placement,
                len(scores),
                told.mean,
                told.least,
                told.most,
                *told.shares[: len(shares)],
            )
            text: tuple[Cell, ...] = (OTHER_TEXT if comparison.on_other_text(scores) else None,)
            rows.append((*row, f"{first}-{last}", told.span_mean, *text[: len(marked)]))
        if rows:
            made.append(Table(criterion, columns + marked, tuple(rows)))
    if comparison.failures():
        made.append(Table("Not measured", ("model", "reason"), comparison.failures()))
    return tuple(made)


def tidy(comparison: Comparison) -> Table:
    """Every row of every model's scores, by the criteria that are compared; a row for what failed."""
    rows: list[tuple[Cell, ...]] = []
    for measured in comparison.measured().values():
        for model, scores in measured:
            only = replace(scores, criteria=scores.criteria[:1], refused={}, spans=None)
            rows += ((model, *row[1:]) for row in scores_tidy(only).rows)
    rows += ((model, *[None] * (len(TIDY) - 2), why) for model, why in comparison.failures())
    return Table("", TIDY, tuple(rows))
