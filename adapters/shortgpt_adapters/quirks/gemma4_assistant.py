"""Gemma 4's drafter: a small stack that guesses the next token beside a large model, whose keys and values it reads.

::

    the assisted model ── token's embedding | last hidden state ──▶ pre_projection ─▶ block 0 ─▶ ... ─▶ lm_head
           │                                                                            ▲          ▲
           └───────────── keys and values, one pair for each type of attention ─────────┴──────────┘

No block makes keys and values, so any can go, as long as the last one attends to all tokens. To be scored, a drafter
needs batches that hold what the assisted model gives, as the library's assisted generation hands it over:
`inputs_embeds`, `shared_kv_states` and `position_ids`; and `input_ids` of the drafted tokens, usually one a row, which
only say how many there are. All keys are taken for real ones. A verification has token ids alone: there, one position
behind them is drafted from random inputs, the same for the same ids. For a comparison they do as well as real ones.

transformers 5.23 cannot build a drafter: its config refuses that all blocks read and none makes, although it demands
just that. While a model is built here, the config answers what it plainly means.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma4TextConfig, Gemma4UnifiedTextConfig, PreTrainedConfig, PreTrainedModel

from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.errors import CalibrationError
from shortgpt.models.sequence import BlockSequence, Tap, TokenBatch
from shortgpt_adapters.quirks.gemma4 import Gemma4
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM, logits_of
from shortgpt_adapters.transformers.structural import StructuralBlocks
from shortgpt_adapters.transformers.structure import PROBE, Structure, find_structure

GIVEN = ("inputs_embeds", "shared_kv_states", "position_ids")
"""What the assisted model hands over."""

KINDS = ("full_attention", "sliding_attention")
"""Of both the library asks for keys, also where no block reads them."""


class DrafterBlocks(StructuralBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        if lacking := [name for name in GIVEN if name not in batch]:
            raise CalibrationError(
                f"{self.name} drafts from what another model hands over, so token ids alone cannot be scored; give "
                f"token batches that hold {', '.join(lacking)} as well"
            )
        super().trace(batch, tap)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        given = {name: batch[name] for name in GIVEN if name in batch}
        return super().forward(given or invented(self.model, batch["input_ids"]))


class Gemma4Assistant(Gemma4):
    architecture = "gemma4_assistant"
    sequence = DrafterBlocks
    loader = "shortgpt_adapters.quirks.gemma4_assistant:reload"

    def notes(self, config: Config) -> tuple[str, ...]:
        return (
            *super().notes(config),
            "transformers 5.23 cannot load a drafter, neither this one nor its original: its config refuses that all "
            "blocks read keys and values and none makes them. It loads within "
            "`shortgpt_adapters.quirks.gemma4_assistant.all_may_read()`.",
        )

    def find(self, model: PreTrainedModel) -> Structure:
        return find_structure(model, invented(model, torch.zeros(PROBE, dtype=torch.long)))

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        with all_may_read():
            return super().open(source, options)

    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> nn.Module:
        with all_may_read():
            return super().build(config, tensors, like=like)

    def _empty(self, config: Config) -> PreTrainedModel:
        with all_may_read():
            return super()._empty(config)


class ReloadedDrafter(ReloadedCausalLM):
    mended = "transformers' check that some block makes keys and values was set aside to load it: a drafter has none"
    cannot_generate = "a drafter generates only beside the model that it assists"

    def logits(self, input_ids: Tensor, **side: Tensor) -> Tensor:
        return logits_of(self.model(**invented(self.model, input_ids)))


def reload(directory: Path, **options: Any) -> ReloadedCausalLM:
    """The stock loader, with the config mended."""
    with all_may_read():
        return transformers_loader.reload(directory, **options, kind=ReloadedDrafter)


def invented(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
    """What an assisted model could hand over after these tokens to draft the next one: random, but for their number."""
    rows, tokens = input_ids.shape
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(int(input_ids.sum()))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    embeds = drawn(rows, 1, 2 * model.config.backbone_hidden_size)
    shared = {}
    for kind in KINDS:
        of_kind = config.per_layer_config[config.layer_types.index(kind) if kind in config.layer_types else 0]
        shape = (rows, of_kind.num_key_value_heads, tokens, of_kind.head_dim)
        shared[kind] = (drawn(*shape), drawn(*shape))
    positions = torch.full((rows, 1), tokens, device=model.device)
    return {"inputs_embeds": embeds, "shared_kv_states": shared, "position_ids": positions}


@contextmanager
def all_may_read() -> Iterator[None]:
    """Within it a text config may say that all its blocks read the keys and values of another model."""
    with ExitStack() as stack:
        for config_class in (Gemma4TextConfig, Gemma4UnifiedTextConfig):
            upstream = config_class.kv_sharing_modes
            stack.callback(setattr, config_class, "kv_sharing_modes", upstream)
            setattr(config_class, "kv_sharing_modes", property(functools.partial(_modes, upstream)))  # noqa: B010
        yield


def _modes(upstream: property, config: PreTrainedConfig) -> list[str | None]:
    if config.num_kv_shared_layers == config.num_hidden_layers:
        return ["reuse"] * config.num_hidden_layers
    types: list[str | None] = upstream.__get__(config)
    return types
