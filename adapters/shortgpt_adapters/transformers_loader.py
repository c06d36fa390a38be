"""Opens a checkpoint as any user of transformers would: what verification runs in a fresh process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging

CONSTANTS = re.compile(r".*\.(attn|self_attn|attention)\.(bias|masked_bias|rotary_emb\.inv_freq)")
"""Masks and frequencies that old checkpoints hold and that the library computes itself."""


def unfit(info: dict[str, Any]) -> dict[str, list[str]]:
    """What `from_pretrained` had to invent, drop or could not fit, by kind; constants of old checkpoints left out."""
    found = {kind: sorted(n for n in map(str, names) if not CONSTANTS.fullmatch(n)) for kind, names in info.items()}
    return {kind: names for kind, names in found.items() if names}


class ReloadedCausalLM:
    """A `shortgpt.verification.Reloaded` of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.dtype = model.dtype  # the logits of some types are float32 whatever it is

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids.to(self.model.device), use_cache=False).logits

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        own = self.model.generation_config
        greedy = GenerationConfig(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,  # no early end, whatever the end-of-text token is
            do_sample=False,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else 0,
        )
        ids = input_ids.to(self.model.device)
        output = self.model.generate(ids, attention_mask=ids.new_ones(ids.shape), generation_config=greedy)
        return torch.cat(output.logits)


def reload(directory: Path, *, device: str, dtype: str, trust_remote_code: bool = False) -> ReloadedCausalLM:
    """Open a checkpoint with `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: the library had to invent a tensor, or dropped one.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = {} if device == "cpu" else {"device_map": {"": device}}
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **place
    )
    if faults := unfit(info):
        raise ValueError(f"the reloaded model does not hold exactly what was saved: {faults}")
    return ReloadedCausalLM(model)
