"""What the quality in a curve is: an evaluator of next tokens, or a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from shortgpt import plugins
from shortgpt.errors import UnknownNameError
from shortgpt.measuring.evaluation import Evaluator, evaluate_sets, open_evaluator
from shortgpt.measuring.tasks.finding import check_task
from shortgpt.measuring.tasks.sets import scores_without, task_of

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.basics.journal import Journal
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence


class Judge(ABC):
    """Tells the quality of a model without sets of blocks.

    Attributes:
        lower_is_better: whether a smaller quality is the better one; of a task known once it was run.
    """

    lower_is_better: bool

    @abstractmethod
    def qualities(
        self,
        model: BlockSequence,
        held_out: Calibration,
        sets: Sequence[Collection[int]],
        seed: int,
        progress: Progress | None,
        journal: Journal | None = None,
    ) -> list[float]:
        """The quality without each set in turn.

        Args:
            seed: of what is drawn, where something is.
            journal: in which what is measured is kept, and from which it is taken.
        """


class _ByEvaluator(Judge):
    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.lower_is_better = evaluator, evaluator.lower_is_better

    def qualities(
        self,
        model: BlockSequence,
        held_out: Calibration,
        sets: Sequence[Collection[int]],
        seed: int,
        progress: Progress | None,
        journal: Journal | None = None,
    ) -> list[float]:
        found = evaluate_sets(model, held_out, self.evaluator, sets, progress, journal)
        return [self.evaluator.summary(quality.mean) for quality in found]


class _ByTask(Judge):
    def __init__(self, name: str) -> None:
        self.name, self.lower_is_better = name, False

    def qualities(
        self,
        model: BlockSequence,
        held_out: Calibration,
        sets: Sequence[Collection[int]],
        seed: int,
        progress: Progress | None,
        journal: Journal | None = None,
    ) -> list[float]:
        task = task_of(self.name, held_out, model, seed)
        self.lower_is_better = task.lower_is_better
        key = f"{self.name} {seed} {sets}"
        kept: list[float] | None = None if journal is None else journal.get(key)
        if kept is None:
            kept = list(scores_without(model, task, sets, seed, progress))
            if journal is not None:
                journal.add(key, kept)
        return kept


def open_judge(name: str) -> Judge:
    """The evaluator of that name, or else the task.

    Raises:
        UnknownNameError: there is neither.
    """
    evaluators = plugins.registry().evaluators
    if any(entry.name == name for entry in evaluators):
        return _ByEvaluator(open_evaluator(name))
    try:
        check_task(name)
    except UnknownNameError as error:
        installed = ", ".join(sorted({entry.name for entry in evaluators}))
        raise UnknownNameError(
            f"unknown evaluator {name!r}; evaluators: {installed}; nor is it a task: {error}"
        ) from None
    return _ByTask(name)
