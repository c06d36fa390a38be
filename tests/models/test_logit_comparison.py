"""What counts as equal logits, and what equality of them would prove."""

import pytest
import torch
from torch import Tensor

from shortgpt.models.probing.logit_comparison import compare_logits, masked, proves_nothing

LOWEST = [-torch.inf, -1e9, *(torch.finfo(kind).min for kind in (torch.float16, torch.bfloat16, torch.float32))]


def some_logits() -> Tensor:
    return torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))


def test_a_difference_is_held_against_the_largest_logit() -> None:
    expected = torch.tensor([[1.0, -4.0, 2.0]])
    found = expected + torch.tensor([[0.0, 0.0, 0.04]])
    assert compare_logits(found, expected, 0.011).equal
    difference = compare_logits(found, expected, 0.009)
    assert not difference.equal
    assert difference.told("the others") == "differ by 0.04 from the others (largest logit 4, allowed 0.036)"


@pytest.mark.parametrize("lowest", LOWEST)
def test_a_mask_says_nothing_of_how_large_logits_are(lowest: float) -> None:
    expected = some_logits()
    expected[..., 3:5] = lowest
    found = expected.clone()
    assert compare_logits(found, expected).equal
    found[1, 2, 7] += 1e-3
    difference = compare_logits(found, expected, 1e-4)
    assert not difference.equal
    assert difference.difference == pytest.approx(1e-3, rel=1e-3)
    assert difference.largest == expected[expected > -100].abs().max().item()


@pytest.mark.parametrize("lowest", LOWEST)
def test_what_is_masked_must_be_masked_in_both(lowest: float) -> None:
    plain = some_logits()
    hidden = plain.clone()
    hidden[..., 3] = lowest
    for found, expected in ((plain, hidden), (hidden, plain)):
        difference = compare_logits(found, expected, 1.0)
        assert not difference.equal
        assert difference.told("the others") == "are masked at other places than expected (the others)"


def test_masks_of_half_precision_are_known_in_float32() -> None:
    for kind in (torch.float16, torch.bfloat16):
        logits = torch.tensor([3.0, torch.finfo(kind).min, -2.0], dtype=kind).float()
        assert masked(logits).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_number_is_never_equal(value: float) -> None:
    expected, found = some_logits(), some_logits()
    found[0, 0, 0] = value
    assert not compare_logits(found, expected, 1e9).equal
    assert not compare_logits(found, found, 1e9).equal


def test_other_shapes_are_never_equal() -> None:
    assert not compare_logits(some_logits()[..., :9], some_logits(), 1e9).equal


def test_half_precisions_are_subtracted_in_float32() -> None:
    expected = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    assert compare_logits(torch.tensor([[256.0, 1.0]]) + 2**-10, expected).difference == 2**-10


def with_mask(logits: Tensor) -> Tensor:
    return torch.cat((logits, torch.full_like(logits[..., :1], -torch.inf)), dim=-1)


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (torch.zeros(2, 4, 10), "are all zero"),
        (with_mask(torch.zeros(2, 4, 10)), "are all zero"),
        (torch.full((2, 4, 10), 0.5), "are one and the same number throughout"),
        (some_logits()[0, 0].expand(2, 4, 10), "are the same at every token, whatever the text"),
        (some_logits().masked_fill(some_logits() > 1.5, torch.nan), "hold NaN or infinity"),
        (some_logits().masked_fill(some_logits() > 1.5, torch.inf), "hold NaN or infinity"),
        (torch.full((2, 4, 10), torch.finfo(torch.bfloat16).min), "are masked throughout"),
    ],
)
def test_logits_with_which_any_model_would_agree_prove_nothing(logits: Tensor, reason: str) -> None:
    assert proves_nothing(logits) == reason


def test_other_logits_prove_something() -> None:
    assert proves_nothing(some_logits()) is None
    assert proves_nothing(with_mask(some_logits())) is None
    assert proves_nothing(some_logits()[:1, :1]) is None
