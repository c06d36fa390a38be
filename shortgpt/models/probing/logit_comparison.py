"""When are the logits of two models equal enough? The one place that decides it, and what each comparison allows.

::

    expected ──▶ proves_nothing()   NaN, all zero, the same whatever the text: any two models would agree
    found    ──▶ compare_logits()   the same masks; elsewhere |found - expected| ≤ tolerance · largest |expected|

A tolerance is relative to the largest logit that is not masked. Those below are for logits computed in float32: half
precision rounds by up to 0.8%, and a tolerance of some such roundings would let wrong models pass. So in half precision
nothing is allowed, and what needs a tolerance is compared in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FLOAT32_EPS = 2.0**-23
EXACT = 0.0
"""On a CPU the same operations on the same numbers give the same, to the bit."""
FOLDED = 16 * FLOAT32_EPS
"""A folded weight is rounded anew, and so is every sum that it enters."""
ROUNDED = 16
"""Roundings of half precision that saving folded weights in it may move. That proves nothing: they are proven before.
"""
MOVED = 4 * FLOAT32_EPS
"""Some kernels (those for experts) sum in an order that depends on where in a cache line the weights begin."""
SAME_PROCESS = 16 * FLOAT32_EPS
"""Two passes of one model on an accelerator, whose sums may come in another order."""
IN_MEMORY = 1e-5
"""A model that shares its tensors with the one it is compared with: sums in another order, no other weights."""
ELSEWHERE = 1e-4
"""Another process on an accelerator, or another machine: other kernels, which sum in another order."""
HALF_ELSEWHERE = 4e-2
"""The same in half precision. It proves nothing: what is beyond it is wrong, what is within it need not be right."""
EXPORTED = 1e-5
"""Another architecture that computes the same function by other operations."""
EXPORTED_HALF = 0.02
"""As before, of a result in half precision: what the export computed anew, such as a head's unit rows, is rounded."""
CACHED = 1e-3
"""With a cache a text is read token by token: products of other shapes, sums in another order."""
CACHED_ON_ACCELERATOR = 5e-3
"""As before; and kernels that scan a whole text (Mamba 2's) multiply float32 as TF32, a step with a cache does not."""

NEVER = -1e8
LOWEST_FLOAT16 = -65504.0


@dataclass(frozen=True)
class LogitDifference:
    """How far found logits are from the expected ones.

    Attributes:
        difference: the largest absolute difference of unmasked logits; NaN where one of them is no number.
        largest: the largest absolute unmasked logit that is expected.
        allowed: the difference that is allowed.
        fault: what is wrong other than the difference.
    """

    difference: float
    largest: float
    allowed: float
    fault: str | None = None

    @property
    def equal(self) -> bool:
        """Whether they are equal enough."""
        return self.fault is None and self.difference <= self.allowed

    def told(self, of: str) -> str:
        """What is wrong, for a sentence that begins with the found logits; `of` names the expected ones."""
        if self.fault is not None:
            return f"{self.fault} ({of})"
        return f"differ by {self.difference:.3g} from {of} ({self.bounds})"

    @property
    def bounds(self) -> str:
        """What the difference is to be held against."""
        return f"largest logit {self.largest:.4g}, allowed {self.allowed:.3g}"


def compare_logits(
    found: Tensor, expected: Tensor, tolerance: float = EXACT, *, largest: float | None = None
) -> LogitDifference:
    """Compare logits of any shape whose last axis is the vocabulary.

    Args:
        tolerance: relative to the largest unmasked logit; one of this module's.
        largest: that logit, where `expected` is only a part of the logits.
    """
    if found.shape != expected.shape:
        told = f"have the shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        return LogitDifference(float("nan"), float("nan"), 0.0, told)
    found, expected = _wide(found), _wide(expected).to(found.device)
    seen = ~masked(expected)
    if largest is None:
        largest = expected[seen].abs().max().item() if seen.any() else 0.0
    allowed = tolerance * largest
    if not (masked(found) == ~seen).all():
        return LogitDifference(float("nan"), largest, allowed, "are masked at other places than expected")
    difference = (found[seen] - expected[seen]).abs().max().item() if seen.any() else 0.0
    return LogitDifference(difference, largest, allowed)


def is_half(dtype: str) -> bool:
    """Whether a dtype is of half precision, in which rounding hides what is wrong."""
    return dtype not in ("float32", "float64")


def masked(logits: Tensor) -> Tensor:
    """Which logits stand for "never this token": minus infinity, the lowest number of a floating point type, or what
    else is written there, such as -1e9. A logit that is so low says nothing of how large the others are.

    Returns booleans of the same shape.
    """
    return (logits <= NEVER) | (logits == LOWEST_FLOAT16)


def _wide(logits: Tensor) -> Tensor:
    return logits.detach() if logits.element_size() == 8 else logits.detach().float()


def proves_nothing(logits: Tensor) -> str | None:
    """Why equality with these expected logits would say nothing, for a sentence that begins with them; or None."""
    rows = logits.flatten(0, -2)
    seen = rows[~masked(rows)]
    if not seen.numel():
        return "are masked throughout"
    if not seen.isfinite().all():
        return "hold NaN or infinity"
    if not seen.any():
        return "are all zero"
    if (seen == seen[0]).all():
        return "are one and the same number throughout"
    if len(rows) > 1 and (rows == rows[0]).all():
        return "are the same at every token, whatever the text"
    return None
