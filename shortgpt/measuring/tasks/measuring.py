"""Models opened and put to tasks: one after the other, or together until what is required of them is settled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import groupby

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import LoadOptions, Progress
from shortgpt.errors import ModelError, OutputError, ResumeError, SelectionError, ShortGPTError
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.resuming import Kept
from shortgpt.measuring.tasks.running import Running
from shortgpt.measuring.tasks.subjects import Model, Subject, described
from shortgpt.measuring.tasks.task import CHUNK
from shortgpt.models.loading import tried
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.evaluation.evaluation import EvaluatedModel

FATAL = (ResumeError, SelectionError, OutputError)
"""What ends a run: mistakes of the user's, which no other model makes up for."""

Place = tuple[int, Subject]


class Measuring:
    """The columns of an evaluation, filled.

    Args:
        loading: how models that are named are opened.
    """

    def __init__(
        self,
        columns: Sequence[Subject],
        runs: Sequence[Running],
        batch_size: int | None,
        loading: LoadOptions,
        kept: Kept | None,
        progress: Progress | None,
    ) -> None:
        self.columns, self.runs, self.batch_size = columns, runs, batch_size
        self.loading, self.kept, self.progress = loading, kept, progress
        self.told: dict[int, EvaluatedModel] = {}

    def models(self) -> tuple[EvaluatedModel, ...]:
        """What is recorded of each model."""
        return tuple(self.told[at] for at in range(len(self.columns)))

    def all_items(self) -> None:
        """Run every task on every model, one model after the other. One that fails does not end the others."""
        for model, places in self._by_model():
            if self.progress is not None:
                self.progress("models", places[0][0], len(self.columns))
            _, fatal, failure = tried(model, partial(self._fill, places), **self.loading)
            if fatal is not None:
                raise fatal
            for at, subject in places:
                if failure is not None:
                    self.told.setdefault(at, EvaluatedModel(subject.label, subject.removed, error=failure))
                    for run in self.runs:
                        run.fail(at, failure)

    def until(self, unsettled: Callable[[], Collection[str]]) -> None:
        """Run every task on all models, and go on with those that are `unsettled` until none is, or they end."""
        error = self._together(self._by_model(), [], unsettled)
        if error is not None:
            raise error

    def _together(
        self,
        waiting: Sequence[tuple[Model, list[Place]]],
        models: list[tuple[int, LanguageModel]],
        unsettled: Callable[[], Collection[str]],
    ) -> ShortGPTError | None:
        """Open the models that wait beside those that are open, then run them all; what is given back ends the run."""
        if not waiting:
            self._settle(models, unsettled)
            return None
        (model, places), *others = waiting

        def beside(opened: BlockSequence) -> ShortGPTError | None:
            try:
                return self._together(others, [*models, *self._language_models(opened, places)], unsettled)
            except ShortGPTError as error:
                return error

        _, error, failure = tried(model, beside, **self.loading)
        return error if failure is None else ModelError(failure)

    def _settle(self, models: Sequence[tuple[int, LanguageModel]], unsettled: Callable[[], Collection[str]]) -> None:
        """Run every task on its first items, and go on with those that are unsettled."""
        for run in self.runs:
            self._measure(run, models, run.items)
        taken = {run.task.name: run.items for run in self.runs}
        while pending := [run for run in self._named(unsettled()) if taken[run.task.name] < run.most]:
            for run in pending:
                taken[run.task.name] = min(run.most, taken[run.task.name] + CHUNK)
                self._measure(run, models, taken[run.task.name])

    def _fill(self, places: Sequence[Place], opened: BlockSequence) -> ShortGPTError | None:
        """Fill the columns of a model; what is given back is to end the run."""
        try:
            for at, lm in self._language_models(opened, places):
                for run in self.runs:
                    run.measure(at, lm, run.items, self.progress)
        except FATAL as error:
            return error
        return None

    def _named(self, names: Collection[str]) -> list[Running]:
        return [run for run in self.runs if run.task.name in names]

    def _measure(self, run: Running, models: Sequence[tuple[int, LanguageModel]], until: int) -> None:
        for at, lm in models:
            run.measure(at, lm, until, self.progress)

    def _by_model(self) -> list[tuple[Model, list[Place]]]:
        """The columns of each model that is opened."""
        return [
            (model, list(places)) for model, places in groupby(enumerate(self.columns), key=lambda one: one[1].model)
        ]

    def _language_models(self, opened: BlockSequence, places: Sequence[Place]) -> list[tuple[int, LanguageModel]]:
        """The models of some columns, all of one that was opened; noted where that is kept."""
        gone = [block_numbers(subject.removed, len(opened)) for _, subject in places]
        found = []
        for (at, subject), blocks in zip(places, gone, strict=True):
            lm = LanguageModel(opened, blocks, batch_size=self.batch_size)
            self.told[at] = described(subject, lm)
            if self.kept is not None:
                self.kept.opened(at, dataclasses.asdict(self.told[at]), lm.some_logits())
            found.append((at, lm))
        return found
