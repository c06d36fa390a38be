"""Tensors into torch's own file format, holding their bytes and no others.

A file holds a mapping of names to tensors, or a mapping of plain values of which one is such a mapping, as in
`{"hparams": {...}, "params": {name: tensor}}`.

`torch.save` writes a tensor's whole storage, whatever part of it the tensor is a view of. A file whose tensors are
views of one storage would keep the bytes of every tensor that was left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.errors import CheckpointError, printable, reason_of

if TYPE_CHECKING:
    from torch import Tensor


MOST_EXPANDED = 16
"""A tensor may show each byte of its file so many times, expanded: more is no model's."""


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        tensors: the named tensors.
        key: where they stand in the file; None where they are all of it.
        beside: what else stands there, by its keys.
    """

    tensors: dict[str, Tensor]
    key: str | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)

    def holding(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """What a file like this one holds that has these tensors."""
        return tensors if self.key is None else {**self.beside, self.key: tensors}


def load(file: Path, *, mapped: bool = True) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped from it rather than read where it can be. Raises as `contents` does."""
    return contents(file, mapped=mapped).tensors


def contents(file: Path, *, mapped: bool = True) -> Contents:
    """What a file holds, its tensors mapped from it rather than read where they can be.

    Raises:
        CheckpointError: it does not hold one mapping of names to plain tensors, and no other tensors; or it speaks of
            more bytes than it has.
    """
    found = loaded(file, mapped=mapped)
    if _is_table(found):
        return Contents(plain(file, found))
    if isinstance(found, Mapping):
        tables = [key for key, value in found.items() if isinstance(key, str) and _is_table(value) and value]
        beside = {key: value for key, value in found.items() if key not in tables}
        if len(tables) == 1 and not any(_has_tensors(value) for value in beside.values()):
            return Contents(plain(file, found[tables[0]]), tables[0], beside)
        if tables:
            others = [*tables[1:], *(str(key) for key, value in beside.items() if _has_tensors(value))]
            raise CheckpointError(
                f"{file}: holds tensors under {_quoted(tables[0])} and under {', '.join(map(_quoted, others))}; "
                "supported is one mapping of names to tensors, with plain values beside it"
            )
    raise CheckpointError(
        f"{file}: holds no plain mapping of names to tensors, by itself or as the value of one key among plain values"
    )


def _is_table(found: Any) -> bool:
    """Whether it is a mapping of names to tensors."""
    import torch

    return isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    )


def _has_tensors(value: Any) -> bool:
    import torch

    inside: list[Any] = [value]
    seen: set[int] = set()  # what a file holds may hold itself
    while inside:
        value = inside.pop()
        if isinstance(value, torch.Tensor):
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            inside += value.values()
        elif isinstance(value, (list, tuple, set)):
            inside += value
    return False


def _quoted(key: str) -> str:
    return repr(printable(key)[:100])


def plain(file: Path, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, after a look at each.

    Raises:
        CheckpointError: one is sparse, quantised or of a class of its own; or is said to be larger than its file.
    """
    import torch

    size = file.stat().st_size
    for name, tensor in found.items():
        told = f"{file}: the tensor {printable(name)[:200]!r}"
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or not _is_strided(tensor):
            kind = f"a {type(tensor).__name__} of the layout {tensor.layout}"
            raise CheckpointError(f"{told} is {kind}; supported are plain tensors")
        if tensor.nbytes > MOST_EXPANDED * size:
            raise CheckpointError(f"{told} has {tensor.nbytes:,} bytes, and the file {size:,}; fetch the model again")
    return dict(found)


def loaded(file: Path, *, mapped: bool = True) -> Any:
    """What a file holds, tensors and plain values.

    Raises:
        CheckpointError: it cannot be read, or would be unpacked into more than it is.
    """
    import torch

    try:
        check_archive(file)
        # Files older than torch 1.6 are no zip archives and cannot be mapped.
        is_mapped = mapped and zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped)
    except CheckpointError:
        raise
    except Exception as error:  # bytes that are no pickle can raise anything
        raise CheckpointError(
            f"{file}: cannot be read as a torch checkpoint: it is truncated, damaged or something else "
            f"({reason_of(error)})"
        ) from None


def check_archive(file: Path) -> None:
    """Raise a `CheckpointError` for an archive with packed parts: torch stores what is in its files as it is, and what
    is packed would be unpacked into memory, however large."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > file.stat().st_size:
        raise CheckpointError(f"{file}: holds packed parts, which torch does not write; fetch or save the model again")


def save(tensors: Mapping[str, Tensor], file: Path, like: Contents | None = None) -> None:
    """Write a mapping of names to tensors; what is tied stays tied, and is written once.

    Args:
        like: the contents of a file in which something stands beside the tensors: that is written too.

    Storages of which every byte is used are written as they are. What is a view of a larger one is copied first, into
    memory: `torch.save` takes all storages at once.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    with file.open("wb") as writer:
        try:
            kept = compact(tensors)
            torch.save(kept if like is None else like.holding(kept), writer)
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
