"""What follows from outcomes: scores, ratios and differences, each with a standard error.

::

    outcomes by item ─▶ influence of each item on the score ─▶ summed by independent group ─▶ standard error

The score is a ratio of sums, R = Σ s / Σ w, and an item's influence on it (s_i − R w_i) / Σ w. The influences of what
is computed from scores follow by the chain rule, item by item, so a difference or a ratio of two models on the same
items is paired: what makes an item hard moves both. The error is the cluster-robust one of
`shortgpt.basics.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shortgpt.basics.statistics import clusters
from shortgpt.values.evaluation.outcomes import Column, TaskRow

ONE_SIDED = 1.6448536269514722
"""The 95% quantile of the normal distribution."""


class Estimate(NamedTuple):
    """A number and its standard error, which is NaN for fewer than two independent groups."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Influenced:
    """A number computed from outcomes, and what each item did to it.

    Attributes:
        influences: the derivative by each item's weight, [items].
        groups: the items by what is independent, [groups][items].
    """

    value: float
    influences: tuple[float, ...]
    groups: Sequence[Sequence[int]]

    def estimate(self) -> Estimate:
        """With the standard error."""
        n = len(self.groups)
        if n < 2:
            return Estimate(self.value, math.nan)
        squares = math.fsum(math.fsum(self.influences[item] for item in group) ** 2 for group in self.groups)
        return Estimate(self.value, math.sqrt(n / (n - 1) * squares))


def score(row: TaskRow, column: Column) -> Influenced:
    """A model's score on a task; NaN where its items weigh nothing."""
    total = math.fsum(column.weights)
    if not total:
        return Influenced(math.nan, (math.nan,) * len(column.scores), ())
    mean = math.fsum(column.scores) / total
    influences = [(s - mean * w) / total for s, w in zip(column.scores, column.weights, strict=True)]
    value, slope = mean, 1.0
    if row.scale == "exp":
        value = slope = math.exp(min(mean, 700.0))
    groups = clusters(column.weights, row.groups or range(len(column.scores)))
    return Influenced(value, tuple(slope * one for one in influences), groups)


def difference(ours: Influenced, theirs: Influenced) -> Influenced:
    """How far `theirs` lies above `ours`, paired by item."""
    apart = tuple(b - a for a, b in zip(ours.influences, theirs.influences, strict=True))
    return Influenced(theirs.value - ours.value, apart, ours.groups)


def ratio(ours: Influenced, theirs: Influenced) -> Influenced:
    """`theirs` over `ours`, paired by item. NaN where `ours` is 0."""
    if ours.value == 0:
        return Influenced(math.nan, (math.nan,) * len(ours.influences), ours.groups)
    quotient = theirs.value / ours.value
    moved = tuple((b - quotient * a) / ours.value for a, b in zip(ours.influences, theirs.influences, strict=True))
    return Influenced(quotient, moved, ours.groups)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores of different tasks, taken for independent of each other."""
    n = len(estimates)
    if not n:
        return Estimate(math.nan, math.nan)
    error = math.sqrt(math.fsum(one.stderr**2 for one in estimates)) / n
    return Estimate(math.fsum(one.value for one in estimates) / n, error)


class Flips(NamedTuple):
    """How many answers changed between two models.

    Attributes:
        answers: how many there are.
        changed: those that are others, be they right or wrong.
        lost: right before, wrong after.
        gained: wrong before, right after.
    """

    answers: int
    changed: int
    lost: int
    gained: int


def flips(before: Column, after: Column) -> Flips | None:
    """What changed between the answers of two models to the same items; None where a task has no answers."""
    if not before.answers or not after.answers:
        return None
    answers = changed = lost = gained = 0
    for old, new, was, now in zip(before.answers, after.answers, before.right, after.right, strict=True):
        if len(old) != len(new):  # of tokenizers that cut a text in other places
            return None
        answers += len(old)
        changed += sum(a != b for a, b in zip(old, new, strict=True))
        lost += sum(a and not b for a, b in zip(was, now, strict=True))
        gained += sum(b and not a for a, b in zip(was, now, strict=True))
    return Flips(answers, changed, lost, gained)


def is_at_chance(row: TaskRow, column: Column) -> bool:
    """Whether a model is not seen to do better than guessing: its score is within 1.645 standard errors of chance, the
    error of what was measured or that of guessing, whichever is larger."""
    if row.chance is None:
        return False
    value, error = score(row, column).estimate()
    guessing = math.sqrt(max(0.0, row.chance * (1 - row.chance)) / len(column.scores))
    beyond = row.chance - value if row.lower_is_better else value - row.chance
    return beyond <= ONE_SIDED * max(guessing, 0.0 if math.isnan(error) else error)
