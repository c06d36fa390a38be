"""The `rwkv` package at work: its code in as many copies as its models need, and a model's pass one block at a time.

::

    rwkv/model.py ─┬─▶ copy for RWKV 4 to 6, "cpu fp32"  ─▶ RWKV object ─▶ Before7 ─┐
                   ├─▶ copy for RWKV 7, "cpu fp32"       ─▶ RWKV object ─▶ Seven   ─┼─▶ embed, block 0 ... L-1, head
                   └─▶ copy for RWKV 7, "cuda fp16"      ─▶ RWKV object ─▶ Seven   ─┘

The package is one file with its settings in environment variables. At import they say whether it is RWKV 7 or any
other; at every forward pass, whether there are CUDA kernels. RWKV 7 keeps dtype and device in globals, so that a second
model would change the first one's. A copy has its own environment, and neither prints nor collects garbage.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from shortgpt.errors import AdapterError, CheckpointError, ModelError, reason_of
from shortgpt.models.precision import kept_precision
from shortgpt.models.renaming import rename_blocks

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

_importing = threading.Lock()


def strategy(device: str, dtype: str) -> str:
    """The package's words for a device and a dtype. "auto" is fp16 on CUDA and fp32 elsewhere.

    Raises:
        ModelError: the package does not run there.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ModelError(f"the rwkv package does not run on {device!r}; it runs on cpu, cuda and mps")
    if dtype == "auto":
        dtype = "float16" if kind == "cuda" else "float32"
    if kind == "cpu" and dtype == "float16":
        raise ModelError("the rwkv package does not run float16 on the CPU; take float32 or bfloat16")
    return f"{device} {DTYPES[dtype]}"


