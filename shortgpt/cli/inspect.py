"""`shortgpt inspect`: what removal would do to a model, and why it would refuse."""

from __future__ import annotations

import click

from shortgpt.cli import common
from shortgpt.cli.options import types


@common.command(epilog="Example:  shortgpt inspect zoo:mistral --remove 3,4")
@click.argument("model", type=types.MODEL)
@click.option("--remove", metavar="LIST", help="Say whether these blocks can go, such as 21-29,31.")
@click.option("--architecture", type=types.ARCHITECTURE, help="Take this adapter instead of looking for one.")
@click.option("--trust-remote-code", is_flag=True, help="Run the code that a model's folder brings along.")
@click.option("--revision", help="The branch, tag or commit of a model of the hub. Default: main.")
@common.report_options
def inspect(
    model: str,
    remove: str | None,
    architecture: str | None,
    trust_remote_code: bool,
    revision: str | None,
    outputs: common.Outputs,
) -> None:
    """Show the blocks of MODEL, how they hand the stream on, and the rule for every config field that depends on them.

    Its weights are not loaded. The exit status is 2 where the blocks of --remove cannot go.
    """
    from shortgpt.checkpoints.inspection import inspect as run
    from shortgpt.reports.inspection import inspection_table

    common.check(outputs)
    inspection = run(
        model, remove or (), architecture=architecture, trust_remote_code=trust_remote_code, revision=revision
    )
    common.emit(inspection, inspection_table(inspection), outputs)
    if inspection.refusal is not None:
        raise click.exceptions.Exit(2)
