"""Criteria beside Block Influence, for comparison with it."""

import math

import torch
from torch import Tensor

from shortgpt.criteria import Criterion
from shortgpt.influence import cosine_distance


class AngularDistance(Criterion):
    """The angle between x_i and x_{i+1} as a share of a half turn: Gromov et al. 2024 (arXiv:2403.17887), Eq. 5.

    Taken from the chord, `2 arcsin(√(d/2))` for the cosine distance d, which keeps small angles' digits.
    """

    def values(self, before: Tensor, after: Tensor) -> Tensor:
        return 2 / math.pi * torch.asin((cosine_distance(before, after) / 2).clamp(max=1).sqrt())


class RelativeMagnitude(Criterion):
    """`‖x_{i+1} − x_i‖ / ‖x_{i+1}‖`, the share of the stream that a block wrote: Samragh et al. 2023
    (arXiv:2309.11119), which ShortGPT compares itself with."""

    def values(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.linalg.vector_norm(after - before, dim=-1) / torch.linalg.vector_norm(after, dim=-1)
