"""Three ways to look for the best set of n blocks.

::

    exact    every set that may go; for bounds, every one without a block to spare
    pairs    singles and pairs ─▶ a sum of them says which sets look best ─▶ these are measured ─▶ the sum is corrected
    beam     the best sets of 1, 2, ... blocks, each measured anew, W of them kept
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from shortgpt.errors import SelectionError
from shortgpt.values.choosing.search import BEAM, EXACT, PAIRS, Sums

if TYPE_CHECKING:
    from shortgpt.measuring.search.measurements import Measurements
    from shortgpt.measuring.search.program import Program
    from shortgpt.measuring.search.space import Blocks, Space

Pair = tuple[int, int]

CANDIDATES, ROUND = 19, 4
"""How many sets `pairs` measures beside singles and pairs; so many at a time, since they share their beginnings."""
REFUSALS = 200
"""After so many sets that look best and that the family refuses, `pairs` looks no further."""
LOOKED_AT = 50
"""So many times as many sets as may be measured are looked at, for those that the family allows."""
NUGGET = 0.1
"""The share of a prediction's error that is taken to be that set's own."""


@dataclass(frozen=True)
class Outcome:
    """What a method measured.

    Attributes:
        measured: the sets of n blocks that may go.
        predicted: what was said of each before it was measured; empty for other methods than `pairs`.
        optimal: whether every program was solved to its end; None where there was none.
    """

    measured: dict[Blocks, Sums]
    predicted: Mapping[Blocks, float] = field(default_factory=dict)
    optimal: bool | None = None


def exact(space: Space, measurements: Measurements, limit: int) -> Outcome:
    """Every set that the family allows.

    Raises:
        SelectionError: there are more than `limit`, or none.
    """
    sets: list[Blocks] = []
    refused: tuple[Blocks, str | None] = (), None
    for looked_at, blocks in enumerate(space.sets()):
        refusal = space.refusal(blocks)
        if refusal is None:
            sets.append(blocks)
        else:
            refused = blocks, refusal
        if len(sets) >= limit or looked_at >= LOOKED_AT * limit:
            raise _too_many(EXACT, f"{space.count():,} sets of {space.told}", limit)
    if not sets:
        raise space.nothing_may_go(*refused)
    measurements.expect(len(sets) + 1)
    measurements.whole()
    return Outcome(measurements.of(sets))


def pairs(space: Space, measurements: Measurements, limit: int) -> Outcome:
    """The sets that a sum over singles and pairs makes least, measured; L (L + 1) / 2 + `CANDIDATES` + 1 evaluations.

    f(S) = f(∅) + Σ a_i + Σ b_ij is fitted to the singles and the pairs, and holds for them without error. For larger
    sets it errs, and for sets that share pairs alike: each measured set's error is therefore spread over its pairs
    before the next set is looked for, which is kriging with the share of pairs in common as the covariance (Rasmussen
    and Williams, Gaussian Processes for Machine Learning, 2006, section 2.7).

    Raises:
        SelectionError: that takes more than `limit` evaluations, or the family refuses every set that looked best.
    """
    if space.most <= 2:
        return exact(space, measurements, limit)
    from shortgpt.measuring.search.program import Program

    program = Program(space)
    needed = 1 + len(space.free) + len(program.pairs) + min(CANDIDATES, space.count())
    if needed > limit:
        raise _too_many(PAIRS, f"{needed:,} measurements", limit)
    measurements.expect(needed)
    whole = measurements.whole()
    found = measurements.of([*((block,) for block in space.free), *program.pairs])
    a = {block: found[(block,)].mean - whole for block in space.free}
    b = {(i, j): _joint(found[i, j].mean - whole, a[i], a[j]) for i, j in program.pairs}

    def sum_of(blocks: Blocks, pair_values: Mapping[Pair, float]) -> float:
        return whole + sum(a[i] for i in blocks) + sum(pair_values[pair] for pair in combinations(blocks, 2))

    measured: dict[Blocks, Sums] = {}
    predicted: dict[Blocks, float] = {}
    errors: dict[Blocks, float] = {}
    refused = Refused(space)
    while len(measured) < CANDIDATES:
        bias, correction = spread(errors)
        corrected = {pair: value + correction.get(pair, 0.0) for pair, value in b.items()}
        best = refused.allowed(program, a, corrected, min(ROUND, CANDIDATES - len(measured)))
        if not best:
            break
        predicted |= {blocks: sum_of(blocks, corrected) + bias for blocks in best}
        measured |= measurements.of(best)
        errors |= {
            blocks: measured[blocks].mean - sum_of(blocks, b) for blocks in best if math.isfinite(measured[blocks].mean)
        }
    if not measured:
        raise space.nothing_may_go(*refused.example)
    return Outcome(measured, predicted, program.optimal)


class Refused:
    """The sets that looked best and that the family refuses, over all programs of one search."""

    def __init__(self, space: Space) -> None:
        self.space, self.count = space, 0
        self.example: tuple[Blocks, str | None] = (), None

    def allowed(
        self, program: Program, singles: Mapping[int, float], pair_values: Mapping[Pair, float], number: int
    ) -> list[Blocks]:
        """The best sets of a program that the family allows, each cut off, as are those that it refuses."""
        best: list[Blocks] = []
        while len(best) < number and self.count < REFUSALS:
            blocks = program.solve(singles, pair_values)
            if blocks is None:
                break
            program.cut_off(blocks)
            reason = self.space.refusal(blocks)
            if reason is None:
                best.append(blocks)
            else:
                self.example, self.count = (blocks, reason), self.count + 1
        return best


def spread(errors: Mapping[Blocks, float]) -> tuple[float, dict[Pair, float]]:
    """What sets err by together, and what then falls to each pair of their blocks. Of sets of two blocks or more.

    Args:
        errors: measured less predicted, by set.
    """
    import numpy

    if not errors:
        return 0.0, {}
    sets = list(errors)
    of_set = [frozenset(combinations(blocks, 2)) for blocks in sets]
    values = numpy.array([errors[blocks] for blocks in sets])
    number = sum(map(len, of_set)) / len(of_set) or 1.0
    common = numpy.array([[len(one & other) / number for other in of_set] for one in of_set])
    bias = float(values.mean())
    weights = numpy.linalg.solve(common + NUGGET * numpy.eye(len(sets)), values - bias)
    correction: dict[Pair, float] = {}
    for weight, its_pairs in zip(weights.tolist(), of_set, strict=True):
        for pair in its_pairs:
            correction[pair] = correction.get(pair, 0.0) + weight / number
    return bias, correction


def beam(space: Space, measurements: Measurements, limit: int, width: int) -> Outcome:
    """The best of all sets that come of the `width` best with one block less by one block more, from single blocks on.
    With a width of 1 it is the greedy search of SLEB (Song et al., arXiv:2402.09025).

    Sets of fewer blocks are measured whether or not the family could be built without them; of n blocks only those are
    that may go. Where the best lead to none, those behind them are taken.

    Raises:
        SelectionError: that may take more than `limit` evaluations, or the family refuses every set that comes up.
    """
    needed = _of_beam(space, width)
    if needed > limit:
        raise _too_many(BEAM, f"up to {needed:,} measurements at a width of {width}", limit)
    measurements.expect(needed)
    measurements.whole()
    if space.bounds:
        return _beam_to_bounds(space, measurements, width)
    level: list[Blocks] = [()]
    for _ in range(space.n - 1):
        level = _sorted(measurements.of(_grown(space, level[:width])))
    for at in range(0, len(level), width):
        last = _grown(space, level[at : at + width])
        if allowed := [blocks for blocks in last if space.refusal(blocks) is None]:
            return Outcome(measurements.of(allowed))
    raise space.nothing_may_go(last[-1], space.refusal(last[-1]))


def _beam_to_bounds(space: Space, measurements: Measurements, width: int) -> Outcome:
    """A set that is enough for the bounds grows no further."""
    level: list[Blocks] = [()]
    measured: dict[Blocks, Sums] = {}
    refused: tuple[Blocks, str | None] = (), None
    for _ in range(space.most):
        grown = _grown(space, level[:width])
        done = [blocks for blocks in grown if space.enough(blocks)]
        allowed = [blocks for blocks in done if space.refusal(blocks) is None]
        refused = next(((blocks, space.refusal(blocks)) for blocks in done if blocks not in allowed), refused)
        measured |= measurements.of(allowed)
        level = _sorted(measurements.of(blocks for blocks in grown if blocks not in done))
        if not level:
            break
    if not measured:
        raise space.nothing_may_go(*refused)
    return Outcome(measured)


def _grown(space: Space, level: Iterable[Blocks]) -> list[Blocks]:
    """The sets of one block more, each once."""
    return list(dict.fromkeys(more for blocks in level for more in space.growing(blocks)))


def _sorted(found: Mapping[Blocks, Sums]) -> list[Blocks]:
    """The best first; of equal ones that with the deeper blocks."""
    return sorted(found, key=lambda blocks: (found[blocks].mean, [-block for block in reversed(blocks)]))


def _of_beam(space: Space, width: int) -> int:
    """How many evaluations a beam may take: the whole model, and of each size what `width` sets can grow to."""
    free, total, before = len(space.free), 1, 1
    for size in range(1, space.most + 1):
        longest = free - size + 1 if not space.contiguous else 2 if size > 1 else free
        grown = min(min(width, before) * longest, math.comb(free, size))
        total, before = total + grown, grown
    return total


def _joint(both: float, one: float, other: float) -> float:
    """b_ij; infinite where the model gives no number without the two."""
    return both - one - other if math.isfinite(both) else math.inf


def _too_many(method: str, takes: str, limit: int) -> SelectionError:
    others = "search by pairs or beam" if method == EXACT else "take a smaller width" if method == BEAM else ""
    advice = f"allow more (--evaluations){', or ' + others if others else ''}"
    return SelectionError(f"the search {method!r} takes {takes}, and {limit:,} are allowed; {advice}")
