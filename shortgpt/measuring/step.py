"""The norms and the angle of what a block does to the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Step(NamedTuple):
    """What a block does to the vectors x_i of the stream, each [tokens], float64; of a stream in half precision good to
    the digits of float32.

    Attributes:
        before: ‖x_i‖.
        after: ‖x_{i+1}‖.
        update: ‖x_{i+1} − x_i‖.
        distance: 1 − cos(x_i, x_{i+1}), never negative.
    """

    before: Tensor
    after: Tensor
    update: Tensor
    distance: Tensor
