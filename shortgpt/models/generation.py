"""Greedy generation for any model: the likeliest token, one after another.

::

    prompts of unlike lengths ─▶ right-padded batch ─▶ logits at each row's last token ─▶ one token a row ─┐
                                        ▲──────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Stop = Callable[[int, Sequence[int]], bool]
"""(row, its new tokens so far, one or more) → whether that row is done."""


def uncached(
    logits: Callable[[dict[str, Tensor]], Tensor],
    device: torch.device,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop: Stop,
) -> list[list[int]]:
    """The new tokens of each prompt, every step a pass over all tokens before it.

    Args:
        logits: (a token batch) → [batch, tokens, vocabulary].
        prompts: token ids, [rows][tokens]; none is empty.
        new_tokens: a row's new tokens at most.
    """
    import torch

    made: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts))) if new_tokens > 0 else []
    while going:
        rows = [[*prompts[row], *made[row]] for row in going]
        batch = {name: tensor.to(device) for name, tensor in padded(rows).items()}
        found = logits(batch)
        last = found[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        for at, token in zip(going, last.argmax(-1).tolist(), strict=True):
            made[at].append(token)
        going = [row for row in going if len(made[row]) < new_tokens and not stop(row, made[row])]
    return made


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token ids as one batch on the CPU, padded on the right; without a mask where all rows are of one length."""
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(list(row))
    batch = {"input_ids": ids}
    if (lengths != ids.shape[1]).any():
        batch["attention_mask"] = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return batch
