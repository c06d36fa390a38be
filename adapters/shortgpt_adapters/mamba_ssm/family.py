"""Mamba 1, Mamba 2 and their attention hybrids as the mamba-ssm library has them: MambaLMHeadModel.

::

    hidden ────┐
    residual ─(+)─┬─ norm ─ mixer (Mamba, Mamba 2 or attention) ─▶ hidden'
                  └──────────────────────────────────────────────▶ residual'

A block begins with the addition that others end with, so that it runs as one kernel with the norm: what goes from block
to block is a pair, and the stream at a boundary is its sum. The first block is given no residual. With `d_intermediate`
a second such half follows within the block: the addition, norm2 and a gated MLP.

The library's kernels run on CUDA only. Where it does not run, a folder in its format is computed by transformers' Mamba
and Mamba 2, which are the same functions of the same tensors, but for one name and the options that they lack; what is
saved is in the library's own format all the same: `config.json`, without a model type, and `pytorch_model.bin`.

This module is `shortgpt_adapters.mamba_ssm.family`; the library is `mamba_ssm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.checkpoints import torch_files
from shortgpt.checkpoints.companions import copy_companions
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import CheckpointError, ModelError, ShortGPTError
from shortgpt.models.configs import spelling
from shortgpt.models.configs.spelling import Removal
from shortgpt.models.generation import Stop
from shortgpt.models.sequence import BlockSequence
from shortgpt.torch_models.sequence import TorchBlockSequence, TorchFamily
from shortgpt.values.cost import CacheSize
from shortgpt_adapters.mamba_ssm.generation import generate_with_state
from shortgpt_adapters.mamba_ssm.loader import (
    WEIGHTS,
    brief,
    filled,
    in_mamba_ssm,
    load_model,
    resolved,
    through_transformers,
)
from shortgpt_adapters.transformers.family import TransformersBlocks, open_tokenizer

WRONG_CACHE = "what the library's attention keeps of a sequence is wrong, so that it is not used"


class MambaSsmBlocks(TorchBlockSequence):
    """The blocks of a `MambaLMHeadModel`."""

    def __init__(self, family: TorchFamily, model: nn.Module, **details: Any) -> None:
        super().__init__(family, model, **details)
        self.vocab_size = self.config["vocab_size"]
        self.load_example = family.load_example

    def stream(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return _sum(*_pair(args, kwargs))

    def stream_out(self, block: int, output: Any) -> Tensor:
        return _sum(*output)

    def with_stream(self, block: int, output: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        inner, residual = output  # the residual is the wider of the two
        return torch.zeros_like(inner), hidden.to(residual.dtype)

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        # The next block gets the very pair that this one got. Their sum in one tensor would not do: in half precision
        # it has another dtype than the mixers take.
        with ExitStack() as hooks:
            for index in block_numbers(blocks, len(self)):
                hook = self.blocks[index].register_forward_hook(
                    lambda module, args, kwargs, output: _pair(args, kwargs), with_kwargs=True
                )
                hooks.callback(hook.remove)
            yield

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        # The library knows no mask. None is needed where padding stands behind the text and no block looks ahead.
        arguments = dict(batch)
        mask = arguments.pop("attention_mask", None)
        ahead = self.config["attn_layer_idx"] and not self.config["attn_cfg"].get("causal", False)
        if ahead and mask is not None and not mask.all():
            raise ModelError(
                f"{self.name}: its attention looks ahead (attn_cfg has no causal=true) and would take padding for "
                "text; use sequences of one length"
            )
        return self.model(**arguments).logits

    def greedy(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Stop = lambda row, made: False
    ) -> list[list[int]]:
        if self.config["attn_layer_idx"] or new_tokens < 1:  # the cache of the library's attention is wrong: see _mend
            return super().greedy(prompts, new_tokens, stop)
        return generate_with_state(self.model, prompts, new_tokens, stop)

    def cache_sizes(self) -> tuple[CacheSize, ...] | str:
        if self.config["attn_layer_idx"]:
            return WRONG_CACHE
        states = self.model.allocate_inference_cache(1, 1)
        return tuple(CacheSize(sum(state.nbytes for state in states[block])) for block in range(len(self)))

    def refuse_decoding(self) -> str | None:
        return WRONG_CACHE if self.config["attn_layer_idx"] else None


class ThroughTransformers(TransformersBlocks):
    """The blocks of a model in mamba-ssm's format that transformers computes."""

    def __init__(self, family: TorchFamily, model: nn.Module, **details: Any) -> None:
        super().__init__(family, model, **details)
        self.vocab_size = self.config["vocab_size"]
        self.max_tokens = None

    def tensors(self) -> dict[str, Tensor]:
        return {in_mamba_ssm(name): tensor for name, tensor in super().tensors().items()}


