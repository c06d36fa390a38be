"""Somebody's model whose checkpoint is one torch file, `{"hparams": ..., "params": ...}`, and the adapter for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shortgpt import Architecture, BlockSequence, Source, TokenBatch, TorchBlockSequence, TorchFamily, hookimpl
from shortgpt.basics.inputs import Config, OpenOptions

VOCABULARY, WIDTH = 64, 16
FILE = "vessel.ckpt"


class Step(nn.Sequential):
    """x ─●─ linear ─ tanh ─ linear ─(+)─▶ x'"""

    def __init__(self, inner: int) -> None:
        super().__init__(nn.Linear(WIDTH, inner), nn.Tanh(), nn.Linear(inner, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Vessel(nn.Module):
    """`hparams`: inner, the width inside each block."""

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams = dict(hparams)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.steps = nn.ModuleList(Step(inner) for inner in hparams["inner"])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for step in self.steps:
            x = step(x)
        return self.head(x)

    def save(self, file: Path) -> None:
        torch.save({"hparams": self.hparams, "params": self.state_dict()}, file)

    @classmethod
    def load(cls, file: Path) -> Vessel:
        held = torch.load(file, weights_only=True)
        return cls.of(held["hparams"], held["params"])

    @classmethod
    def of(cls, hparams: Mapping[str, Any], params: Mapping[str, Tensor]) -> Vessel:
        with torch.device("meta"):
            model = cls(hparams)
        model.load_state_dict(params, assign=True)
        return model.eval()


def make_model(blocks: int = 5) -> Vessel:
    torch.manual_seed(0)
    return Vessel({"inner": [8 + block % 2 for block in range(blocks)], "note": "mine"}).eval()


class VesselBlocks(TorchBlockSequence):
    vocab_size = VOCABULARY

    def forward(self, batch: TokenBatch) -> Tensor:
        return self.model(batch["input_ids"])


class VesselFamily(TorchFamily):
    architecture = "vessel"
    block_lists = ("steps",)
    sequence = VesselBlocks
    loader = "tests.own_container:reload"

    def depth(self, config: Config) -> int:
        return len(config["inner"])

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        return dict(torch.load(source.path, weights_only=True)["hparams"])

    def config_of(self, model: Any) -> Config:
        return dict(model.hparams)

    def rewrite_config(self, config: Config, keep: Sequence[int]) -> Config:
        return {**config, "inner": [config["inner"][block] for block in keep]}

    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        file = directory / source.path.name
        torch.save({**torch.load(file, weights_only=True), "hparams": config}, file)

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        return self.wrap(Vessel.load(source.path), name=source.name, source=source)

    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> nn.Module:
        return Vessel.of(config, dict(tensors))

    def write_model(self, blocks: Any, directory: Path) -> None:
        blocks.model.save(directory / FILE)


class Reloaded:
    cannot_generate = "a Vessel has no cache"

    def __init__(self, model: Vessel) -> None:
        self.model = model

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids)

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        raise NotImplementedError


def reload(directory: Path, *, device: str, dtype: str, trust_remote_code: bool = False) -> Reloaded:
    (file,) = [directory] if directory.is_file() else directory.glob("*.ckpt")
    return Reloaded(Vessel.load(file))


@hookimpl
def shortgpt_architectures() -> tuple[Architecture, ...]:
    target = "tests.own_container:VesselFamily"
    return (Architecture("vessel", target, "one file", suffixes=(".ckpt",), modules=("tests.own_container",)),)
