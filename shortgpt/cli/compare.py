"""`shortgpt compare`: models as rows over relative depth."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.errors import ShortGPTError


@common.command(epilog="Example:  shortgpt compare zoo:llama zoo:mamba zoo:gpt2-postnorm --sequences 8")
@click.argument("models", nargs=-1, required=True, type=types.MODEL)
@click.option(
    "--criterion",
    "criteria",
    type=types.CRITERION,
    multiple=True,
    help="What to compare by; may be repeated. Default: block-influence.",
)
@common.resume_option
@click.option(
    "--published",
    type=types.PUBLISHED,
    metavar="NAME",
    help="Put the blocks that the first model would lose beside those that a publication removed, such as llama-2-7b.",
)
@common.calibration_options
@common.model_options
@common.result_options
def compare(
    models: tuple[str, ...],
    criteria: tuple[str, ...],
    resume: str | None,
    published: str | None,
    outputs: common.Outputs,
    **options: Any,
) -> None:
    """Compare how redundant the blocks of MODELS are, over relative depth.

    A MODEL may also be a .json file that `shortgpt score --json` wrote, here or elsewhere; that needs no model. A model
    that fails is a row that says why; the others still run. The exit status is 2 where none could be measured.
    """
    from shortgpt.measuring.comparison import compare as run
    from shortgpt.measuring.comparison import is_measured
    from shortgpt.measuring.published import open_published, scores_beside
    from shortgpt.models.devices import default_device
    from shortgpt.values.scores import DEFAULT_CRITERION

    common.check(outputs, "Comparison" if published is None else "PublishedComparison")
    paper = None if published is None else open_published(published)
    if not all(is_measured(model) for model in models):
        options["device"] = default_device(options["device"])
    source = options.pop("calibration")
    with common.progress_bars(outputs.quiet) as progress:
        names = criteria or (DEFAULT_CRITERION,)
        comparison = run(models, source, criteria=names, resume=resume, progress=progress, **options)
    if all(row.scores is None for row in comparison.rows):
        common.write_json(comparison, outputs.json_file)
        reasons = "; ".join(f"{model}: {why}" for model, why in comparison.failures())
        raise ShortGPTError(f"no model could be measured ({reasons})")
    if paper is None:
        common.emit(comparison, comparison, outputs)
        return
    measured = next(row.scores for row in comparison.rows if row.scores is not None)
    beside = scores_beside(measured, paper)
    common.emit(beside, beside, outputs)
