"""Reformer: a reversible pair of streams.

::

    a ────────────(+)─▶ a' ─┬──────────────▶ a'
    h ─●─ norm ─ attn ─┘    └ norm ─ ff ─(+)─▶ h'
       └─────────────────────────────────┘

A block is given `prev_attn_output` (a) and `hidden_states` (h) and returns both. Block Influence is one cosine a token
over both streams side by side, [batch, tokens, 2 · width]; a skipped block hands both on.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks


class ReformerBlocks(StructuralBlocks):
    def stream(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return torch.cat((kwargs["prev_attn_output"], kwargs["hidden_states"]), -1)

    def stream_out(self, block: int, output: Any) -> Tensor:
        return torch.cat((output.attn_output, output.hidden_states), -1)

    def with_stream(self, block: int, output: Any, hidden: Tensor) -> Any:
        attention, own = hidden.chunk(2, -1)
        return output._replace(attn_output=attention, hidden_states=own)


class Reformer(Structural):
    architecture = "reformer"
    sequence = ReformerBlocks
