"""How sure a mean over tokens is. What is drawn independently is the document: tokens of one text are alike, and so are
windows of one document.

::

    tokens ─▶ sums by sequence ─▶ sums by document ─▶ mean, standard error, bootstrap resamples
                                  └ of too few documents: by sequence, which the results say (`unit`)

The error is the cluster-robust one (Liang and Zeger 1986, Biometrika 73, 13-22) with the correction G/(G − 1) for G
documents. Of few documents, or where one outweighs the others, it is itself too small and hardly known (Cameron and
Miller 2015, Journal of Human Resources 50, 317-372, section VI).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy

Sums = Sequence[Sequence[float]]
Unit = Literal["document", "sequence"]

RESAMPLES = 10_000
"""So that a share of them is known to half a percent."""
FEWEST_DOCUMENTS = 8
"""Fewer say too little of how documents differ: of 8 the error is known to a quarter of itself, 1/√(2 (G − 1))."""


def unit(counts: Sequence[float], documents: Sequence[int] = ()) -> Unit:
    """What errors and resamples take for independent: the document, where there are enough, else the sequence.

    Documents count by their tokens t: (Σ t)² / Σ t² is their effective number (Kish, Survey Sampling, 1965), which is
    less than their number where one outweighs the others.

    Args:
        counts: the tokens of each sequence, [sequences].
        documents: the document that each sequence is of, [sequences]. Empty: each is of its own.
    """
    tokens: defaultdict[int, float] = defaultdict(float)
    for document, count in zip(documents, counts, strict=bool(documents)):
        tokens[document] += count
    squares = sum(count**2 for count in tokens.values())
    enough = squares > 0 and sum(counts) ** 2 >= FEWEST_DOCUMENTS * squares
    return "document" if enough else "sequence"


def ratio(sums: Sequence[float], counts: Sequence[int], documents: Sequence[int] = ()) -> tuple[float, float]:
    """The mean over all tokens and its standard error: that of a ratio of sums over independent units (Cochran,
    Sampling Techniques, 1977, Eq. 6.13 without the correction for a finite population).

    Args:
        sums: of the tokens' values, [sequences].
        counts: the tokens that are in each of them, [sequences]. A sequence without any tells nothing.
        documents: as for `unit`, which says what is independent.

    Returns:
        The error is NaN where fewer than two sequences have tokens.
    """
    total = sum(counts)
    mean = sum(sums) / total
    errors = [part - mean * count for part, count in zip(sums, counts, strict=True)]
    groups = clusters(counts, documents)
    n = len(groups)
    if n < 2:
        return mean, float("nan")
    squares = sum(sum(errors[row] for row in rows) ** 2 for rows in groups)
    return mean, float((n / (n - 1) * squares) ** 0.5 / total)


def difference(
    ours: Sequence[float], theirs: Sequence[float], counts: Sequence[int], documents: Sequence[int] = ()
) -> tuple[float, float]:
    """How far the mean of `theirs` lies above that of `ours`, and the standard error of that.

    Both were measured on the same sequences, and what makes a text hard moves both: the error is that of the paired
    difference; see `ratio`.
    """
    return ratio([b - a for a, b in zip(ours, theirs, strict=True)], counts, documents)


def observed(counts: Sequence[int]) -> int:
    """How many sequences have tokens."""
    return sum(count > 0 for count in counts)


def resampled_means(
    sums: Sums, counts: Sequence[int], resamples: int, seed: int, documents: Sequence[int] = ()
) -> numpy.ndarray:
    """The means over all tokens in bootstrap resamples of the documents, or of the sequences (see `unit`), float64.

    Args:
        sums: [sequences][things].

    Returns:
        [resamples, things].
    """
    import numpy

    groups = clusters(counts, documents)
    rows = numpy.asarray(sums)
    by_group = numpy.stack([rows[group].sum(0) for group in groups])
    weight = numpy.array([sum(counts[row] for row in group) for group in groups])
    n = len(groups)
    drawn = numpy.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)  # how often each one is
    means: numpy.ndarray = drawn @ by_group / (drawn @ weight)[:, None]
    return means


def clusters(counts: Sequence[float], documents: Sequence[int]) -> list[list[int]]:
    """The sequences that have tokens, by what is independent (see `unit`): their numbers, [clusters][sequences]."""
    by_document = unit(counts, documents) == "document"
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, count in enumerate(counts):
        if count:
            groups[documents[row] if by_document else row].append(row)
    return list(groups.values())


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
