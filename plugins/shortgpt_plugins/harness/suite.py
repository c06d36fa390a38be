"""lm-evaluation-harness as a `TaskSuite`: any name that it knows, ours beside, and those of further folders.

`--task NAME[:METRIC[,FILTER]]`. A group that the library averages (mmlu) is one task; another group, or a tag, is one
for each of its members.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shortgpt.errors import TaskDataError
from shortgpt.measuring.tasks.task import Task, TaskOptions, TaskSuite
from shortgpt.values.evaluation.outcomes import TaskRow

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PACKAGES = ("lm_eval", "datasets")


class HarnessSuite(TaskSuite):
    """The tasks of lm-evaluation-harness. Its library is imported where one of them is asked for."""

    def refuse(self) -> str | None:
        lacking = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
        if lacking:
            return "Tasks of lm-evaluation-harness need lm_eval: pip install 'shortgpt-blocks[eval]'"
        return None

    def names(self, options: TaskOptions) -> Iterable[str]:
        from shortgpt_plugins.harness.catalogue import declared_names

        return sorted(set(declared_names(options.include_path)))

    def knows(self, name: str, options: TaskOptions) -> bool:
        return self._manager(name, options) is not None

    def find(self, name: str, options: TaskOptions) -> Iterable[Task | TaskRow]:
        manager = self._manager(name, options)
        if manager is None:
            raise TaskDataError(f"lm-evaluation-harness has no task {name!r}")
        known, metric, filtered = _parsed(name, manager)
        members = _members(manager, known)
        with quiet():
            if members is None:
                return [_made(manager, name, known, metric, filtered, options)]
            return [_made_or_why(manager, member, metric, filtered, options) for member in members]

    def _manager(self, name: str, options: TaskOptions) -> TaskManager | None:
        from shortgpt_plugins.harness.catalogue import task_manager

        with quiet():
            whole = task_manager(name, options.include_path)
            return whole or task_manager(name.rpartition(":")[0], options.include_path) if ":" in name else whole


def _parsed(name: str, manager: TaskManager) -> tuple[str, str | None, str | None]:
    """The task's name, the metric and the filter that are asked for."""
    if name in manager.task_index:
        return name, None, None
    known, _, rest = name.rpartition(":")
    metric, _, filtered = rest.partition(",")
    return known, metric or None, filtered or None


def _members(manager: TaskManager, name: str) -> list[str] | None:
    """The members of a group that is not averaged, or of a tag; None of what is one task."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    config = entry.cfg or {}
    if entry.kind.name != "GROUP" or config.get("aggregate_metric_list"):
        return None
    members = config.get("task") or ()
    return [
        member for member in ([members] if isinstance(members, str) else members) if isinstance(member, str)
    ] or None


def _made_or_why(
    manager: TaskManager, name: str, metric: str | None, filtered: str | None, options: TaskOptions
) -> Task | TaskRow:
    """A member of a group; where it cannot be had, the row that says why, so that the others still run."""
    try:
        return _made(manager, name, name, metric, filtered, options)
    except TaskDataError as error:
        return TaskRow(name, "", "", error=str(error))


def _made(
    manager: TaskManager, label: str, name: str, metric: str | None, filtered: str | None, options: TaskOptions
) -> Task:
    from shortgpt_plugins.harness.task import HarnessTask, data_error

    try:
        loaded = manager.load(name)
    except Exception as error:  # data sets' libraries let all of their transports' errors through
        raise data_error(name, error) from error
    tasks = list(loaded["tasks"].values())
    if not tasks:
        raise TaskDataError(f"{name}: the group has no tasks")
    unsafe = [task.config.task for task in tasks if getattr(task, "UNSAFE_CODE", False)]
    if unsafe or any(getattr(task, "MULTIMODAL", False) for task in tasks):
        what = "runs code that a model writes" if unsafe else "shows pictures or sounds"
        raise TaskDataError(f"{name}: the task {what}, which is not done here; run it with lm_eval itself")
    group = loaded.get("groups", {}).get(name)
    averaged = group.aggregate_metric_list[0] if group is not None and group.aggregate_metric_list else None
    return HarnessTask(
        label,
        tasks,
        metric=metric,
        filtered=filtered,
        alike=averaged is not None and not averaged.weight_by_size,
        shots=options.shots,
        chat_template=options.chat_template,
        recorded=_recorded(),
    )


def _recorded() -> dict[str, Any]:
    return {package: importlib.metadata.version(package) for package in PACKAGES}


@contextmanager
def quiet() -> Iterator[None]:
    """The library's log says what it does at every step; inside, only errors come through."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
