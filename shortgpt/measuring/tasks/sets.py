"""One task on one model without each of many sets of blocks.

::

    requests ─▶ first set asks ─▶ logits without every set, what comes before a set's first block computed once
                other sets ask ─▶ what was kept of that

What is generated is generated for each set by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from shortgpt.errors import CalibrationError, HiddenStateError
from shortgpt.measuring.tasks import likelihood
from shortgpt.measuring.tasks.finding import find_tasks
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.likelihood import Likelihood, Request
from shortgpt.measuring.tasks.running import Running
from shortgpt.measuring.tasks.task import CHUNK, Task, TaskOptions
from shortgpt.values.evaluation import estimates
from shortgpt.values.evaluation.outcomes import TaskRow

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence


class _Sharing(LanguageModel):
    """A model without one of several sets of blocks; log-likelihoods are computed without all of them at once.

    Args:
        at: which of the sets.
        shared: what was computed, [sets][requests], by the requests.
    """

    def __init__(
        self,
        model: BlockSequence,
        sets: Sequence[Collection[int]],
        at: int,
        shared: dict[tuple[Request, ...], list[list[Likelihood]]],
    ) -> None:
        super().__init__(model, sets[at], skip=True)
        self.whole, self.sets, self.at, self.shared = model, sets, at, shared

    def likelihoods(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[Likelihood]:
        key = tuple(requests)
        if key and key not in self.shared:
            self.shared[key] = likelihood.read(
                lambda batch: self.whole.logits_without(batch, self.sets),
                key,
                window=self.window,
                batch_size=self.batch_size,
                progress=progress,
            )
        self.truncated += sum(likelihood.is_cut(request, self.window) for request in key)
        return self.shared[key][self.at] if key else []


def task_of(name: str, held_out: Calibration, model: BlockSequence, seed: int) -> Task:
    """A task whose items are made from held-out windows, each a document.

    Raises:
        UnknownNameError: there is none of that name.
        CalibrationError: its items cannot be had.
    """
    lm = LanguageModel(model)
    special = frozenset(getattr(model.tokenizer, "all_special_ids", ()))
    texts = []
    for batch in held_out.batches:
        mask = batch.get("attention_mask")
        for row, ids in enumerate(batch["input_ids"]):
            real = ids if mask is None else ids[mask[row].bool()]
            texts.append(lm.decode([one for one in real.tolist() if one not in special]))
    found = find_tasks((name,), TaskOptions(text=tuple(texts), seed=seed))
    if len(found) != 1 or isinstance(found[0], TaskRow):
        why = next(
            (one.error for one in found if isinstance(one, TaskRow)), f"it stands for {len(found)} tasks; name one"
        )
        raise CalibrationError(f"{name}: {why}")
    return found[0]


def scores_without(
    model: BlockSequence, task: Task, sets: Sequence[Collection[int]], seed: int, progress: Progress | None = None
) -> list[float]:
    """The score of a task without each of these sets of blocks in turn. The empty set is the whole model.

    Args:
        progress: called with "cuts" after each set of each some tens of items.

    Raises:
        HiddenStateError: the model gives NaN without one of them.
    """
    shared: dict[tuple[Request, ...], list[list[Likelihood]]] = {}
    models = [_Sharing(model, sets, at, shared) for at in range(len(sets))]
    run = Running(task, len(sets), None, seed)
    chunks = range(CHUNK, run.items + CHUNK, CHUNK)
    for number, until in enumerate(chunks):
        for at, lm in enumerate(models):
            run.measure(at, lm, min(until, run.items))
            if progress is not None:
                progress("cuts", number * len(sets) + at + 1, len(chunks) * len(sets))
        shared.clear()
    failed = next((error for error in run.errors if error is not None), None)
    if failed is not None:
        raise HiddenStateError(f"{model.name}: {task.name}: {failed}")
    row = run.row()
    return [estimates.score(row, column).value for column in row.columns]
