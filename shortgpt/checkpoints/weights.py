"""The named tensors of a checkpoint's files, found and read.

::

    safetensors   header: name → dtype, shape, bytes from a to b   a kept tensor's bytes are copied, never parsed
    torch         a pickled mapping                                mapped into memory, and pickled again
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shortgpt.basics.inputs import MAX_HEADER, Source
from shortgpt.checkpoints import torch_files
from shortgpt.checkpoints.hashing import cached_hash, hashes_of
from shortgpt.checkpoints.headers import Entry, elements, quoted, read_header, read_json
from shortgpt.errors import CheckpointError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
CACHE_LINE = 64  # bytes
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

READAHEAD = 1 << 17  # bytes: of more, Linux reads only the first part when it is advised to


class Weights:
    """The named tensors of a checkpoint: safetensors or torch files, one or sharded.

    Raises:
        CheckpointError: files are missing or damaged, or contradict the index.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index: str | None = None
        self.weight_map: dict[str, str] = {}
        self.files = self._find()
        self.tensors: dict[Path, dict[str, Entry]] = {}
        self.metadata: dict[Path, dict[str, str]] = {}
        for file in self.files:
            reader = self._read_safetensors if file.suffix == ".safetensors" else self._read_torch
            self.tensors[file] = reader(file)
        self._check_index()
        self.names = [name for entries in self.tensors.values() for name in entries]

    def parameters(self, names: Iterable[str]) -> int:
        """The number of elements of the named tensors; tied ones count once."""
        selected = set(names)
        places = {
            (file, entry.begin, entry.end): entry
            for file, table in self.tensors.items()
            for name, entry in table.items()
            if name in selected
        }
        return sum(elements(entry.shape) for entry in places.values())

    @property
    def is_half(self) -> bool:
        """Whether there are tensors in half precision."""
        return any(entry.dtype in {"F16", "BF16"} for table in self.tensors.values() for entry in table.values())

    def bytes_in(self, dtype: str, names: Iterable[str] | None = None) -> int:
        """What the named tensors, or all, take in memory when the model is opened in that dtype."""
        selected = set(self.names if names is None else names)
        if dtype != "auto":
            return self.parameters(selected) * (4 if dtype == "float32" else 2)
        return sum(entry.nbytes for table in self.tensors.values() for name, entry in table.items() if name in selected)

    @property
    def hashed(self) -> list[Path]:
        """The config and every weight file."""
        return [self.source.path / "config.json", *self.files] if self.source.path.is_dir() else list(self.files)

    def cached_hashes(self) -> dict[Path, str]:
        """The hashes that the hub's cache names weight files by. Their sizes are right: as the headers were read, they
        were held to the tensors that are to fill the file."""
        named = {file: cached_hash(file) for file in self.files}
        return {file: name for file, name in named.items() if name is not None}

    def hashes(self, stop: threading.Event | None = None) -> dict[str, str]:
        """File name → SHA-256, of the config and every weight file; cut short when `stop` is set."""
        return hashes_of(self.hashed, stop)

    def _find(self) -> list[Path]:
        path = self.source.path
        if path.is_file():
            return [path]
        for index, single in zip(INDEXES, SINGLE_FILES, strict=True):
            if (path / single).is_file():
                return [path / single]
            if (path / index).is_file():
                self.index = index
                self.weight_map = self._read_index(path / index)
                names = sorted(set(self.weight_map.values()))
                missing = [name for name in names if not (path / name).is_file()]
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

    def _read_index(self, file: Path) -> dict[str, str]:
        """Tensor name → file name. The files lie beside the index: a name that leads elsewhere is refused."""
        try:
            if file.stat().st_size > MAX_HEADER:
                raise ValueError(f"larger than {MAX_HEADER} bytes")
            weight_map = read_json(file.read_bytes())["weight_map"]
            pairs = list(weight_map.items())
            if not all(isinstance(shard, str) for _, shard in pairs):
                raise TypeError("a file's name is no text")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{self.source.name}: {file.name} is damaged ({error!r})") from None
        suffix = ".safetensors" if ".safetensors" in file.name else ".bin"
        for name, shard in pairs:
            if not shard.isprintable() or set("/\\:") & set(shard) or not shard.endswith(suffix):
                raise CheckpointError(
                    f"{self.source.name}: {file.name} says that the tensor {quoted(name)} is in {quoted(shard)}; "
                    f"supported are {suffix} files beside the index, by their names alone"
                )
        return dict(pairs)

    def _check_index(self) -> None:
        """Every tensor is in one file, and that is the one that the index says."""
        files: dict[str, Path] = {}
        for file, entries in self.tensors.items():
            for name in entries:
                if name in files:
                    raise CheckpointError(
                        f"{self.source.name}: the tensor {quoted(name)} is in two files, {files[name].name} and "
                        f"{file.name}; fetch or save the model again"
                    )
                files[name] = file
        for name, shard in self.weight_map.items():
            if name not in files or files[name].name != shard:
                where = f"is in {files[name].name}" if name in files else "is in no file"
                raise CheckpointError(
                    f"{self.source.name}: {self.index} says that the tensor {quoted(name)} is in {shard}, but it "
                    f"{where}; fetch or save the model again"
                )

    def _read_safetensors(self, file: Path) -> dict[str, Entry]:
        entries, self.metadata[file] = read_header(file)
        return entries

    def _read_torch(self, file: Path) -> dict[str, Entry]:
        tensors = torch_files.load(file)
        dtypes = {"torch.float16": "F16", "torch.bfloat16": "BF16"}
        return {
            name: Entry(tuple(t.shape), dtypes.get(str(t.dtype), ""), t.data_ptr(), t.data_ptr() + t.nbytes)
            for name, t in tensors.items()
        }

    def entry(self, name: str) -> Entry:
        """Where a tensor is that is there."""
        return self.tensors[self._file_of(name)][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is there."""
        return self.entry(name).shape

    def tensor(self, name: str) -> Any:
        """One tensor, mapped from its file by itself: as soon as it is let go, nothing of it is in memory.

        Raises:
            KeyError: it is not there.
            CheckpointError: the file ends too early, or holds a type that torch does not know.
        """
        import torch

        file = self._file_of(name)
        if file.suffix != ".safetensors":
            return torch_files.load(file)[name]
        entry = self.tensors[file][name]
        if entry.dtype not in TORCH_DTYPES:
            known = ", ".join(TORCH_DTYPES)
            raise CheckpointError(f"{file}: {name} is of the type {entry.dtype}; tensors of {known} can be read")
        dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        before = entry.begin % mmap.ALLOCATIONGRANULARITY
        place = {"length": before + entry.nbytes, "offset": entry.begin - before, "access": mmap.ACCESS_COPY}
        with file.open("rb") as reader:
            try:
                mapping = mmap.mmap(reader.fileno(), **place)
            except ValueError:  # longer than the file
                raise CheckpointError(f"{file}: ended in the middle of {name}; fetch the model again") from None
        return torch.frombuffer(mapping, dtype=dtype, count=elements(entry.shape), offset=before).reshape(entry.shape)

    def fetch(self, name: str) -> None:
        """Have the system begin to read a tensor of a safetensors file, so that it is at hand when it is used."""
        if not hasattr(os, "posix_fadvise"):
            return
        entry = self.entry(name)
        with self._file_of(name).open("rb", buffering=0) as reader:
            for begin in range(entry.begin, entry.end, READAHEAD):
                os.posix_fadvise(reader.fileno(), begin, READAHEAD, os.POSIX_FADV_WILLNEED)

    def _file_of(self, name: str) -> Path:
        for file, table in self.tensors.items():
            if name in table:
                return file
        raise KeyError(name)

    def tensors_of(self, file: Path) -> dict[str, Any]:
        """The tensors of one file, mapped from it rather than read."""
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        return torch_files.load(file)

    def lazily(self, make: Callable[[str], Any] | None = None) -> Mapping[str, Any]:
        """All tensors by name, each mapped from its file, or made by `make`, when it is asked for."""
        return _Lazy(self, make or self.tensor)


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
