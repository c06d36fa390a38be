"""The set of blocks that a sum over its blocks and its pairs of blocks makes least, as a mixed-integer program.

::

    minimise  Σ a_i x_i + Σ b_ij y_ij          x_i: block i goes         y_ij: blocks i and j both go
    so that   Σ x_i = n
              Σ_j y_ij = (n − 1) x_i            with 0 ≤ y_ij ≤ x_i, x_j this makes y_ij = x_i x_j for whole x
              x_i = Σ s_f, i − n < f ≤ i        of neighbours only: s_f says that the run begins at block f
              Σ_{i in S} x_i − Σ_{i not in S} x_i ≤ |S| − 1     for each set S that is cut off

With bounds on costs in the place of a number of blocks, for each of them and in the place of the first two lines:

::

              Σ c_i x_i ≥ what must go          c_i: the cost of block i
              y_ij ≥ x_i + x_j − 1

The products are made linear as by Adams and Sherali (Management Science 32, 1986, 1274-1290), with the sum over j that
the fixed number of blocks allows: it takes the place of y_ij ≥ x_i + x_j − 1, and its relaxation is far closer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

if TYPE_CHECKING:
    from shortgpt.measuring.search.space import Blocks, Space

SECONDS = 20.0
"""Of one solution; then the best set until then is taken, and said not to be proven the best."""
LARGEST = 1e4
"""The largest coefficient after scaling, so that the solver's absolute tolerance of 1e-6 is small beside the others."""


class Program:
    """Sets of a space, ordered by a sum over singles and pairs.

    Args:
        space: the sets.

    Attributes:
        optimal: whether every solution until now was proven to be the best one.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.optimal = space, True
        self.blocks = space.free
        self.pairs = joint_pairs(space)
        self._cut: list[Blocks] = []

    def cut_off(self, blocks: Blocks) -> None:
        """No solution from now on is this set."""
        self._cut.append(blocks)

    def solve(self, singles: Mapping[int, float], pairs: Mapping[tuple[int, int], float]) -> Blocks | None:
        """The set of least sum that is not cut off, None where there is none. No set with an infinite part is taken.

        Args:
            singles: a_i by block.
            pairs: b_ij by pair of blocks, the lesser first; empty where a set's sum is that of its blocks.
        """
        n, count = self.space.n, len(self.blocks)
        column = {block: at for at, block in enumerate(self.blocks)}
        firsts = self.space.firsts() if self.space.contiguous else []
        joint = self.pairs if pairs else []
        cost = numpy.array([*(singles[i] for i in self.blocks), *(pairs[p] for p in joint), *([0.0] * len(firsts))])
        rows = _Rows(len(cost))
        if self.space.bounds:
            self._add_bounds(rows, joint, column)
        else:
            rows.add(dict.fromkeys(range(count), 1), n, n)
        for block in self.blocks if joint and not self.space.bounds else ():
            with_it = {count + at: 1 for at, pair in enumerate(joint) if block in pair}
            rows.add(with_it | {column[block]: 1 - n}, 0, 0)
        for at, (i, j) in enumerate(joint):
            rows.add({count + at: 1, column[i]: -1}, -math.inf, 0)
            rows.add({count + at: 1, column[j]: -1}, -math.inf, 0)
        for block in self.blocks if firsts else ():
            runs = {count + len(joint) + at: -1 for at, first in enumerate(firsts) if first <= block < first + n}
            rows.add({column[block]: 1} | runs, 0, 0)
        for blocks in self._cut:
            signs = {column[block]: 1 if block in blocks else -1 for block in self.blocks}
            rows.add(signs, -math.inf, len(blocks) - 1)
        finite = numpy.isfinite(cost)
        largest = abs(cost[finite]).max(initial=0.0)
        found = milp(
            numpy.where(finite, cost, 0.0) * (LARGEST / largest if largest else 1.0),
            integrality=[1] * count + [0] * len(joint) + [1] * len(firsts),
            bounds=Bounds(0, numpy.where(finite, 1, 0)),
            constraints=rows.constraint(),
            options={"time_limit": SECONDS, "mip_rel_gap": 0.0},
        )
        if found.x is None:
            self.optimal &= found.status == 2  # infeasible
            return None
        self.optimal &= found.status == 0
        return tuple(block for at, block in enumerate(self.blocks) if found.x[at] > 0.5)

    def _add_bounds(self, rows: _Rows, joint: Sequence[tuple[int, int]], column: Mapping[int, int]) -> None:
        count = len(self.blocks)
        rows.add(dict.fromkeys(range(count), 1), 1, self.space.depth - 1)
        for bound in self.space.bounds:
            # In shares of what must go, so that the solver's absolute tolerance is one of a share.
            shares = {column[block]: bound.amounts[block] / bound.needed for block in self.blocks}
            rows.add(shares, 1, math.inf)
        for at, (i, j) in enumerate(joint):
            rows.add({count + at: 1, column[i]: -1, column[j]: -1}, -1, math.inf)


def joint_pairs(space: Space) -> list[tuple[int, int]]:
    """The pairs of blocks that can go together."""
    if not space.contiguous:
        return list(combinations(space.free, 2))
    runs = space.sets()
    return sorted({pair for run in runs for pair in combinations(run, 2)})


class _Rows:
    """Rows of a sparse matrix, each between two bounds."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.values: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, row: Mapping[int, float], low: float, high: float) -> None:
        self.values += row.values()
        self.columns += row.keys()
        self.rows += [len(self.low)] * len(row)
        self.low.append(low)
        self.high.append(high)

    def constraint(self) -> LinearConstraint:
        matrix = coo_array((self.values, (self.rows, self.columns)), shape=(len(self.low), self.width))
        return LinearConstraint(matrix.tocsc(), self.low, self.high)
