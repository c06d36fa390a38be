"""Greedy text of several prompts at once by the library's own `generate`, with its cache.

::

    prompts    a a a│a a            The library reads what all prompts have, as many tokens as the shortest one.
               b b b│               What a longer prompt still has is its next tokens, whatever the model would say.
               c c c│c              So nothing is padded, and every row counts its places from 0.

A few types have a cache that is wrong, for several rows or at all, or none. So what the cache gives is held to the
logits of the whole text once, on a few tokens, before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from shortgpt.models.generation import Stop
from shortgpt.models.probing.logit_comparison import CACHED, CACHED_ON_ACCELERATOR, compare_logits
from shortgpt_adapters.transformers.verbosity import quiet

if TYPE_CHECKING:
    from transformers.generation.utils import GenerateOutput

TRIED = ((1, 2, 3, 4, 5), (6, 7, 8))
"""Prompts on which a cache is tried."""
TRIED_TOKENS = 3


def generate_plainly(model: PreTrainedModel, ids: Tensor, settings: GenerationConfig, **inputs: Any) -> GenerateOutput:
    """What the library's `generate` gives by these settings and no others.

    It fills in what they leave open from the model's own (`generation_config.json`): beams, stop strings, time limits,
    assisted and contrastive search. So the model has none while it runs.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        # That of the class: a folder can bring along a `generate` of another kind, which is set on the model.
        return type(model).generate(model, ids, generation_config=settings, **inputs)
    finally:
        model.generation_config = own


def cached(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop: Stop = lambda row, made: False,
    *,
    see: Callable[[Tensor], None] | None = None,
) -> list[list[int]]:
    """Greedy continuations of prompts, [prompts][tokens].

    Args:
        see: called with the logits of each step, [prompts, vocabulary].
    """
    shared = min(map(len, prompts))
    rows = _Rows(prompts, new_tokens, stop, see)
    own = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=max(map(len, prompts)) - shared + new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        bos_token_id=own.bos_token_id,
        eos_token_id=None,  # `stop` ends a row
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else 0,
    )
    ids = torch.tensor([prompt[:shared] for prompt in prompts], device=model.device)
    with quiet(), torch.no_grad():
        generate_plainly(
            model,
            ids,
            settings,
            attention_mask=torch.ones_like(ids),
            logits_processor=[rows.forced],
            stopping_criteria=[rows.ended],
        )
    return rows.made


class _Rows:
    """What the library asks between two tokens: which are given already, and which rows have ended."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        stop: Stop,
        see: Callable[[Tensor], None] | None,
    ) -> None:
        self.prompts, self.new_tokens, self.stop, self.see = prompts, new_tokens, stop, see
        self.made: list[list[int]] = [[] for _ in prompts]
        self.done = [new_tokens < 1] * len(prompts)

    def forced(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The logits by which the next token is chosen, [rows, vocabulary]."""
        if self.see is not None:
            self.see(logits)
        place = ids.shape[1]
        given = {row: prompt[place] for row, prompt in enumerate(self.prompts) if place < len(prompt)}
        if given:
            logits = logits.clone()
            logits[list(given)] = -torch.inf
            logits[list(given), list(given.values())] = 0.0
        return logits

    def ended(self, ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        """Which rows need no more tokens, bool [rows]."""
        newest = ids[:, -1].tolist()
        for row, prompt in enumerate(self.prompts):
            if not self.done[row] and ids.shape[1] > len(prompt):
                made = self.made[row]
                made.append(newest[row])
                self.done[row] = len(made) == self.new_tokens or self.stop(row, made)
        return torch.tensor(self.done, device=ids.device)


def cache_is_right(model: PreTrainedModel, logits: Callable[[Mapping[str, Any]], Tensor]) -> bool:
    """Whether the library's cache gives the logits that the whole text gives, several rows of a different length at a
    time. It is tried.

    Args:
        logits: of a token batch, computed without a cache.
    """
    if not model.can_generate():
        return False
    steps: list[Tensor] = []
    try:
        made = cached(model, TRIED, TRIED_TOKENS, see=steps.append)
    except Exception:  # a type that cannot be run so fails in ways of its own
        return False
    tolerance = CACHED if model.device.type == "cpu" else CACHED_ON_ACCELERATOR
    tolerance = min(max(64 * torch.finfo(model.dtype).eps, tolerance), 0.125)
    shared = min(map(len, TRIED))
    for row, (prompt, tokens) in enumerate(zip(TRIED, made, strict=True)):
        text = torch.tensor([[*prompt, *tokens][:-1]], device=model.device)
        whole = logits({"input_ids": text})[0, shared - 1 :]
        found = torch.stack([step[row] for step in steps[: len(whole)]]).to(whole.device)
        if not compare_logits(found, whole.float(), tolerance).equal:
            return False
    return True
