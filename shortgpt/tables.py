"""A table as a plain value: what a result gives and a report format writes, so that neither knows the other.

::

    result ─┬─ tables() ─▶ Table, Table, ...   for reading   ──▶ markdown
        └─ tidy() ───▶ Table               for machines  ──▶ csv
"""

from __future__ import annotations

from dataclasses import dataclass

Cell = str | int | float | None
"""None, and NaN, are empty: there is no such value."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        title: what it shows; empty where that goes without saying.
        columns: their names, with units where there are some.
        rows: each with a cell a column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns: {row}")

    def is_number(self, column: int) -> bool:
        """Whether all cells of a column that are not empty are numbers, and there is one."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, (int, float)) for cell in cells)
