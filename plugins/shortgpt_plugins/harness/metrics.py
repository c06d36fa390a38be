"""The library's metrics as a score and a weight for each item.

Standard errors, flips and stopping early are of items, so only metrics that are means over items serve: those whose
aggregation is one of these. A metric of a whole set of answers (BLEU, F1, Matthews' correlation) is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lm_eval.api.registry import get_aggregation

from shortgpt.errors import TaskDataError
from shortgpt.values.evaluation.outcomes import Kind, Scale

PREFERRED = "acc_norm"
"""Of several metrics: the log-likelihood by character, where the task file lists it. Else the first one that serves."""
SHARES = frozenset(
    {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "rouge1", "rouge2", "rougeL"}
)
"""Metrics between 0 and 1."""


class ByItem(NamedTuple):
    """How a value that a metric gives for an item is scored and weighted: the score is Σ score / Σ weight."""

    scored: Callable[[Any], tuple[float, float]]
    scale: Scale = "mean"
    kind: Kind = "skill"


def _mean(value: Any) -> tuple[float, float]:
    return float(value), 1.0


def _known_mean(value: Any) -> tuple[float, float]:
    return (0.0, 0.0) if math.isnan(float(value)) else (float(value), 1.0)


def _loss(value: Any) -> tuple[float, float]:
    return -float(value), 1.0


def _weighted_loss(value: Any) -> tuple[float, float]:
    likelihood, weight = value
    return -float(likelihood), float(weight)


def _bits(value: Any) -> tuple[float, float]:
    likelihood, weight = value
    return -float(likelihood) / math.log(2), float(weight)


BY_ITEM = {
    get_aggregation("mean"): ByItem(_mean),
    get_aggregation("nanmean"): ByItem(_known_mean),
    get_aggregation("perplexity"): ByItem(_loss, "exp", "fit"),
    get_aggregation("weighted_perplexity"): ByItem(_weighted_loss, "exp", "fit"),
    get_aggregation("bits_per_byte"): ByItem(_bits, "mean", "fit"),
}


def choose(task: str, aggregations: Mapping[str, Callable[..., Any]], named: str | None) -> tuple[str, ByItem]:
    """The metric to judge a task by.

    Args:
        aggregations: those that the task has, by metric.
        named: the metric that was asked for.

    Raises:
        TaskDataError: there is none of that name, or none that is a mean over items.
    """
    serving = {metric: BY_ITEM[by] for metric, by in aggregations.items() if by in BY_ITEM}
    if named is not None and named not in serving:
        listed = ", ".join(serving) or "none"
        what = (
            "is of all answers together, not a mean over items" if named in aggregations else "is none of its metrics"
        )
        raise TaskDataError(f"{task}: {named} {what}; those that serve are: {listed}")
    if not serving:
        raise TaskDataError(
            f"{task}: its metrics ({', '.join(aggregations)}) are of all answers together, and only means over items "
            "can be paired; run it with the library itself (python -m shortgpt_plugins.harness)"
        )
    chosen = named or (PREFERRED if PREFERRED in serving else next(iter(serving)))
    return chosen, serving[chosen]
