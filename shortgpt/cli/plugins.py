"""`shortgpt plugins`: what is installed, loaded, or failed to load and why."""

from __future__ import annotations

import json

import click

from shortgpt.cli import common


@click.command(epilog="Example:  shortgpt plugins --json -")
@common.output_options
def plugins(json_file: str | None, quiet: bool) -> None:
    """List the installed plugins and what they provide; of those that failed to load, why."""
    from rich.table import Table

    from shortgpt.plugins import registry

    found = registry()
    if json_file is not None:
        common.write_text(json.dumps(found.to_dict(), indent=1) + "\n", json_file)
    if json_file == "-":
        return
    screen = common.console()
    for record in found.records:
        state = f"failed: {record.error}" if record.error else "loaded"
        screen.print(
            f"{record.name}: {state}  ({record.value}, {record.distribution} {record.version})",
            markup=False,
            soft_wrap=True,
        )
    for kind in ("architectures", "criteria", "calibrations", "reporters", "models"):
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        table.add_column(kind, no_wrap=True)
        table.add_column("plugin")
        table.add_column("")
        for entry in getattr(found, kind):
            table.add_row(entry.name, entry.plugin, entry.description)
        if table.rows:
            screen.print()
            screen.print(table)
