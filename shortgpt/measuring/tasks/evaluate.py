"""`evaluate`: tasks as rows, models as columns."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from shortgpt._version import __version__
from shortgpt.basics.inputs import LoadOptions, Progress
from shortgpt.basics.progress import shown
from shortgpt.errors import CalibrationError, RequirementError
from shortgpt.measuring.tasks.finding import default_tasks, find_tasks
from shortgpt.measuring.tasks.measuring import Measuring
from shortgpt.measuring.tasks.resuming import kept_in
from shortgpt.measuring.tasks.running import Running
from shortgpt.measuring.tasks.subjects import Blocks, scored_on, subjects_of
from shortgpt.measuring.tasks.task import Task, TaskOptions
from shortgpt.values.evaluation.evaluation import Evaluation
from shortgpt.values.evaluation.outcomes import TaskRow
from shortgpt.values.evaluation.requirements import judge, requirements_of, unsettled
from shortgpt.values.plan import Plan


def evaluate(
    models: Any,
    removed: Blocks | Iterable[Blocks] = (),
    *,
    tasks: Sequence[str] | None = None,
    text: Any = "stdlib",
    field: str | None = None,
    items: int | None = None,
    seed: int = 0,
    shots: int | None = None,
    include_path: Sequence[str | Path] = (),
    chat_template: bool = False,
    batch_size: int | None = None,
    require: Sequence[str] = (),
    until_settled: bool = False,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[LoadOptions],
) -> Evaluation:
    """Put models to tasks: what an original and shorter models are worth, side by side, on the same items.

    Args:
        models: one or several, the original first: block sequences; or names and paths, each loaded, measured and let
            go again.
        removed: blocks that the first model is judged without as well: block numbers, a `Plan`, or several of either.
        tasks: names of tasks, and of what installed suites have. Default: those of `default_tasks`.
        text: what tasks are made from that take text: a named source, a path, or an iterable of texts, each a document.
            Where plans say that blocks were chosen on windows of the same source, nothing is taken from there.
        field: of its records that holds the text.
        items: items of each task at most. Default: each task's own number.
        seed: which items are taken, and of whatever is drawn to make them.
        shots: worked examples before each question. Default: each task's own number.
        include_path: folders with task files of suites.
        chat_template: put prompts into the tokenizer's chat template, where the task allows it.
        batch_size: requests that are run together. Default: 8. It moves the last digits.
        require: what is required of each shorter model, such as "cloze>=0.95x"; see
            `shortgpt.values.evaluation.requirements`. What became of it is in `Evaluation.verdicts`.
        until_settled: take more items of the tasks that requirements are about, until each holds or fails with 95%
            confidence, or `items` or the task ends. All models are in memory together.
        resume: a folder in which is written what is measured; what was before, by the same call, is taken from it.
        progress: True for bars; or it is called with a task's name, the items done and of how many; with "models"
            before each model.
        options: as for `shortgpt.load`; a `tokenizer` serves the models that bring none.

    Returns:
        A row a task and a column a model. What fails is a row or a column that says why, and the others still run.

    Raises:
        UnknownNameError: no task of that name is known.
        RequirementError: a requirement cannot be read, or is about what is not run.
        ResumeError: the folder holds what was measured of another model, task version or setting.
        CalibrationError, ModelError, SelectionError: a number makes no sense; there is no model; no such blocks.
    """
    progress = shown(progress)
    _check(items, batch_size, shots)
    without: list[Any] = [removed] if isinstance(removed, Plan) else list(removed)
    columns = subjects_of(models, without)
    source = text if isinstance(text, (str, Path)) else tuple(text)
    scored = scored_on(columns, without, source)
    making = TaskOptions(source, field, seed, items, shots, tuple(map(str, include_path)), chat_template, scored)
    names = default_tasks() if tasks is None else tuple(tasks)
    found = find_tasks(names, making)
    ready = [one for one in found if not isinstance(one, TaskRow)]
    requirements = requirements_of(
        require, [one.task if isinstance(one, TaskRow) else one.name for one in found], len(columns)
    )
    if until_settled and not requirements:
        raise RequirementError("until what is settled? give a requirement (--require), such as 'cloze>=0.95x'")
    told = {"text": str(source) if isinstance(source, (str, Path)) else "texts", "chat_template": chat_template}
    with kept_in(resume, _described(ready, seed, batch_size, told)) as kept:
        runs = {one.name: Running(one, len(columns), items, seed, kept) for one in ready}
        measuring = Measuring(columns, list(runs.values()), batch_size, options, kept, progress)

        def result() -> Evaluation:
            rows = tuple(one if isinstance(one, TaskRow) else runs[one.name].row() for one in found)
            return Evaluation(measuring.models(), rows, seed, told | {"shortgpt": __version__} | _versions())

        if until_settled:
            measuring.until(lambda: unsettled(result(), requirements))
        else:
            measuring.all_items()
        done = result()
    return replace(done, verdicts=judge(done, requirements, peeking=until_settled))


def _described(tasks: Sequence[Task], seed: int, batch_size: int | None, told: dict[str, Any]) -> dict[str, Any]:
    """What tells a run from others: whatever moves its results but the models."""
    of_tasks = {
        one.name: {"version": one.version, "available": len(one), "settings": dict(one.settings)} for one in tasks
    }
    return {"seed": seed, "batch_size": batch_size, **told, "tasks": of_tasks, **_versions()}


def _check(items: int | None, batch_size: int | None, shots: int | None) -> None:
    for name, number, least in (("items", items, 1), ("batch size", batch_size, 1), ("shots", shots, 0)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise CalibrationError(f"{name} must be at least {least}, found {number!r}")


def _versions() -> dict[str, str]:
    """Of the libraries that results hang on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
