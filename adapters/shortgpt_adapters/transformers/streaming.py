"""Opens a model of transformers without its blocks' weights, and reads those of one block at a time.

::

    from_pretrained ─▶ the library builds the model, names, converts and places every tensor as it always does
                       │ embeddings, rotary frequencies, norms, buffers: values
                       └ blocks (and a head of its own): shapes, on the meta device
    load(i)         ─▶ the same conversion, over the tensors of block i; behind the last one, of the head

So a block's weights are those that `from_pretrained` gives it, whatever the files call them, whether experts are fused
or types converted. What is still on the meta device has no values: code that looks at it fails, and no score comes of
it.

Tensors are mapped from the files, each by itself, as the library maps them: a block's weights are then where they would
be in a model in memory, bit for bit and at the same place of a cache line, the system can take the memory back, and
nothing is left of them when the block is dropped. The system is told of them beforehand: a computation would wait for
the disk at every page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)

from shortgpt.basics.inputs import Source
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import StreamingError
from shortgpt.models.memory import SIGNS
from shortgpt.torch_models.streaming import BlockWeights
from shortgpt_adapters.transformers.verbosity import quiet

if "_load_pretrained_model" not in vars(PreTrainedModel):
    raise ImportError(
        "cannot find PreTrainedModel._load_pretrained_model, in whose place `StreamedWeights.open` stands"
    )

IN_ONE_THREAD = "HF_DEACTIVATE_ASYNC_LOAD"
"""The library's environment variable: it copies a block's tensors one after another, in the thread that loads."""


class _InFile:
    """A tensor that is mapped when the library asks for all of it."""

    def __init__(self, weights: Weights, name: str) -> None:
        self.weights, self.name = weights, name

    def __getitem__(self, everything: object) -> Tensor:
        return self.weights.tensor(self.name)

    def empty(self) -> Tensor:
        return torch.empty(self.weights.entry(self.name).shape, device="meta")


class StreamedWeights(BlockWeights):
    """The weights of one model's blocks and head. Made by `leaving_blocks_in_files`.

    Args:
        name: what messages call the model.
        path: the block list.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name, self.path = name, path

    def open(self, model: PreTrainedModel, files: Any, config: Any) -> Any:
        """In the place of the library's loading: everything but the blocks gets its values.

        Returns:
            What the library's loading returns: what was missing, left over or of another shape; and nothing offloaded.
        """
        if config.hf_quantizer is not None:
            raise StreamingError(f"{self.name}: its weights are quantised, and cannot be streamed; load it whole")
        others = [Path(file).name for file in files or () if not str(file).endswith(".safetensors")]
        if not files or others:
            raise StreamingError(
                f"{self.name}: its weights are in {', '.join(others) or 'no file'}; streaming reads safetensors files: "
                "save the model as such, or load it whole"
            )
        if any(getattr(entry, "force_cpu", False) for entry in config.weight_mapping or ()):
            raise StreamingError(
                f"{self.name}: transformers converts tensors of a {type(model).__name__} in a way that needs all their "
                "values at once, so it cannot be streamed; load it whole"
            )
        self.model = model
        self.device = torch.device(next(iter((config.device_map or {"": "cpu"}).values())))
        self.blocks = list(model.get_submodule(self.path).children())
        self.block_names = tuple(f"{self.path}.{index}" for index in range(len(self.blocks)))
        self._refuse_shared(model)
        tensors = {
            name: _InFile(weights, name)
            for weights in (Weights(Source(self.name, Path(file))) for file in files)
            for name in weights.names
        }
        head = [(name, part) for name, part in model.named_modules() if part is _own_head(model)][:1]
        self.parts = dict(zip(self.block_names, self.blocks, strict=True)) | dict(head)
        left = (self.path, *(name for name, _ in head))
        names = (rf"{re.escape(self.path)}\.\d+", *(re.escape(name) for name, _ in head))
        part_of = re.compile(rf"({'|'.join(names)})(?=\.)")
        self.tensors: dict[str, dict[str, _InFile]] = {name: {} for name in self.parts}
        state: dict[str, Any] = {}
        for name, place in names_in_model(tensors, model, config.weight_mapping or ()).items():
            tensor = tensors[name]
            if place.startswith(tuple(f"{prefix}." for prefix in left)):
                state[name] = tensor.empty()
                part = part_of.match(place)
                if part and part[0] in self.tensors:
                    self.tensors[part[0]][name] = tensor
            else:
                state[name] = tensor
        everything_else = {"": self.device} | {name: torch.device("meta") for name in left}
        loaded = convert_and_load_state_dict_in_model(model, state, replace(config, device_map=everything_else))
        self.config = replace(config, device_map={"": self.device})
        return loaded

    def finish(self) -> None:
        """Note what the parts are without their weights."""
        self.empty = [
            [(module, dict(module._parameters), dict(module._buffers)) for module in part.modules()]
            for part in self.parts.values()
        ]
        self.versions = [[tensor._version for tensor in _without_values(part)] for part in self.parts.values()]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """In host memory the library's threads would each have a heap of their own, with holes that other blocks don't
        fill; in one heap a block that is copied takes the place of the one before the last."""
        chosen = os.environ.get(IN_ONE_THREAD)
        if self.device.type == "cpu":
            os.environ[IN_ONE_THREAD] = "1"
        try:
            with quiet():
                yield
        finally:
            if chosen is not None:
                os.environ[IN_ONE_THREAD] = chosen
            else:
                os.environ.pop(IN_ONE_THREAD, None)

    def load(self, part: int) -> None:
        if part == len(self.parts):
            return  # the head is there: it is the embedding's
        name, module = list(self.parts.items())[part]
        if [tensor._version for tensor in _without_values(module)] != self.versions[part]:
            raise StreamingError(
                f"{self.name}: the model writes into the weights of {name} before it runs, so they cannot be streamed; "
                "load it whole"
            )
        for tensor in self.tensors[name].values():
            tensor.weights.fetch(tensor.name)
        loaded, _ = convert_and_load_state_dict_in_model(self.model, self.tensors[name], self.config)
        for failure in loaded.conversion_errors.values():  # the library goes on without the tensor
            if SIGNS.search(failure):
                raise torch.OutOfMemoryError(f"{self.name}: {name} does not fit into the memory of {self.device}")
        lacking = [inner for inner, tensor in _named(module) if tensor.is_meta]
        if lacking:
            raise StreamingError(
                f"{self.name}: {name}.{lacking[0]} is made of tensors of other blocks, so this type "
                f"({type(self.model).__name__}) cannot be streamed; load it whole"
            )

    def drop(self, part: int) -> None:
        for module, parameters, buffers in self.empty[part] if part < len(self.parts) else ():
            module._parameters.update(parameters)
            module._buffers.update(buffers)

    def _refuse_shared(self, model: PreTrainedModel) -> None:
        """Weights of a block that another part of the model uses as well cannot come and go with the block."""
        pairs: Mapping[str, str] = model.all_tied_weights_keys

        def owner(name: str) -> str:
            return name.removeprefix(f"{self.path}.").split(".")[0] if name.startswith(f"{self.path}.") else ""

        shared = [(one, other) for one, other in pairs.items() if owner(one) != owner(other)]
        if any(owner(one) or owner(other) for one, other in shared):
            one, other = next((a, b) for a, b in shared if owner(a) or owner(b))
            raise StreamingError(
                f"{self.name}: {one} and {other} are one tensor, so the blocks of a {type(model).__name__} cannot be "
                "streamed one by one; load it whole"
            )


