"""MiniCPM 3: what each part adds is scaled by the number of blocks.

::

    x ─●─ norm ─ attention ─ ·s ─(+)─●─ norm ─ mlp ─ ·s ─(+)─▶ x'      s = scale_depth / √L
       └─────────────────────────┘   └───────────────────┘

A model of n blocks gets `scale_depth`·√(n/L), with which s is what it was: the blocks compute the same, and no weight
changes.
"""

import math
from typing import Any

from shortgpt.models.configs.rules import Blocks, Rule
from shortgpt_adapters.transformers.structural import Structural


def _same_scale(value: Any, blocks: Blocks) -> Any:
    return value * math.sqrt(len(blocks.keep) / blocks.depth)


class MiniCPM3(Structural):
    architecture = "minicpm3"
    rules = {"scale_depth": Rule("times √(n/L): the residual's scale stays", _same_scale)}
