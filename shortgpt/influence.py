"""Block Influence on tensors: `BI_i = 1 − E cos(x_i, x_{i+1})`, Eq. 1 of ShortGPT (arXiv:2403.03853).

For a redundant block 1 − cos is a difference of nearly equal numbers, so the
products are summed in float64: at BI 1e-4, fp16 arithmetic has no correct digit left, float64 has eleven.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shortgpt.criteria import Criterion


class BlockInfluence(Criterion):
    """`1 − cos(x_i, x_{i+1})`, Eq. 1 of ShortGPT (arXiv:2403.03853)."""

    def values(self, before: Tensor, after: Tensor) -> Tensor:
        return cosine_distance(before, after)


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """`1 − x·y / (‖x‖ ‖y‖)` along the last axis, in the dtype of its arguments: float64 or float32.

    In float64 the direct form has a relative error of 1e-11 at a distance of 1e-5. In float32 it would have none of
    its digits right there, so the equal form `½ ‖x/‖x‖ − y/‖y‖‖²` is taken: for a single token good to 2e-6 at a
    distance of 1e-3 or more and to 1e-5 at 1e-5; over many tokens to 1e-7.
    """
    if x.dtype == torch.float64:
        return distance_of(torch.linalg.vecdot(x, y), norm(x), norm(y))
    difference = torch.nn.functional.normalize(x, dim=-1) - torch.nn.functional.normalize(y, dim=-1)
    return 0.5 * torch.linalg.vecdot(difference, difference)


def distance_of(product: Tensor, norm_x: Tensor, norm_y: Tensor) -> Tensor:
    """`1 − x·y / (‖x‖ ‖y‖)` from its parts, float64. Rounding takes it no lower than 0."""
    return (1 - product / (norm_x * norm_y)).clamp_min(0)


def norm(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`‖x‖` along the last axis. In float64 it cannot overflow for what came from a narrower float."""
    return torch.linalg.vector_norm(x, dim=-1, out=out)


def tokens_at_a_time(hidden: Tensor) -> int:
    """How many tokens of [..., width] to take to float64 at a time: what stays in the caches of the processor's cores,
    and on an accelerator what keeps it busy and is small beside the model."""
    numbers = torch.get_num_threads() << 16 if hidden.device.type == "cpu" else 1 << 21
    return max(1, numbers // hidden.shape[-1])


def precise(hidden: Tensor) -> Tensor:
    """Part of the stream in the widest float its device has."""
    return hidden.to(torch.float32 if hidden.device.type == "mps" else torch.float64)
