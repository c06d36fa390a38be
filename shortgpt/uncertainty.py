"""How sure a mean over tokens is, the sequence being the unit: tokens of one text are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

Sums = Sequence[Sequence[float]]

RESAMPLES = 10_000
"""So that a share of them is known to half a percent."""


def ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The mean over all tokens and its standard error: that of a ratio of sums over sequences (Cochran, Sampling
    Techniques, 1977, Eq. 6.13 without the correction for a finite population).

    Args:
        sums: of the tokens' values, [sequences].
        counts: the tokens that are in each of them, [sequences]. A sequence without any tells nothing.

    Returns:
        The error is NaN where fewer than two sequences have tokens.
    """
    n, total = observed(counts), sum(counts)
    mean = sum(sums) / total
    if n < 2:
        return mean, float("nan")
    squares = sum((part - mean * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return mean, float((n / (n - 1) * squares) ** 0.5 / total)


def difference(ours: Sequence[float], theirs: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """How far the mean of `theirs` lies above that of `ours`, and the standard error of that.

    Both were measured on the same sequences, and what makes a text hard moves both: the error is that of the paired
    difference; see `ratio`.
    """
    return ratio([b - a for a, b in zip(ours, theirs, strict=True)], counts)


def observed(counts: Sequence[int]) -> int:
    """How many sequences have tokens."""
    return sum(count > 0 for count in counts)


def resampled_means(sums: Sums, counts: Sequence[int], resamples: int, seed: int) -> numpy.ndarray:
    """The means over all tokens in bootstrap resamples of the sequences that have any, float64.

    Args:
        sums: [sequences][things].

    Returns:
        [resamples, things].
    """
    import numpy

    weight = numpy.asarray(counts)
    n = observed(counts)
    drawn = numpy.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)  # how often each sequence is
    means: numpy.ndarray = drawn @ numpy.asarray(sums)[weight > 0] / (drawn @ weight[weight > 0])[:, None]
    return means
