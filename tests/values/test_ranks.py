"""Spearman's ρ and its interval, against formulas and numbers worked out by hand."""

import math
import random

import pytest

from shortgpt.basics.statistics import interval, mid_ranks, spearman


def test_equal_values_share_the_mean_of_their_places() -> None:
    assert mid_ranks([3.0, 1.0, 3.0, 2.0, 3.0]) == [4.0, 1.0, 4.0, 2.0, 4.0]
    assert mid_ranks([math.inf, 0.0, -1.0, math.inf]) == [3.5, 2.0, 1.0, 3.5]
    assert mid_ranks([]) == []


@pytest.mark.parametrize("count", [2, 5, 12, 32])
def test_without_ties_it_is_the_formula_of_squared_differences(count: int) -> None:
    draw = random.Random(count)
    places = draw.sample(range(count), count)
    squares = sum((place - i) ** 2 for i, place in enumerate(places))
    rho = spearman([math.exp(i) for i in range(count)], [float(place) ** 3 for place in places])
    assert rho == pytest.approx(1 - 6 * squares / (count * (count**2 - 1)), abs=1e-15)


def test_with_ties_it_is_pearsons_correlation_of_mid_ranks() -> None:
    # Mid-ranks 1, 2.5, 2.5, 4 and 1, 2, 3.5, 3.5: both sums of squares are 4.5, the sum of products is 3.75.
    assert spearman([1, 2, 2, 3], [10, 20, 30, 30]) == pytest.approx(3.75 / 4.5)


def test_the_same_order_is_one_and_the_reverse_minus_one() -> None:
    assert spearman([1, 2, 5, 9], [0.1, 0.2, 0.3, math.inf]) == 1
    assert spearman([1, 2, 5, 9], [3, 2, 1, 0]) == -1


@pytest.mark.parametrize(("one", "other"), [([1.0], [2.0]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, math.nan, 2])])
def test_where_there_is_no_order_it_is_not_defined(one: list[float], other: list[float]) -> None:
    assert math.isnan(spearman(one, other))


def test_lists_of_different_length_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="3 values beside 2"):
        spearman([1, 2, 3], [1, 2])


def test_the_interval_is_fishers_with_the_variance_of_bonett_and_wright() -> None:
    # ρ = 0.6 of 19 things: artanh 0.6 = ln 2; the variance is (1 + 0.18) / 16, its root 0.2715695; times 1.9599640.
    reach = 1.9599640 * 0.2715695
    expected = (math.tanh(math.log(2) - reach), math.tanh(math.log(2) + reach))
    assert interval(0.6, 19) == pytest.approx(expected, abs=1e-7)
    assert interval(-0.6, 19) == pytest.approx((-expected[1], -expected[0]), abs=1e-7)


@pytest.mark.parametrize(("rho", "count"), [(0.5, 3), (1.0, 12), (-1.0, 12), (math.nan, 12)])
def test_where_it_says_nothing_there_is_no_interval(rho: float, count: int) -> None:
    assert all(map(math.isnan, interval(rho, count)))


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    """Of samples of 12 from a normal distribution whose ρ is known in closed form, 6/π · arcsin(r/2)."""
    draw, r, samples = random.Random(0), 0.8, 1500
    truth = 6 / math.pi * math.asin(r / 2)
    held = 0
    for _ in range(samples):
        x = [draw.gauss(0, 1) for _ in range(12)]
        y = [r * value + math.sqrt(1 - r * r) * draw.gauss(0, 1) for value in x]
        low, high = interval(spearman(x, y), 12)
        held += low <= truth <= high
    assert 0.93 < held / samples < 0.98
