"""MusicGen's decoder: each token is a frame of several codes, one from each codebook.

::

    codes   [sequences · codebooks, tokens]      a row for each codebook of each sequence
      └─ embed_tokens[k] of each row k, summed ─▶ x ─●─ norm ─ attention ─(+)─ ... ─(+)─●─ norm ─ ffn ─(+)─▶ x'
                                                [sequences, tokens, width]

A boundary has the rows of `input_ids`: each codebook's row has the stream of its sequence. Block Influence is the mean
over frames, each of which counts `num_codebooks` times; the rows of one sequence are not independent, so its standard
error is too small by √num_codebooks.

`input_ids` are as the library takes them. Where their number of rows is no multiple of the codebooks, each row is one
sequence, whose codebooks are all given that row; verification's probe is one. The encoded text may come along as
`encoder_hidden_states`; MusicGen Melody puts it in front of the frames, and a boundary shows the frames.

With a cache the library reads the last token of a prompt only, so generation is compared from a prompt of one token.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from shortgpt.errors import CalibrationError, ModelError
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks
from shortgpt_adapters.transformers.structure import PROBE, Structure, find_structure


class MusicgenBlocks(StructuralBlocks):
    def _vocabulary(self) -> int:
        return int(self.model.get_input_embeddings()[0].num_embeddings)  # one for each codebook

    @property
    def codebooks(self) -> int:
        return int(self.model.config.num_codebooks)

    def side_inputs(self, rows: int) -> Mapping[str, Tensor]:
        sequences = rows if rows % self.codebooks else rows // self.codebooks
        return super().side_inputs(sequences)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        given = dict(batch)
        mask = given.pop("attention_mask", None)
        if mask is not None:
            given["attention_mask"] = self._of_sequences(mask)
        given["input_ids"] = of_codebooks(given["input_ids"], self.codebooks)
        return super().forward(given)

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        rows, tokens = batch["input_ids"].shape

        def of_frames(boundary: int, hidden: Tensor) -> None:
            tap(boundary, hidden[:, -tokens:].repeat_interleave(rows // len(hidden), 0))

        super().trace(batch, of_frames)

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return hidden

    def _of_sequences(self, mask: Tensor) -> Tensor:
        """A row for each sequence, as the library takes it."""
        if len(mask) % self.codebooks:
            return mask
        first = mask[:: self.codebooks]
        if not torch.equal(mask, first.repeat_interleave(self.codebooks, 0)):
            raise CalibrationError(
                f"{self.name}: the {self.codebooks} codebooks of a sequence must have the same attention_mask"
            )
        return first


class Musicgen(Structural):
    architecture = "musicgen"
    sequence = MusicgenBlocks
    loader = "shortgpt_adapters.quirks.musicgen:reload"

    def find(self, model: PreTrainedModel) -> Structure:
        if not hasattr(model.config, "num_codebooks"):
            raise ModelError(
                f"a {type(model).__name__} is a text encoder, a decoder and a codec; save its `decoder`, and take that"
            )
        rows, tokens = PROBE
        codes = torch.zeros(rows * model.config.num_codebooks, tokens, dtype=torch.long, device=model.device)
        return find_structure(model, {"input_ids": codes, "use_cache": False})


def of_codebooks(input_ids: Tensor, codebooks: int) -> Tensor:
    """Token ids with a row for each codebook of each sequence."""
    return input_ids.repeat_interleave(codebooks, 0) if len(input_ids) % codebooks else input_ids


class ReloadedMusicgen(ReloadedCausalLM):
    mended = "generation began with one token, for with a cache transformers reads a MusicGen prompt's last token alone"

    def _codes(self, input_ids: Tensor) -> Tensor:
        return of_codebooks(input_ids.to(self.model.device), self.model.config.num_codebooks)

    def logits(self, input_ids: Tensor, **side: Tensor) -> Tensor:
        return super().logits(self._codes(input_ids), **side)

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        # Its `generate` fills in no setting that is missing, and drops the padding from what it generated: so that is
        # an id that no head gives.
        padding = self.model.config.vocab_size
        greedy = GenerationConfig(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
            bos_token_id=padding,
            pad_token_id=padding,
            decoder_start_token_id=padding,
        )
        made = self._generated(self._codes(input_ids[:, :1]), greedy)
        return torch.stack(made).flatten(1)  # a token's logits: of all its codes


reload = functools.partial(transformers_loader.reload, kind=ReloadedMusicgen)
