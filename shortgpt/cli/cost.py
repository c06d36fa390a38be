"""`shortgpt cost`: what each block of a model takes of memory and time."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types


@common.command(epilog="Example:  shortgpt cost zoo:llama --tokens 128 --plot cost.png")
@click.argument("model", type=types.MODEL)
@click.option("--tokens", type=int, help="Tokens of a sequence in a pass. Default: 512, or the model's window.")
@click.option("--sequences", type=int, default=1, show_default=True, help="Sequences in a pass.")
@click.option("--rounds", type=int, default=9, show_default=True, help="Passes that are timed.")
@click.option("--time/--no-time", "timed", default=True, help="Measure time on this device. Default: yes.")
@click.option("--architecture", type=types.ARCHITECTURE, help="Take this adapter instead of looking for one.")
@common.model_options
@common.result_options
def cost(model: str, outputs: common.Outputs, **options: Any) -> None:
    """Show what each block of MODEL costs: parameters, bytes, cache or state, operations, and measured time.

    Times are of a pass over random tokens and of a step that makes one token more with the cache, both on the device
    that the model is opened on. The rows add up: what the model costs without some blocks is the sum of the others.
    """
    from shortgpt.measuring.costs.cost import cost as run

    common.check(outputs, "Cost")
    with common.progress_bars(outputs.quiet) as progress:
        found = run(model, progress=progress, **options)
    common.emit(found, found, outputs)
