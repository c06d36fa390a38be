"""A small Pebble with random weights, always the same: `python -m shortgpt_pebble.make_model DIR`."""

import sys
from pathlib import Path

import torch

from shortgpt_pebble.model import Pebble


def make_model(blocks: int = 6, width: int = 32) -> Pebble:
    torch.manual_seed(0)
    mlp_widths = [width * (2 + i % 2) for i in range(blocks)]
    return Pebble({"model_type": "pebble", "width": width, "num_blocks": blocks, "mlp_widths": mlp_widths}).eval()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    make_model().save(folder)
