"""A result's tables as HTML, for notebooks. Everything is escaped: names come from files of strangers."""

from __future__ import annotations

from html import escape

from shortgpt.basics.value import Cell, Table, Value
from shortgpt.reports.cells import number


def as_html(result: Value) -> str:
    """The tables of a result, each under its title; rounded as in a terminal."""
    return "\n".join(_table(table) for table in result.tables())


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(cell: Cell) -> str:
    if cell is None or cell != cell:
        return "<td></td>"
    if isinstance(cell, (int, float)):
        return f'<td style="text-align: right">{number(cell) if isinstance(cell, float) else cell}</td>'
    return f'<td style="text-align: left">{escape(cell)}</td>'
