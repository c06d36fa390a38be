"""ModernBERT as a decoder: block 0 has no norm in front of its attention, since the embedding ends with one.

::

    embedding ─ norm ─●─────────── attn ─(+)─●─ mlp_norm ─ mlp ─(+)─▶ x_1       block 0
    x ────────────────●─ attn_norm ─ attn ─(+)─●─ mlp_norm ─ mlp ─(+)─▶ x'      the others

The library builds whichever block comes first without that norm. Any other block would lose its own there, and its
weight cannot be moved elsewhere, since the attention's input is also what the residual carries: block 0 stays.
"""

from collections.abc import Mapping

from shortgpt.basics.inputs import Config
from shortgpt_adapters.transformers.structural import Structural


class ModernBertDecoder(Structural):
    architecture = "modernbert_decoder"

    def pinned(self, config: Config) -> Mapping[int, str]:
        return {0: "the first block has no norm before its attention, and any other would lose its own in that place"}
