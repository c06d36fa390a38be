"""Greedy text of several prompts at once by mamba-ssm's models and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shortgpt.models.generation import Stop


def generate_with_state(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Stop) -> list[list[int]]:
    """Greedy continuations of prompts, [prompts][tokens], by the library's model and its state.

    The model reads together what all prompts have, as many tokens as the shortest one; what a longer prompt still has
    is its next tokens, whatever the model would say.
    """
    from mamba_ssm.utils.generation import InferenceParams  # where the library runs

    shared, longest = min(map(len, prompts)), max(map(len, prompts))
    made: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    state = InferenceParams(max_seqlen=longest + new_tokens, max_batch_size=len(prompts))
    fed = [list(prompt[:shared]) for prompt in prompts]
    place = shared
    while True:
        ids = torch.tensor(fed, device=model.lm_head.weight.device)
        with torch.no_grad():
            logits = model(ids, inference_params=state, num_last_tokens=1).logits[:, -1]
        state.seqlen_offset += ids.shape[1]
        likeliest = logits.argmax(-1).tolist()
        fed = []
        for row, prompt in enumerate(prompts):
            if place < len(prompt):
                fed.append([prompt[place]])
                continue
            if not done[row]:
                made[row].append(likeliest[row])
                done[row] = len(made[row]) == new_tokens or stop(row, made[row])
            fed.append(made[row][-1:])
        if all(done):
            return made
        place += 1
