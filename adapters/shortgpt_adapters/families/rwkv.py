"""RWKV-4 of transformers.

::

    embedding ─ pre_ln ─●─ ln1 ─ attention ─(+)─●─ ln2 ─ feed_forward ─(+)─▶ x'
              block 0   └─────────────────────┘ └───────────────────────┘

Two oddities. The norm behind the embedding, `pre_ln`, lives in block 0: boundary 0 is behind it, and whichever block
comes first after a removal gets it.

And for inference the library halves the stream after every `rescale_every` blocks, dividing the two output projections
to match, *in place*, at the first forward pass. That keeps fp16 from overflowing, and elsewhere only moves the norms'
epsilon about, differently in a model of another depth. So a model that is opened here runs without it unless it is in
fp16; the config keeps its value. Where a model does rescale, the tap and the saved weights undo it, and a shorter
model, which divides by other powers of two, gets copies of those projections.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.models.renaming import rename_blocks
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.cost import CacheSize
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.family import TransformersBlocks, TransformersFamily
from shortgpt_adapters.transformers.loader import ReloadedCausalLM

RESCALED = re.compile(r"rwkv\.blocks\.(\d+)\.(attention\.output|feed_forward\.value)\.weight")


class RwkvBlocks(TransformersBlocks):
    def without(self, blocks: Iterable[int]) -> BlockSequence:
        shorter = super().without(blocks)
        if self.model.config.rescale_every == 0:
            _stop_rescaling(shorter)
        return shorter

    def cache_sizes(self) -> tuple[CacheSize, ...] | str:
        """The state is a few tensors, [batch, width, blocks] each."""
        with torch.no_grad():
            state = self.model(torch.ones(1, 1, dtype=torch.long, device=self.device), use_cache=True).state
        each = sum(tensor[..., 0].numel() * tensor.element_size() for tensor in state)
        return (CacheSize(each),) * len(self)

    def stream(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        hidden = super().stream(block, args, kwargs)
        return cast(Tensor, self.blocks[0].get_submodule("pre_ln")(hidden)) if block == 0 else hidden

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        # Boundary L is read from the last block, before the halving that may follow it.
        halvings = self._halvings(min(boundary, len(self) - 1))
        # float16 is why it was halved: the true stream does not fit into it.
        return hidden.float() * 2.0**halvings if halvings else hidden

    def tensors(self) -> dict[str, Tensor]:
        if self.model.config.rescale_every == 0:
            return super().tensors()
        return {
            name: tensor * 2 ** self._halvings(int(match[1])) if (match := RESCALED.fullmatch(name)) else tensor
            for name, tensor in super().tensors().items()
        }

    def _halvings(self, block: int) -> int:
        """How often the stream was halved before a block; 0 as long as the library has not rescaled."""
        every = self.model.config.rescale_every
        return block // every if self.model.rwkv.layers_are_rescaled and every > 0 else 0


class Rwkv(TransformersFamily):
    architecture = "rwkv"
    norm_placement = "pre"
    block_lists = ("rwkv.blocks", "blocks")
    sequence = RwkvBlocks
    loader = "shortgpt_adapters.families.rwkv:reload"
    tolerance = 1e-4

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        blocks = super().open(source, options)
        _stop_rescaling(blocks)
        return blocks

    def write_model(self, blocks: TransformersBlocks, directory: Path) -> None:
        running = blocks.model.config.rescale_every
        if blocks.mlps is None:  # MLPs on the stream were fitted to it as it is
            blocks.model.config.rescale_every = blocks.config["rescale_every"]
        try:
            super().write_model(blocks, directory)
        finally:
            blocks.model.config.rescale_every = running

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        stream = (
            "rwkv.blocks: comes in as argument 0, goes out as output 0, halved now and then, [batch, tokens, width]"
        )
        return ("RwkvBlock",) * self.depth(config), stream

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        if len(keep) == 1:
            return "one block alone cannot be loaded by transformers, which divides by the number of blocks - 1"
        return None

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        names = list(names)
        renamed = rename_blocks(names, self.block_lists, depth, keep)
        first = {old: old for old in names if re.fullmatch(r"(rwkv\.)?blocks\.0\.pre_ln\.(weight|bias)", old)}
        return {**first, **renamed}


def _stop_rescaling(blocks: BlockSequence) -> None:
    assert isinstance(blocks, RwkvBlocks)
    if blocks.model.dtype != torch.float16:
        blocks.model.config.rescale_every = 0


def reload(directory: Path, **options: Any) -> ReloadedCausalLM:
    """The stock loader; without rescaling where the adapter runs without it."""
    reloaded = transformers_loader.reload(directory, **options)
    if reloaded.model.dtype != torch.float16 and reloaded.model.config.rescale_every > 0:
        reloaded.model.config.rescale_every = 0
        reloaded.mended = "the library's halving of the stream (rescale_every) was off: only float16 needs it"
    return reloaded
