"""Llama 3.2 Vision: some blocks attend to an image, and run only when there is one.

::

    text alone     x ─●─ self 0 ─●───────────●─ self 2 ─●─ ...       cross blocks are left out
    with an image  x ─●─ self 0 ─●─ cross 1 ─●─ self 2 ─●─ ...       they read `cross_attention_states`
                                        ▲
                              the image, encoded

Without an image nothing is seen of a cross block, and the score of one that does nothing would be 0. So a batch is
scored only with `cross_attention_states` (or `pixel_values`, for the model with its vision tower). Verification invents
the former.

The library asks block 0's cache for the number of cached tokens, and a cross block caches the image's. So a cross block
cannot come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.inputs import Config
from shortgpt.errors import CalibrationError
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks
from shortgpt_adapters.transformers.structure import PROBE, Structure, find_structure

STATES = 6
"""How many vectors an invented image is encoded as."""

IMAGE = ("cross_attention_states", "pixel_values")


class MllamaBlocks(StructuralBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        cross = self.family.own(self.config)["cross_attention_layers"]
        if cross and all(batch.get(name) is None for name in IMAGE):
            raise CalibrationError(
                f"{self.name}: the blocks {format_blocks(cross)} attend to an image and do nothing without one; give "
                f"token batches with {' or '.join(IMAGE)}"
            )
        super().trace(batch, tap)

    def side_inputs(self, rows: int) -> Mapping[str, Tensor]:
        width = self.model.config.get_text_config().hidden_size
        return self.drawn({"cross_attention_states": (rows, STATES, width)})


class Mllama(Structural):
    architecture = "mllama"
    sequence = MllamaBlocks

    def find(self, model: PreTrainedModel) -> Structure:
        rows, tokens = PROBE
        width = model.config.get_text_config().hidden_size
        return find_structure(
            model,
            {
                "input_ids": torch.zeros(rows, tokens, dtype=torch.long, device=model.device),
                "cross_attention_states": torch.zeros(rows, 3, width, dtype=model.dtype, device=model.device),
                "use_cache": False,
            },
        )

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        if keep[0] in self.own(config)["cross_attention_layers"]:
            return (
                f"block {keep[0]} would come first, and attends to images: transformers asks the first block's cache "
                "for the number of cached tokens"
            )
        return super().refuse(config, keep)
