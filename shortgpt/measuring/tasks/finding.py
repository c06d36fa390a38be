"""Names to tasks: those of plugins by their own name, others from suites."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial

from shortgpt import plugins
from shortgpt.basics.registry import Extension
from shortgpt.basics.targets import load_target
from shortgpt.errors import CalibrationError, PluginError, TaskDataError, UnknownNameError
from shortgpt.measuring.tasks.task import OwnTask, Task, TaskOptions, TaskSuite
from shortgpt.values.evaluation.outcomes import TaskRow

DEFAULT = (
    "bits-per-byte",
    "perplexity",
    "next-token",
    "cloze",
    "copy",
    "brackets",
    "arithmetic",
    "language",
    "repetition",
)
"""The tasks that are run where none is named."""


def default_tasks() -> tuple[str, ...]:
    """Those of the default tasks that are installed."""
    installed = {entry.name for entry in plugins.registry().tasks}
    return tuple(name for name in DEFAULT if name in installed)


def find_tasks(names: Sequence[str], options: TaskOptions) -> tuple[Task | TaskRow, ...]:
    """The tasks of these names, each once; a group of a suite is several.

    Returns:
        In place of a task whose data cannot be had, its row, which says why.

    Raises:
        UnknownNameError: no task of that name is known. Every name is looked up before any data is fetched.
    """
    found: dict[str, Task | TaskRow] = {}
    for name, make in [(name, _maker(name, options)) for name in dict.fromkeys(names)]:
        try:
            made = make()
        except (CalibrationError, TaskDataError) as error:
            found.setdefault(name, TaskRow(name, "", "", error=str(error)))
            continue
        for task in made:
            found.setdefault(task.task if isinstance(task, TaskRow) else task.name, task)
    return tuple(found.values())


def check_task(name: str) -> None:
    """Raise an `UnknownNameError` where no task of that name is known. Nothing is fetched or made."""
    _maker(name, TaskOptions())


def _maker(name: str, options: TaskOptions) -> Callable[[], tuple[Task | TaskRow, ...]]:
    """What makes the tasks of a name."""
    registry = plugins.registry()
    if any(entry.name == name for entry in registry.tasks):
        return partial(_own, plugins.lookup("task", registry.tasks, name), options)
    suites = [(entry, _suite(entry)) for entry in registry.suites]
    refusals = []
    for entry, suite in suites:
        with plugins.running("task suite", entry):
            refusal = suite.refuse()
            if refusal is not None:
                refusals.append(refusal)
            elif suite.knows(name, options):
                return partial(_of_suite, entry, suite, name, options)
    raise _unknown(name, options, [(entry, suite) for entry, suite in suites if suite.refuse() is None], refusals)


def _own(entry: Extension, options: TaskOptions) -> tuple[Task, ...]:
    kind = load_target(entry.target)
    with plugins.running("task", entry):
        task = kind(options)
    if not isinstance(task, OwnTask) or task.name != entry.name:
        raise PluginError(f"task {entry.name!r} (plugin {entry.plugin}) is no OwnTask of that name")
    return (task,)


def _of_suite(entry: Extension, suite: TaskSuite, name: str, options: TaskOptions) -> tuple[Task | TaskRow, ...]:
    with plugins.running("task suite", entry):
        return tuple(suite.find(name, options))


def _suite(entry: Extension) -> TaskSuite:
    kind = load_target(entry.target)
    with plugins.running("task suite", entry):
        suite = kind()
    if not isinstance(suite, TaskSuite):
        raise PluginError(f"task suite {entry.name!r} (plugin {entry.plugin}) is no TaskSuite")
    return suite


def _unknown(
    name: str, options: TaskOptions, suites: Sequence[tuple[Extension, TaskSuite]], refusals: Sequence[str]
) -> UnknownNameError:
    """The error of a name that nobody knows: what may have been meant, and what there is."""
    own = sorted({entry.name for entry in plugins.registry().tasks})
    more: list[str] = []
    for entry, suite in suites:
        with plugins.running("task suite", entry):
            more += suite.names(options)
    close = difflib.get_close_matches(name, [*own, *more], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    beside = f"; and {len(more)} of {', '.join(entry.name for entry, _ in suites)}" if more else ""
    lacking = "".join(f" {reason}." for reason in refusals)
    return UnknownNameError(
        f"unknown task {name!r}.{hint} Installed: {', '.join(own) or 'none'}{beside}.{lacking}"
        f"{plugins.registry().failures_note()}"
    )
