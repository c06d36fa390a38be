"""What is required of a shorter model that was written: judged on tasks, and kept only where all of it holds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shortgpt.basics.inputs import CalibrationOptions, LoadOptions, Progress
from shortgpt.errors import GateError, ModelError
from shortgpt.measuring.tasks.evaluate import evaluate
from shortgpt.measuring.tasks.finding import check_task
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.evaluation.evaluation import Verdict
from shortgpt.values.evaluation.requirements import FAILS, HOLDS, Requirement


def required_tasks(require: Sequence[str]) -> tuple[str, ...]:
    """The tasks that requirements are about.

    Raises:
        RequirementError: one cannot be read.
        UnknownNameError: one is about a task that nobody knows.
    """
    tasks = tuple(dict.fromkeys(Requirement.parse(text).task for text in require))
    for task in tasks:
        check_task(task)
    return tasks


def hold_to(
    require: Sequence[str],
    original: BlockSequence,
    output: Path,
    text: Any,
    texts: CalibrationOptions,
    opening: LoadOptions,
    progress: Progress | None,
) -> tuple[str, ...]:
    """Put the original and what was written to the tasks of the requirements until all are settled, and remove what was
    written where one does not hold, or anything goes wrong.

    Args:
        text: the source of tasks that are made from text.

    Returns:
        What became of each requirement, a sentence each.

    Raises:
        GateError: one fails, or is not settled where the items end.
        ModelError: the tasks could not be measured.
    """
    loading: LoadOptions = {**opening}
    for name in ("stream", "architecture", "revision"):  # of the original's files
        loading.pop(name, None)  # type: ignore[misc]
    try:
        found = evaluate(
            [original, output],
            tasks=required_tasks(require),
            text=text,
            field=texts.get("field"),
            seed=texts.get("seed", 0),
            require=require,
            until_settled=True,
            progress=progress,
            **loading,
        )
        if found.failures():
            what, why = found.failures()[0]
            raise ModelError(f"what is required could not be judged: {what}: {why}; nothing was kept")
        open_ones = [verdict for verdict in found.verdicts if verdict.state != HOLDS]
        if open_ones:
            told = "; ".join(map(sentence, open_ones))
            failed = any(verdict.state == FAILS for verdict in open_ones)
            raise GateError(f"{told}; nothing was kept", failed=failed)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
    return tuple(map(sentence, found.verdicts))


def sentence(verdict: Verdict) -> str:
    """What became of a requirement."""
    return f"{verdict.requirement} {verdict.state}: {verdict.value:.4g}, on {verdict.items} items of {verdict.task}"
