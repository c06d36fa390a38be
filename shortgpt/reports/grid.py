"""Tables for a terminal of any width: what does not fit side by side stands below, and no name or number is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from shortgpt.errors import printable

UNBOUNDED = 10_000  # columns: to measure what a cell would take
NARROWEST = 12
"""So many columns are left for names at the least; longer ones are folded."""


class Grid(Table):
    """A table without lines.

    Columns that are aligned to the right hold numbers, which are never broken; others are broken between words. Where
    all columns do not fit beside each other the table is parted: the first columns, which say what a row is, are
    repeated in front of each part. Signs that a terminal acts upon are shown by their numbers.

    Args:
        keys: how many columns say what a row is.
    """

    def __init__(self, *, keys: int = 1, **options: Any) -> None:
        super().__init__(**{"box": None, "pad_edge": False, "header_style": "bold", **options})
        self.keys = keys

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        super().add_column(shown(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(shown, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        takes = [self._takes(console, options, column) for column in self.columns]
        parts = _parted([least for least, _ in takes], self.keys, options.max_width)
        for number, part in enumerate(parts):
            if number:
                yield Text()
            yield self._of(part, _widths([takes[place] for place in part], self.keys, options.max_width))

    def _takes(self, console: Console, options: ConsoleOptions, column: Column) -> tuple[int, int]:
        """The least and the most width that a column needs, with the room between columns."""
        if column.width is not None:
            width = column.width + self._get_padding_width(column._index)
            return width, width
        unbounded = options.update_width(UNBOUNDED)
        cells = self._get_cells(console, column._index, column)
        sizes = [Measurement.get(console, unbounded, cell.renderable) for cell in cells]
        most = max((size.maximum for size in sizes), default=1)
        if column.no_wrap:
            return most, most
        if column.justify == "right":  # numbers; a title may be broken
            head, numbers = (sizes[:1], sizes[1:]) if self.show_header else ([], sizes)
            return max((*(size.minimum for size in head), *(size.maximum for size in numbers)), default=1), most
        return max((size.minimum for size in sizes), default=1), most

    def _of(self, places: list[int], widths: list[int]) -> Table:
        part = Table(
            box=None,
            pad_edge=self.pad_edge,
            collapse_padding=self.collapse_padding,
            show_header=self.show_header,
            header_style=self.header_style,
        )
        part.rows = self.rows
        part.columns = [replace(self.columns[place], _index=index) for index, place in enumerate(places)]
        for index, width in enumerate(widths):
            part.columns[index].width = max(1, width - part._get_padding_width(index))
            part.columns[index].overflow = "fold"
        return part


def _parted(least: list[int], keys: int, available: int) -> list[list[int]]:
    """The columns of each part; the first `keys` are in all of them."""
    first = list(range(min(keys, len(least))))
    named = sum(min(least[place], NARROWEST) for place in first)
    parts, room = [[*first]], available - min(sum(least[place] for place in first), max(named, available // 2))
    left = room
    for place in range(len(first), len(least)):
        if least[place] > left and len(parts[-1]) > len(first):
            parts.append([*first])
            left = room
        parts[-1].append(place)
        left -= least[place]
    return parts


def _widths(takes: list[tuple[int, int]], keys: int, available: int) -> list[int]:
    """As wide as each column likes where there is room; else as it must be, and the first get what is left over."""
    widths = [most for _, most in takes]
    if sum(widths) <= available:
        return widths
    widths = [least for least, _ in takes]
    spare = available - sum(widths)
    if spare < 0:  # a name is longer than the line has room for
        widths[0] = max(NARROWEST, widths[0] + spare)
    for place, (least, most) in enumerate(takes):
        more = max(0, min(most - least, spare))
        widths[place] += more
        spare -= more
    return widths


def shown(cell: Any) -> Any:
    """A cell without what a terminal acts upon, before it is measured and broken into lines."""
    if isinstance(cell, str):
        return printable(cell)
    if isinstance(cell, Text) and not cell.plain.isprintable() and cell.plain != printable(cell.plain):
        return Text(printable(cell.plain), style=cell.style)
    return cell
