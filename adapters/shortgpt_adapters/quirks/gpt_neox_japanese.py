"""GPT-NeoX Japanese: the last block, and it alone, has a bias behind its attention.

::

    x ─●─ input_layernorm ─ attention ─ (+ dense_bias, last block) ─(+)─●─ post_attention_layernorm ─ mlp ─(+)─▶ x'
       └────────────────────────────────────────────────────────────┘   └──────────────────────────────────┘

When the last block goes, whichever becomes the last must have one too: it gets zeros, which add nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from shortgpt.basics.inputs import Config, Fold
from shortgpt_adapters.transformers.structural import Structural

BIAS = re.compile(r"((?:.*\.)?layers)\.(\d+)\.attention\.dense_bias")


class GPTNeoXJapanese(Structural):
    architecture = "gpt_neox_japanese"

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        names = list(names)
        renamed = super().rename(names, depth, keep)
        if keep[-1] != depth - 1:
            for bias in filter(None, map(BIAS.fullmatch, names)):
                renamed[f"{bias[1]}.{len(keep) - 1}.attention.dense_bias"] = bias[0]
        return renamed

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        if keep[-1] == self.depth(config) - 1:
            return {}
        return {name: _zeros for name in names if BIAS.fullmatch(name)}


def _zeros(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.zeros_like(tensor)