@contextmanager
def leaving_blocks_in_files(name: str, path: str) -> Iterator[StreamedWeights]:
    """Inside it, `from_pretrained` leaves the weights of the blocks at `path` in their files."""
    weights = StreamedWeights(name, path)
    library = PreTrainedModel.__dict__["_load_pretrained_model"]

    def load(model: PreTrainedModel, state_dict: Any, files: Any, load_config: Any, expected_keys: Any = None) -> Any:
        return weights.open(model, files, load_config)

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        yield weights
        weights.finish()
    finally:
        PreTrainedModel._load_pretrained_model = library


def names_in_model(names: Iterable[str], model: PreTrainedModel, conversions: Iterable[Any]) -> dict[str, str]:
    """What the library calls the files' tensors in the model; one that becomes part of several, as the first.

    Args:
        conversions: how the library renames and converts what it loads.
    """
    conversions = list(conversions)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    renamed = {}
    for name in names:
        renamed[name], _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if renamed[name] not in known and name in known:
            renamed[name], _ = rename_source_key(name, [], [], model.base_model_prefix, known)
    return renamed


def _own_head(model: PreTrainedModel) -> nn.Module | None:
    """The output embedding, where it shares no tensor with anything else."""
    head = model.get_output_embeddings()
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    inside = [name for name, part in model.named_modules() if part is head]
    return None if head is None or any(key.startswith(f"{name}.") for name in inside for key in tied) else head


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _without_values(module: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in _named(module) if tensor.is_meta]
