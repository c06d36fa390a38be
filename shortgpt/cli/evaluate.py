"""`shortgpt evaluate`: models on tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.errors import ShortGPTError

if TYPE_CHECKING:
    from shortgpt.values.evaluation.evaluation import Evaluation


@common.command(epilog="Example:  shortgpt evaluate zoo:llama --remove 4-6 --task cloze --task bits-per-byte")
@click.argument("models", nargs=-1, required=True, type=types.MODEL)
@click.option(
    "--remove",
    "lists",
    metavar="LIST",
    multiple=True,
    help="Judge the first model without these blocks too, such as 21-29,31; may be repeated.",
)
@click.option(
    "--plan",
    "plans",
    type=types.FILE,
    metavar="FILE",
    multiple=True,
    help="Judge the first model without the blocks of a shortgpt.json too; may be repeated.",
)
@click.option(
    "--task",
    "tasks",
    type=types.TASK,
    metavar="NAME",
    multiple=True,
    help="A task; may be repeated. Default: those without downloads.",
)
@click.option(
    "--text",
    type=types.TEXT,
    default="stdlib",
    show_default=True,
    metavar="SOURCE",
    help="What tasks on text are made from: a calibration source, a text file, a folder of them, or JSON Lines.",
)
@click.option("--field", help="The field of JSON Lines, or the column of a data set, that holds the text.")
@click.option("--items", type=int, metavar="N", help="Items of each task at most. Default: the task's own number.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which items are taken.")
@click.option("--shots", type=int, metavar="N", help="Worked examples before each question. Default: the task's own.")
@click.option(
    "--include-path",
    type=types.FOLDER,
    metavar="FOLDER",
    multiple=True,
    help="A folder with task files of your own; may be repeated.",
)
@click.option("--chat-template", is_flag=True, help="Put prompts into the tokenizer's chat template.")
@click.option("--batch-size", type=int, help="Requests that are run together. Default: 8. It moves the last digits.")
@click.option(
    "--require",
    metavar="REQUIREMENT",
    multiple=True,
    help="Exit 1 where a shorter model is not such: cloze>=0.95x, perplexity-ratio<=1.3, copy>=0.5; may be repeated.",
)
@click.option(
    "--until-settled", is_flag=True, help="Take more items until each requirement holds or fails with 95% confidence."
)
@click.option(
    "--resume",
    type=types.WRITTEN_FOLDER,
    metavar="FOLDER",
    help="Write what is measured into this folder, and take what was measured from it.",
)
@click.option(
    "--published",
    type=types.PUBLISHED,
    metavar="NAME",
    help="Show a publication's numbers of that model below the table, such as llama-2-7b.",
)
@click.option(
    "--tokenizer",
    type=types.MODEL,
    metavar="NAME",
    help="A folder or hub id, for a model that brings no tokenizer.",
)
@common.model_options
@common.result_options
def evaluate(
    models: tuple[str, ...],
    lists: tuple[str, ...],
    plans: tuple[str, ...],
    tasks: tuple[str, ...],
    published: str | None,
    outputs: common.Outputs,
    **options: Any,
) -> None:
    """Put MODELS to tasks, the original first, and say what each shorter one keeps.

    All are asked the same items, so differences and ratios are paired by item. A task or model that fails is told, and
    the others still run; the exit status is then 2. With --require it is 1 where a requirement fails, and 3 where one
    is not settled, for its 95% confidence interval contains the limit.
    """
    from shortgpt.basics.block_lists import parse_blocks
    from shortgpt.measuring.published import evaluation_beside, open_published
    from shortgpt.measuring.tasks.evaluate import evaluate as run
    from shortgpt.models.devices import default_device
    from shortgpt.values.evaluation.requirements import FAILS, UNSETTLED
    from shortgpt.values.plan import Plan

    common.check(outputs, "Evaluation")
    paper = None if published is None else open_published(published)
    options["device"] = default_device(options["device"])
    removed: list[Any] = [*map(parse_blocks, lists), *map(Plan.read, plans)]
    with common.progress_bars(outputs.quiet) as progress:
        found = run(models, removed, tasks=tasks or None, progress=progress, **options)
    _check_measured(found)
    common.emit(found, found, outputs)
    if paper is not None and outputs.form is outputs.output is None and outputs.json_file != "-":
        common.console().print(evaluation_beside(found, paper))
    if found.failures():
        raise ShortGPTError(f"not everything was measured: {_told(found)}")
    states = {verdict.state for verdict in found.verdicts}
    if status := 1 if FAILS in states else 3 if UNSETTLED in states else 0:
        click.get_current_context().exit(status)


def _check_measured(found: Evaluation) -> None:
    """Raise a `ShortGPTError` where nothing was measured."""
    if not any(column.scores for row in found.tasks for column in row.columns):
        raise ShortGPTError(f"nothing could be measured: {_told(found)}")


def _told(found: Evaluation) -> str:
    return "; ".join(f"{what}: {why.removeprefix(f'{what}: ')}" for what, why in dict(found.failures()).items())
