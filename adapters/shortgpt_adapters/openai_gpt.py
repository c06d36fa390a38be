"""OpenAI GPT (GPT-1): post-norm, and a block returns a list whose first item is the stream.

::

    x ─●─ attn ─(+)─ ln_1 ─●─ mlp ─(+)─ ln_2 ─▶ x'
       └──────────┘        └─────────┘

It has no cache and no final norm. Old checkpoints carry each block's causal mask as `attn.bias`, a constant that the
library makes itself.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shortgpt_adapters.transformers_family import TransformersBlocks, TransformersFamily, quiet


class OpenAIGPTBlocks(TransformersBlocks):
    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        with quiet():
            return self.model(**batch).logits  # there is no cache to switch off


class OpenAIGPT(TransformersFamily):
    architecture = "openai-gpt"
    norm_placement = "post"
    block_lists = ("transformer.h", "h")
    sequence = OpenAIGPTBlocks
