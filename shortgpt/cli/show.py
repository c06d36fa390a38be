"""`shortgpt show`: a result that was saved, shown again."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types


@common.command(epilog="Example:  shortgpt show scores.json --plot scores.png")
@click.argument("file", type=types.FILE)
@common.result_options
def show(file: str, outputs: common.Outputs) -> None:
    """Show FILE, a result that a command wrote with --json, or the record in a folder that `shortgpt prune` wrote.

    Nothing is measured anew.
    """
    from shortgpt.values import kinds
    from shortgpt.values.plan import Plan
    from shortgpt.values.scores import Scores

    result = kinds.read(file)
    common.check(outputs, type(result).__name__ if outputs.plot is not None else None)
    if isinstance(result, Plan) and outputs == common.Outputs(quiet=outputs.quiet):
        from shortgpt.cli.prune import report

        report(result, None, outputs.quiet)
        return
    shown: Any = result
    marked: dict[str, Any] = {}
    if isinstance(result, Scores) and result.chosen:
        from shortgpt.reports.scores import chosen_table

        shown, marked = chosen_table(result), {"marked": result.chosen}
    common.emit(result, shown, outputs, **marked)