@functools.cache
def package(seven: bool, strategy: str) -> ModuleType:
    """A copy of `rwkv.model`, for RWKV 7 or for 4 to 6, and for models of one strategy.

    Raises:
        ModelError: the package is not installed.
    """
    found = importlib.util.find_spec("rwkv.model") if importlib.util.find_spec("rwkv") else None
    if found is None or found.origin is None:
        raise ModelError(
            "RWKV .pth files are run by the rwkv package, which is not installed: pip install 'shortgpt-blocks[rwkv]'"
        )
    settings = {
        "RWKV_V7_ON": "1" if seven else "0",
        "RWKV_JIT_ON": os.environ.get("RWKV_JIT_ON", "1"),
        "RWKV_CUDA_ON": os.environ.get("RWKV_CUDA_ON", "0"),
        "RWKV_DE_VERSION": "0",
        # Halving the stream keeps fp16 from overflowing. Elsewhere it would only make a block's place matter.
        "RWKV_RESCALE_LAYER": os.environ.get("RWKV_RESCALE_LAYER", "6") if strategy.endswith("fp16") else "0",
    }
    name = f"shortgpt_adapters.rwkv_package.{'v7' if seven else 'v4to6'}_{strategy.replace(':', '').replace(' ', '_')}"
    spec = importlib.util.spec_from_file_location(name, found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["print"] = lambda *args, **kwargs: None
    with _importing, _environment(settings), _backend_flags():
        spec.loader.exec_module(module)
    vars(module)["os"] = SimpleNamespace(environ={**os.environ, **settings}, path=os.path, name=os.name)
    # It collects after every block, which frees nothing and takes seconds where many libraries are loaded.
    vars(module)["gc"] = SimpleNamespace(collect=lambda: 0)
    sys.modules[name] = module  # where torch.jit looks up the home of a class
    return module


def open_file(file: Path, *, seven: bool, device: str, dtype: str) -> Any:
    """The package's model of a file, made by the package's own constructor.

    Raises:
        ModelError: it does not fit, or the package is not there or does not run so. CheckpointError: it cannot load it.
    """
    words = strategy(device, dtype)
    make = package(seven, words).RWKV
    try:
        return make(model=str(file.with_suffix("") if seven else file), strategy=words)  # RWKV 7 adds the .pth itself
    except torch.cuda.OutOfMemoryError:
        raise ModelError(f"{file} does not fit into the memory of {device}") from None
    except Exception as error:  # it has no errors of its own: what comes is whatever its code ran into
        raise CheckpointError(
            f"{file}: the rwkv package cannot load it ({type(error).__name__}: {reason_of(error)})"
        ) from error


def weights_of(model: Any) -> Mapping[str, Tensor]:
    """The tensors of a model as the package has converted them for running."""
    return model.z if hasattr(model, "z") else model.w


def with_tensors(model: Any, instead: Mapping[str, Tensor]) -> Any:
    """The package's model with other tensors in the place of some; it shares all others with `model`."""
    return shortened(model, range(model.args.n_layer), instead)


def shortened(model: Any, keep: Sequence[int], instead: Mapping[str, Tensor] = {}) -> Any:
    """The package's model of the blocks `keep`, which shares their tensors with `model`.

    Args:
        instead: other tensors in the place of some, by the names that they have in `model`.
    """
    original: Any = type(model)
    cls, tensors = _assembled(original), weights_of(model)
    names = rename_blocks(tensors, ("blocks",), model.args.n_layer, keep)
    weights = {new: instead.get(old, tensors[old]) for new, old in names.items()}
    attributes = {name: getattr(model, name) for name in _ATTRIBUTES if hasattr(model, name)}
    attributes["args"] = SimpleNamespace(**{**vars(model.args), "n_layer": len(keep)})
    if hasattr(model, "z"):
        attributes |= {"z": weights, "n_layer": len(keep)}
        return cls(attributes)
    every = model.RESCALE_LAYER
    for place, block in enumerate(keep if every else ()):
        # These two projections are divided by 2 for every halving of the stream before their block.
        factor = 2.0 ** (block // every - place // every)
        for name in (f"blocks.{place}.{part}.weight" for part in ("att.output", "ffn.value")):
            for part in (name, f"{name}_mx", f"{name}_my", f"{name}_ry"):  # the last three of 8-bit weights
                if factor != 1 and part in weights and weights[part].is_floating_point():
                    weights[part] = weights[part] * factor
    attributes |= {"w": weights, "strategy": [*(model.strategy[i] for i in keep), model.strategy[-1]]}
    return cls(attributes)


_ATTRIBUTES = ("RESCALE_LAYER", "version", "RWKV_5", "RWKV_6", "n_head", "head_size", "n_embd")


@functools.cache
def _assembled(cls: Any) -> Any:
    """A subclass whose objects are put together from attributes, where the package's constructor reads a file."""
    module = next(base for base in cls.__mro__ if base.__module__.startswith("torch."))

    class Assembled(cls):
        def __init__(self, attributes: Mapping[str, Any]) -> None:
            module.__init__(self)
            for name, value in attributes.items():
                setattr(self, name, value)

    return Assembled


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _backend_flags() -> Iterator[None]:
    """The import turns TF32 on for the whole process, which would round every other model's float32."""
    benchmark = torch.backends.cudnn.benchmark
    try:
        with kept_precision():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


# -- a pass in steps ------------------------------------------------------------------------------------------

Row = tuple[Tensor, Tensor]
"""One sequence on its way: the stream, [tokens, width], and RWKV 7's values of block 0 (anything before it has run)."""


def steps_of(model: Any) -> Steps:
    """A model's pass."""
    return Seven(model) if hasattr(model, "z") else Before7(model)


class Steps(ABC):
    """A model of the package, to be run one step at a time. Nothing on the model is changed for that."""

    device: torch.device
    table: Tensor  # the embedding behind ln0, [vocabulary, width]

    def embed(self, ids: Tensor) -> Row:
        """[tokens] → boundary 0."""
        hidden = self.table[ids.to(self.table.device)]
        return hidden, hidden

    @abstractmethod
    def block(self, index: int, row: Row, *, skipped: bool) -> Row:
        """From boundary `index` to the next."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """The last boundary → logits, [tokens, vocabulary]."""

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        """The true stream, where the package carries it halved."""
        return hidden


class _Reached(Exception):
    """Ends the package's pass behind its block. Never leaves `Before7.block`."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _Part:
    """The `self` of the package's `forward`, for a model of one block, or none, whose embedding is the stream."""

    RESCALE_LAYER = 0  # the halving is left to `Before7`, which knows the block's place

    def __init__(self, model: Any, placement: Any, weights: Mapping[str, Tensor], blocks: int) -> None:
        self.model = model
        self.args = SimpleNamespace(**{**vars(model.args), "n_layer": blocks})
        self.strategy = [placement, placement]
        self.w = weights

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.model, name)
        if not name.startswith("ffn_"):
            return function

        def last(*args: Any) -> None:
            raise _Reached(function(*args)[0])

        return last


class Before7(Steps):
    """RWKV 4 to 6: a block is run by the package's `forward`, which takes it for the whole model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.every = model.RESCALE_LAYER
        self.device = torch.device(model.strategy[0].device)
        self.blocks: list[dict[str, Tensor]] = [{} for _ in range(model.args.n_layer)]
        self.outside: dict[str, Tensor] = {}
        for name, tensor in weights_of(model).items():
            if name.startswith("blocks."):
                _, index, rest = name.split(".", 2)
                self.blocks[int(index)][f"blocks.0.{rest}"] = tensor
            else:
                self.outside[name] = tensor
        first = model.strategy[0]
        self.table = self.outside["emb.weight"]
        self.placed = {"device": first.device, "dtype": first.atype}

    def embed(self, ids: Tensor) -> Row:
        hidden = super().embed(ids)[0].to(**self.placed)
        return hidden, hidden

    def block(self, index: int, row: Row, *, skipped: bool) -> Row:
        hidden = row[0]
        if not skipped:
            part = _Part(self.model, self.model.strategy[index], {**self.blocks[index], "emb.weight": hidden}, 1)
            try:
                self._forward(part, hidden)
            except _Reached as reached:
                hidden = reached.hidden.reshape(hidden.shape)  # the package drops the axis of a single token
            else:
                raise AdapterError(f"the rwkv package ran block {index} without its ffn; its `forward` has changed")
        if self.every and (index + 1) % self.every == 0:
            hidden = hidden / 2
        return hidden, hidden

    def head(self, hidden: Tensor) -> Tensor:
        part = _Part(self.model, self.model.strategy[-1], {**self.outside, "emb.weight": hidden}, 0)
        return self._forward(part, hidden)[0].reshape(len(hidden), -1)

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return hidden.float() * 2.0 ** (boundary // self.every) if self.every else hidden

    def _forward(self, part: _Part, hidden: Tensor) -> Any:
        return type(self.model).forward(part, torch.arange(len(hidden), device=hidden.device), None, full_output=True)


class Seven(Steps):
    """RWKV 7: its `forward` is compiled as a whole, so a block is run by the two functions that it calls."""

    ATT = (
        *("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "w1", "w2", "a0", "a1", "a2", "v0", "v1", "v2", "g1", "g2"),
        *("k_k", "k_a", "r_k", "receptance.weight", "key.weight", "value.weight", "output.weight"),
        *("ln_x.weight", "ln_x.bias"),
    )  # in the order of the function's arguments
    FFN = ("x_k", "key.weight", "value.weight")

    def __init__(self, model: Any) -> None:
        z = weights_of(model)
        code = type(model).forward.__globals__
        self.att, self.ffn = code["RWKV_x070_TMix_seq"], code["RWKV_x070_CMix_seq"]
        self.table, self.out = z["emb.weight"], z["head.weight"]
        self.ln_out = z["ln_out.weight"], z["ln_out.bias"]
        self.heads, self.size = model.n_head, model.head_size
        self.device = self.table.device
        self.blocks = [
            (
                (z[f"blocks.{i}.ln1.weight"], z[f"blocks.{i}.ln1.bias"]),
                [z[f"blocks.{i}.att.{name}"] for name in self.ATT],
                (z[f"blocks.{i}.ln2.weight"], z[f"blocks.{i}.ln2.bias"]),
                [z[f"blocks.{i}.ffn.{name}"] for name in self.FFN],
            )
            for i in range(model.n_layer)
        ]

    def block(self, index: int, row: Row, *, skipped: bool) -> Row:
        hidden, values = row
        if skipped and index > 0:
            return row
        ln1, att, ln2, ffn = self.blocks[index]
        shape = hidden.shape[-1:]
        zero = hidden.new_zeros(shape)
        state = hidden.new_zeros((self.heads, self.size, self.size), dtype=torch.float)
        normed = layer_norm(hidden, shape, *ln1)
        change, _, _, values = self.att(index, self.heads, self.size, normed, zero, values, state, *att)
        if skipped:
            return hidden, values  # of block 0, which the other blocks read
        hidden = hidden + change
        return hidden + self.ffn(layer_norm(hidden, shape, *ln2), zero, *ffn)[0], values

    def head(self, hidden: Tensor) -> Tensor:
        return (layer_norm(hidden, hidden.shape[-1:], *self.ln_out) @ self.out).float()
