"""ProphetNet's decoder: beside the main stream, one stream for each token that is predicted ahead.

::

    main      t₀ t₁ t₂ ... ┐                  post-norm blocks work on all of them: [batch, (1 + ngram) · tokens, width]
    ahead 1   t₀ t₁ t₂ ... ├─●─ block ─▶ x'   the logits come from "ahead 1", which reads the main stream's keys and
    ahead 2   t₀ t₁ t₂ ... ┘                  values, and its own token's

A token's stream at a boundary is its main vector and the ones ahead, one behind the other: [batch, tokens,
(1 + ngram) · width]. Block Influence is the cosine of those: the main stream alone would show nothing of what the last
block does to the logits.

The library orders the relative positions of the streams ahead in a way that makes a token's vector depend on the row's
length, masked or not. So a batch whose rows differ in length is refused, and what is generated with a cache is not
what is generated without.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, ProphetNetForCausalLM

from shortgpt.errors import CalibrationError, ModelError
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks
from shortgpt_adapters.transformers.structure import Structure


class ProphetNetBlocks(StructuralBlocks):
    def _window(self) -> int | None:
        # Positions are counted from the padding's id on, and the streams ahead look one further.
        config = self.model.config
        bound = config.max_position_embeddings - config.pad_token_id - 2
        return min(bound, super()._window() or bound)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None and not mask.all():
            raise CalibrationError(f"{self.name}: padding changes its tokens' streams; hand in rows without padding")
        return super().forward(batch)

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        streams = hidden.unflatten(1, (1 + self.model.config.ngram, -1))
        return streams.transpose(1, 2).flatten(2)


class ReloadedProphetNet(ReloadedCausalLM):
    cannot_generate = "transformers' ProphetNet computes other logits with a cache than without, unpruned as well"


class ProphetNet(Structural):
    architecture = "prophetnet"
    sequence = ProphetNetBlocks
    loader = "shortgpt_adapters.quirks.prophetnet:reload"

    def find(self, model: PreTrainedModel) -> Structure:
        if not isinstance(model, ProphetNetForCausalLM):
            raise ModelError(
                f"a {type(model).__name__} does not run on a text alone; load its decoder with "
                "ProphetNetForCausalLM.from_pretrained, and wrap or save that"
            )
        return super().find(model)


reload = functools.partial(transformers_loader.reload, kind=ReloadedProphetNet)
