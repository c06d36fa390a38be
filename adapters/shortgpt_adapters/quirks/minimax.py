"""MiniMax: softmax and lightning (linear) attention, and a cache that counts its tokens in block 0.

::

    x ─ norm ─●─ attention ─(+)─ norm ─●─ mixture of experts ─(+)─▶ x'
              └───────────────┘        └───────────────────────┘

The residual begins behind the norms, so a block hands on what it normalised. How fast a lightning block forgets
depends on its place; that is four buffers of the checkpoint (`slope_rate`, ...), which go along with the block.

The library's cache asks block 0 for the number of cached tokens, and a lightning block answers 0: the next token would
be taken for the first. So no lightning block may become the first in place of a softmax block. Where block 0 is one
from the start, cached generation is wrong in the library before anything is removed, and is not compared.
"""

import functools
from collections.abc import Sequence

from shortgpt.basics.inputs import Config
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.structural import Structural

SOFTMAX = "full_attention"


class MiniMax(Structural):
    architecture = "minimax"
    loader = "shortgpt_adapters.quirks.minimax:reload"

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        kinds = self.own(config)["layer_types"]
        if kinds[0] == SOFTMAX and kinds[keep[0]] != SOFTMAX:
            return (
                f"block {keep[0]}, of linear attention, would be the first, where the library's cache counts its "
                "tokens and finds none; keep a block of full attention before it"
            )
        return super().refuse(config, keep)


class ReloadedMiniMax(ReloadedCausalLM):
    @property
    def cannot_generate(self) -> str | None:
        kinds = self.model.config.layer_types
        if kinds[0] != SOFTMAX and SOFTMAX in kinds:
            return (
                "the library's cache of a MiniMax counts its tokens in block 0, which is of linear attention and holds "
                "none; cached generation is wrong before any removal, too"
            )
        return super().cannot_generate


reload = functools.partial(transformers_loader.reload, kind=ReloadedMiniMax)
