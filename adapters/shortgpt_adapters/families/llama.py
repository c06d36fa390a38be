"""Llama: the plain pre-norm transformer.

::

    x ─●─ input_layernorm ─ self_attn ─(+)─●─ post_attention_layernorm ─ mlp ─(+)─▶ x'
       └─────────────────────────────────┘ └──────────────────────────────────┘

A block returns the stream as a tensor. The final RMSNorm, `model.norm`, is behind boundary L. Attention modules carry
`layer_idx`, the slot of the cache, which a model rebuilt from its config numbers anew.
"""

from shortgpt_adapters.transformers.family import TransformersFamily


class Llama(TransformersFamily):
    architecture = "llama"
    norm_placement = "pre"
    block_lists = ("model.layers", "layers")
