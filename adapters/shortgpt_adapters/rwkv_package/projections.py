"""What a block of the rwkv package adds to the stream last: the value of its ffn.

::

    RWKV 7        stream + V k                 V becomes T V
    RWKV 4 to 6   stream + r ⊙ (V k)           a gate stands behind it: its rows are scaled

In the file V is [width, inner]; the package holds it the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shortgpt.models.projections import Change, Projection
from shortgpt_adapters.rwkv_package.runtime import weights_of, with_tensors

VALUE = "ffn.value.weight"


def value_of(model: Any, block: int) -> Tensor:
    """The value as the package holds it, [inner, width]."""
    tensor: Tensor = weights_of(model)[f"blocks.{block}.{VALUE}"]
    return tensor


def projection_of(model: Any, block: int, version: str) -> Projection | str:
    """The projection of a block that can be changed, or why there is none."""
    value = value_of(model, block)
    if not value.is_floating_point():
        return "its weights are quantised"
    gate = None if version == "7" else "a gate stands behind its last projection, so only the rows of that are scaled"
    return Projection(block, "scale" if gate else "map", {VALUE: -2}, value.shape[-1], gate)


def changed(model: Any, changes: Iterable[Change]) -> Any:
    """The model with its blocks changed; it shares all other tensors."""
    values = {f"blocks.{c.projection.block}.{VALUE}": c.of(value_of(model, c.projection.block), -1) for c in changes}
    return with_tensors(model, values)


def silenced(model: Any, block: int) -> Any:
    """The model with a block whose value is zero; it shares all other tensors."""
    return with_tensors(model, {f"blocks.{block}.{VALUE}": torch.zeros_like(value_of(model, block))})


def written(name: str, tensor: Tensor, changes: Sequence[Change]) -> Tensor:
    """A tensor of the file with the changes of its block made."""
    for change in changes:
        if name == f"blocks.{change.projection.block}.{VALUE}":
            wide = tensor.float() if tensor.element_size() < 4 else tensor
            tensor = change.of(wide, -2).to(tensor.dtype)
    return tensor
