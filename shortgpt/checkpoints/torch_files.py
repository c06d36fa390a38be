"""Tensors into torch's own file format, holding their bytes and no others.

`torch.save` writes a tensor's whole storage, whatever part of it the tensor is a view of. A file whose tensors are
views of one storage would keep the bytes of every tensor that was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def save(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a mapping of names to tensors; what is tied stays tied, and is written once.

    Storages of which every byte is used are written as they are. What is a view of a larger one is copied first, into
    memory: `torch.save` takes all storages at once.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    with file.open("wb") as writer:
        try:
            torch.save(compact(tensors), writer)
        except RuntimeError as error:  # what the file refused stands behind it
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which holds on to bytes that no tensor shows; the same view stays the same view."""
    wasteful = _partly_used(tensors)
    copies: dict[tuple[object, ...], Tensor] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _is_strided(tensor) or tensor.untyped_storage().data_ptr() not in wasteful:
            kept[name] = tensor
            continue
        view = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if view not in copies:
            copies[view] = _distinct(tensor.detach()).clone().expand(tensor.shape)
        kept[name] = copies[view]
    return kept


def _partly_used(tensors: Mapping[str, Tensor]) -> set[int]:
    """The storages, by where they begin, of which some bytes belong to none of the tensors."""
    spans: dict[int, list[tuple[int, int]]] = {}
    sizes: dict[int, int] = {}
    for tensor in tensors.values():
        if _is_strided(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            spans.setdefault(storage.data_ptr(), []).append(_span(tensor))
    partly = set()
    for place, taken in spans.items():
        covered = 0
        for begin, end in sorted(taken):
            if begin > covered:
                break
            covered = max(covered, end)
        if covered < sizes[place]:
            partly.add(place)
    return partly


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage, from and to, that a tensor shows; none of them where it shows them with gaps."""
    distinct = _distinct(tensor)
    begin = int(tensor.storage_offset()) * tensor.element_size()
    last = sum((extent - 1) * stride for extent, stride in zip(distinct.shape, distinct.stride(), strict=True))
    if not tensor.numel() or last + 1 != distinct.numel():
        return begin, begin
    return begin, begin + distinct.nbytes


def _distinct(tensor: Tensor) -> Tensor:
    """An expanded tensor before it was expanded: each element once."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _is_strided(tensor: Tensor) -> bool:
    import torch

    return tensor.layout is torch.strided
