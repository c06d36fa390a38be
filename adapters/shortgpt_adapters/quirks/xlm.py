"""XLM: a block is spread over four lists.

::

    x ─●─ attentions[i] ─(+)─ layer_norm1[i] ─●─ ffns[i] ─(+)─ layer_norm2[i] ─ ·mask ─▶ x'
       └──────────────────┘                   └────────────┘

Boundary i is what `attentions[i]` is given, and boundary L is what the stack returns: it has no norm of its own. A
block is skipped when `layer_norm2[i]` returns what `attentions[i]` was given, and removed from all four lists.

The mask sets the stream of padding to zero. Where a batch brings none, the library counts the padding ids of a row,
wherever they are, and takes that many tokens at the row's end for padding. Here a batch without a mask has no padding,
so it gets a mask of ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Config
from shortgpt.models.renaming import rename_blocks
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt.torch_models.sequence import TorchFamily
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM, arguments, logits_of
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks, list_in_files
from shortgpt_adapters.transformers.structure import Structure
from shortgpt_adapters.transformers.verbosity import quiet

LISTS = ("attentions", "layer_norm1", "ffns", "layer_norm2")


class XlmBlocks(StructuralBlocks):
    def __init__(self, family: TorchFamily, model: nn.Module, **details: Any) -> None:
        super().__init__(family, model, **details)
        self.stack = model.get_submodule(self.structure.path.rpartition(".")[0])
        self.pieces = list(zip(*(self.stack.get_submodule(name).children() for name in LISTS), strict=True))

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return super().forward(_with_mask(batch))

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        def before(block: int) -> Any:
            return lambda module, args: tap(block, args[0])

        given = arguments(self.stack, _with_mask(self._placed(batch)))
        with torch.no_grad(), quiet(), ExitStack() as hooks:
            for block, (first, *_) in enumerate(self.pieces):
                hooks.callback(first.register_forward_pre_hook(before(block)).remove)
            tap(len(self), self.stack(**given)[0])

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        entered: dict[int, Tensor] = {}

        def enter(block: int) -> Any:
            return lambda module, args: entered.update({block: args[0]})

        def leave(block: int) -> Any:
            # A copy, because the mask is multiplied into it in place.
            return lambda module, args, output: entered.pop(block).clone()

        with ExitStack() as hooks:
            for block in block_numbers(blocks, len(self)):
                first, *_, last = self.pieces[block]
                hooks.callback(first.register_forward_pre_hook(enter(block)).remove)
                hooks.callback(last.register_forward_hook(leave(block)).remove)
            yield

    def refuse_readouts(self) -> str:
        return "a block ends in another list than it begins in"

    def parameter_counts(self) -> tuple[int, ...]:
        return tuple(sum(p.numel() for part in parts for p in part.parameters()) for parts in self.pieces)


class Xlm(Structural):
    architecture = "xlm"
    sequence = XlmBlocks
    loader = "shortgpt_adapters.quirks.xlm:reload"

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        first, *_, last = LISTS
        stream = f"comes in as argument 0 of {first}[i], goes out as the output of {last}[i], [batch, tokens, width]"
        return self.structure.classes, f"{', '.join(LISTS)}: {stream}"

    def block_parameters(self, config: Config) -> None:
        """A block is in several lists."""

    def find(self, model: PreTrainedModel) -> Structure:
        path = next(name for name, _ in model.named_modules() if name.rpartition(".")[2] == LISTS[0])
        return Structure(path, ("XlmBlock",) * len(model.get_submodule(path)), norm_placement="post")

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        renamed = {name: name for name in names}
        prefix = list_in_files(renamed, self.structure.path, depth).removesuffix(LISTS[0])
        for name in LISTS:
            step = rename_blocks(renamed, (prefix + name,), depth, keep)
            renamed = {new: renamed[old] for new, old in step.items()}
        return renamed


def _with_mask(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {"attention_mask": torch.ones_like(batch["input_ids"]), **batch}


class ReloadedXlm(ReloadedCausalLM):
    def logits(self, input_ids: Tensor, **side: Tensor) -> Tensor:
        batch = _with_mask({"input_ids": input_ids.to(self.model.device), **side})
        return logits_of(self.model(**arguments(self.model, batch)))


reload = functools.partial(transformers_loader.reload, kind=ReloadedXlm)
