"""Pebble's adapter keeps shortgpt's contract, held against a tap that is written without it."""

from collections.abc import Sequence
from pathlib import Path

from shortgpt_pebble.make_model import make_model
from torch import Tensor

import shortgpt
from shortgpt.testing import check_adapter


def stream(sequence: shortgpt.BlockSequence, batch: shortgpt.TokenBatch) -> Sequence[Tensor]:
    """The boundaries 0 to L: the model's own forward pass, written out."""
    model = make_model()
    boundaries = [model.embedding(batch["input_ids"])]
    for block in model.blocks:
        hidden = boundaries[-1]
        boundaries.append(block(hidden, hidden.new_zeros(len(hidden), hidden.shape[2]))[0])
    return boundaries


def test_contract(tmp_path: Path) -> None:
    check_adapter(lambda: shortgpt.wrap(make_model()), tmp_path, reference=stream)
