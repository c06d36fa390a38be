"""SHA-256 of files, and of a file that is being copied.

::

    the source   ├─ header ─┤├── copied ──┤├─ left out ─┤├── copied ──┤        hashed in this order: what was copied,
    the copy     ├ header ┤├── copied ──┤├── copied ──┤                        from the copy; the rest, from the source

The system copies ranges by itself (see `shortgpt.checkpoints.copying`), so no byte passes by here. What it wrote is
read back while it is in memory still: the hash is of the bytes that were copied, whatever the source holds by then.

The hub's cache names its large files by their SHA-256, so that these need not be read for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import NamedTuple

from shortgpt.basics.stages import stage
from shortgpt.checkpoints.copying import BUFFER

AT_A_TIME = min(4, os.cpu_count() or 1)  # files copied, and files hashed
SHA_256 = re.compile(r"[0-9a-f]{64}")


def file_hash(file: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; of a part of it once `stop` is set."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as reader:
        _update(digest, reader, None, stop or threading.Event())
    return digest.hexdigest()


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


def cached_hash(file: Path) -> str | None:
    """The SHA-256 by which the hub's cache names a file; None where it lies in no such cache, or is a small one, which
    is named by git's SHA-1."""
    if not file.is_symlink() or file.parents[1].name != "snapshots":
        return None
    blob = file.resolve()
    is_own = blob.parent == file.parent.resolve().parents[1] / "blobs"
    return blob.name if is_own and SHA_256.fullmatch(blob.name) else None


class _Range(NamedTuple):
    """Bytes `begin` to `end` of the source, which were copied; the copy's end there at `written`."""

    begin: int
    end: int
    written: int


class HashOfCopied:
    """The hash of a file of which ranges are being copied, taken behind the copying by a thread of its own.

    As a context: when it ends well, `result` is there.

    Args:
        source, copy: the two files.
        stop: when it is set, the rest does not count.
    """

    def __init__(self, source: Path, copy: Path, stop: threading.Event) -> None:
        self.source, self.copy, self.stop = source, copy, stop
        self.ranges: SimpleQueue[_Range | None] = SimpleQueue()  # None: no more
        self.result = ""

    def __enter__(self) -> HashOfCopied:
        self._pool = ThreadPoolExecutor(1)
        self._digest: Future[str] = self._pool.submit(self._follow)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.stop.set()
        self.ranges.put(None)
        self._pool.shutdown()
        if kind is None:
            self.result = self._digest.result()

    def copied(self, begin: int, end: int, written: int) -> None:
        """Bytes `begin` to `end` of the source were copied, in their order; the copy's end at its byte `written`."""
        if end > begin:
            self.ranges.put(_Range(begin, end, written))

    def _follow(self) -> str:
        digest = hashlib.sha256()
        with self.source.open("rb", buffering=0) as source, self.copy.open("rb", buffering=0) as copy:
            while (part := self.ranges.get()) is not None:
                _update(digest, source, part.begin - source.tell(), self.stop)
                copy.seek(part.written - (part.end - part.begin))
                _update(digest, copy, part.end - part.begin, self.stop)
                source.seek(part.end)
            _update(digest, source, None, self.stop)
        return digest.hexdigest()


def _update(digest: hashlib._Hash, reader: FileIO, count: int | None, stop: threading.Event) -> None:
    """Add the next `count` bytes of a file, all that there are where it is None."""
    piece = memoryview(bytearray(BUFFER))
    while count != 0 and not stop.is_set():
        read = reader.readinto(piece if count is None else piece[:count])
        if not read:
            return
        digest.update(piece[:read])
        count = None if count is None else count - read
