"""The original's distribution of the next token, kept on disk, and how far another one is from it.

::

    original ─ one pass ─▶ log-softmax(z / t) ─▶ the k likeliest tokens, and what all others have together
                                                        │ one file, [windows, tokens, k + 1]
    shorter ─ every step ─▶ the same k + 1 shares ──────┴─▶ t² · KL(original ‖ shorter)

Hinton, Vinyals and Dean, arXiv:1503.02531. The others are taken as one token, so that the k likeliest need not make up
the whole: were they scaled to do so, the shorter model would be taught that nothing else ever comes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence

SHARES, TOKENS = "shares", "tokens"
TEACHING = (SHARES, TOKENS)
"""What a window's row holds beside its token ids."""
NOTHING = -1e30
"""The logarithm of what never comes: minus infinity would make the gradient no number."""


class Teacher:
    """What the original says of each window's tokens, read from disk.

    Args:
        folder: where its two files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.arrays = {name: numpy.load(folder / f"{name}.npy", mmap_mode="r") for name in TEACHING}

    def row(self, window: int) -> dict[str, Tensor]:
        """Log-probabilities "shares", [tokens, k + 1], the last one of all others; and which "tokens", [tokens, k]."""
        return {name: torch.from_numpy(numpy.array(array[window])) for name, array in self.arrays.items()}


def ask(
    model: BlockSequence,
    data: Calibration,
    folder: Path,
    *,
    temperature: float,
    top_k: int,
    progress: Progress | None = None,
) -> Teacher:
    """Run the original over windows once; of a run that was cut off, what is there already is taken.

    Args:
        folder: files go into a folder in it, of a name by model, windows, temperature and k.
        progress: called with "teacher" after each batch.
    """
    told = json.dumps([model.name, data.info.token_hash, temperature, top_k])
    kept = folder / f"teacher-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if not kept.is_dir():
        partial = folder / f"{kept.name}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        _fill(model, data, partial, temperature, min(top_k, model.vocab_size - 1), progress)
        os.replace(partial, kept)
    return Teacher(kept)


def _fill(
    model: BlockSequence, data: Calibration, folder: Path, temperature: float, k: int, progress: Progress | None
) -> None:
    windows, length = sum(len(batch["input_ids"]) for batch in data.batches), data.info.tokens
    kinds: dict[str, tuple[type, int]] = {SHARES: (numpy.float32, k + 1), TOKENS: (numpy.int32, k)}
    arrays = {
        name: numpy.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=kind, shape=(windows, length, columns)
        )
        for name, (kind, columns) in kinds.items()
    }
    at = 0
    for number, batch in enumerate(data.batches, start=1):
        for row in model.logits(batch):
            likeliest = (row.float() / temperature).topk(k).indices
            arrays[SHARES][at, : len(row)] = shares(row, likeliest, temperature).cpu().numpy()
            arrays[TOKENS][at, : len(row)] = likeliest.cpu().numpy()
            at += 1
        if progress is not None:
            progress("teacher", number, len(data.batches))
    for array in arrays.values():
        array.flush()


def shares(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of some tokens, and of all others together.

    Args:
        logits: [..., vocabulary].
        tokens: [..., k].

    Returns:
        float32, [..., k + 1].
    """
    scaled = logits.float() / temperature
    whole = scaled.logsumexp(-1, keepdim=True)
    others = scaled.scatter(-1, tokens.long(), NOTHING).logsumexp(-1, keepdim=True)
    return torch.cat((scaled.gather(-1, tokens.long()), others), -1) - whole


def distillation_loss(
    logits: Tensor, taught: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """t² times the mean divergence of a model's distribution from the teacher's, over the tokens that have a next one.

    Args:
        logits: [batch, tokens, vocabulary].
        taught, tokens: as `Teacher.row` gives them, with rows in front.
        mask: [batch, tokens]; real tokens stand first in every row.
    """
    own = shares(logits[:, :-1], tokens[:, :-1], temperature)
    taught = taught[:, :-1]
    if mask is not None:  # the last real token of a window has no next one in it
        has_next = mask[:, 1:].bool()
        own, taught = own[has_next], taught[has_next]
    return temperature**2 * (taught.exp() * (taught - own)).sum(-1).mean()
