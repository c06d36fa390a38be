"""`shortgpt ablate`: each block left out alone, and its parts alone."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types


@common.command(epilog="Example:  shortgpt ablate zoo:llama --sequences 8 --plot ablation.png")
@click.argument("model", type=types.MODEL)
@click.option(
    "--criterion",
    "criteria",
    type=types.CRITERION,
    multiple=True,
    help="What is held against the ablation; may be repeated. Default: block-influence.",
)
@click.option("--evaluator", type=types.EVALUATOR, default="perplexity", show_default=True, help="What the quality is.")
@click.option("--architecture", type=types.ARCHITECTURE, help="Take this adapter instead of looking for one.")
@common.resume_option
@common.calibration_options
@common.model_options
@common.result_options
def ablate(
    model: str,
    criteria: tuple[str, ...],
    evaluator: str,
    resume: str | None,
    outputs: common.Outputs,
    **options: Any,
) -> None:
    """Measure MODEL without each of its blocks alone and, where they are known, without its mixer or its MLP.

    The mixer is attention or what stands for it. Beside each block stand the criteria's scores, and below how their
    ranks agree with the damage. The criteria look at the calibration's windows, the quality is that on as many others
    of the same text.
    """
    from shortgpt.basics.inputs import apart
    from shortgpt.measuring.ablation import ablate as run
    from shortgpt.models.loading import load
    from shortgpt.values.scores import DEFAULT_CRITERION

    common.check(outputs)
    source = options.pop("calibration")
    texts, opening = apart(options)  # type: ignore[arg-type]
    opened = load(model, **opening)
    names = criteria or (DEFAULT_CRITERION,)
    with common.progress_bars(outputs.quiet) as progress:
        ablation = run(opened, source, criteria=names, evaluator=evaluator, resume=resume, progress=progress, **texts)
    common.emit(ablation, ablation, outputs)
