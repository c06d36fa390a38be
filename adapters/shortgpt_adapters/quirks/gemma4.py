"""Gemma 4: keys and values that several blocks share, embeddings for each block in one table, a full last block.

::

    x ─●─ norm ─ attention ─ norm ─(+)─●─ norm ─ mlp ─ norm ─(+)─●─ gate · token's embedding ─ norm ─(+)─ · scalar ─▶ x'
       └───────────────────────────────┘└────────────────────────┘└────── for this block ────────────┘

The sharing and the packed table are those of Gemma 3n, and so is their treatment; the unified type has no table. The
stream is a plain one. The config class makes the last block attend to all tokens, whatever the config says. So a set of
blocks whose last one attends in a window is refused: the model that transformers makes of it would be another.
"""

from collections.abc import Sequence

from shortgpt.basics.inputs import Config
from shortgpt_adapters.quirks.gemma3n import Gemma3n


class Gemma4(Gemma3n):
    architecture = "gemma4"

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        full = [block for block, kind in enumerate(self.own(config)["layer_types"]) if kind == "full_attention"]
        last = keep[-1]
        if last not in full:
            return (
                f"block {last} would become the last one, and it attends in a window, while transformers makes the "
                f"last block attend to all tokens; keep block {min(b for b in full if b > last)}, or remove {last} too"
            )
        return super().refuse(config, keep)
