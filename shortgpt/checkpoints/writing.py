"""The tensors that stay, written into files like those they are in; of safetensors as bytes, files side by side."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import FileIO
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

from shortgpt.basics.inputs import Fold, Progress
from shortgpt.checkpoints import torch_files
from shortgpt.checkpoints.copying import copy_range, write_all
from shortgpt.checkpoints.hashing import AT_A_TIME, HashOfCopied, file_hash
from shortgpt.checkpoints.headers import Entry, elements, write_header
from shortgpt.checkpoints.weights import Weights
from shortgpt.models.folding import rounded

Job = Callable[[Callable[[], None], threading.Event], None]
"""A file to be written or read: called with what to call after each tensor, and with what is set when it should end."""

SYNCED_AT_A_TIME = 1 << 28  # bytes of a file that are written until the disk is waited for


def write(
    weights: Weights,
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
    parts = _parts(weights, renamed)
    names = {file: _new_name(weights, file, number, len(parts)) for number, file in enumerate(parts, start=1)}
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
                _write_safetensors(weights, file, writer, parts[file], folds, one_more, None, stop)
                return
            with HashOfCopied(file, target, stop) as digest:
                _write_safetensors(weights, file, writer, parts[file], folds, one_more, digest, stop)
            hashes[file] = digest.result

    def hashed(file: Path, one_more: Callable[[], None], stop: threading.Event) -> None:
        hashes[file] = file_hash(file, stop)

    jobs: list[Job] = []
    for file in weights.hashed:
        is_copied = file in parts and file.suffix == ".safetensors"
        if is_copied or file not in known:
            jobs.append(partial(copied if is_copied else hashed, file))
        if file in parts and not is_copied:
            _write_torch(weights, file, folder / names[file], parts[file], folds, one_more)
    _at_once(jobs, one_more)
    if weights.index is not None:
        total = sum(
            _becomes(weights, weights.tensors[file][old], folds.get(new))[1]
            for file, part in parts.items()
            for new, old in part.items()
        )
        weight_map = {new: names[file] for file, part in parts.items() for new in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / weights.index).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return {file.name: hashes[file] for file in weights.hashed}


def _parts(weights: Weights, renamed: Mapping[str, str]) -> dict[Path, dict[str, str]]:
    """The renamed tensors (new name → old) by the file they are in, without files of which nothing stays."""
    place = {old: file for file, entries in weights.tensors.items() for old in entries}
    parts: dict[Path, dict[str, str]] = {file: {} for file in weights.tensors}
    for new, old in renamed.items():
        parts[place[old]][new] = old
    return {file: part for file, part in parts.items() if part}


def _new_name(weights: Weights, file: Path, number: int, count: int) -> str:
    return file.name if weights.index is None else re.sub(r"\d+-of-\d+", f"{number:05d}-of-{count:05d}", file.name)


def _write_safetensors(
    weights: Weights,
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
    entries = {new: weights.tensors[file][old] for new, old in part.items()}
    runs = _runs(entries, folds)
    header: dict[str, Any] = {}
    at = 0
    for new in chain.from_iterable(runs):
        shape, size = _becomes(weights, entries[new], folds.get(new))
        header[new] = {"dtype": entries[new].dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    unsynced = 0
    with file.open("rb", buffering=0) as reader:
        write_all(writer, write_header(header, weights.metadata[file], entries[runs[0][0]].begin))
        for run in runs:
            if run[0] in folds:
                write_all(writer, _folded(weights, part[run[0]], folds[run[0]]))
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


def _becomes(weights: Weights, entry: Entry, fold: Fold | None) -> tuple[tuple[int, ...], int]:
    """The shape and the bytes of a tensor behind its fold."""
    if fold is None:
        return entry.shape, entry.nbytes
    import torch

    empty = weights.lazily(lambda other: torch.empty(weights.entry(other).shape, device="meta"))
    shape = tuple(fold(torch.empty(entry.shape, device="meta"), empty).shape)
    return shape, entry.nbytes * elements(shape) // max(elements(entry.shape), 1)


def _folded(weights: Weights, name: str, fold: Fold) -> Any:
    import torch

    folded = rounded(fold, weights.tensor(name), weights.lazily()).contiguous()
    return folded.flatten().view(torch.uint8).numpy().data


def _write_torch(
    weights: Weights,
    file: Path,
    target: Path,
    part: Mapping[str, str],
    folds: Mapping[str, Fold],
    one_more: Callable[[], None],
) -> None:
    held = torch_files.contents(file)
    kept: dict[str, Any] = {}
    for new, old in part.items():
        tensor = held.tensors[old]
        kept[new] = rounded(folds[new], tensor, weights.lazily()) if new in folds else tensor
        one_more()
    torch_files.save(kept, target, like=held)


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
