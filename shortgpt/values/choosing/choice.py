"""Which blocks go, by their scores, and how sure that is.

::

    least    the n blocks of least score                            refused by the family? the nearest set that is not
    run      the n neighbouring blocks of least score, as one       refused? the next run
    within   the first n blocks of the ranking, n the largest with which the perplexity stays within a ratio

A refusal speaks of a set of blocks (some architectures cannot be built from any), never of a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.statistics import RESAMPLES, difference, observed, resampled_means
from shortgpt.basics.value import Value
from shortgpt.errors import SelectionError
from shortgpt.values.choosing.budget import Met
from shortgpt.values.choosing.spans import Spans


class Ranked(Protocol):
    """What choosing needs of scores: `shortgpt.Scores` has it all."""

    def __len__(self) -> int: ...
    @property
    def sums(self) -> tuple[tuple[tuple[float, ...], ...], ...]: ...
    @property
    def counts(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def pinned(self) -> Mapping[int, str]: ...
    @property
    def spans(self) -> Spans | None: ...
    @property
    def grouping(self) -> tuple[int, ...]: ...
    @property
    def documents(self) -> tuple[int, ...]: ...
    @property
    def values(self) -> tuple[float, ...]: ...
    def least_influential(self, n: int) -> tuple[int, ...]: ...
    def stability(self, n: int) -> float: ...


Refuse = Callable[[tuple[int, ...]], str | None]
"""(blocks that would go) → why they may not, None where they may."""

LEAST, CONTIGUOUS, WITHIN, TARGET = "least", "contiguous", "max-perplexity-ratio", "target"


@dataclass(frozen=True)
class Exchange(Value):
    """Blocks that go and blocks that might go instead.

    Attributes:
        gone: blocks of the choice.
        instead: blocks that stay, which could go in their place.
        difference: how much higher the mean score of `instead` is.
        stderr: the standard error of that, paired by document or sequence (`Scores.unit`); NaN for a single one.
    """

    gone: tuple[int, ...]
    instead: tuple[int, ...]
    difference: float
    stderr: float

    @property
    def errors(self) -> float:
        """The difference in standard errors; NaN for a single sequence."""
        if self.stderr == 0:
            return math.copysign(math.inf, self.difference) if self.difference else 0.0
        return self.difference / self.stderr

    @property
    def toss_up(self) -> bool:
        """Whether the scores differ by no more than the standard error of their difference."""
        return abs(self.errors) <= 1

    @property
    def probability(self) -> float:
        """How likely `instead` is the lesser in truth, by the normal approximation; NaN for a single sequence."""
        return 0.5 * math.erfc(self.errors / 2**0.5)


@dataclass(frozen=True)
class Choice(Value):
    """How the blocks of a plan were chosen.

    Attributes:
        rule: "least", "contiguous", "max-perplexity-ratio" or "target"; or of a search, "exact", "pairs" or "beam".
        stability: in what share of bootstrap resamples of the documents, or of the sequences (`Scores.unit`), the same
            set comes out (for a ratio: of as many blocks); NaN where that cannot be said.
        exchanges: those that are a toss-up, the most even one first, and the nearest to it where none is. Empty where
            the scores have no standard error, or nothing can be exchanged.
        refused: why the set of least score could not go; None where it did.
        limit: the ratio of perplexities that was allowed; None for another rule.
        ratios: held-out perplexity without the first 1, 2, ... blocks of the ranking over that of the whole model; NaN
            for a number that the architecture refuses, or that leaves no finite logits. Empty for another rule.
        budgets: what the set was to be enough for; empty where it was to be of so many blocks.
    """

    rule: str
    stability: float
    exchanges: tuple[Exchange, ...]
    refused: str | None = None
    limit: float | None = None
    ratios: tuple[float, ...] = ()
    budgets: tuple[Met, ...] = ()

    @property
    def toss_ups(self) -> tuple[Exchange, ...]:
        """The exchanges that the scores do not tell from the choice."""
        return tuple(one for one in self.exchanges if one.toss_up)


Chosen = tuple[tuple[int, ...], Choice]


def anything(blocks: tuple[int, ...]) -> str | None:
    """Refuses nothing."""
    return None


def least(scores: Ranked, n: int, refuse: Refuse = anything) -> Chosen:
    """The n blocks of least score that may go.

    Where the family refuses that set, one block of it is exchanged for another, at the least cost in score.

    Raises:
        SelectionError: n is not between 1 and the number of blocks that may go; or the family refuses all such sets.
    """
    blocks = lowest = scores.least_influential(n)
    reason = refuse(blocks)
    if reason is not None:
        blocks = next((near for near in _neighbours(scores, blocks) if refuse(near) is None), ())
    if not blocks:
        raise SelectionError(
            f"the {n} blocks of least score ({format_blocks(lowest)}) cannot be removed, nor can any set that differs "
            f"in one block: {reason}. Choose another number, keep blocks (--keep), remove neighbours (--contiguous), "
            "or name the blocks (--remove; `shortgpt inspect MODEL --remove LIST` says whether they may go)"
        )
    stability = scores.stability(n) if reason is None else float("nan")
    return blocks, Choice(LEAST, stability, exchanges(scores, blocks, refuse), reason)


def exchanges(scores: Ranked, blocks: Collection[int], refuse: Refuse = anything) -> tuple[Exchange, ...]:
    """The exchanges of a block that goes for one that stays, as `Choice` has them."""
    columns = list(zip(*scores.sums[0], strict=True))
    candidates = [
        Exchange((gone,), (other,), *difference(columns[gone], columns[other], scores.counts[0], scores.grouping))
        for gone in sorted(blocks)
        for other in range(len(scores))
        if other not in blocks and other not in scores.pinned
    ]
    return nearest(candidates, lambda one: refuse(tuple(sorted({*blocks, *one.instead} - {*one.gone}))) is None)


def run(scores: Ranked, n: int, refuse: Refuse = anything, *, resamples: int = RESAMPLES, seed: int = 0) -> Chosen:
    """The n neighbouring blocks whose influence, taken as one, is the least of all runs that may go (Gromov et al.,
    arXiv:2403.17887, Eq. 6). Of equal ones the deeper.

    Raises:
        SelectionError: the scores hold no spans, no run is that long, or the family refuses all of them.
    """
    spans = scores.spans
    if spans is None:
        raise SelectionError("runs of blocks were not measured; score with spans=True")
    firsts = free_runs(len(scores), n, scores.pinned)
    place = {pair: at for at, pair in enumerate(_pairs(len(scores)))}
    columns = [place[first, first + n] for first in firsts]
    sums = [[row[column] for column in columns] for row in spans.sums]
    means = [spans.means[column] for column in columns]
    documents = scores.documents if len(scores.documents) == len(spans.counts) else ()

    def blocks_of(at: int) -> tuple[int, ...]:
        return tuple(range(firsts[at], firsts[at] + n))

    def order(values: Sequence[float]) -> list[int]:
        return sorted(range(len(firsts)), key=lambda at: (values[at], -at))

    best, *others = order(means)
    reason = refuse(blocks_of(best))
    allowed = [at for at in (best, *others) if refuse(blocks_of(at)) is None]
    if not allowed:
        raise SelectionError(
            f"no run of {n} blocks can be removed; of the one of least score, {format_blocks(blocks_of(best))}: "
            f"{reason}. Choose another length, or name the blocks (--remove; `shortgpt inspect MODEL --remove LIST` "
            "says whether they may go)"
        )
    taken, *left = allowed
    stability = float("nan")
    if reason is None and observed(spans.counts) > 1:
        deeper_first = resampled_means(sums, spans.counts, resamples, seed, documents)[:, ::-1]
        stability = float((deeper_first.argmin(1) == len(firsts) - 1 - taken).mean())
    by_run = list(zip(*sums, strict=True))
    candidates = []
    for at in left:
        only = set(blocks_of(at)) ^ set(blocks_of(taken))
        gone, instead = (tuple(sorted(only & set(blocks_of(k)))) for k in (taken, at))
        candidates.append(Exchange(gone, instead, *difference(by_run[taken], by_run[at], spans.counts, documents)))
    return blocks_of(taken), Choice(CONTIGUOUS, stability, nearest(candidates), reason)


def free_runs(depth: int, n: int, kept: Collection[int]) -> list[int]:
    """The first block of each run of n blocks that holds none of `kept`.

    Raises:
        SelectionError: there is none, or nothing would stay.
    """
    if not 1 <= n < depth:
        raise SelectionError(f"a run of {n} blocks cannot be chosen: from 1 to {depth - 1} of the {depth} may go")
    held = set(kept)
    firsts = [first for first in range(depth - n + 1) if held.isdisjoint(range(first, first + n))]
    if not firsts:
        raise SelectionError(
            f"there is no run of {n} of the {depth} blocks without those that stay ({format_blocks(held)}); "
            "ask for a shorter one"
        )
    return firsts


def check_limit(limit: float) -> None:
    """Raise a `SelectionError` for what is no ratio of perplexities to stay within."""
    if not 1 <= limit < math.inf:
        raise SelectionError(
            f"a perplexity ratio of {limit:g} is no limit; it says how many times the original's perplexity is "
            "allowed, such as 1.1"
        )


def _neighbours(scores: Ranked, blocks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The sets that differ from the n lowest in one block, those of least score first."""
    values = scores.values
    pairs = [
        (values[other] - values[gone], gone, other)
        for gone in blocks
        for other in range(len(scores))
        if other not in blocks and other not in scores.pinned
    ]
    for _, gone, other in sorted(pairs):
        yield tuple(sorted({*blocks, other} - {gone}))


def _pairs(depth: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(depth) for j in range(i + 1, depth + 1)]


def nearest(found: Iterable[Exchange], allowed: Callable[[Exchange], bool] = lambda one: True) -> tuple[Exchange, ...]:
    """The toss-ups, the most even one first, or else the exchange nearest to one; of those that are allowed."""
    known = [one for one in found if not math.isnan(one.stderr)]
    taken: list[Exchange] = []
    for one in sorted(known, key=lambda one: (abs(one.errors), one.gone, one.instead)):
        if taken and not one.toss_up:
            break
        if allowed(one):
            taken.append(one)
    return tuple(taken)
