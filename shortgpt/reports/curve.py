"""Curves: a table a model, a row for each number of blocks removed, and what each criterion would remove then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Cell, Table
from shortgpt.reports.ablation import heading
from shortgpt.reports.cells import number
from shortgpt.reports.grid import Grid
from shortgpt.values.curves import Curve, Curves, Line

BESIDE = 4
"""How many criteria fit into 80 columns."""


def curve_tables(curves: Curves) -> RenderableType:
    """For each model the quality against the blocks removed, a column a criterion; then what failed."""
    parts: list[RenderableType] = []
    for model, curve in curves.measured():
        scores = curve.scores
        kind = f"  {scores.architecture}, {scores.norm_placement}-norm, {len(scores)} blocks"
        parts += [*([Text()] if parts else []), Text.assemble((model, "bold"), kind)]
        for at in range(0, len(curve.lines), BESIDE):
            parts += [*([Text()] if at else []), _table(curve, curve.lines[at : at + BESIDE])]
        parts.append(Text(f"{curves.evaluator} on {_text(curve.held_out)}; {_chosen(curve)}", style="dim"))
        parts += [
            Text(f"{line.criterion}: {line.evaluations:,} sets measured", style="dim")
            for line in curve.lines
            if line.evaluations is not None
        ]
        if refused := _refused(curve):
            parts.append(Text(f"* cannot be removed, only skipped as here: {refused}", style="yellow"))
    if parts and curves.failures():
        parts.append(Text())
    parts += [Text.assemble((f"{model}: ", "bold red"), why) for model, why in curves.failures()]
    return Group(*parts)


def _table(curve: Curve, lines: Sequence[Line]) -> Grid:
    table = Grid()
    table.add_column(Text("removed"), justify="right", vertical="bottom")
    table.add_column(Text("share"), justify="right", vertical="bottom")
    for line in lines:
        table.add_column(Text(heading(line.criterion)), justify="right", vertical="bottom")
        table.add_column("goes", style="dim", vertical="bottom")
    for n in range(max(len(line.points) for line in lines)):
        cells = [cell for line in lines for cell in (_quality(line, n), _step(line, n))]
        table.add_row(str(n), f"{n / len(curve.scores):.0%}", *cells)
    return table


def tables(curves: Curves) -> tuple[Table, ...]:
    """For each model a row for each number of blocks removed; then what failed."""
    made = []
    for model, curve in curves.measured():
        columns = ["removed", "share"]
        for line in curve.lines:
            columns += [line.criterion, "without blocks"]
        rows: list[tuple[Cell, ...]] = []
        for n in range(max(len(line.points) for line in curve.lines)):
            cells: list[Cell] = [n, f"{n / len(curve.scores):.0%}"]
            for line in curve.lines:
                point = line.points[n] if n < len(line.points) else None
                cells += [point.quality, format_blocks(point.removed)] if point else [None, None]
            rows.append(tuple(cells))
        title = f"{model}: {curves.evaluator} on {_text(curve.held_out)}; {_chosen(curve)}"
        made.append(Table(title, tuple(columns), tuple(rows)))
    if curves.failures():
        made.append(Table("Not measured", ("model", "reason"), curves.failures()))
    return tuple(made)


def tidy(curves: Curves) -> Table:
    """A row a model, criterion and number of blocks removed; one a model that failed."""
    columns = ("model", "criterion", "removed", "share", "blocks", "evaluator", "quality", "refusal", "error")

    def rows() -> Iterator[tuple[Cell, ...]]:
        for model, curve in curves.measured():
            for line in curve.lines:
                for n, point in enumerate(line.points):
                    blocks = " ".join(map(str, point.removed))
                    measured = (n, n / len(curve.scores), blocks, curves.evaluator, point.quality, point.refusal, None)
                    yield (model, line.criterion, *measured)
        for model, why in curves.failures():
            yield (model, *[None] * 7, why)

    return Table("", columns, tuple(rows()))


def _quality(line: Line, n: int) -> str:
    if n >= len(line.points):
        return "-"
    point = line.points[n]
    return number(point.quality) + ("*" if point.refusal else "")


def _step(line: Line, n: int) -> Text:
    """The block that goes beside those of the point before; where some come back, `now` and the whole set."""
    if not 0 < n < len(line.points):
        return Text()
    before, now = set(line.points[n - 1].removed), set(line.points[n].removed)
    return Text(format_blocks(now - before) if before < now else f"now {format_blocks(now)}")


def _text(info: CalibrationInfo) -> str:
    return f"{info.sequences} held-out sequences of {info.source}"


def _chosen(curve: Curve) -> str:
    info = curve.scores.calibration
    return f"blocks chosen on {info.sequences} others" + ("" if info.seed is None else f", seed {info.seed}")


def _refused(curve: Curve) -> str:
    """The first reason, for there may be many alike."""
    return next((p.refusal for line in curve.lines for p in line.points if p.refusal), "")
