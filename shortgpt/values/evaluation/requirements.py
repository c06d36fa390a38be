"""Requirements on an evaluation: read from a text, and judged with 95% confidence.

::

    cloze>=0.4               a score                                   E[s − 0.4 w]          ≥ 0
    cloze>=0.95x             a score against the original's, by item   E[s − 0.95 s₀]        ≥ 0
    perplexity-ratio<=1.3    the same, written otherwise               E[s₀ + w log 1.3 − s] ≥ 0
    cloze-difference>=-0.02  a score less the original's, by item      E[s − s₀ + 0.02 w]    ≥ 0

Each says that a mean over items is not below 0, s and w a shorter model's score and weight of an item, s₀ the
original's score of the same one. It holds where that mean is seen to be above 0, fails where it is seen to be below,
and is not settled else: `shortgpt.values.evaluation.sequential` says how it is seen. What is judged is the task on all
items that its source has to give, of which those that were measured are drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shortgpt.basics.value import Value
from shortgpt.errors import RequirementError
from shortgpt.values.evaluation.estimates import Estimate
from shortgpt.values.evaluation.evaluation import Evaluation, Verdict
from shortgpt.values.evaluation.outcomes import Column, TaskRow
from shortgpt.values.evaluation.sequential import bounded_above_zero, unbounded_above_zero

Statistic = Literal["score", "ratio", "difference"]
HOLDS, FAILS, UNSETTLED = "holds", "fails", "not settled"
FORM = re.compile(
    r"\s*(?P<name>\S+?)\s*(?P<sign><=|>=|<|>)\s*(?P<limit>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)(?P<x>x?)\s*", re.I
)
EXAMPLES = "'cloze>=0.95x', 'perplexity-ratio<=1.3', 'copy>=0.5' or 'bits-per-byte-difference<=0.1'"


@dataclass(frozen=True)
class Requirement(Value):
    """What is asked of a model.

    Attributes:
        text: as it was written.
        task: the task's name.
        statistic: "score", or "ratio" or "difference" to the original's.
        at_least: whether it is to be no less than the limit, or no more.
        limit: the limit.
    """

    text: str
    task: str
    statistic: str
    at_least: bool
    limit: float

    @classmethod
    def parse(cls, text: str, tasks: Collection[str] = ()) -> Requirement:
        """Read a requirement.

        Args:
            tasks: names of tasks; one that ends in `-ratio` is taken for a task only where it is among them.

        Raises:
            RequirementError: it is none.
        """
        match = FORM.fullmatch(text)
        if match is None:
            raise RequirementError(
                f"{text!r} is no requirement; write a task, <= or >=, and a limit, such as {EXAMPLES}"
            )
        task, statistic = match["name"], "score"
        for ending in ("ratio", "difference"):
            if task.endswith(f"-{ending}") and task not in tasks:
                task, statistic = task.removesuffix(f"-{ending}"), ending
        if match["x"]:
            if statistic != "score":
                raise RequirementError(f"{text!r}: a {statistic} is compared with a plain number, without x")
            statistic = "ratio"
        limit = float(match["limit"])
        if statistic == "ratio" and limit <= 0:
            raise RequirementError(f"{text!r}: a ratio is above 0")
        return cls(text.strip(), task, statistic, match["sign"].startswith(">"), limit)

    def check(self) -> None:
        """Raise a `RequirementError` for a statistic that there is not."""
        if self.statistic not in ("score", "ratio", "difference"):
            raise RequirementError(f"Requirement: there is no statistic {self.statistic!r}")


def requirements_of(texts: Sequence[str], tasks: Collection[str], models: int) -> tuple[Requirement, ...]:
    """Requirements, checked against what is run.

    Args:
        tasks: the names of the tasks.
        models: how many there are, the original among them.

    Raises:
        RequirementError: one cannot be read, names a task that is not run, or an original is needed and there is none.
    """
    found = tuple(Requirement.parse(text, tasks) for text in texts)
    for one in found:
        if one.task not in tasks:
            raise RequirementError(
                f"{one.text!r} is about the task {one.task!r}, which is not run; those that are: {', '.join(tasks)} "
                "(name more with --task)"
            )
        if one.statistic != "score" and models < 2:
            raise RequirementError(
                f"{one.text!r} compares with the original; name a second model, or blocks to leave out (--remove)"
            )
    return found


def judge(evaluation: Evaluation, requirements: Sequence[Requirement], *, peeking: bool) -> tuple[Verdict, ...]:
    """What became of each requirement, for each shorter model, or for the only one.

    Args:
        peeking: whether the number of items depends on what was seen.

    Raises:
        RequirementError: the task was not measured, or the requirement makes no sense for it.
    """
    return tuple(question.verdict() for question in _questions(evaluation, requirements, peeking))


def _questions(evaluation: Evaluation, requirements: Sequence[Requirement], peeking: bool) -> list[_Question]:
    """Each requirement on each shorter model, or on the only one."""
    models = range(1, len(evaluation.models)) if len(evaluation.models) > 1 else range(1)
    return [_Question(evaluation, one, model, peeking) for one in requirements for model in models]


def unsettled(evaluation: Evaluation, requirements: Sequence[Requirement]) -> frozenset[str]:
    """The tasks of which some requirement neither holds nor fails so far, at whatever time one looks."""
    models = range(1, len(evaluation.models)) if len(evaluation.models) > 1 else range(1)
    return frozenset(
        one.task
        for one in requirements
        for model in models
        if _Question(evaluation, one, model, True).state == UNSETTLED
    )


class _Question:
    """A requirement on one model, and what was measured of it.

    Raises:
        RequirementError: nothing was.
    """

    def __init__(self, evaluation: Evaluation, requirement: Requirement, model: int, peeking: bool) -> None:
        self.requirement, self.peeking = requirement, peeking
        self.row = evaluation.task(requirement.task)
        self.model = evaluation.models[model].model
        after, before = evaluation.column(self.row, model), evaluation.column(self.row, 0)
        if after is None or (before is None and requirement.statistic != "score"):
            why = dict(evaluation.failures()).get(self.row.task, f"the task was not measured of {self.model}")
            raise RequirementError(f"{requirement.text!r} cannot be judged: {why}")
        self.before, self.after = before or after, after
        ways = {"score": evaluation.score, "ratio": evaluation.kept, "difference": evaluation.difference}
        self.value = ways[requirement.statistic](self.row, model) or Estimate(math.nan, math.nan)

    def seen(self, limit: float, at_least: bool) -> bool:
        """Whether the statistic is seen to be above the limit (`at_least`), or below it."""
        statistic, row = self.requirement.statistic, self.row
        values = _differences(row, statistic, self.before, self.after, limit)
        if not at_least:
            values = [-value for value in values]
        weights = {*self.after.weights, *self.before.weights}
        if len(row.bounds) == 2 and len(weights) == 1:
            (weight,) = weights
            return bounded_above_zero(values, _lowest(row.bounds, statistic, limit, at_least) * weight)
        return unbounded_above_zero(values, peeking=self.peeking)

    @property
    def state(self) -> str:
        """What is to be said of it."""
        asked = self.requirement
        if self.seen(asked.limit, asked.at_least):
            return HOLDS
        return FAILS if self.seen(asked.limit, not asked.at_least) else UNSETTLED

    def verdict(self) -> Verdict:
        """With bounds on the value."""
        low = _bound(self.value, lambda limit: self.seen(limit, True), -1)
        high = _bound(self.value, lambda limit: self.seen(limit, False), 1)
        asked, items = self.requirement.text, len(self.after.scores)
        return Verdict(asked, self.model, self.row.task, self.state, self.value.value, low, high, items)


def _differences(row: TaskRow, statistic: str, before: Column, after: Column, limit: float) -> list[float]:
    """For each item what is above 0 on average where the statistic is above the limit."""
    ours, theirs, weights = before.scores, after.scores, after.weights
    if row.scale == "exp":
        if statistic == "difference":
            raise RequirementError(f"{row.task}: what is required of it is a score or a ratio, no difference")
        if limit <= 0:
            raise RequirementError(f"{row.task}: it is never below 0, found the limit {limit:g}")
        base = ours if statistic == "ratio" else (0.0,) * len(ours)
        return [b - a - math.log(limit) * w for a, b, w in zip(base, theirs, weights, strict=True)]
    if statistic == "score":
        return [b - limit * w for b, w in zip(theirs, weights, strict=True)]
    if statistic == "ratio":
        return [b - limit * a for a, b in zip(ours, theirs, strict=True)]
    return [b - a - limit * w for a, b, w in zip(ours, theirs, weights, strict=True)]


def _lowest(bounds: Sequence[float], statistic: str, limit: float, at_least: bool) -> float:
    """The least that an item of weight 1 can give."""
    low, high = bounds
    ends = {
        "score": (low - limit, high - limit),
        "ratio": (low - limit * high, high - limit * low),
        "difference": (low - high - limit, high - low - limit),
    }[statistic]
    return ends[0] if at_least else -ends[1]


STEPS = 20
"""Of bisection: a millionth of where it begins."""


def _bound(value: Estimate, seen: Callable[[float], bool], side: int) -> float:
    """The limit nearest to the value, on one side of it, that it is seen to be beyond; NaN where there is none.

    Args:
        side: −1 for a lower bound, 1 for an upper one.
    """
    if math.isnan(value.value):
        return math.nan
    step = max(abs(value.value), 1e-6) / 8 if not value.stderr > 0 else value.stderr
    for _ in range(STEPS):
        try:
            if seen(value.value + side * step):
                break
        except RequirementError:  # a limit that makes no sense
            return math.nan
        step *= 2
    else:
        return math.nan
    near, far = 0.0, step
    for _ in range(STEPS):
        middle = (near + far) / 2
        near, far = (near, middle) if seen(value.value + side * middle) else (middle, far)
    return value.value + side * far
