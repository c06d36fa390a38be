"""Rank correlation: whether one list of numbers orders things as another does, by Spearman's ρ; and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean


def mid_ranks(values: Sequence[float]) -> list[float]:
    """The place of each value among all, from 1 up; equal values share the mean of their places."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for item in order[at:end]:
            ranks[item] = (at + 1 + end) / 2
        at = end
    return ranks


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's ρ: Pearson's correlation of the mid-ranks, which holds with ties too.

    NaN where there are fewer than two values, all of one list are equal, or one is NaN.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} values beside {len(other)}")
    if len(one) < 2 or any(map(math.isnan, (*one, *other))):
        return math.nan
    x, y = ([rank - fmean(ranks) for rank in ranks] for ranks in (mid_ranks(one), mid_ranks(other)))
    squares = _dot(x, x) * _dot(y, y)
    return _dot(x, y) / math.sqrt(squares) if squares else math.nan


def _dot(x: Sequence[float], y: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def interval(rho: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """A confidence interval of Spearman's ρ, the things ranked taken for a sample of `count` such things.

    Fisher's z with the variance of Bonett and Wright 2000 (Psychometrika 65, 23-28): tanh(artanh ρ ± z √((1 + ρ²/2) /
    (n − 3))). It does not say what other texts would change, which with few blocks is the smaller part. NaN where it is
    not defined: for fewer than four things, and for a ρ of ±1.
    """
    if count < 4 or not abs(rho) < 1:
        return math.nan, math.nan
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((1 + rho * rho / 2) / (count - 3))
    middle = math.atanh(rho)
    return math.tanh(middle - reach), math.tanh(middle + reach)
