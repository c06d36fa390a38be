"""Mamba: one mixer a block, pre-norm.

::

    x ─●─ norm ─ mixer (conv, selective scan, gate) ─(+)─▶ x'
       └────────────────────────────────────────────┘

The stream may be kept in fp32 while the weights are in half precision (`residual_in_fp32`); the tap sees it as it is.
The final norm is `backbone.norm_f`. The library's `hidden_states` leave out the embedding; block hooks do not.
"""

from shortgpt_adapters.transformers.family import TransformersFamily


class Mamba(TransformersFamily):
    architecture = "mamba"
    norm_placement = "pre"
    block_lists = ("backbone.layers", "layers")
