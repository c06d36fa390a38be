"""Whether the files of a model are still those that were looked at first.

A removal reads its source several times: its header, what the original computes, the bytes that are copied. That all of
it was one and the same model is known from what the system says of each file, at the first look and at the end.

What that excludes: a file that was replaced is another inode. One that was written to has another time of change, which
no program can set back (the time of modification it can; on Windows that one alone is known). What it does not exclude:
a write within the clock's tick, some milliseconds, of the first look; and on a network's disk, one that the system was
not yet told of.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shortgpt.errors import CheckpointError


class Stamp(NamedTuple):
    """What the system says of a file; `changed` is in nanoseconds, as `modified` is."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """Of a file, or of the one that a link leads to."""
        status = file.stat()
        changed = 0 if os.name == "nt" else status.st_ctime_ns  # there it is when the file was made
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, changed)


def stamps(path: Path) -> dict[Path, Stamp]:
    """Of a file, or of the files in a folder; hidden ones and those in its folders are passed over."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError:  # a folder that cannot be read is told by what reads it
        files = []
    return {file: Stamp.of(file) for file in files if not file.name.startswith(".") and _is_regular(file)}


def check(name: str, first: Mapping[Path, Stamp]) -> None:
    """Raise where a file is not what it was.

    Raises:
        CheckpointError: it names the file, and what is different.
    """
    for file, before in first.items():
        if not _is_regular(file):
            raise _changed(name, file, "it is gone")
        now = Stamp.of(file)
        if now[:2] != before[:2]:
            raise _changed(name, file, "another file stands in its place")
        if now.size != before.size:
            raise _changed(name, file, f"it had {before.size} bytes and has {now.size}")
        if now != before:
            raise _changed(name, file, "it was written to")


@contextmanager
def during(name: str, first: Mapping[Path, Stamp]) -> Iterator[None]:
    """Nothing that is done inside stands where a file was changed meanwhile.

    An error is told as it is, unless a file was changed: then that is why.

    Raises:
        CheckpointError: see `check`.
    """
    try:
        yield
    except Exception as error:
        try:
            check(name, first)
        except CheckpointError as changed:
            raise changed from error
        raise
    check(name, first)


def _is_regular(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:  # it is gone, or a link that leads nowhere
        return False


def _changed(name: str, file: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: {file.name} was changed since the model was first looked at ({how}): what was read is not one model, "
        "and nothing was kept; do it again when nothing writes there"
    )
