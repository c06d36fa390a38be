"""Which sets of blocks a search may choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import comb

from shortgpt.basics.block_lists import format_blocks
from shortgpt.errors import SelectionError
from shortgpt.values.choosing.budget import Bound, check_reachable, most_needed
from shortgpt.values.choosing.choice import Refuse, free_runs
from shortgpt.values.scores import check_number

Blocks = tuple[int, ...]


class NothingMayGo(SelectionError):
    """The family refuses every set that was tried."""


@dataclass(frozen=True)
class Space:
    """The sets of n blocks that may go, or those that are enough for some bounds.

    Attributes:
        depth: the model's blocks.
        n: how many of them go; 0 where bounds say how much must.
        stays: blocks that do not go, each with its reason: pinned ones, and those that were asked to stay.
        contiguous: whether only neighbouring blocks go.
        refuse: why the family cannot be built without a set, None where it can.
        bounds: of what the model costs without a set.
    """

    depth: int
    n: int
    stays: Mapping[int, str]
    contiguous: bool
    refuse: Refuse
    bounds: tuple[Bound, ...] = ()
    _reasons: dict[Blocks, str | None] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises:
        SelectionError: that many blocks cannot go, or all that may are not enough.
        """
        if self.bounds:
            check_reachable(self.bounds, self.free, self.depth)
            return
        check_number(self.n, self.depth, self.stays)
        if self.contiguous:
            free_runs(self.depth, self.n, self.stays)

    @property
    def free(self) -> Blocks:
        """The blocks that may go."""
        return tuple(block for block in range(self.depth) if block not in self.stays)

    @property
    def most(self) -> int:
        """The blocks of the largest set: any so many are enough for the bounds."""
        if not self.bounds:
            return self.n
        enough = most_needed(self.bounds, self.free)
        return min(self.depth - 1, len(self.free) if enough is None else enough)

    @property
    def told(self) -> str:
        """What its sets are, for messages."""
        return f"{self.n} blocks" if not self.bounds else f"blocks for {', '.join(one.text for one in self.bounds)}"

    def enough(self, blocks: Blocks) -> bool:
        """Whether a set meets the bounds."""
        return all(bound.holds(blocks) for bound in self.bounds)

    def holds(self, blocks: Blocks) -> bool:
        """Whether a set is one of them."""
        return self.enough(blocks) if self.bounds else len(blocks) == self.n

    def is_least(self, blocks: Blocks) -> bool:
        """Whether a set meets the bounds, and would not without one of its blocks."""
        return self.enough(blocks) and not any(
            self.enough(tuple(other for other in blocks if other != block)) for block in blocks
        )

    def refusal(self, blocks: Blocks) -> str | None:
        """Why the family cannot be built without a set, None where it can."""
        if blocks not in self._reasons:
            self._reasons[blocks] = self.refuse(blocks)
        return self._reasons[blocks]

    def count(self) -> int:
        """How many sets there are, those that the family refuses among them; with bounds, how many at the most."""
        if self.bounds:
            return sum(comb(len(self.free), size) for size in range(1, self.most + 1))
        return len(self.firsts()) if self.contiguous else comb(len(self.free), self.n)

    def firsts(self) -> list[int]:
        """The first block of each run of n blocks that may go."""
        return free_runs(self.depth, self.n, self.stays)

    def sets(self) -> Iterator[Blocks]:
        """All of them, those that the family refuses among them. With bounds, of each set that is enough those that are
        so without a block to spare."""
        if self.bounds:
            sizes = range(1, self.most + 1)
            return (one for size in sizes for one in combinations(self.free, size) if self.is_least(one))
        if self.contiguous:
            return (tuple(range(first, first + self.n)) for first in self.firsts())
        return combinations(self.free, self.n)

    def growing(self, blocks: Blocks) -> Iterator[Blocks]:
        """The sets of one block more; of neighbouring blocks only such as a run of n can come of."""
        if not self.contiguous:
            more = [block for block in self.free if block not in blocks]
            return (tuple(sorted((*blocks, block))) for block in more)
        size = len(blocks) + 1
        held = set(blocks)
        runs = (range(at, at + size) for first in self.firsts() for at in range(first, first + self.n - size + 1))
        return iter(dict.fromkeys(tuple(run) for run in runs if held <= {*run}))

    def nothing_may_go(self, example: Blocks, reason: str | None) -> NothingMayGo:
        """The error that tells that the family refuses every set that was tried."""
        return NothingMayGo(
            f"no set of {self.told} that was tried can be removed; of {format_blocks(example)}: {reason}. Choose "
            "another number, or name the blocks (--remove; `shortgpt inspect MODEL --remove LIST` says whether they "
            "may go)"
        )
