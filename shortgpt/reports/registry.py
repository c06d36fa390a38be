"""The registry: a line a plugin, then what they provide, by kind."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.registry import KINDS, Registry
from shortgpt.basics.value import Table
from shortgpt.reports.grid import Grid


def registry_tables(found: Registry) -> RenderableType:
    """Each plugin, loaded or failed and why; then a table a kind of thing."""
    parts: list[RenderableType] = []
    for record in found.records:
        state = f"failed: {record.error}" if record.error else "loaded"
        origin = f"({record.value}, {record.distribution} {record.version})"
        parts.append(Text(f"{record.name}: {state}  {origin}"))
    for kind in KINDS:
        table = Grid()
        table.add_column(kind, no_wrap=True)
        table.add_column("plugin")
        table.add_column("")
        for entry in getattr(found, kind):
            table.add_row(*(Text(cell) for cell in (entry.name, entry.plugin, entry.description)))
        if table.rows:
            parts += [Text(), table]
    return Group(*parts)


def tables(found: Registry) -> tuple[Table, ...]:
    """What is provided, and by which plugin; then the plugins."""
    columns = ("kind", "name", "plugin", "description", "target")
    rows = tuple((kind, e.name, e.plugin, e.description, e.target) for kind in KINDS for e in getattr(found, kind))
    records = tuple((r.name, r.value, r.distribution, r.version, r.error) for r in found.records)
    return (
        Table("Provided", columns, rows),
        Table("Plugins", ("plugin", "entry point", "distribution", "version", "error"), records),
    )
