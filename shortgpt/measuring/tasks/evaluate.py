"""`evaluate`: tasks as rows, models as columns."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Unpack

from shortgpt._version import __version__
from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import LoadOptions, Progress
from shortgpt.errors import CalibrationError
from shortgpt.measuring.tasks.finding import default_tasks, find_tasks
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.running import Running
from shortgpt.measuring.tasks.subjects import Blocks, Model, Subject, described, subjects_of
from shortgpt.measuring.tasks.task import TaskOptions
from shortgpt.models.loading import tried
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.evaluation.evaluation import EvaluatedModel, Evaluation
from shortgpt.values.evaluation.outcomes import TaskRow


def evaluate(
    models: Model | Iterable[Model],
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
    progress: Progress | None = None,
    **options: Unpack[LoadOptions],
) -> Evaluation:
    """Put models to tasks: what an original and shorter models are worth, side by side, on the same items.

    Args:
        models: one or several, the original first: block sequences; or names and paths, each loaded, measured and let
            go again.
        removed: blocks that the first model is judged without as well: block numbers, a `Plan`, or several of either.
        tasks: names of tasks, and of what installed suites have. Default: those of `default_tasks`.
        text: what tasks are made from that take text: a named source, a path, or an iterable of texts, each a document.
        field: of its records that holds the text.
        items: items of each task at most. Default: each task's own number.
        seed: which items are taken, and of whatever is drawn to make them.
        shots: worked examples before each question. Default: each task's own number.
        include_path: folders with task files of suites.
        chat_template: put prompts into the tokenizer's chat template, where the task allows it.
        batch_size: requests that are run together. Default: 8. It moves the last digits.
        progress: called with a task's name, the items done and of how many; with "models" before each model.
        options: as for `shortgpt.load`; a `tokenizer` serves the models that bring none.

    Returns:
        A row a task and a column a model. What fails is a row or a column that says why, and the others still run.

    Raises:
        UnknownNameError: no task of that name is known.
        CalibrationError, ModelError: a number makes no sense; there is no model.
    """
    _check(items, batch_size, shots)
    columns = subjects_of(models, removed)
    source = text if isinstance(text, (str, Path)) else tuple(text)
    making = TaskOptions(source, field, seed, items, shots, tuple(map(str, include_path)), chat_template)
    names = default_tasks() if tasks is None else tuple(tasks)
    found = find_tasks(names, making)
    runs = {one.name: Running(one, len(columns), items, seed) for one in found if not isinstance(one, TaskRow)}
    told = _all_items(columns, list(runs.values()), batch_size, options, progress)
    rows = tuple(one if isinstance(one, TaskRow) else runs[one.name].row() for one in found)
    settings = {"text": str(source) if isinstance(source, (str, Path)) else "texts", "shortgpt": __version__}
    return Evaluation(told, rows, seed, settings | _versions())


def _all_items(
    columns: Sequence[Subject],
    runs: Sequence[Running],
    batch_size: int | None,
    loading: LoadOptions,
    progress: Progress | None,
) -> tuple[EvaluatedModel, ...]:
    """Run every task on every model, one model after the other."""
    told: dict[int, EvaluatedModel] = {}
    for model, group in groupby(enumerate(columns), key=lambda one: one[1].model):
        here = list(group)

        def measure(opened: BlockSequence) -> None:
            for at, subject in here:  # noqa: B023  called at once
                lm = LanguageModel(opened, block_numbers(subject.removed, len(opened)), batch_size=batch_size)
                told[at] = described(subject, lm)
                for run in runs:
                    run.measure(at, lm, run.items, progress)

        if progress is not None:
            progress("models", here[0][0], len(columns))
        _, _, error = tried(model, measure, **loading)
        for at, subject in here:
            if error is not None and at not in told:
                told[at] = EvaluatedModel(subject.label, subject.removed, error=error)
    return tuple(told[at] for at in range(len(columns)))


def _check(items: int | None, batch_size: int | None, shots: int | None) -> None:
    for name, number, least in (("items", items, 1), ("batch size", batch_size, 1), ("shots", shots, 0)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise CalibrationError(f"{name} must be at least {least}, found {number!r}")


def _versions() -> dict[str, str]:
    """Of the libraries that results hang on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
