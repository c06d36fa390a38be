"""`shortgpt inspect`: what removal would do to a model, and why it would refuse."""

from __future__ import annotations

import click

from shortgpt.cli import common


@click.command(epilog="Example:  shortgpt inspect zoo:mistral --remove 3,4")
@click.argument("model")
@click.option("--remove", metavar="LIST", help="Say whether these blocks can go, such as 21-29,31.")
@click.option("--architecture", help="Take this adapter instead of looking for one.")
@click.option("--trust-remote-code", is_flag=True, help="Run the code that a model's folder brings along.")
@common.report_options
def inspect(
    model: str,
    remove: str | None,
    architecture: str | None,
    trust_remote_code: bool,
    outputs: common.Outputs,
) -> None:
    """Show the blocks of MODEL, how they hand the stream on, and the rule for every config field that depends on them.

    Its weights are not loaded. The exit status is 2 where the blocks of --remove cannot go.
    """
    from shortgpt.basics.block_lists import parse_blocks
    from shortgpt.checkpoints.inspection import inspect as look
    from shortgpt.models.recognition import recognise, resolve
    from shortgpt.reports.inspection import inspection_table

    common.check(outputs)
    blocks = parse_blocks(remove) if remove is not None else ()
    source = resolve(model, architecture)
    inspection = look(source, recognise(source, architecture), blocks, trust_remote_code=trust_remote_code)
    common.emit(inspection, inspection_table(inspection), outputs)
    if inspection.refusal is not None:
        raise click.exceptions.Exit(2)
