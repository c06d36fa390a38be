"""How sets are looked for: held against brute force over made-up objectives whose best set is known."""

import random
import re
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import pytest

from shortgpt.errors import SelectionError
from shortgpt.measuring.search import methods
from shortgpt.measuring.search.program import Program
from shortgpt.measuring.search.space import Space
from shortgpt.values.choosing.search import Sums, best_set

Blocks = tuple[int, ...]
DEPTH = 8


def space(n: int, *, stays: Iterable[int] = (), contiguous: bool = False, refuse: Any = lambda blocks: None) -> Space:
    return Space(DEPTH, n, dict.fromkeys(stays, "it stays"), contiguous, refuse)


class MadeUp:
    """Measurements of an objective that is a function of the set."""

    def __init__(self, value: Callable[[Blocks], float]) -> None:
        self.value, self.asked = value, dict[Blocks, None]()

    def expect(self, sets: int) -> None: ...

    def whole(self) -> float:
        return self.of([()])[()].mean

    def of(self, sets: Iterable[Blocks]) -> dict[Blocks, Sums]:
        found = {tuple(blocks): Sums((self.value(tuple(blocks)),), (1,)) for blocks in sets}
        self.asked |= dict.fromkeys(found)
        return found


def quadratic(seed: int = 0) -> Callable[[Blocks], float]:
    """Of singles and pairs alone."""
    draw = random.Random(seed)
    a = [draw.uniform(0, 1) for _ in range(DEPTH)]
    b = {pair: draw.uniform(-1, 1) for pair in combinations(range(DEPTH), 2)}
    return lambda blocks: 2 + sum(a[i] for i in blocks) + sum(b[pair] for pair in combinations(blocks, 2))


def bent(seed: int = 0) -> Callable[[Blocks], float]:
    """Of triples too, so that singles and pairs do not tell all."""
    draw = random.Random(seed)
    plain = quadratic(seed)
    c = {triple: draw.uniform(-0.3, 0.3) for triple in combinations(range(DEPTH), 3)}
    return lambda blocks: plain(blocks) + sum(c[triple] for triple in combinations(blocks, 3))


def best_of(outcome: methods.Outcome) -> Blocks:
    return best_set(outcome.measured, "any")[0]


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("stays", [(), (0, 3)])
def test_the_program_gives_the_sets_in_the_order_of_their_sums(contiguous: bool, stays: Blocks) -> None:
    where, value = space(3, stays=stays, contiguous=contiguous), quadratic()
    program = Program(where)
    a = {i: value((i,)) - 2 for i in program.blocks}
    b = {(i, j): value((i, j)) - 2 - a[i] - a[j] for i, j in program.pairs}
    order = sorted((set_ for set_ in combinations(range(DEPTH), 3) if not {*set_} & {*stays}), key=value)
    if contiguous:
        order = [blocks for blocks in order if blocks[2] - blocks[0] == 2]
    for blocks in order[:5]:
        assert program.solve(a, b) == blocks
        program.cut_off(blocks)
    assert program.optimal


def test_the_program_takes_no_set_with_an_infinite_part_and_tells_when_none_is_left() -> None:
    where = space(2, stays=(0, 1, 2, 3, 4))
    program = Program(where)
    a, b = {5: 0.0, 6: 0.0, 7: 1.0}, {(5, 6): float("inf"), (5, 7): 0.0, (6, 7): 1.0}
    assert program.solve(a, b) == (5, 7)
    assert program.solve(a | {5: float("inf")}, b) == (6, 7)
    for blocks in ((5, 7), (6, 7)):
        program.cut_off(blocks)
    assert program.solve(a, b) is None


@pytest.mark.parametrize("n", [1, 2, 5])
def test_of_singles_and_pairs_alone_the_first_prediction_is_exact(n: int) -> None:
    value, measurements = quadratic(), MadeUp(quadratic())
    outcome = methods.pairs(space(n), measurements, 1000)  # type: ignore[arg-type]
    assert best_of(outcome) == min(combinations(range(DEPTH), n), key=value)
    for blocks, predicted in outcome.predicted.items():
        assert predicted == pytest.approx(value(blocks), abs=1e-9)
    assert len(measurements.asked) <= DEPTH * (DEPTH + 1) // 2 + 20


@pytest.mark.parametrize("seed", range(2))
def test_where_pairs_do_not_tell_all_what_was_measured_corrects_them(seed: int) -> None:
    value, measurements = bent(seed), MadeUp(bent(seed))
    order = sorted(combinations(range(DEPTH), 4), key=value)
    outcome = methods.pairs(space(4), measurements, 1000)  # type: ignore[arg-type]
    assert best_of(outcome) in order[:2]
    first, *_, last = outcome.predicted
    errors = [abs(outcome.predicted[blocks] - value(blocks)) for blocks in (first, last)]
    assert errors[1] < errors[0]


