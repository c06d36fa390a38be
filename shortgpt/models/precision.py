"""How torch rounds the products of float32 (TF32, bfloat16), kept and set again.

torch has two interfaces for it. The older one cannot be read where the newer one was used, so each setting is kept that
can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

Settings = Mapping[str, Any]


def precision() -> Settings:
    """The settings, as JSON can hold them."""
    kept: dict[str, Any] = {}
    for name in (*_OLDER, *_NEWER):
        with suppress(RuntimeError):  # the newer interface was used
            kept[name] = _read(name)
    return kept


def set_precision(settings: Settings) -> None:
    """Set what differs."""
    for name, value in settings.items():  # the older ones come first, for they move the newer ones
        if precision().get(name) != value:
            _write(name, value)


@contextmanager
def kept_precision() -> Iterator[None]:
    """Behind it the settings are what they were before it."""
    before = precision()
    try:
        yield
    finally:
        set_precision(before)


@contextmanager
def unrounded_products() -> Iterator[None]:
    """Inside it products of float32 are computed in float32, neither in TF32 nor in bfloat16."""
    unrounded = {"float32_matmul_precision": "highest", "cudnn.allow_tf32": False}
    with kept_precision():
        set_precision({name: value for name, value in unrounded.items() if name in precision()})
        set_precision({name: "ieee" for name, value in precision().items() if value in ("tf32", "bf16")})
        yield


_OLDER = ("float32_matmul_precision", "cudnn.allow_tf32")
_NEWER = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv")


def _owner(name: str) -> Any:
    owner: Any = torch.backends
    for part in name.removesuffix(".allow_tf32").split("."):
        owner = getattr(owner, part)
    return owner


def _read(name: str) -> Any:
    if name == "float32_matmul_precision":
        return torch.get_float32_matmul_precision()
    return _owner(name).allow_tf32 if name in _OLDER else _owner(name).fp32_precision


def _write(name: str, value: Any) -> None:
    if name == "float32_matmul_precision":
        torch.set_float32_matmul_precision(value)
    elif name in _OLDER:
        _owner(name).allow_tf32 = value
    else:
        _owner(name).fp32_precision = value
