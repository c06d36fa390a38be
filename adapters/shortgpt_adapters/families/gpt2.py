"""GPT-2: learned positions, pre-norm, one fused `c_attn` for queries, keys and values.

::

    x ─●─ ln_1 ─ attn ─(+)─●─ ln_2 ─ mlp ─(+)─▶ x'
       └─────────────────┘ └────────────────┘

Old checkpoints (the base model's) have no `transformer.` in front of their names. With
`scale_attn_by_inverse_layer_idx` a block divides its attention scores by its place, i + 1: moved from place i to j,
its queries are multiplied by (j + 1)/(i + 1), which keeps the scores what they were.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from shortgpt.basics.block_lists import NormPlacement
from shortgpt.basics.inputs import Config, Fold
from shortgpt_adapters.transformers.family import TransformersFamily


class GPT2(TransformersFamily):
    architecture = "gpt2"
    norm_placement: NormPlacement = "pre"
    block_lists = ("transformer.h", "h")

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        if not config.get("scale_attn_by_inverse_layer_idx"):
            return {}
        place = {f"h.{new}.attn.c_attn.{part}": new for new in range(len(keep)) for part in ("weight", "bias")}
        moved = ((name, place[key]) for name in names if (key := name.removeprefix("transformer.")) in place)
        return {name: _scaled_queries((j + 1) / (keep[j] + 1)) for name, j in moved if keep[j] != j}


def _scaled_queries(factor: float) -> Fold:
    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """`c_attn` is a Conv1D: its last axis is [queries, keys, values]."""
        scaled = tensor.clone()
        scaled[..., : tensor.shape[-1] // 3] *= factor
        return scaled

    return fold
