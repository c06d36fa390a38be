"""What models did on the items of a task, kept item by item, so that models can be paired and flips counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from shortgpt.basics.value import Value
from shortgpt.errors import ShortGPTError

Kind = Literal["skill", "fit", "collapse"]
"""`skill`: what a model can do, averaged over tasks. `fit`: how well text is predicted. `collapse`: a sign of ruin. The
latter two are told and not averaged."""

Scale = Literal["mean", "exp"]


class Outcome(NamedTuple):
    """What a model did on one item.

    A task's score is Σ score / Σ weight over its items: right answers over questions, bits over bytes, ...; and the
    exponential of that where its scale is "exp".

    Attributes:
        score, weight: of this item.
        answers: what the model answered, as text; one for most tasks, one a prediction for next-token accuracy, none
            where nothing is answered (bits per byte).
        right: for each answer, whether it is right.
    """

    score: float
    weight: float = 1.0
    answers: tuple[str, ...] = ()
    right: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Column(Value):
    """What one model did on all items of a task.

    Attributes:
        scores: of each item, [items], float64.
        weights: of each item, [items].
        answers: what was answered, [items][answers]; empty for tasks without answers.
        right: whether each answer is right, [items][answers].
        truncated: how many requests were longer than the model's window, so that their context was cut from the left.
        error: why nothing was measured; None where it was.
    """

    scores: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    answers: tuple[tuple[str, ...], ...] = ()
    right: tuple[tuple[bool, ...], ...] = ()
    truncated: int = 0
    error: str | None = None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], truncated: int = 0) -> Column:
        """The outcomes of all items, in the order of the items."""
        answered = any(outcome.answers for outcome in outcomes)
        return cls(
            scores=tuple(float(outcome.score) for outcome in outcomes),
            weights=tuple(float(outcome.weight) for outcome in outcomes),
            answers=tuple(outcome.answers for outcome in outcomes) if answered else (),
            right=tuple(outcome.right for outcome in outcomes) if answered else (),
            truncated=truncated,
        )

    def check(self) -> None:
        """Raise a `ShortGPTError` where the lists are not of the same items."""
        items = len(self.scores)
        same = len(self.weights) == items and len(self.answers) in (0, items) and len(self.right) == len(self.answers)
        if not same or any(len(a) != len(r) for a, r in zip(self.answers, self.right, strict=True)):
            raise ShortGPTError("Column: scores, weights, answers and right are not of the same items")


@dataclass(frozen=True)
class TaskRow(Value):
    """A task, and what each model did on it.

    Attributes:
        task: its name.
        version: of the task; results of different versions do not compare.
        metric: what the score is, such as "accuracy" or "bits per byte".
        columns: a model each, in the order of `Evaluation.models`.
        items: which of the task's items were taken, in the order in which they were, [items].
        groups: the document, or whatever else items are alike within, of each item, [items]; empty: each is of its own.
        lower_is_better: whether a smaller score is the better one.
        chance: the score of guessing; None where there is none.
        kind: "skill", "fit" or "collapse"; only skills are averaged.
        scale: "mean", or "exp" where the score is the exponential of the mean (perplexity).
        bounds: what score / weight of an item lies between; empty where there are no such bounds.
        available: how many items the task has.
        settings: whatever else moves its result: shots, text and its hash, harness version, ...
        error: why its items cannot be had; None where they can.
    """

    task: str
    version: str
    metric: str
    columns: tuple[Column, ...] = ()
    items: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    lower_is_better: bool = False
    chance: float | None = None
    kind: str = "skill"
    scale: str = "mean"
    bounds: tuple[float, ...] = ()
    available: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
