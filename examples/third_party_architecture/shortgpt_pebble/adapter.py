"""Pebble, as shortgpt sees it. A block is called with the stream and its state, and returns both; see `model`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shortgpt import BlockSequence, Source, TokenBatch, TorchBlockSequence, TorchFamily
from shortgpt.basics.inputs import Config, OpenOptions
from shortgpt.checkpoints.companions import copy_companions
from shortgpt.errors import CheckpointError
from shortgpt_pebble.model import VOCABULARY, Pebble, tokenize


class PebbleBlocks(TorchBlockSequence):
    vocab_size = VOCABULARY

    def forward(self, batch: TokenBatch) -> Tensor:
        logits, _ = self.model(batch["input_ids"])
        return logits


class PebbleFamily(TorchFamily):
    architecture = "pebble"
    norm_placement = "pre"
    block_lists = ("blocks",)
    sequence = PebbleBlocks
    loader = "shortgpt_pebble.loader:reload"
    load_example = 'from shortgpt_pebble.model import Pebble\n\nmodel = Pebble.load("DIR")'

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        return source.config

    def config_of(self, model: Any) -> Config:
        return dict(model.config)

    def rewrite_config(self, config: Config, keep: Sequence[int]) -> Config:
        # num_blocks is a count that shortgpt knows; what mlp_widths holds is ours to say.
        widths = config["mlp_widths"]
        known = {field: value for field, value in config.items() if field != "mlp_widths"}
        return {**super().rewrite_config(known, keep), "mlp_widths": [widths[i] for i in keep]}

    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        copy_companions(source, directory)
        (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        try:
            model = Pebble.load(source.path, options.device, options.dtype)
        except Exception as error:  # json, safetensors and torch each have their own
            raise CheckpointError(f"{source.name}: no Pebble can be loaded from it ({error})") from error
        return self.wrap(model, name=source.name, tokenizer=tokenize, source=source)

    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> nn.Module:
        return Pebble.of(config, dict(tensors))

    def write_model(self, blocks: Any, directory: Path) -> None:
        blocks.model.save(directory)
