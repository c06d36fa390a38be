"""`shortgpt curve`: quality against the number of blocks removed."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.cli.searching import search_options
from shortgpt.errors import SelectionError, ShortGPTError


@common.command(epilog="Example:  shortgpt curve zoo:llama zoo:mamba --sequences 8 --plot curve.png")
@click.argument("models", nargs=-1, required=True, type=types.MODEL)
@click.option(
    "--criterion",
    "criteria",
    type=types.CRITERION,
    multiple=True,
    help="By what blocks are chosen; may be repeated. Default: block-influence, and random as the control.",
)
@click.option("--evaluator", type=types.EVALUATOR, default="perplexity", show_default=True, help="What the quality is.")
@click.option("--max", "most", metavar="N|SHARE", help="Remove up to N blocks, or up to this share. Default: 0.5.")
@click.option("--compensate", is_flag=True, help="A line more: each removal made up for by maps fitted on the text.")
@search_options
@common.calibration_options
@common.model_options
@common.result_options
def curve(
    models: tuple[str, ...],
    criteria: tuple[str, ...],
    evaluator: str,
    most: str | None,
    outputs: common.Outputs,
    **options: Any,
) -> None:
    """Measure MODELS without 0, 1, 2, ... blocks, as each criterion would choose them.

    The criteria look at the calibration's windows, the quality is that on as many others of the same text. Blocks are
    skipped; nothing is rebuilt. A model that fails is a row that says why; the others still run. The exit status is 2
    where none could be measured.
    """
    from shortgpt.measuring.curve import curve as run
    from shortgpt.models.devices import default_device

    common.check(outputs)
    options["device"] = default_device(options["device"])
    source = options.pop("calibration")
    with common.progress_bars(outputs.quiet) as progress:
        curves = run(
            models,
            source,
            criteria=criteria or None,
            evaluator=evaluator,
            most=_number(most),
            progress=progress,
            **options,
        )
    if not curves.measured():
        reasons = "; ".join(f"{model}: {reason}" for model, reason in curves.failures())
        raise ShortGPTError(f"no model could be measured ({reasons})")
    common.emit(curves, curves, outputs)


def _number(text: str | None) -> float | None:
    """A number of blocks as an int, a share of them as a float."""
    try:
        return None if text is None else int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise SelectionError(f"--max {text!r} is neither a number of blocks nor a share of them, such as 0.5") from None
