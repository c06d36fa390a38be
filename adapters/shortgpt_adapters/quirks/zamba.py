"""Zamba: Mamba blocks, and before some of them one attention block whose weights all of these share.

::

    x ─●──────────────────────────────── norm ─ mamba ─(+)─▶ x'      a plain block
       └────────────────────────────────────────────────┘
    x ─●─ attention ─ mlp ─ linear ─(+)─ norm ─ mamba ─(+)─▶ x'      a hybrid block: attention sees the word embeddings
       ├────────────────────────────┘                   │            beside x, and its weights and those of its mlp are
       └────────────────────────────────────────────────┘            one set for all hybrid blocks

The word embeddings go to every block as they are, so a removal leaves them alone. A checkpoint holds the shared weights
once, at the first hybrid block. Where that one goes, they move to the first hybrid block that stays.

A single hybrid block has nobody to share with, and transformers cannot build such a model; without any there is no
attention left, and its cache cannot count the tokens. Both are refused.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from shortgpt.basics.inputs import Config
from shortgpt_adapters.transformers.structural import Structural, list_in_files
from shortgpt_adapters.transformers.structure import Structure


class Zamba(Structural):
    architecture = "zamba"

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        hybrid = [block for block in keep if config["layers_block_type"][block] == "hybrid"]
        if len(hybrid) == 1:
            return (
                f"block {hybrid[0]} would be the only hybrid one, and transformers cannot build a Zamba of one, since "
                "it looks for another that shares its weights; keep two of them"
            )
        return super().refuse(config, keep)

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        names = list(names)
        renamed = super().rename(names, depth, keep)
        hybrid = [block for block, kind in enumerate(self.resolved.layers_block_type) if kind == "hybrid"]
        stay = [block for block in hybrid if block in keep]
        if not stay:
            return renamed
        path = list_in_files(names, self.structure.path, depth)
        shared = re.compile(rf"{re.escape(path)}\.{hybrid[0]}\.(shared_transf\..+)")
        matches = ((name, shared.fullmatch(name)) for name in names)
        moved = {f"{path}.{keep.index(stay[0])}.{match[1]}": name for name, match in matches if match}
        return moved | renamed

    def find(self, model: PreTrainedModel) -> Structure:
        return replace(super().find(model), norm_placement="pre")
