"""Spans: the triangle of all runs of blocks as a map of shades, and the best run of each length.

::

    blocks  0    5    10        a column a first block
         1  █▓▒▒░░▒▒▒▓▓▓        single blocks
         2  ██▓▒▒▒▒▓▓▓▓         runs of two, from that block on
         ⋮
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Table
from shortgpt.errors import SelectionError
from shortgpt.reports.cells import Scale, legend, number, shade
from shortgpt.reports.grid import Grid
from shortgpt.values.choosing.spans import Spans

SHADES = "·░▒▓█"
WIDTH = 48
"""The columns that the map may take of a line of 80."""


def spans_map(spans: Spans, kept: Collection[int] = ()) -> RenderableType:
    """A row a length, a column a first block, dark where a run is influential; beside it the best run of that length
    without the blocks that are `kept`. A model deeper than the map is wide is folded: a cell is then the least
    influential of the runs that it stands for, so that none that could go is lost."""
    triangle = spans.triangle
    fold = -(-spans.depth // WIDTH)
    wide = 2 if 2 * spans.depth <= WIDTH else 1
    scale, best = Scale.within(spans.means), best_runs(spans, kept)
    grid = Grid()
    grid.add_column("blocks", justify="right", no_wrap=True)
    grid.add_column(_ruler(spans.depth, fold, wide), no_wrap=True, min_width=wide * -(-spans.depth // fold))
    grid.add_column("least influential", no_wrap=True)
    for shortest in range(1, spans.depth + 1, fold):
        longest = min(shortest + fold - 1, spans.depth)
        row = Text()
        for start in range(0, spans.depth - shortest + 1, fold):
            cell = min(
                triangle[first][length - 1]
                for first in range(start, min(start + fold, spans.depth))
                for length in range(shortest, longest + 1)
                if length <= len(triangle[first])
            )
            sign, style = shade(scale.heat(cell), SHADES)
            row.append(wide * sign, style)
        label = str(longest) if shortest == longest else f"{shortest}-{longest}"
        run = best.get(longest)
        told = "-" if run is None else f"{format_blocks(run)} ({number(triangle[run[0]][longest - 1])})"
        grid.add_row(label, row, told)
    folded = "" if fold == 1 else f"; a cell is the least of {fold} lengths × {fold} first blocks"
    return Group(
        Text(f"{spans.criterion} of every run of blocks, by length and first block{folded}"),
        grid,
        legend(scale, SHADES),
    )


def tables(spans: Spans, kept: Collection[int] = ()) -> tuple[Table, ...]:
    """The best run of each length; all of them are in `tidy`."""
    triangle = spans.triangle
    rows = tuple(
        (length, format_blocks(run), triangle[run[0]][length - 1]) for length, run in best_runs(spans, kept).items()
    )
    return (Table("Least influential runs", ("blocks", "run", spans.criterion), rows),)


def tidy(spans: Spans) -> Table:
    """A row a run."""
    rows = tuple((spans.criterion, first, last, last - first + 1, value) for first, last, value in runs(spans))
    return Table("", ("criterion", "first", "last", "blocks", "score"), rows)


def runs(spans: Spans) -> Iterator[tuple[int, int, float]]:
    """First block, last block and influence of every run."""
    for first, row in enumerate(spans.triangle):
        for further, value in enumerate(row):
            yield first, first + further, value


def best_runs(spans: Spans, kept: Collection[int] = ()) -> dict[int, tuple[int, ...]]:
    """For each length of which a run may go, the least influential one that holds none of the `kept` blocks."""
    runs = {}
    for length in range(1, spans.depth):
        with contextlib.suppress(SelectionError):  # none of that length may go
            runs[length] = spans.best(length, kept)
    return runs


def _ruler(depth: int, fold: int, wide: int) -> str:
    """First blocks above their columns, as many as there is room for."""
    text = ""
    for column in range(-(-depth // fold)):
        block, place = column * fold, column * wide
        if block % (5 * fold) == 0 and place >= len(text) + bool(text):
            text = text.ljust(place) + str(block)
    return text
