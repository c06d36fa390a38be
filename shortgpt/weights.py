"""The named tensors of a checkpoint's files, read and written as bytes.

::

    safetensors   header: name → dtype, shape, bytes from a to b   a kept tensor's bytes are copied, never parsed
    torch         a pickled mapping                                mapped into memory, and pickled again
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortgpt.errors import CheckpointError
from shortgpt.families import Fold, Source
from shortgpt.scores import Progress

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
PIECE = 1 << 24  # bytes copied at a time
TORCH_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""A tensor's type as safetensors and as torch call it."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its shape and where it begins; for safetensors, the bytes of the file that it takes."""

    shape: tuple[int, ...]
    dtype: str = ""
    begin: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class Weights:
    """The named tensors of a checkpoint: safetensors or torch files, one or sharded.

    Raises:
        CheckpointError: files are missing or damaged.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index: str | None = None
        self.files = self._find()
        self.tensors: dict[Path, dict[str, Entry]] = {}
        self.metadata: dict[Path, dict[str, str]] = {}
        for file in self.files:
            reader = self._read_safetensors if file.suffix == ".safetensors" else self._read_torch
            self.tensors[file] = reader(file)
        self.names = [name for entries in self.tensors.values() for name in entries]

    @property
    def total_bytes(self) -> int:
        """The size of all weight files: what loading the model takes at least."""
        return sum(file.stat().st_size for file in self.files)

    def parameters(self, names: Iterable[str]) -> int:
        """The number of elements of the named tensors; tied ones count once."""
        wanted = set(names)
        places = {
            (file, entry.begin): entry
            for file, table in self.tensors.items()
            for name, entry in table.items()
            if name in wanted
        }
        return sum(_elements(entry.shape) for entry in places.values())

    @property
    def is_half(self) -> bool:
        """Whether there are tensors in half precision."""
        return any(entry.dtype in {"F16", "BF16"} for table in self.tensors.values() for entry in table.values())

    def bytes_in(self, dtype: str) -> int:
        """What the model takes in memory when it is opened in that dtype."""
        if dtype == "auto":
            return self.total_bytes
        return self.parameters(self.names) * (4 if dtype == "float32" else 2)

    def hashes(self, stop: threading.Event | None = None) -> dict[str, str]:
        """File name → SHA-256, of the config and every weight file; cut short when `stop` is set."""
        files = list(self.files)
        if self.source.path.is_dir():
            files.insert(0, self.source.path / "config.json")
        return {file.name: file_hash(file, stop) for file in files}

    def write(
        self, folder: Path, renamed: Mapping[str, str], folds: Mapping[str, Fold], progress: Progress | None
    ) -> None:
        """Write the renamed tensors (new name → old) into files like the source's; empty ones are left out."""
        parts = []
        for file, entries in self.tensors.items():
            part = {new: old for new, old in renamed.items() if old in entries}
            if part:
                parts.append((file, part))
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("tensors", done, len(renamed))

        weight_map: dict[str, str] = {}
        for number, (file, part) in enumerate(parts, start=1):
            name = file.name
            if self.index is not None:
                name = re.sub(r"\d+-of-\d+", f"{number:05d}-of-{len(parts):05d}", name)
            write = self._write_safetensors if file.suffix == ".safetensors" else self._write_torch
            write(file, folder / name, part, folds, one_more)
            weight_map.update(dict.fromkeys(part, name))
        if self.index is not None:
            total = sum(
                self._becomes(self.tensors[file][old], folds.get(new))[1]
                for file, part in parts
                for new, old in part.items()
            )
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / self.index).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    # -- reading ----------------------------------------------------------------------------------------------

    def _find(self) -> list[Path]:
        path = self.source.path
        if path.is_file():
            return [path]
        for index, single in zip(INDEXES, SINGLE_FILES, strict=True):
            if (path / single).is_file():
                return [path / single]
            if (path / index).is_file():
                self.index = index
                try:
                    names = sorted(set(json.loads((path / index).read_text(encoding="utf-8"))["weight_map"].values()))
                    missing = [name for name in names if not (path / name).is_file()]
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    raise CheckpointError(f"{self.source.name}: {index} is damaged ({error!r})") from None
                if missing:
                    raise CheckpointError(
                        f"{self.source.name}: {index} names {len(missing)} files that are missing ({missing[0]}, ...); "
                        "fetch the model again"
                    )
                return [path / name for name in names]
        raise CheckpointError(
            f"{self.source.name}: the folder holds no weights ({', '.join((*SINGLE_FILES, *INDEXES))}); "
            "fetch or save the model again"
        )

    def _read_safetensors(self, file: Path) -> dict[str, Entry]:
        header, start = _safetensors_header(file)
        self.metadata[file] = header.pop("__metadata__", {})
        entries = {
            name: Entry(tuple(t["shape"]), t["dtype"], *(start + offset for offset in t["data_offsets"]))
            for name, t in header.items()
        }
        end = max((entry.end for entry in entries.values()), default=start)
        if file.stat().st_size != end:
            raise CheckpointError(
                f"{file}: truncated or damaged: its header speaks of {end} bytes, it has {file.stat().st_size}; "
                "fetch the model again"
            )
        return entries

    def _read_torch(self, file: Path) -> dict[str, Entry]:
        tensors = self._torch_tensors(file)
        dtypes = {"torch.float16": "F16", "torch.bfloat16": "BF16"}
        return {
            name: Entry(tuple(t.shape), dtypes.get(str(t.dtype), ""), t.data_ptr(), t.data_ptr() + t.nbytes)
            for name, t in tensors.items()
        }

    def entry(self, name: str) -> Entry:
        """Where a tensor is that is there."""
        return next(table for table in self.tensors.values() if name in table)[name]

    def tensor(self, name: str) -> Any:
        """One tensor, mapped from its file. Raises a KeyError for one that is not there."""
        for file, table in self.tensors.items():
            if name in table:
                return self._one_tensor(file, name)
        raise KeyError(name)

    def _one_tensor(self, file: Path, name: str) -> Any:
        if file.suffix != ".safetensors":
            return self._torch_tensors(file)[name]
        from safetensors import safe_open

        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)

    def read(self, name: str) -> Any:
        """One tensor of a safetensors file, read into memory of its own. Other threads run meanwhile.

        Raises:
            CheckpointError: the file ends too early, or holds a type that torch does not know.
        """
        import torch

        file = next(file for file, table in self.tensors.items() if name in table)
        entry = self.tensors[file][name]
        if entry.dtype not in TORCH_DTYPES:
            known = ", ".join(TORCH_DTYPES)
            raise CheckpointError(f"{file}: {name} is of the type {entry.dtype}; tensors of {known} can be read")
        buffer = torch.empty(entry.nbytes, dtype=torch.uint8)
        left = memoryview(buffer.numpy().data)
        with file.open("rb", buffering=0) as reader:
            reader.seek(entry.begin)
            while left:
                count = reader.readinto(left)
                if not count:
                    raise CheckpointError(f"{file}: ended in the middle of {name}; fetch the model again")
                left = left[count:]
        return buffer.view(getattr(torch, TORCH_DTYPES[entry.dtype])).reshape(entry.shape)

    def tensors_of(self, file: Path) -> dict[str, Any]:
        """The tensors of one file, mapped from it rather than read."""
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        return self._torch_tensors(file)

    def _torch_tensors(self, file: Path) -> dict[str, Any]:
        import zipfile

        import torch

        try:
            # Files older than torch 1.6 are no zip archives and cannot be mapped.
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # bytes that are no pickle can raise anything
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{file}: cannot be read as a torch checkpoint ({reason[:200]})") from None
        if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
            raise CheckpointError(f"{file}: holds no plain mapping of names to tensors")
        return dict(loaded)

    # -- writing ----------------------------------------------------------------------------------------------

    def _write_safetensors(
        self, file: Path, target: Path, part: Mapping[str, str], folds: Mapping[str, Fold], one_more: Callable[[], None]
    ) -> None:
        entries = self.tensors[file]
        order = sorted(part, key=lambda new: entries[part[new]].begin)
        header: dict[str, Any] = {}
        if self.metadata[file]:
            header["__metadata__"] = self.metadata[file]
        at = 0
        for new in order:
            entry = entries[part[new]]
            shape, size = self._becomes(entry, folds.get(new))
            header[new] = {"dtype": entry.dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        head += b" " * (-len(head) % 8)  # the data begin at a multiple of 8, as the format asks
        with file.open("rb") as reader, target.open("wb") as writer:
            writer.write(struct.pack("<Q", len(head)) + head)
            for new in order:
                entry = entries[part[new]]
                if new in folds:
                    writer.write(self._folded(part[new], folds[new]))
                else:
                    _copy_range(reader, writer, entry.begin, entry.end)
                one_more()

    def _becomes(self, entry: Entry, fold: Fold | None) -> tuple[tuple[int, ...], int]:
        """The shape and the bytes of a tensor behind its fold."""
        if fold is None:
            return entry.shape, entry.nbytes
        import torch

        empty = _Lazy(self, lambda other: torch.empty(self.entry(other).shape, device="meta"))
        shape = tuple(fold(torch.empty(entry.shape, device="meta"), empty).shape)
        return shape, entry.nbytes * _elements(shape) // max(_elements(entry.shape), 1)

    def _folded(self, name: str, fold: Fold) -> Any:
        import torch

        tensor = self.tensor(name)
        folded = fold(tensor, _Lazy(self, self.tensor)).to(tensor.dtype).contiguous()
        return folded.flatten().view(torch.uint8).numpy().data

    def _write_torch(
        self, file: Path, target: Path, part: Mapping[str, str], folds: Mapping[str, Fold], one_more: Callable[[], None]
    ) -> None:
        import torch

        tensors = self._torch_tensors(file)
        kept: dict[str, Any] = {}
        for new, old in part.items():
            kept[new] = folds[new](tensors[old], _Lazy(self, self.tensor)) if new in folds else tensors[old]
            one_more()
        with target.open("wb") as writer:
            try:
                torch.save(kept, writer)
            except RuntimeError as error:  # what the file refused stands behind it
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class _Lazy(Mapping[str, Any]):
    """The tensors of a checkpoint by name, each made when it is asked for."""

    def __init__(self, weights: Weights, make: Callable[[str], Any]) -> None:
        self.weights, self.make = weights, make

    def __getitem__(self, name: str) -> Any:
        if name not in self.weights.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights.names)

    def __len__(self) -> int:
        return len(self.weights.names)


def _safetensors_header(file: Path) -> tuple[dict[str, Any], int]:
    """The parsed header of a safetensors file, and where its data begin."""
    with file.open("rb") as reader:
        size = reader.read(8)
        length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
        text = reader.read(length) if 0 < length <= file.stat().st_size else b""
    try:
        header = json.loads(text)
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                numbers = (*tensor["shape"], begin, end - begin)
                if not isinstance(tensor["dtype"], str) or not all(isinstance(n, int) and n >= 0 for n in numbers):
                    raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{file}: truncated or damaged: it has no safetensors header; fetch the model again"
        ) from None
    return header, 8 + length


def _copy_range(reader: Any, writer: Any, begin: int, end: int) -> None:
    reader.seek(begin)
    left = end - begin
    while left:
        piece = reader.read(min(PIECE, left))
        if not piece:
            raise CheckpointError(f"{reader.name}: ended in the middle of a tensor")
        writer.write(piece)
        left -= len(piece)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def file_hash(file: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as reader:
        while (piece := reader.read(PIECE)) and not (stop and stop.is_set()):
            digest.update(piece)
    return digest.hexdigest()
