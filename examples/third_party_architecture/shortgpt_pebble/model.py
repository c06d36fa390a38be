"""Pebble: a language model on bytes whose blocks mix tokens by a minimal GRU. It knows nothing of shortgpt.

::

    x ─●─ norm ─ minimal GRU ─(+)─●─ norm ─ MLP ─(+)─▶ x'          h_t = (1 − z_t) h_{t−1} + z_t c_t
       └──────────────────────┘   └──────────────┘

A checkpoint is a folder of config.json and model.safetensors. There is no attention and no window: what a block
remembers is one vector a sequence, its state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VOCABULARY = 256


def tokenize(text: str, truncation: bool = False, max_length: int | None = None) -> dict[str, list[int]]:
    """A text's bytes, cut to `max_length` where `truncation` is asked for."""
    return {"input_ids": list(text.encode("utf-8"))[: max_length if truncation else None]}


class Mixer(nn.Module):
    """A minimal GRU (arXiv:2410.01201): gate z and candidate c look at the token alone, never at the state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.candidate, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        z, c = self.gate(x).sigmoid(), self.candidate(x)
        states = []
        for t in range(x.shape[1]):
            state = torch.lerp(state, c[:, t], z[:, t])
            states.append(state)
        return self.out(torch.stack(states, 1)), state


class Block(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(width), Mixer(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Stream [batch, tokens, width] and state [batch, width], before the block → behind it."""
        mixed, state = self.mixer(self.mixer_norm(x), state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state


class Pebble(nn.Module):
    """`config`: model_type, width, num_blocks, and mlp_widths with an entry a block."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config["width"])
        self.blocks = nn.ModuleList(Block(config["width"], mlp_width) for mlp_width in config["mlp_widths"])
        self.norm = nn.LayerNorm(config["width"])
        self.head = nn.Linear(config["width"], VOCABULARY, bias=False)

    def forward(self, ids: Tensor, states: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Token ids [batch, tokens] and the states so far → logits [batch, tokens, 256] and the states behind them."""
        x = self.embedding(ids)
        before = states if states is not None else [x.new_zeros(len(x), x.shape[2])] * len(self.blocks)
        after = []
        for block, state in zip(self.blocks, before, strict=True):
            x, state = block(x, state)
            after.append(state)
        return self.head(self.norm(x)), after

    def save(self, directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")
        save_file(self.state_dict(), directory / "model.safetensors")

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu", dtype: str = "auto") -> Pebble:
        """A saved model. `dtype` is a torch dtype's name, or "auto": the one it was saved in."""
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        model = cls.of(config, load_file(Path(directory) / "model.safetensors"))
        return model.to(device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))

    @classmethod
    def of(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Pebble:
        """The model of that config on those very tensors. Raises RuntimeError where they are not exactly its own."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(tensors, assign=True)
        return model.eval()
