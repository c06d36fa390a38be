"""The influence of every run of neighbouring blocks, which one pass over all pairs of boundaries gives.

::

    boundaries   0 ─ 1 ─ 2 ─ 3        run of blocks i..j-1  =  pair of boundaries (i, j)
    pairs        (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)

What a run does together is not what its blocks do one by one: the run of least influence is what Gromov et al.
(arXiv:2403.17887, Eq. 6) remove.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from shortgpt.basics.value import Value
from shortgpt.errors import SelectionError, ShortGPTError


@dataclass(frozen=True)
class Spans(Value):
    """A criterion between all pairs of boundaries. Lower means: remove first.

    Attributes:
        criterion: what was measured.
        depth: the number of blocks, L.
        sums: float64 sums of the tokens' values, [sequences][pairs]; the pairs (i, j), 0 <= i < j <= L, in
            lexicographic order.
        counts: the tokens that are in each sequence's sums, [sequences].
    """

    criterion: str
    depth: int
    sums: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...]

    @cached_property
    def means(self) -> tuple[float, ...]:
        """The mean over all tokens, [pairs]."""
        total = sum(self.counts)
        return tuple(sum(column) / total for column in zip(*self.sums, strict=True))

    @property
    def triangle(self) -> tuple[tuple[float, ...], ...]:
        """For each first block, the values of the runs that begin there, shortest first."""
        means = iter(self.means)
        return tuple(tuple(next(means) for _ in range(self.depth - first)) for first in range(self.depth))

    def value(self, first: int, count: int) -> float:
        """The influence of `count` blocks from `first` on, taken as one."""
        return self.triangle[first][count - 1]

    def best(self, count: int, kept: Collection[int] = ()) -> tuple[int, ...]:
        """The run of `count` blocks of least influence that holds none of `kept`. Of equal ones the deeper.

        Raises:
            SelectionError: there is no such run, or nothing would stay.
        """
        held = set(kept)
        free = [
            first
            for first in range(self.depth - count + 1)
            if 0 < count < self.depth and held.isdisjoint(range(first, first + count))
        ]
        if not free:
            stay = f" without the blocks that stay ({', '.join(map(str, sorted(held)))})" if held else ""
            raise SelectionError(f"there is no run of {count} of the {self.depth} blocks{stay}; ask for a shorter one")
        triangle = self.triangle
        first = min(free, key=lambda i: (triangle[i][count - 1], -i))
        return tuple(range(first, first + count))

    def check(self) -> None:
        """Raise a `ShortGPTError` where the sums do not fit the depth."""
        pairs = self.depth * (self.depth + 1) // 2
        fits = pairs > 0 and len(self.sums) == len(self.counts) and any(self.counts) and min(self.counts) >= 0
        if not fits or any(len(row) != pairs for row in self.sums):
            raise ShortGPTError(f"Spans: the numbers do not fit {self.depth} blocks, which have {pairs} runs")
