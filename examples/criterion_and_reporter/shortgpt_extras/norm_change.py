"""A criterion: `| ln ‖x_{i+1}‖ − ln ‖x_i‖ |`, what a block does to the stream's length, which a cosine cannot see."""

import torch
from torch import Tensor

from shortgpt import Criterion


class NormChange(Criterion):
    def values(self, before: Tensor, after: Tensor) -> Tensor:
        """[tokens, width] twice → [tokens]; 0 for a block that only turns the stream."""
        return (torch.linalg.vector_norm(after, dim=-1).log() - torch.linalg.vector_norm(before, dim=-1).log()).abs()
