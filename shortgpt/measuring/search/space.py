"""Which sets of blocks a search may choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import comb

from shortgpt.basics.block_lists import format_blocks
from shortgpt.errors import SelectionError
from shortgpt.values.choosing.choice import Refuse, free_runs
from shortgpt.values.scores import check_number

Blocks = tuple[int, ...]


class NothingMayGo(SelectionError):
    """The family refuses every set that was tried."""


@dataclass(frozen=True)
class Space:
    """The sets of n blocks that may go.

    Attributes:
        depth: the model's blocks.
        n: how many of them go.
        stays: blocks that do not go, each with its reason: pinned ones, and those that were asked to stay.
        contiguous: whether only neighbouring blocks go.
        refuse: why the family cannot be built without a set, None where it can.
    """

    depth: int
    n: int
    stays: Mapping[int, str]
    contiguous: bool
    refuse: Refuse
    _reasons: dict[Blocks, str | None] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises:
        SelectionError: that many blocks cannot go.
        """
        check_number(self.n, self.depth, self.stays)
        if self.contiguous:
            free_runs(self.depth, self.n, self.stays)

    @property
    def free(self) -> Blocks:
        """The blocks that may go."""
        return tuple(block for block in range(self.depth) if block not in self.stays)

    def refusal(self, blocks: Blocks) -> str | None:
        """Why the family cannot be built without a set, None where it can."""
        if blocks not in self._reasons:
            self._reasons[blocks] = self.refuse(blocks)
        return self._reasons[blocks]

    def count(self) -> int:
        """How many sets there are, those that the family refuses among them."""
        return len(self.firsts()) if self.contiguous else comb(len(self.free), self.n)

    def firsts(self) -> list[int]:
        """The first block of each run of n blocks that may go."""
        return free_runs(self.depth, self.n, self.stays)

    def sets(self) -> Iterator[Blocks]:
        """All of them, those that the family refuses among them."""
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
            f"no set of {self.n} blocks that was tried can be removed; of {format_blocks(example)}: {reason}. Choose "
            "another number, or name the blocks (--remove; `shortgpt inspect MODEL --remove LIST` says whether they "
            "may go)"
        )
