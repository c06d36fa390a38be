"""What a plugin may provide. Each hook answers with plain data; a target `"module:object"` is imported on first use.

A plugin is a module of `@hookimpl` functions, named by an entry point of group `shortgpt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shortgpt.basics.registry import Architecture, Extension

hookspec = pluggy.HookspecMarker("shortgpt")
hookimpl = pluggy.HookimplMarker("shortgpt")


@hookspec
def shortgpt_architectures() -> Iterable[Architecture]:
    """Model families: how each is recognised, and its `shortgpt.Family`."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_criteria() -> Iterable[Extension]:
    """Criteria for `--criterion`: each target a class of one of the three kinds of `shortgpt.measuring.criteria`."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_calibrations() -> Iterable[Extension]:
    """Calibration sources: each target a function `(argument: str, seed: int) -> Iterable[str]` of documents' texts."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_evaluators() -> Iterable[Extension]:
    """How well a text is predicted, for `--evaluator`: each target a `shortgpt.Evaluator` class."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_reporters() -> Iterable[Extension]:
    """Formats for `--format`: each target a function `(shortgpt.basics.value.Value) -> str`, of any kind of result."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_models() -> Iterable[Extension]:
    """Models that ship with the plugin: a name such as `zoo:llama`, the target the path of its folder or file."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_tasks() -> Iterable[Extension]:
    """Tasks for `--task`: each target a `shortgpt.measuring.tasks.task.OwnTask` class of that name."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_task_suites() -> Iterable[Extension]:
    """Many tasks of another library, asked for names that are no single task's: each target a `TaskSuite` class."""
    raise AssertionError("a specification, never called")


@hookspec
def shortgpt_published() -> Iterable[Extension]:
    """Models of which numbers were published, for `--published`: each target a function giving a `Published`."""
    raise AssertionError("a specification, never called")
