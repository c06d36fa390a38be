"""What a task is, and what stands for many tasks of another library.

A plugin provides tasks one by one (hook `shortgpt_tasks`, each target a `Task` class) or by the suite
(`shortgpt_task_suites`, each target a `TaskSuite` class). Suites are imported only where a name is asked for that is no
single task's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.values.evaluation.outcomes import Kind, Outcome, Scale, TaskRow

if TYPE_CHECKING:
    from shortgpt.measuring.tasks.language_model import LanguageModel


CHUNK = 64
"""Items that a task is asked about at a time."""


@dataclass(frozen=True)
class TaskOptions:
    """What tasks are made from.

    Attributes:
        text: the source of tasks that are made from text: the name of a calibration source, a path, or texts.
        field: of its records that holds the text.
        seed: of everything that is drawn while items are made.
        items: how many items will be asked for at most; None: the task's own number. A task may make more.
        shots: worked examples before each question; None: the task's own number.
        include_path: folders with task files of a suite.
        chat_template: whether prompts are put into the tokenizer's chat template, where the task allows it.
        scored: windows of the same source that blocks were chosen on: no passages are taken from there.
    """

    text: Any = "stdlib"
    field: str | None = None
    seed: int = 0
    items: int | None = None
    shots: int | None = None
    include_path: tuple[str, ...] = ()
    chat_template: bool = False
    scored: tuple[CalibrationInfo, ...] = ()


class Task(ABC):
    """Something to be judged by: a fixed list of items, and what a model does on each.

    It is made once a run and asked about all models, so its items must not depend on a model: items are texts, never
    tokens. An item must come out alike whatever other items are asked for with it.

    Attributes:
        name: what `--task` takes.
        version: raised when items or the rule of judging change; results of different versions do not compare.
        metric: what the score is, in words.
        lower_is_better, chance, kind, scale, bounds: as `TaskRow` has them.
        default_items: how many items are taken where nobody says; None: all.
        settings: what else moves the result, as JSON types; recorded with it.
    """

    name: str
    version: str
    metric: str
    lower_is_better: bool = False
    chance: float | None = None
    kind: Kind = "skill"
    scale: Scale = "mean"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    default_items: int | None = None
    settings: Mapping[str, Any] = {}

    @abstractmethod
    def __len__(self) -> int:
        """How many items there are. Those of a run are drawn from them by the seed, without replacement."""

    @abstractmethod
    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        """What a model does on these items (numbers from 0), one outcome each, in their order.

        It is called with `CHUNK` items at a time, so that a run can be stopped and taken up again.

        Raises:
            TaskDataError: the data cannot be had.
        """

    def group(self, item: int) -> int:
        """The document, or whatever else items are alike within; standard errors take groups for independent."""
        return item


class OwnTask(Task):
    """A task that is found by its own name in the registry: a class, made with the options of a run.

    Raises on being made:
        CalibrationError: no items can be made of that text.
    """

    @abstractmethod
    def __init__(self, options: TaskOptions) -> None: ...


class TaskSuite(ABC):
    """Many tasks of another library, found by name."""

    @abstractmethod
    def refuse(self) -> str | None:
        """Why none of its tasks can be run here (its library is not installed, and how to install it); else None."""

    @abstractmethod
    def names(self, options: TaskOptions) -> Iterable[str]:
        """All names that it knows, for suggestions. Asked for only where a name is unknown to all."""

    @abstractmethod
    def knows(self, name: str, options: TaskOptions) -> bool:
        """Whether it has a task or a group of that name. Nothing is fetched for that."""

    @abstractmethod
    def find(self, name: str, options: TaskOptions) -> Iterable[Task | TaskRow]:
        """The task of that name, or those of the group, whose data is fetched here. In place of a member of a group
        whose data cannot be had, its row, which says why.

        Raises:
            TaskDataError: the data cannot be had; the other tasks of a run go on.
        """
