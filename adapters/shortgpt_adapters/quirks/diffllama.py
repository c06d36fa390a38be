"""DiffLlama: attention is a difference of two softmax maps, whose weight λ depends on the block's place.

::

    λ = exp(q₁·k₁) - exp(q₂·k₂) + init(i)         init(i) = 0.8 - 0.6·exp(-0.3·i)

    x ─●─ norm ─ A₁V - λ·A₂V ─ group norm ─ ·(1 - init(i)) ─ o_proj ─(+)─●─ norm ─ mlp ─(+)─▶ x'
       └────────────────────────────────────────────────────────────────┘ └────────────────┘

For a block moved from place i to j, j < i, both are made up for: λ keeps its value when exp(q₁·k₁) grows by
init(i) - init(j), which is positive, so that there always is such a q₁·k₁; and the weight of `o_proj`, not its bias,
is multiplied by (1 - init(i))/(1 - init(j)). λ is one number: the new product is written into the first coordinate of
`lambda_q1`, with a 1 in that of `lambda_k1`, which works for whatever the two were.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from shortgpt.basics.inputs import Config, Fold
from shortgpt_adapters.transformers.structural import Structural

PLACED = re.compile(r"((?:.*\.)?layers)\.(\d+)\.self_attn\.(lambda_q1|lambda_k1|o_proj\.weight)")


class DiffLlama(Structural):
    architecture = "diffllama"

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        folds = {}
        for name in names:
            match = PLACED.fullmatch(name)
            if match and keep[int(match[2])] != int(match[2]):
                new, old = int(match[2]), keep[int(match[2])]
                if match[3] == "lambda_q1":
                    folds[name] = _grown(f"{match[1]}.{old}.self_attn", lambda_init(old) - lambda_init(new))
                elif match[3] == "lambda_k1":
                    folds[name] = _first_axis
                else:
                    folds[name] = _times((1 - lambda_init(old)) / (1 - lambda_init(new)))
        return folds


def lambda_init(place: int) -> float:
    """Equation in section 2.1 of the Differential Transformer (arXiv:2410.05258), with places from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * place)


def _grown(attention: str, growth: float) -> Fold:
    """`lambda_q1` such that exp(q₁·k₁), with the first axis for k₁, is larger by `growth`."""

    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        product = torch.sum(tensor * tensors[f"{attention}.lambda_k1"], dtype=torch.float32)
        grown = torch.zeros_like(tensor)
        grown[0] = torch.log(torch.exp(product) + growth)
        return grown

    return fold


def _first_axis(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    axis = torch.zeros_like(tensor)
    axis[0] = 1
    return axis


def _times(factor: float) -> Fold:
    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensor * factor

    return fold
