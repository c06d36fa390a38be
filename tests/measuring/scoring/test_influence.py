"""Block Influence on tensors, against sums in float64 written here, and against the angle a stream was turned by."""

import math

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt.measuring import angles as angles_of
from shortgpt.measuring.angles import cosine_distance
from tests.support import Playback, turned

TOKENS, WIDTH = 512, 64
DISTANCES = (1e-5, 1e-4, 1e-3, 0.03, 0.3, 1.0)
SCALES = 1 + 3 * torch.rand(TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def stream(distance: float, dtype: torch.dtype, size: float = 1.0) -> Tensor:
    """A boundary of 512 tokens and the next one: turned by a known angle and rescaled by 1 to 4, [2, 512, 64]."""
    x = size * torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return torch.stack([x, turned(x, distance, SCALES)]).to(dtype)


def by_hand(x: Tensor, y: Tensor) -> float:
    """`1 − mean of x·y/(‖x‖‖y‖)`, with Python's exactly rounded sums."""
    cosines = []
    for a, b in zip(x.double().tolist(), y.double().tolist(), strict=True):
        dot = math.fsum(p * q for p, q in zip(a, b, strict=True))
        cosines.append(dot / math.sqrt(math.fsum(p * p for p in a)) / math.sqrt(math.fsum(q * q for q in b)))
    return 1 - math.fsum(cosines) / len(cosines)


def measured(boundaries: Tensor) -> float:
    return shortgpt.score(Playback(boundaries), [{"input_ids": torch.arange(TOKENS)[None]}]).values[0]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_block_influence_is_the_float64_sum_over_the_same_stream_in_every_dtype(
    dtype: torch.dtype, distance: float
) -> None:
    boundaries = stream(distance, dtype)
    assert measured(boundaries) == pytest.approx(by_hand(*boundaries), rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_block_influence_is_the_cosine_distance_that_the_stream_was_turned_by(distance: float) -> None:
    assert measured(stream(distance, torch.float64)) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_norms_beyond_the_range_of_fp16_are_no_matter(dtype: torch.dtype) -> None:
    boundaries = stream(0.03, dtype, size=100)
    before, after = boundaries.double()
    assert (before.norm(dim=-1) * after.norm(dim=-1)).min() > 65504
    assert measured(boundaries) == pytest.approx(by_hand(*boundaries), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e30])
def test_neither_the_largest_nor_the_smallest_vectors_lose_digits(size: float, dtype: torch.dtype) -> None:
    boundaries = stream(1e-4, dtype, size=size)
    assert measured(boundaries) == pytest.approx(by_hand(*boundaries), rel=1e-6)


@pytest.mark.parametrize(("distance", "error"), [(1e-5, 1e-5), (1e-4, 5e-6), (1e-3, 2e-6), (0.03, 2e-6), (1.0, 2e-6)])
def test_in_float32_a_single_token_keeps_its_digits(distance: float, error: float) -> None:
    before, after = stream(distance, torch.float32)
    single = cosine_distance(before, after)
    assert single.dtype == torch.float32
    expected = [by_hand(x[None], y[None]) for x, y in zip(before, after, strict=True)]
    assert single.tolist() == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("distance", DISTANCES)
def test_where_a_device_has_no_float64_the_mean_over_tokens_is_right_all_the_same(
    distance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(angles_of, "precise", Tensor.float)
    boundaries = stream(distance, torch.float32)
    assert measured(boundaries) == pytest.approx(by_hand(*boundaries), rel=1e-6)


def test_in_float64_a_single_token_is_right_to_1e_10() -> None:
    before, after = stream(1e-5, torch.float32)
    expected = cosine_distance(before.double(), after.double()).tolist()
    # the same distance without a difference of nearly equal numbers: ½‖x/‖x‖ − y/‖y‖‖²
    for (x, y), value in zip(zip(before.tolist(), after.tolist(), strict=True), expected, strict=True):
        nx, ny = math.hypot(*x), math.hypot(*y)
        assert value == pytest.approx(
            math.fsum((p / nx - q / ny) ** 2 for p, q in zip(x, y, strict=True)) / 2, rel=1e-10
        )


def test_a_stream_that_is_only_rescaled_scores_zero_and_never_less() -> None:
    before = stream(0.5, torch.float32)[0]
    for scale in (1.0, 2.0, 3.7, -1.0):
        expected = 2.0 if scale < 0 else 0.0
        value = measured(torch.stack([before, before * scale]))
        assert value >= 0
        assert value == pytest.approx(expected, abs=1e-12 if scale in (1.0, 2.0, -1.0) else 1e-9)


def test_tokens_are_averaged_not_flattened_into_one_vector() -> None:
    # One long token turned by 90°, one short one not at all: their mean is ½, the flattened vectors' distance near 1.
    before = torch.tensor([[100.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[0.0, 100.0], [1.0, 0.0]])
    batch = [{"input_ids": torch.tensor([[0, 1]])}]
    assert shortgpt.score(Playback(torch.stack([before, after])), batch).values == (0.5,)
