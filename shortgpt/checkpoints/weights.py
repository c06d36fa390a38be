"""The named tensors of a checkpoint's files, read and written as bytes.

::

    safetensors   header: name → dtype, shape, bytes from a to b   a kept tensor's bytes are copied, never parsed
    torch         a pickled mapping                                mapped into memory, and pickled again
"""

from __future__ import annotations

import json
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import FileIO
from itertools import chain, repeat
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

from shortgpt.basics.inputs import MAX_HEADER, Fold, Progress, Source
from shortgpt.basics.stages import stage
from shortgpt.checkpoints import torch_files
from shortgpt.checkpoints.copying import copy_range, write_all
from shortgpt.checkpoints.hashing import HashOfCopied, cached_hash
from shortgpt.checkpoints.hashing import file_hash as file_hash
from shortgpt.checkpoints.headers import Entry, elements, quoted, read_header, read_json, write_header
from shortgpt.errors import CheckpointError
from shortgpt.models.folding import rounded

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
Job = Callable[[Callable[[], None], threading.Event], None]
"""A file to be written or read: called with what to call after each tensor, and with what is set when it should end."""

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
AT_A_TIME = min(4, os.cpu_count() or 1)  # files copied, and files hashed
SYNCED_AT_A_TIME = 1 << 28  # bytes of a file that are written until the disk is waited for


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

    def write(
        self,
        folder: Path,
        renamed: Mapping[str, str],
        folds: Mapping[str, Fold],
        progress: Progress | None,
        known: Mapping[Path, str] = MappingProxyType({}),
    ) -> dict[str, str]:
        """Write the renamed tensors (new name → old) into files like the source's; empty ones are left out.

        Files of safetensors are written several at a time; `progress` is called in the thread that asked.

        Args:
            known: hashes of files of the source that need not be read for them.

        Returns:
            `hashes` of the source. Where bytes of a safetensors file were copied, the copies were hashed: what is
            written has this hash's bytes, even if the source was changed meanwhile.
        """
        parts = self._parts(renamed)
        names = {file: self._new_name(file, number, len(parts)) for number, file in enumerate(parts, start=1)}
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("tensors", done, len(renamed))

        hashes = dict(known)

        def copied(file: Path, one_more: Callable[[], None], stop: threading.Event) -> None:
            target = folder / names[file]
            with target.open("wb", buffering=0) as writer:
                if file in known:
                    self._write_safetensors(file, writer, parts[file], folds, one_more, None, stop)
                    return
                with HashOfCopied(file, target, stop) as digest:
                    self._write_safetensors(file, writer, parts[file], folds, one_more, digest, stop)
                hashes[file] = digest.result

        def hashed(file: Path, one_more: Callable[[], None], stop: threading.Event) -> None:
            hashes[file] = file_hash(file, stop)

        jobs: list[Job] = []
        for file in self.hashed:
            is_copied = file in parts and file.suffix == ".safetensors"
            if is_copied or file not in known:
                jobs.append(partial(copied if is_copied else hashed, file))
            if file in parts and not is_copied:
                self._write_torch(file, folder / names[file], parts[file], folds, one_more)
        _at_once(jobs, one_more)
        if self.index is not None:
            total = sum(
                self._becomes(self.tensors[file][old], folds.get(new))[1]
                for file, part in parts.items()
                for new, old in part.items()
            )
            weight_map = {new: names[file] for file, part in parts.items() for new in part}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / self.index).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return {file.name: hashes[file] for file in self.hashed}

    def _parts(self, renamed: Mapping[str, str]) -> dict[Path, dict[str, str]]:
        """The renamed tensors (new name → old) by the file they are in, without files of which nothing stays."""
        place = {old: file for file, entries in self.tensors.items() for old in entries}
        parts: dict[Path, dict[str, str]] = {file: {} for file in self.tensors}
        for new, old in renamed.items():
            parts[place[old]][new] = old
        return {file: part for file, part in parts.items() if part}

    def _new_name(self, file: Path, number: int, count: int) -> str:
        return file.name if self.index is None else re.sub(r"\d+-of-\d+", f"{number:05d}-of-{count:05d}", file.name)

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

    # -- writing ----------------------------------------------------------------------------------------------

    def _write_safetensors(
        self,
        file: Path,
        writer: FileIO,
        part: Mapping[str, str],
        folds: Mapping[str, Fold],
        one_more: Callable[[], None],
        digest: HashOfCopied | None,
        stop: threading.Event,
    ) -> None:
        """Write what stays of a file, and have the disk hold it.

        Args:
            digest: is told what was copied.
        """
        entries = {new: self.tensors[file][old] for new, old in part.items()}
        runs = _runs(entries, folds)
        header: dict[str, Any] = {}
        at = 0
        for new in chain.from_iterable(runs):
            shape, size = self._becomes(entries[new], folds.get(new))
            header[new] = {"dtype": entries[new].dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        unsynced = 0
        with file.open("rb", buffering=0) as reader:
            write_all(writer, write_header(header, self.metadata[file], entries[runs[0][0]].begin))
            for run in runs:
                if run[0] in folds:
                    write_all(writer, self._folded(part[run[0]], folds[run[0]]))
                    one_more()
                    continue
                written, begin = 0, entries[run[0]].begin
                for at in copy_range(reader, begin, entries[run[-1]].end, writer):
                    if digest is not None:
                        digest.copied(begin, at, writer.tell())
                    unsynced += at - begin
                    begin = at
                    if unsynced >= SYNCED_AT_A_TIME:  # the disk writes these while the next are copied and hashed
                        os.fsync(writer.fileno())
                        unsynced = 0
                    while written < len(run) and entries[run[written]].end <= at:
                        written += 1
                        one_more()
                    if stop.is_set():
                        return
            os.fsync(writer.fileno())

    def _becomes(self, entry: Entry, fold: Fold | None) -> tuple[tuple[int, ...], int]:
        """The shape and the bytes of a tensor behind its fold."""
        if fold is None:
            return entry.shape, entry.nbytes
        import torch

        empty = _Lazy(self, lambda other: torch.empty(self.entry(other).shape, device="meta"))
        shape = tuple(fold(torch.empty(entry.shape, device="meta"), empty).shape)
        return shape, entry.nbytes * elements(shape) // max(elements(entry.shape), 1)

    def _folded(self, name: str, fold: Fold) -> Any:
        import torch

        folded = rounded(fold, self.tensor(name), self.lazily()).contiguous()
        return folded.flatten().view(torch.uint8).numpy().data

    def lazily(self) -> Mapping[str, Any]:
        """All tensors by name, each mapped from its file when it is asked for."""
        return _Lazy(self, self.tensor)

    def _write_torch(
        self, file: Path, target: Path, part: Mapping[str, str], folds: Mapping[str, Fold], one_more: Callable[[], None]
    ) -> None:
        held = torch_files.contents(file)
        kept: dict[str, Any] = {}
        for new, old in part.items():
            tensor = held.tensors[old]
            kept[new] = rounded(folds[new], tensor, self.lazily()) if new in folds else tensor
            one_more()
        torch_files.save(kept, target, like=held)


@stage("hashing")
def hashes_of(
    files: Sequence[Path], stop: threading.Event | None = None, known: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, str]:
    """File name → SHA-256; cut short when `stop` is set.

    Args:
        known: those of files that need not be read.
    """
    unread = [file for file in files if file not in known]
    stop = stop or threading.Event()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        try:
            read = dict(zip(unread, pool.map(file_hash, unread, repeat(stop)), strict=True))
        except BaseException:  # an interruption does not wait for the files that are being read
            stop.set()
            raise
    return {file.name: known.get(file) or read[file] for file in files}


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


def _runs(entries: Mapping[str, Entry], alone: Mapping[str, Any]) -> list[list[str]]:
    """The names in the order of their bytes, those together that lie side by side; each of `alone` by itself."""
    runs: list[list[str]] = []
    for name in sorted(entries, key=lambda name: (entries[name].begin, entries[name].end)):
        before = runs[-1][-1] if runs else name
        if runs and entries[before].end == entries[name].begin and before not in alone and name not in alone:
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _at_once(jobs: Sequence[Job], one_more: Callable[[], None]) -> None:
    """Run jobs in threads. What they report is told here, in the thread that asked; one that fails stops the others."""
    news: SimpleQueue[Future[None] | None] = SimpleQueue()  # None: one more tensor was written
    stop = threading.Event()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        try:
            for job in jobs:
                pool.submit(job, lambda: news.put(None), stop).add_done_callback(news.put)
            left = len(jobs)
            while left:
                job_done = news.get()
                if job_done is None:
                    one_more()
                else:
                    job_done.result()
                    left -= 1
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
