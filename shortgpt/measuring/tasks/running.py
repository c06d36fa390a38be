"""Items put to models, some at a time.

Which items a run takes is drawn by its seed, without replacement, and does not depend on how many are taken: those of a
longer run begin with those of a shorter one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from shortgpt.basics.inputs import Progress
from shortgpt.errors import CalibrationError, HiddenStateError, TaskDataError
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.resuming import Chunk, Kept
from shortgpt.measuring.tasks.task import CHUNK, Task
from shortgpt.values.evaluation.outcomes import Column, Outcome, TaskRow


class Running:
    """What was measured so far of a task, model by model.

    Args:
        models: how many there are.
        items: at most as many items are taken; None: the task's own number.
        seed: by which items are drawn.
        kept: where what is measured is written down, and what was measured before is found.

    Attributes:
        items: how many are taken.
        most: how many could be.
    """

    def __init__(self, task: Task, models: int, items: int | None, seed: int, kept: Kept | None = None) -> None:
        self.task, self.kept = task, kept
        self.order = list(range(len(task)))
        random.Random(seed).shuffle(self.order)  # tasks on the same passages take the same ones, and share the reading
        self.most = min(len(self.order), items or len(self.order))
        self.items = min(self.most, items or task.default_items or self.most)
        self.outcomes: list[list[Outcome]] = [[] for _ in range(models)]
        self.truncated = [0] * models
        self.errors: list[str | None] = [None] * models

    def measure(self, model: int, lm: LanguageModel, until: int, progress: Progress | None = None) -> None:
        """Put items to a model until it was asked about so many. What fails is noted, and ends this column."""
        done = self.outcomes[model]
        while len(done) < until and self.errors[model] is None:
            items = self.order[len(done) : min(until, len(done) + CHUNK)]
            try:
                outcomes, truncated = self._chunk(model, lm, len(done), items)
            except (HiddenStateError, CalibrationError, TaskDataError) as error:
                self.errors[model] = str(error)
                return
            done += outcomes
            self.truncated[model] += truncated
            if progress is not None:
                progress(self.task.name, len(done), until)

    def fail(self, model: int, why: str) -> None:
        """End the column of a model that cannot be asked any more, unless all was asked."""
        if len(self.outcomes[model]) < self.items and self.errors[model] is None:
            self.errors[model] = why

    def _chunk(self, model: int, lm: LanguageModel, first: int, items: Sequence[int]) -> Chunk:
        """What a model does on some items: as it was written down, or measured."""
        known = None if self.kept is None else self.kept.known(self.task.name, model, first, items)
        if known is not None:
            return known
        before = lm.truncated
        outcomes = self.task.outcomes(lm, items)
        chunk = outcomes, lm.truncated - before
        if self.kept is not None:
            self.kept.add(self.task.name, model, first, items, chunk)
        return chunk

    def row(self) -> TaskRow:
        """What was measured."""
        task = self.task
        taken = max((len(done) for done in self.outcomes), default=0)
        items = self.order[:taken]
        return TaskRow(
            task=task.name,
            version=task.version,
            metric=task.metric,
            columns=tuple(self._column(model) for model in range(len(self.outcomes))),
            items=tuple(items),
            groups=_numbered([task.group(item) for item in items]),
            lower_is_better=task.lower_is_better,
            chance=task.chance,
            kind=task.kind,
            scale=task.scale,
            bounds=tuple(task.bounds or ()),
            available=len(task),
            settings=dict(task.settings),
        )

    def _column(self, model: int) -> Column:
        if self.errors[model] is not None:
            return Column(error=self.errors[model])
        return Column.of(self.outcomes[model], self.truncated[model])


def _numbered(groups: Sequence[int]) -> tuple[int, ...]:
    """The same groups, numbered from 0 in the order in which they come."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(group, len(numbers)) for group in groups)
