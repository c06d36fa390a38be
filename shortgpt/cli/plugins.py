"""`shortgpt plugins`: what is installed, loaded, or failed to load and why."""

from __future__ import annotations

import click

from shortgpt.cli import common


@click.command(epilog="Example:  shortgpt plugins --json -")
@common.report_options
def plugins(wishes: common.Wishes) -> None:
    """List the installed plugins and what they provide; of those that failed to load, why."""
    from shortgpt.plugins import registry

    common.check(wishes)
    common.emit(registry(), registry(), wishes)
