"""`shortgpt heal`: train what is left of a model."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.errors import OutputError

METHODS = ("lora", "full", "mlp")


@common.command(epilog="Example:  shortgpt heal zoo:llama shorter --output healed --method full --steps 1000")
@click.argument("original", type=types.MODEL)
@click.argument("shorter", type=types.FOLDER)
@click.option(
    "--output",
    "-o",
    required=True,
    type=types.WRITTEN_FOLDER,
    metavar="DIR",
    help="A folder that does not exist yet, or is empty.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="lora",
    show_default=True,
    help="Train maps of low rank, which are multiplied out at the end (needs the extra heal); all weights; or a small "
    "gated MLP in the place of each removed run, which is saved with its code (--trust-remote-code opens it).",
)
@click.option("--steps", type=int, default=500, show_default=True, help="Updates.")
@click.option("--learning-rate", type=float, help="Default: 3e-4 with lora, 1e-4 with full, 1e-3 with mlp.")
@click.option("--step-sequences", type=int, default=8, show_default=True, help="Sequences that are held at a time.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="How many times so many an update sums.")
@click.option("--rank", type=int, default=16, show_default=True, help="Of the maps of lora.")
@click.option("--width", type=int, help="Of the MLPs of mlp. Default: the stream's.")
@click.option("--distil", is_flag=True, help="Learn ORIGINAL's distribution of the next token; it is asked once.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of both distributions of --distil.")
@click.option("--top-k", type=int, default=64, show_default=True, help="Likeliest tokens that --distil keeps a place.")
@click.option("--checkpointing", is_flag=True, help="Compute blocks anew on the way back: less memory, more time.")
@click.option("--bf16", is_flag=True, help="Compute in bfloat16 where it does no harm; the weights stay in float32.")
@click.option("--every", type=int, help="Steps between looks at the held-out text. Default: a tenth of all.")
@click.option("--patience", type=int, help="End after so many looks that found nothing better; take the best weights.")
@click.option("--resume", is_flag=True, help="Go on with the run that was begun for this output.")
@click.option(
    "--plot",
    type=types.WRITTEN_FILE,
    metavar="FILE",
    help="Draw the losses: .png, .svg or .pdf (needs the extra plot).",
)
@common.calibration_options
@common.model_options
@common.output_options
@click.pass_context
def heal(
    context: click.Context,
    original: str,
    shorter: str,
    output: str,
    json_file: str | None,
    quiet: bool,
    plot: str | None,
    **options: Any,
) -> None:
    """Train SHORTER, which was made from ORIGINAL, on the next token of a text, and write a checkpoint.

    The calibration's windows are trained on, the last of them are held out and judge. What a run needs to go on lies in
    DIR.checkpoints until it is done.
    """
    from shortgpt.healing.heal import heal as run

    common.check(common.Outputs(plot=plot, json_file=json_file, quiet=quiet), "Healing")
    for option, file in (("--json", json_file), ("--plot", plot)):
        if file not in (None, "-") and file == output:
            raise OutputError(f"--output and {option} both go to {output}; give one of them another place")
    given = {name: value for name, value in options.items() if common.is_given(context, name)}
    given.pop("dtype", None)
    with common.progress_bars(quiet) as progress:
        result = run(original, shorter, output, progress=progress, **given)
    if json_file != "-":
        common.console().print(str(result), soft_wrap=True)
        common.console().print(f"written to {output}", soft_wrap=True)
    if plot is not None:
        from shortgpt.reports.plots import draw

        draw(result, plot)
    common.write_json(result, json_file)
