"""The fit of a change, against sums and solutions written out."""

import math

import pytest
import torch
from torch import Tensor

from shortgpt.measuring.compensation.normal_equations import NormalEquations
from shortgpt.models.projections import Addition, Form, Projection

WIDTH, TOKENS = 7, 40


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equations_of(form: Form, y: Tensor, u: Tensor, x: Tensor, mask: Tensor | None = None) -> NormalEquations:
    made = NormalEquations(Projection(0, form, {"weight": -2}, WIDTH), torch.device("cpu"))
    made.add(Addition(y, u), x, mask)
    return made


@pytest.fixture(scope="module")
def streams() -> tuple[Tensor, Tensor, Tensor]:
    u, x = draw(0, 2, TOKENS, WIDTH), draw(1, 2, TOKENS, WIDTH)
    x[:, 0] *= 1000  # a massive first token
    return u + draw(2, 2, TOKENS, WIDTH), u, x


def test_a_map_is_found_that_explains_everything(streams: tuple[Tensor, Tensor, Tensor]) -> None:
    y, u, _ = streams
    matrix = draw(3, WIDTH, WIDTH)
    solution = equations_of("map", y, u, y - u + u @ matrix.T).solve(1e-12)
    assert solution is not None
    torch.testing.assert_close(solution.change(1.0).numbers, matrix, atol=1e-8, rtol=0)
    assert solution.error(1.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_map_is_the_weighted_ridge_solution(streams: tuple[Tensor, Tensor, Tensor], ridge: float) -> None:
    """As ordinary least squares of stacked rows, by another routine: ridge rows below the weighted ones."""
    y, u, x = (stream.flatten(0, 1) for stream in streams)
    weight = 1 / x.norm(dim=1, keepdim=True)
    strength = math.sqrt(ridge * float((u * weight).square().sum(0).mean()))
    rows = torch.cat((u * weight, strength * torch.eye(WIDTH, dtype=torch.float64)))
    targets = torch.cat(((x - (y - u)) * weight, strength * torch.eye(WIDTH, dtype=torch.float64)))
    expected = torch.linalg.lstsq(rows, targets).solution.T
    solution = equations_of("map", *streams).solve(ridge)
    assert solution is not None
    torch.testing.assert_close(solution.change(1.0).numbers, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("form", ["map", "scale", "gain"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_error_is_that_of_the_changed_stream(
    streams: tuple[Tensor, Tensor, Tensor], form: Form, scale: float
) -> None:
    y, u, x = streams
    equations = equations_of(form, y, u, x)
    solution = equations.solve(0.1)
    assert solution is not None
    numbers = solution.change(scale).numbers
    moved = u @ numbers.T if form == "map" else u * numbers
    changed = y + moved - (0 if form == "gain" else u)
    size = x.norm(dim=-1)
    assert equations.error == pytest.approx(float(((y - x).norm(dim=-1) / size).square().mean().sqrt()))
    found = float(((changed - x).norm(dim=-1) / size).square().mean().sqrt())
    assert solution.error(scale) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("form", ["scale", "gain"])
def test_a_diagonal_is_each_dimensions_own_regression(streams: tuple[Tensor, Tensor, Tensor], form: Form) -> None:
    y, u, x = (stream.flatten(0, 1) for stream in streams)
    weight = 1 / x.norm(dim=1, keepdim=True)
    slopes = ((u * weight) * ((x - y) * weight)).sum(0) / (u * weight).square().sum(0)
    solution = equations_of(form, *streams).solve(1e-12)
    assert solution is not None
    torch.testing.assert_close(solution.change(1.0).numbers, slopes + (1 if form == "scale" else 0), atol=1e-8, rtol=0)


def test_padding_says_nothing(streams: tuple[Tensor, Tensor, Tensor]) -> None:
    y, u, x = streams
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, TOKENS // 2 :] = 0
    padded = [stream.clone() for stream in (y, u, x)]
    for stream in padded:
        stream[1, TOKENS // 2 :] = float("nan")
    made = equations_of("map", padded[0], padded[1], padded[2], mask)
    by_hand = equations_of("map", *(torch.cat((s[0], s[1, : TOKENS // 2]))[None] for s in (y, u, x)))
    torch.testing.assert_close(made.squares, by_hand.squares)
    torch.testing.assert_close(made.products, by_hand.products)


def test_solving_leaves_the_sums_as_they_were(streams: tuple[Tensor, Tensor, Tensor]) -> None:
    equations = equations_of("map", *streams)
    before = equations.squares.clone(), equations.products.clone()
    equations.solve(0.1)
    assert torch.equal(equations.squares, before[0])
    assert torch.equal(equations.products, before[1])


def test_where_nothing_is_added_there_is_no_change(streams: tuple[Tensor, Tensor, Tensor]) -> None:
    y, u, x = streams
    assert equations_of("map", y, torch.zeros_like(u), x).solve(0.1) is None
