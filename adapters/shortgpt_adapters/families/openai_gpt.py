"""OpenAI GPT (GPT-1): post-norm, and a block returns a list whose first item is the stream.

::

    x ─●─ attn ─(+)─ ln_1 ─●─ mlp ─(+)─ ln_2 ─▶ x'
       └──────────┘        └─────────┘

It has no cache and no final norm. Old checkpoints carry each block's causal mask as `attn.bias`, a constant that the
library makes itself.
"""

from shortgpt_adapters.transformers.family import TransformersFamily


class OpenAIGPT(TransformersFamily):
    architecture = "openai-gpt"
    norm_placement = "post"
    block_lists = ("transformer.h", "h")
