"""`shortgpt plugins`: what is installed, loaded, or failed to load and why."""

from __future__ import annotations

from shortgpt.cli import common


@common.command(epilog="Example:  shortgpt plugins --json -")
@common.report_options
def plugins(outputs: common.Outputs) -> None:
    """List the installed plugins and what they provide; of those that failed to load, why."""
    from shortgpt.plugins import registry

    common.check(outputs)
    common.emit(registry(), registry(), outputs)
