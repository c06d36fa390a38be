"""CPM-Ant: a prompt in front of the text, and every token attends to every other.

::

    prompt (prompt_length learned tokens) │ text      x ─●─ norm ─ attention ─(+)─●─ norm ─ ffn ─(+)─▶ x'
    ───────────── the stream ─────────────┼─ a boundary: the tokens of the text

The blocks work on prompt and text together; a boundary shows the text's tokens, so Block Influence is their mean.

The embedding holds the prompts behind the vocabulary. The model reads no attention mask: it counts the ids that are 0
and takes as many tokens in front of the text for padding. So a batch whose rows differ in length is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shortgpt.errors import CalibrationError
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks


class CpmAntBlocks(StructuralBlocks):
    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None and not mask.all():
            raise CalibrationError(f"{self.name}: it reads no attention mask; hand in rows without padding")
        return super().forward(batch)

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return hidden[:, self.model.config.prompt_length :]


class ReloadedCpmAnt(ReloadedCausalLM):
    cannot_generate = "a token attends to those behind it, so what a cache holds is out of date with every new one"


class CpmAnt(Structural):
    architecture = "cpmant"
    sequence = CpmAntBlocks
    loader = "shortgpt_adapters.quirks.cpmant:reload"


reload = functools.partial(transformers_loader.reload, kind=ReloadedCpmAnt)