def test_an_error_that_all_share_moves_no_pair_and_others_are_spread_over_their_pairs() -> None:
    assert methods.spread({}) == (0.0, {})
    assert methods.spread({(0, 1, 2): 0.5})[0] == 0.5
    assert all(abs(share) < 1e-12 for share in methods.spread({(0, 1, 2): 0.5, (0, 1, 3): 0.5})[1].values())
    bias, correction = methods.spread({(0, 1, 2): 1.0, (3, 4, 5): -1.0})  # which have no pair in common
    assert bias == 0.0
    share = 1 / (1 + methods.NUGGET) / 3
    pairs = dict.fromkeys(combinations((0, 1, 2), 2), share) | dict.fromkeys(combinations((3, 4, 5), 2), -share)
    assert correction == pytest.approx(pairs)


@pytest.mark.parametrize("name", ["exact", "pairs", "beam"])
def test_a_set_that_the_family_refuses_is_passed_over(name: str) -> None:
    value = quadratic()
    first, second, *_ = sorted(combinations(range(DEPTH), 3), key=value)
    where = space(3, refuse=lambda blocks: "no such" if blocks == first else None)
    run = {"exact": methods.exact, "pairs": methods.pairs, "beam": lambda *given: methods.beam(*given, 100)}[name]
    assert best_of(run(where, MadeUp(value), 1000)) == second  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["exact", "pairs", "beam"])
def test_where_all_are_refused_the_reason_is_told(name: str) -> None:
    where = space(3, stays=range(4), refuse=lambda blocks: "tied together")
    run = {"exact": methods.exact, "pairs": methods.pairs, "beam": lambda *given: methods.beam(*given, 2)}[name]
    with pytest.raises(SelectionError, match=r"no set of 3 blocks .* tied together"):
        run(where, MadeUp(quadratic()), 1000)  # type: ignore[arg-type]


def test_a_beam_that_leads_to_refused_sets_only_goes_on_with_those_behind_it() -> None:
    value = quadratic()
    worst = max(combinations(range(DEPTH), 2), key=value)
    where = space(3, refuse=lambda blocks: None if {*worst} <= {*blocks} else "no such")
    outcome = methods.beam(where, MadeUp(value), 1000, 1)  # type: ignore[arg-type]
    assert all({*worst} <= {*blocks} for blocks in outcome.measured)


@pytest.mark.parametrize("contiguous", [False, True])
def test_a_beam_of_every_width_ends_between_greedy_and_exact(contiguous: bool) -> None:
    value, where = bent(3), space(4, stays=(2,), contiguous=contiguous)
    greedy: Blocks = ()
    for _ in range(0 if contiguous else 4):
        more = [block for block in range(DEPTH) if block not in (*greedy, 2)]
        greedy = min((tuple(sorted((*greedy, block))) for block in more), key=value)
    if not contiguous:
        assert best_of(methods.beam(where, MadeUp(value), 1000, 1)) == greedy  # type: ignore[arg-type]
    wide = methods.beam(where, MadeUp(value), 1000, 100)  # type: ignore[arg-type]
    exact = methods.exact(where, MadeUp(value), 1000)  # type: ignore[arg-type]
    assert wide.measured == exact.measured
    assert {*exact.measured} == {*where.sets()}


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize(("name", "width"), [("exact", 1), ("pairs", 1), ("beam", 1), ("beam", 4), ("beam", 50)])
def test_a_search_takes_no_more_evaluations_than_it_says_before_it_begins(name: str, n: int, width: int) -> None:
    run: Any = {"exact": methods.exact, "pairs": methods.pairs, "beam": lambda *given: methods.beam(*given, width)}
    measurements = MadeUp(quadratic())
    with pytest.raises(SelectionError) as told:
        run[name](space(n), measurements, 1)
    assert not measurements.asked
    takes = re.search(r"takes (?:up to )?(\d+) (sets|measurements)", str(told.value))
    assert takes is not None
    needed = int(takes[1]) + (takes[2] == "sets")  # and the whole model
    run[name](space(n), measurements, needed)
    assert len(measurements.asked) <= needed
    if width == 1:
        assert len(measurements.asked) == needed


def test_what_may_go_is_told_when_there_is_nothing_to_choose() -> None:
    with pytest.raises(SelectionError, match="from 1 to 5 of the 8"):
        space(6, stays=(0, 1, 2))
    with pytest.raises(SelectionError, match="no run of 4"):
        space(4, stays=(3, 4), contiguous=True)