class MambaSsm(TorchFamily):
    architecture = "mamba-ssm"
    norm_placement = "pre"
    block_lists = ("backbone.layers",)
    loader = "shortgpt_adapters.mamba_ssm.loader:reload"
    load_example = (
        "from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel\n\n"
        'model = MambaLMHeadModel.from_pretrained("DIR", device="cuda")'
    )

    # -- config -----------------------------------------------------------------------------------------------

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        return resolved(source.config, source.name)

    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        copy_companions(source, directory)
        self._write_text(config, source, directory)

    def _write_text(self, config: Config, source: Source, directory: Path) -> None:
        """Write a config that was rewritten in the words of the source's."""
        original = resolved(source.config, source.name)
        depth = self.depth(original)
        spelling.write(
            (source.path / "config.json").read_bytes().decode("utf-8"),
            Removal(original, config, range(depth), depth),  # its library keeps every field under its one name
            directory / "config.json",
            lambda: resolved(Source(source.name, directory).config, source.name),
        )

    def config_of(self, model: nn.Module) -> Config:
        if isinstance(model, PreTrainedModel):
            return model.mamba_ssm_config
        return resolved(vars(model.config), type(model).__name__)

    def check_tensors(self, config: Config, names: Iterable[str]) -> None:
        # Blocks of one kind have tensors of the same names: what one lacks is known from the others.
        blocks: dict[int, set[str]] = {}
        outside = {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"}
        for name in names:
            outside.discard(name)
            number, _, leaf = name.removeprefix("backbone.layers.").partition(".")
            if number.isdigit():
                blocks.setdefault(int(number), set()).add(leaf)
        attention = set(config["attn_layer_idx"])
        lacking = sorted(outside)
        for block, leaves in blocks.items():
            alike = (blocks[other] for other in blocks if (other in attention) == (block in attention))
            lacking += [f"backbone.layers.{block}.{leaf}" for leaf in sorted(set().union(*alike) - leaves)]
        if lacking:
            raise CheckpointError(
                f"the checkpoint lacks {len(lacking)} tensors ({lacking[0]}, ...); fetch or save it again"
            )

    # -- models -----------------------------------------------------------------------------------------------

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        config = self.read_config(source)
        weights = Weights(source)  # their faults are told here, in our words
        if weights.files != [source.path / WEIGHTS]:
            raise CheckpointError(f"{source.name}: mamba-ssm reads {WEIGHTS}, found {weights.files[0].name}")
        self.check_tensors(config, weights.names)
        depth = self.depth(config)
        self.rename(weights.names, depth, range(depth))  # as many blocks as the config counts
        try:
            model = load_model(source.path, config, options.device, options.dtype)
        except ShortGPTError as error:
            raise type(error)(f"{source.name}: {error}") from error.__cause__
        except torch.cuda.OutOfMemoryError:
            raise ModelError(f"{source.name} does not fit into the memory of {options.device}") from None
        except Exception as error:
            raise CheckpointError(f"{source.name}: mamba-ssm cannot load it ({brief(error)})") from error
        return self.wrap(model, name=source.name, tokenizer=open_tokenizer(source, options), source=source)

    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        blocks: type[TorchBlockSequence] = MambaSsmBlocks
        if isinstance(model, PreTrainedModel):
            blocks = ThroughTransformers
            if not hasattr(model, "mamba_ssm_config"):
                raise ModelError(
                    f"{name}: a {type(model).__name__} is a model of transformers, not of mamba-ssm; name no adapter"
                )
        elif not hasattr(model, "config"):
            raise ModelError(
                f"{name}: a {type(model).__name__} is no language model; of mamba-ssm's classes MambaLMHeadModel is"
            )
        return blocks(self, model, name=name, tokenizer=tokenizer, source=source)

    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: nn.Module) -> nn.Module:
        if isinstance(like, PreTrainedModel):
            return through_transformers(config, tensors)
        # Of the library's random start nothing is computed: meta tensors hold no memory. A rotary embedding's buffers,
        # which are in no checkpoint, come from `like` afterwards.
        shorter = type(like)(type(like.config)(**config), device="meta")
        return filled(shorter, tensors)

    def write_model(self, blocks: Any, directory: Path) -> None:
        if blocks.source is not None:
            copy_companions(blocks.source, directory)
        elif hasattr(blocks.tokenizer, "save_pretrained"):
            blocks.tokenizer.save_pretrained(directory)
        tensors = {name: tensor.cpu() for name, tensor in blocks.tensors().items()}
        if blocks.config["tie_embeddings"]:
            tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]  # from an accelerator two copies come
        torch_files.save(tensors, directory / WEIGHTS)
        if blocks.source is None:
            text = json.dumps(blocks.config, indent=4) + "\n"
            (directory / "config.json").write_text(text, encoding="utf-8")
        else:
            self._write_text(blocks.config, blocks.source, directory)


# -- the pair -------------------------------------------------------------------------------------------------


def _pair(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """What a block is called with: Block.forward(hidden_states, residual=None, inference_params=None, ...)."""
    given = dict(zip(("hidden_states", "residual"), args, strict=False)) | dict(kwargs)
    return given["hidden_states"], given.get("residual")


def _sum(hidden: Tensor, residual: Tensor | None) -> Tensor:
    return hidden if residual is None else hidden.float() + residual.float()
