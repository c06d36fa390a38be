"""Byte Latent Transformer: the blocks are those of the global transformer, whose tokens are patches of bytes.

::

    bytes ─▶ patcher ─▶ patch lengths
      └────▶ local encoder ─▶ patches ─●─ global block ─●─ ... ─●─▶ local decoder ─▶ logits of bytes

    bytes     a b c d e f g        patch ids, as the model computes them   0 1 1 1 2 2 3
    boundary  each byte has the vector of the patch it belongs to

So Block Influence is a mean over bytes: a patch counts as often as it has bytes. The config of the blocks is
`global_config`. They are found by running the global transformer alone; the patcher has blocks of its own.

The patcher reads no attention mask: the last patch of a padded row would run on into the padding. So a batch whose rows
differ in length is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shortgpt.basics.inputs import Config
from shortgpt.errors import CalibrationError
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks
from shortgpt_adapters.transformers.structure import PROBE, Structure, find_structure

STACK = "global_transformer"


class BltBlocks(StructuralBlocks):
    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None and not mask.all():
            raise CalibrationError(f"{self.name}: its patcher reads no mask; hand in rows without padding")
        return super().forward(batch)

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        patches: list[Tensor] = []

        def of_bytes(boundary: int, hidden: Tensor) -> None:
            patch_ids = patches[0].to(hidden.device)
            tap(boundary, hidden.gather(1, patch_ids[..., None].expand(-1, -1, hidden.shape[-1])))

        encoder = self.model.get_submodule(self.structure.path.replace(f"{STACK}.layers", "local_encoder"))
        hook = encoder.register_forward_pre_hook(
            lambda module, args, kwargs: patches.append(kwargs["patch_ids"]), with_kwargs=True
        )
        with hook:
            super().trace(batch, of_bytes)


class ReloadedBlt(ReloadedCausalLM):
    cannot_generate = "transformers' cache asks for num_hidden_layers, which a BltConfig lacks, unpruned as well"


class Blt(Structural):
    architecture = "blt"
    sequence = BltBlocks
    loader = "shortgpt_adapters.quirks.blt:reload"

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        classes, stream = super().describe_blocks(config)
        return classes, f"{stream}; the tokens are patches of bytes"

    def find(self, model: PreTrainedModel) -> Structure:
        path = next(name for name, _ in model.named_modules() if name.rpartition(".")[2] == STACK)
        stack = model.get_submodule(path)
        width = getattr(stack.config, "encoder_cross_output_size", None) or stack.config.hidden_size
        patches = torch.zeros(*PROBE, width, device=model.device, dtype=model.dtype)
        structure = find_structure(stack, {"inputs_embeds": patches})
        return replace(structure, path=f"{path}.{structure.path}")


reload = functools.partial(transformers_loader.reload, kind=ReloadedBlt)
