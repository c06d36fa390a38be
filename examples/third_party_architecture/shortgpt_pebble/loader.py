"""Opens a Pebble as its users do, without the adapter: what shortgpt checks a shorter model with."""

from pathlib import Path

import torch
from torch import Tensor

from shortgpt_pebble.model import Pebble


class ReloadedPebble:
    """A `shortgpt.verification.verify.Reloaded`."""

    def __init__(self, model: Pebble) -> None:
        self.model = model

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids.to(self.model.head.weight.device))[0]

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """The logits of each greedy token, [new_tokens, 256]. Cached: the model is given a token and its states."""
        ids, states, steps = input_ids.to(self.model.head.weight.device), None, []
        for _ in range(new_tokens):
            logits, after = self.model(ids if states is None else ids[:, -1:], states)
            states = after if cached else None
            steps.append(logits[:, -1])
            ids = torch.cat((ids, steps[-1].argmax(-1, keepdim=True)), 1)
        return torch.cat(steps)


def reload(directory: Path, *, device: str, dtype: str, trust_remote_code: bool = False) -> ReloadedPebble:
    return ReloadedPebble(Pebble.load(directory, device, dtype))
