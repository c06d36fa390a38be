"""Results as text in other formats. They ask a result for its tables, so any kind of result that has some is told."""

from __future__ import annotations

import csv
import io
import re

from shortgpt.basics.value import Cell, Table, Value
from shortgpt.reports.cells import number

SPECIAL = re.compile(r"[\\`*_|<>\[\]]")


def as_json(result: Value) -> str:
    """All there is, to be read back by `from_json`."""
    return result.to_json()


def as_csv(result: Value) -> str:
    """One table of every number, to the last digit; what does not exist is an empty cell."""
    table = result.tidy()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell != cell else cell for cell in row] for row in table.rows)
    return buffer.getvalue()


def as_markdown(result: Value) -> str:
    """The result's tables, each under its title; rounded as in a terminal."""
    return "\n\n".join(_markdown(table) for table in result.tables())


def _markdown(table: Table) -> str:
    rules = ["---:" if table.is_number(column) else "---" for column in range(len(table.columns))]
    rows = [[_cell(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rules, *rows[1:])]
    title = [f"**{_escaped(table.title)}**", ""] if table.title else []
    return "\n".join([*title, *lines])


def _cell(cell: Cell) -> str:
    if cell is None or cell != cell:
        return ""
    return number(cell) if isinstance(cell, float) else _escaped(str(cell))


def _escaped(text: str) -> str:
    """A name as it is: no sign of it is read as Markdown, and no line of it ends the table's."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
