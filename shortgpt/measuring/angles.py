"""Norms and angles between two boundaries of the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from shortgpt.measuring.step import Step


def step_between(x: Tensor, y: Tensor) -> Step:
    """What leads from x to y, [tokens, width], float64 or float32."""
    before, after, update = norm(x), norm(y), norm(y - x)
    if x.dtype == torch.float64:
        return Step(before, after, update, distance_of(before, after, update))
    return Step(before, after, update, cosine_distance(x, y))


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """`1 − x·y / (‖x‖ ‖y‖)` along the last axis, in the dtype of its arguments: float64 or float32.

    In float64 it is made of norms (`distance_of`). In float32 that would have none of its digits right where a block
    rescales the stream, so the equal form `½ ‖x/‖x‖ − y/‖y‖‖²` is taken (`turn_`): for a single token good to 2e-6 at a
    distance of 1e-3 or more and to 1e-5 at 1e-5; over many tokens to 1e-7.
    """
    before, after = norm(x), norm(y)
    if x.dtype == torch.float64:
        return distance_of(before, after, norm(y - x))
    return 0.5 * (norm(turn_(y.clone(), x, after, before)) / after).square()


def distance_of(before: Tensor, after: Tensor, update: Tensor) -> Tensor:
    """`1 − cos(x, y)` from ‖x‖, ‖y‖ and ‖y − x‖ in float64: `(‖y − x‖² − (‖y‖ − ‖x‖)²) / (2 ‖x‖ ‖y‖)`.

    Its error is some 1e-16 times the larger of `‖y‖/‖x‖` and its inverse, and less by as much as the update is small:
    a block that hardly turns the stream keeps all digits, where `1 − x·y / (‖x‖ ‖y‖)` loses them. One that only
    rescales the stream comes to 0, and rounding takes none below it.
    """
    growth = (after - before).abs()
    return ((update - growth) * (update + growth) / (2 * before * after)).clamp_min(0)


def turn_(y: Tensor, x: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """Make of y, in place, `y − (‖y‖/‖x‖) x = ‖y‖ (y/‖y‖ − x/‖x‖)`: what a block does but for rescaling the stream.

    Of its norm over ‖y‖, half the square is 1 − cos(x, y); an error of the two norms is in that by its square only.

    Args:
        y, x: [tokens, width], float32 or float64.
        after, before: ‖y‖ and ‖x‖, [tokens].
    """
    return y.addcmul_(x, (after / before).unsqueeze(-1), value=-1)


def update_of(before: Tensor, after: Tensor, turn: Tensor) -> Tensor:
    """`‖y − x‖` from ‖x‖, ‖y‖ and the norm of what `turn_` gives: `√((‖y‖ − ‖x‖)² + turn² ‖x‖/‖y‖)`."""
    return ((after - before).square() + turn.square() * (before / after)).sqrt()


def squares_fit(norms: Tensor) -> bool:
    """Whether float32 holds the squares of vectors of these norms, and of a billionth of them."""
    low, high = norms.aminmax()
    return low.item() > 1e-10 and high.item() < 1e18


def norm(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`‖x‖` along the last axis. In float64 it cannot overflow for what came from a narrower float."""
    return torch.linalg.vector_norm(x, dim=-1, out=out)


def tokens_at_a_time(hidden: Tensor, dtype: torch.dtype = torch.float64) -> int:
    """How many tokens of [..., width] to take to a wider float at a time: what stays in the caches of the processor's
    cores (1 MiB each), and on an accelerator what keeps it busy and is small beside the model."""
    space = torch.get_num_threads() * (3 << 18) if hidden.device.type == "cpu" else 1 << 24
    return max(1, space // (hidden.shape[-1] * dtype.itemsize))


def precise(hidden: Tensor) -> Tensor:
    """Part of the stream in the widest float its device has."""
    return hidden.to(torch.float32 if hidden.device.type == "mps" else torch.float64)
