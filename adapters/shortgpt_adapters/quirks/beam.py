"""Beam: each sum of the residual is weighted by its number in the whole model, and every part has a norm at both ends.

::

    x ─●─ norm ─ attention ─ post norm ─ ·1/√k ─(+)─●─ norm ─ mlp ─ post norm ─ ·1/√m ─(+)─▶ x'
       └──────────── ·√((k - 1)/k) ─────────────┘   └───────── ·√((m - 1)/m) ──────────┘
                                                            block i: k = 2i + 2, m = 2i + 3

A block moved from place i to j has other numbers, so the stream comes out longer or shorter by a factor s, the product
over the sums so far of √((k' - 1)/k') / √((k - 1)/k). What a part adds is multiplied by s·√(k'/k), through the weight
of its post norm, and the whole stream is s times what it was. The norms that read it, the last one included, divide s
out again: the result is the same but for their epsilon, which is not scaled along.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from shortgpt.basics.inputs import Config, Fold
from shortgpt_adapters.transformers.structural import Structural

POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
POST_NORM = re.compile(rf"(?:.*\.)?layers\.(\d+)\.({'|'.join(POST_NORMS)})\.weight")


class Beam(Structural):
    architecture = "beam"
    tolerance = 1e-3  # the norms' epsilon beside a longer or shorter stream

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        factors = _factors(keep)
        matches = {name: match for name in names if (match := POST_NORM.fullmatch(name))}
        return {
            name: _times(factors[int(match[1]), match[2]])
            for name, match in matches.items()
            if keep[int(match[1])] != int(match[1])
        }


def _factors(keep: Sequence[int]) -> dict[tuple[int, str], float]:
    """(new block, post norm) → what the norm's weight is multiplied by."""
    factors, stream = {}, 1.0
    for new, old in enumerate(keep):
        for part, norm in enumerate(POST_NORMS):
            now, was = 2 * new + 2 + part, 2 * old + 2 + part
            stream *= math.sqrt((now - 1) / now) / math.sqrt((was - 1) / was)
            factors[new, norm] = stream * math.sqrt(now / was)
    return factors


def _times(factor: float) -> Fold:
    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensor * factor

    return fold
