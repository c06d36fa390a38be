"""`shortgpt demo`: the whole road on models that need no download."""

from __future__ import annotations

import click

from shortgpt.cli import common
from shortgpt.cli.options import types


@common.command(epilog="Example:  shortgpt demo --output shorter-llama")
@click.option(
    "--output",
    "-o",
    type=types.WRITTEN_FOLDER,
    metavar="DIR",
    help="Keep the pruned model here. Default: it is thrown away again.",
)
@click.option("--device", type=types.DEVICE, help="Such as cpu or cuda. Default: the accelerator where there is one.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notes.")
@common.verbose_option
def demo(output: str | None, device: str | None, quiet: bool) -> None:
    """Compare the small models that ship with shortgpt, then remove a quarter of one and prove the result."""
    from shortgpt.basics.leftovers import temporary_folder
    from shortgpt.checkpoints.new_folder import check_output
    from shortgpt.cli.prune import report
    from shortgpt.measuring.comparison import compare
    from shortgpt.models.devices import default_device
    from shortgpt.models.recognition import resolve
    from shortgpt.plugins import registry
    from shortgpt.values.scores import blocks_for_ratio
    from shortgpt.verification.removal_on_disk import prune_checkpoint

    if output is not None:
        check_output(output)
    device = default_device(device)
    names = [model.name for model in registry().models]
    screen = common.console()
    common.note(f"$ shortgpt compare {' '.join(names)} --sequences 8", quiet)
    with common.progress_bars(quiet) as progress:
        comparison = compare(names, sequences=8, device=device, progress=progress)
    screen.print(comparison)
    row = next((row for row in comparison.rows if row.scores is not None), None)
    if row is None or row.scores is None:
        raise click.exceptions.Exit(2)
    screen.print()
    common.note(
        f"$ shortgpt prune {row.model} --ratio 0.25 --sequences 8 --output {output or 'a temporary folder'}", quiet
    )
    plan = row.scores.plan(blocks_for_ratio(0.25, len(row.scores)))
    with temporary_folder() as temporary:
        folder = output or str(temporary / "shorter")
        with common.progress_bars(quiet) as progress:
            done = prune_checkpoint(resolve(row.model), folder, plan, device=device, progress=progress)
        report(done, output, quiet)
    if output is None:
        common.note("(thrown away again; keep it with --output DIR)", quiet)
