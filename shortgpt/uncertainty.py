"""How sure a mean over tokens is, the sequence being the unit: tokens of one text are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

Sums = Sequence[Sequence[float]]


def difference(ours: Sequence[float], theirs: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """How far the mean of `theirs` lies above that of `ours`, and the standard error of that.

    Both were measured on the same sequences, and what makes a text hard moves both: the error is that of the paired
    difference, a ratio of sums over sequences (Cochran, Sampling Techniques, 1977, Eq. 6.13 without the correction for
    a finite population).

    Args:
        ours, theirs: sums of the tokens' values, [sequences].
        counts: the tokens that are in each of them, [sequences].

    Returns:
        The error is NaN for a single sequence.
    """
    apart = [b - a for a, b in zip(ours, theirs, strict=True)]
    n, total = len(counts), sum(counts)
    mean = sum(apart) / total
    if n < 2:
        return mean, float("nan")
    squares = sum((part - mean * count) ** 2 for part, count in zip(apart, counts, strict=True))
    return mean, float((n / (n - 1) * squares) ** 0.5 / total)


def resampled_means(sums: Sums, counts: Sequence[int], resamples: int, seed: int) -> numpy.ndarray:
    """The means over all tokens in bootstrap resamples of the sequences, float64.

    Args:
        sums: [sequences][things].

    Returns:
        [resamples, things].
    """
    import numpy

    n = len(counts)
    drawn = numpy.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)  # how often each sequence is
    means: numpy.ndarray = drawn @ numpy.asarray(sums) / (drawn @ numpy.asarray(counts))[:, None]
    return means
