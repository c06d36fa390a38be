"""Is a mean above zero? Answers that hold however often one looks while the data come in.

::

    z_1, z_2, ... ─┬─ bounded:    bet on each next one with what was seen so far ─▶ capital ≥ 20 at any time? ─▶ yes
                   └─ unbounded:  mean − boundary(n) · standard deviation > 0 ─▶ yes

Bounded: betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86,
1-27, arXiv:2010.09686). Capital begins at 1 and is multiplied by 1 + λ_t z_t, λ_t ≥ 0 chosen before z_t is seen. Where
the mean is not above 0 that is a nonnegative supermartingale, so that it ever reaches 1/α with a probability of at most
α (Ville 1939). λ_t is their approximate growth-rate-adaptive bet (aGRAPA, section B.3).

Unbounded: the asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, "Time-uniform
central limit theory and asymptotic confidence sequences", Annals of Statistics 52, 2613-2640, arXiv:2103.06476), one
side of it, from `BURN_IN` items on. Where the number of items was fixed before, Student's t.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

ALPHA = 0.05
"""Of each side: how often a mean that is not above 0 may be taken for one that is."""
LARGEST_BET = 0.5
"""The share of the capital that the worst item may cost."""
BURN_IN = 32
"""Items before an asymptotic confidence sequence is believed; before a t interval, a quarter of that."""
TIGHTEST = 256
"""Items at which the asymptotic confidence sequence is tuned to be tightest."""


def bounded_above_zero(values: Sequence[float], lowest: float) -> bool:
    """Whether the mean of what these values are drawn from is above 0, of values that are never below `lowest`; at any
    time of looking.

    Args:
        lowest: below 0, else every value is above 0 anyway.
    """
    if not values:
        return False
    if lowest >= 0:
        return any(value > 0 for value in values)
    needed = math.log(1 / ALPHA)
    capital, count, total, squares = 0.0, 0, 0.0, 0.0
    for value in values:
        # With a first item at half of the lowest, so that nothing is bet on what was seen once.
        mean = (total + lowest / 2) / (count + 1)
        spread = (squares + lowest**2 / 4) / (count + 1) - mean**2
        bet = min(max(mean / (spread + mean**2), 0.0), LARGEST_BET / -lowest)
        capital += math.log1p(bet * value)
        if capital >= needed:
            return True
        count, total, squares = count + 1, total + value, squares + value**2
    return False


def unbounded_above_zero(values: Sequence[float], *, peeking: bool) -> bool:
    """Whether the mean of what these values are drawn from is above 0, of values without bounds.

    Args:
        peeking: whether the number of values depends on what was seen of them.
    """
    n = len(values)
    if n < (BURN_IN if peeking else BURN_IN // 4):
        return False
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean - (_boundary(n) if peeking else _student(n)) * deviation > 0


@functools.cache
def _student(n: int) -> float:
    """The same of Student's t interval."""
    from scipy.stats import t

    return float(t.ppf(1 - ALPHA, n - 1)) / math.sqrt(n)


def _boundary(n: int) -> float:
    """Of the mean's distance from the truth, in standard deviations of an item; one-sided, tuned to `TIGHTEST`."""
    rho2 = (-2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA)) + 1) / TIGHTEST
    inner = n * rho2 + 1
    return math.sqrt(2 * inner / (n * n * rho2) * math.log1p(math.sqrt(inner) / (2 * ALPHA)))
