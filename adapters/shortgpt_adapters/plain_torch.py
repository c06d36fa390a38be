"""Any other torch model in memory: a module that takes token ids, gives logits, and has a list of blocks.

::

    model(ids) ─▶ embed ─▶ blocks[0] ─▶ blocks[1] ─▶ ... ─▶ norm, head ─▶ logits, or a tuple that begins with them

The blocks are found by what runs. There is no config, so a shorter model is a copy of the module tree that shares all
tensors and has a shorter list; it is compared with skipping on the spot, since nothing says whether a block knows its
place. What it cannot do is write a checkpoint that some library loads: a plain model has no format of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from shortgpt.basics.block_lists import kept_blocks
from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.errors import AdapterError, ModelError, UnknownArchitectureError
from shortgpt.models.recognition import unknown_architecture
from shortgpt.models.sequence import BlockSequence
from shortgpt.torch_models.sequence import TorchFamily
from shortgpt_adapters.transformers.loader import arguments, logits_of
from shortgpt_adapters.transformers.structure import FoundBlocks, Structure, find_structure


class PlainBlocks(FoundBlocks):
    """The blocks of a torch model without a config."""

    def __init__(self, family: PlainTorch, model: nn.Module, **details: Any) -> None:
        super().__init__(family, model, **details)
        inside = {module for block in self.blocks for module in block.modules()}
        tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m not in inside]
        if not tables:
            raise ModelError(f"{self.name}: a {type(model).__name__} has no torch.nn.Embedding that takes token ids")
        self.vocab_size, *positions = tables
        self.max_tokens = min(positions, default=None)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return logits_of(self.model(**arguments(self.model, batch)))

    def shorter(self, blocks: tuple[int, ...]) -> BlockSequence:
        self._refuse_unusual()
        keep = kept_blocks(len(self), blocks, self.pinned)
        path = self.structure.path
        # Tensors are shared, modules are not: what a copy is told does not reach the original.
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, shared)
        kept = [model.get_submodule(f"{path}.{i}") for i in keep]
        in_a_row = isinstance(model.get_submodule(path), nn.Sequential)
        model.set_submodule(path, nn.Sequential(*kept) if in_a_row else nn.ModuleList(kept))
        try:
            return self.family.wrap(model, name=f"{self.name} - {len(self) - len(keep)}", tokenizer=self.tokenizer)
        except UnknownArchitectureError as error:
            raise ModelError(
                f"{self.name}: a copy with {len(keep)} blocks does not run; does its class keep their number? ({error})"
            ) from error


class PlainTorch(TorchFamily):
    """Torch models in memory that are not of a library that an adapter knows."""

    architecture = "plain-torch"
    sequence = PlainBlocks
    structure: Structure

    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        own = copy.copy(self)
        try:
            own.structure = find_structure(model)
        except AdapterError as error:
            found = f"a {type(model).__module__}.{type(model).__qualname__}: {error}"
            raise unknown_architecture(name, found) from None
        own.norm_placement, own.block_lists = own.structure.norm_placement, (own.structure.path,)
        return super(PlainTorch, own).wrap(model, name=name, tokenizer=tokenizer, source=source)

    def config_of(self, model: Any) -> Config:
        return {}

    def depth(self, config: Config) -> int:
        return len(self.structure.classes)

    def write_model(self, blocks: Any, directory: Path) -> NoReturn:
        raise ModelError(
            f"{blocks.name}: a plain torch model has no checkpoint format, so there is nothing that would load what is "
            "saved. Keep `shorter.model.state_dict()` and build your class with "
            f"{len(blocks)} blocks to load it; or write an adapter (see docs/writing-an-adapter.md)"
        )

    def open(self, source: Source, options: OpenOptions) -> NoReturn:
        raise ModelError(
            f"{source.name}: a plain torch model is not opened from files; pass it to shortgpt.wrap(model)"
        )

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> NoReturn:
        self.open(source, OpenOptions())

    def write_config(self, config: Config, source: Source, directory: Path) -> NoReturn:
        self.open(source, OpenOptions())

    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> NoReturn:
        raise ModelError("a plain torch model is not built from a config")
