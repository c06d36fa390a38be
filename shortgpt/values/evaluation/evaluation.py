"""Models on tasks: what `shortgpt.evaluate` gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shortgpt.basics.value import Value
from shortgpt.errors import ShortGPTError
from shortgpt.values.evaluation import estimates
from shortgpt.values.evaluation.estimates import Estimate, Flips, Influenced
from shortgpt.values.evaluation.outcomes import Column, TaskRow


@dataclass(frozen=True)
class EvaluatedModel(Value):
    """A model that was put to tasks.

    Attributes:
        model: as a report calls it.
        removed: the blocks of the model of that name which were left out.
        skipped: whether these were skipped; False where they were removed in memory, which is the same.
        architecture: the adapter's name.
        blocks: how many there are, with those that were left out.
        parameters: of the model as it was run.
        device, dtype: where and in what it was run; `dtype` is that of the residual stream.
        window: the tokens that it reads at most.
        batch_size: requests that were run together, which moves the last digits.
        tokenizer_hash: SHA-256 of the tokenizer's vocabulary and of how it cuts a text.
        error: why nothing was measured; None where something was.
    """

    model: str
    removed: tuple[int, ...] = ()
    skipped: bool = False
    architecture: str = ""
    blocks: int = 0
    parameters: int = 0
    device: str = ""
    dtype: str = ""
    window: int = 0
    batch_size: int = 0
    tokenizer_hash: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Verdict(Value):
    """What became of a requirement.

    Attributes:
        requirement: as it was written.
        model: of which it was asked.
        task: that it is about.
        state: "holds", "fails", or "not settled" where the confidence interval contains the limit.
        value: what was measured of what the requirement is about.
        low, high: bounds on that, each with 95% confidence; NaN where there is none.
        items: that were measured.
    """

    requirement: str
    model: str
    task: str
    state: str
    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class Evaluation(Value):
    """Tasks as rows, models as columns; the first model is the original that the others are compared with.

    Attributes:
        models: the columns.
        tasks: the rows, each with a column a model.
        seed: by which items were drawn.
        settings: how it was run: the text, versions of libraries, shots, ...
        verdicts: what became of each requirement, for each shorter model.
    """

    models: tuple[EvaluatedModel, ...]
    tasks: tuple[TaskRow, ...]
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()

    def check(self) -> None:
        """Raise a `ShortGPTError` where a row has not a column for each model."""
        for row in self.tasks:
            if row.error is None and len(row.columns) != len(self.models):
                raise ShortGPTError(
                    f"Evaluation: {row.task} has {len(row.columns)} columns for {len(self.models)} models"
                )

    def task(self, name: str) -> TaskRow:
        """The row of a task.

        Raises:
            ShortGPTError: it was not run.
        """
        for row in self.tasks:
            if row.task == name:
                return row
        raise ShortGPTError(f"{name!r} was not run; the tasks are {', '.join(row.task for row in self.tasks)}")

    def score(self, row: TaskRow, model: int = 0) -> Estimate | None:
        """A model's score on a task; None where it was not measured."""
        found = self._influenced(row, model)
        return None if found is None else found.estimate()

    def difference(self, row: TaskRow, model: int) -> Estimate | None:
        """A model's score less the original's, the error paired by item; None where either was not measured."""
        both = self._both(row, model)
        return None if both is None else estimates.difference(*both).estimate()

    def kept(self, row: TaskRow, model: int) -> Estimate | None:
        """A model's score over the original's, the error paired by item; None where either was not measured."""
        both = self._both(row, model)
        return None if both is None else estimates.ratio(*both).estimate()

    def flips(self, row: TaskRow, model: int) -> Flips | None:
        """The answers that are others than the original's; None for tasks without answers."""
        before, after = self.column(row, 0), self.column(row, model)
        return None if before is None or after is None else estimates.flips(before, after)

    def is_at_chance(self, row: TaskRow) -> bool:
        """Whether not even the original does better than guessing, so that nothing can be seen to be lost."""
        column = self.column(row, 0)
        return column is not None and estimates.is_at_chance(row, column)

    def averaged(self) -> tuple[TaskRow, ...]:
        """The tasks that averages are over: skills that the original has, and that all models were measured on."""
        return tuple(
            row
            for row in self.tasks
            if row.kind == "skill"
            and not self.is_at_chance(row)
            and all(self.column(row, model) is not None for model in self._measured())
        )

    def average(self, model: int = 0) -> Estimate | None:
        """A model's mean score over the tasks that are averaged (the "Avg." of ShortGPT, arXiv:2403.03853, Table 2)."""
        rows = self.averaged()
        if not rows or model not in self._measured():
            return None
        return estimates.mean_of([found for row in rows if (found := self.score(row, model)) is not None])

    def average_kept(self, model: int) -> Estimate | None:
        """A model's average over the original's (the "Per." of ShortGPT), the error paired by item."""
        rows = self.averaged()
        ours, theirs = self.average(0), self.average(model)
        if ours is None or theirs is None or ours.value == 0:
            return None
        quotient = theirs.value / ours.value
        squares = 0.0
        for row in rows:
            both = self._both(row, model)
            if both is None:
                return None
            moved = tuple(b - quotient * a for a, b in zip(both[0].influences, both[1].influences, strict=True))
            squares += Influenced(0.0, moved, both[0].groups).estimate().stderr ** 2
        return Estimate(quotient, squares**0.5 / len(rows) / ours.value)

    def failures(self) -> tuple[tuple[str, str], ...]:
        """What was not measured: the model or task, and why."""
        failed = [(one.model, one.error) for one in self.models if one.error is not None]
        for row in self.tasks:
            if row.error is not None:
                failed.append((row.task, row.error))
            failed += [
                (f"{row.task}, {one.model}", column.error)
                for one, column in zip(self.models, row.columns, strict=False)
                if column.error is not None and one.error is None
            ]
        return tuple(failed)

    def _measured(self) -> tuple[int, ...]:
        return tuple(at for at, one in enumerate(self.models) if one.error is None)

    def column(self, row: TaskRow, model: int) -> Column | None:
        """What a model did on a task; None where it was not measured."""
        if row.error is not None or model >= len(row.columns):
            return None
        column = row.columns[model]
        return column if column.error is None and column.scores else None

    def _influenced(self, row: TaskRow, model: int) -> Influenced | None:
        column = self.column(row, model)
        return None if column is None else estimates.score(row, column)

    def _both(self, row: TaskRow, model: int) -> tuple[Influenced, Influenced] | None:
        before, after = self._influenced(row, 0), self._influenced(row, model)
        return None if before is None or after is None else (before, after)
