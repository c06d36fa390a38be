"""A run beside a publication: the sets of blocks, then the columns of its tables."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Cell, Table
from shortgpt.reports.grid import Grid
from shortgpt.values.published import PublishedComparison

COLUMNS = ("column", "table", "published", "published, shorter", "kept", "here", "here, shorter", "kept here", "task")


def published_lines(found: PublishedComparison) -> RenderableType:
    """Both sets of blocks and how they agree; the table; the notes."""
    parts: list[RenderableType] = [Text(f"{found.model} beside {found.published} of {found.source}")]
    if found.removed and found.removed_here:
        parts += [
            Text(f"removed there: {', '.join(map(str, found.removed))} (least influential first)"),
            Text(f"removed here:  {', '.join(map(str, found.removed_here))}"),
            Text(f"in both: {format_blocks(found.shared) or 'none'}, {found.overlap:.0%} of those in either"),
        ]
    if not math.isnan(found.rank_correlation):
        parts.append(Text(f"rank correlation over the blocks of the list: {found.rank_correlation:.2f}"))
    if found.numbers:
        grid = Grid()
        for at, name in enumerate(COLUMNS):
            grid.add_column(name, justify="left" if at in (0, len(COLUMNS) - 1) else "right", overflow="fold")
        for row in _rows(found):
            grid.add_row(*(_shown(cell) for cell in row))
        parts += [Text(), grid]
    parts += [Text(f"note: {note}", style="dim") for note in found.notes]
    return Group(*parts)


def tables(found: PublishedComparison) -> tuple[Table, ...]:
    """The columns; then the sets of blocks."""
    sets = Table(
        "Removed blocks",
        ("published", "here", "in both", "overlap", "rank correlation"),
        (
            (
                ", ".join(map(str, found.removed)),
                ", ".join(map(str, found.removed_here)),
                ", ".join(map(str, found.shared)),
                found.overlap,
                found.rank_correlation,
            ),
        ),
    )
    numbers = Table("Published numbers", COLUMNS, tuple(_rows(found)))
    return (numbers, sets) if found.numbers else (sets,)


def _rows(found: PublishedComparison) -> list[tuple[Cell, ...]]:
    return [
        (
            number.column,
            number.table,
            number.published,
            number.published_shorter,
            _kept(number.published, number.published_shorter),
            number.here,
            number.here_shorter,
            _kept(number.here, number.here_shorter),
            number.task,
        )
        for number in found.numbers
    ]


def _kept(whole: float, shorter: float) -> float:
    return shorter / whole if whole else float("nan")


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:.2f}"
    return "" if cell is None else str(cell)
