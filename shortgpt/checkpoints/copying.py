"""Ranges of bytes from file to file.

The system copies them by itself, `copy_file_range`: no byte comes by here, and a file system that can share blocks
between files (Btrfs, XFS) copies nothing at all where a range begins at the same place of a block in both. Where it
cannot, they are read and written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO

from shortgpt.checkpoints.headers import BLOCK
from shortgpt.errors import CheckpointError

PIECE = 1 << 25  # bytes that the system is asked to copy at a time: what an interruption waits for
BUFFER = 1 << 20  # bytes that are read and written at a time
CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EPERM}
"""What a system answers that cannot copy between these two files."""


def copy_range(reader: FileIO, begin: int, end: int, writer: FileIO) -> Iterator[int]:
    """Copy bytes `begin` to `end` to where the writer stands.

    Yields:
        How far it has come, a position in the reader: first `begin`, last `end`.

    Raises:
        CheckpointError: the reader's file ends before.
    """
    at = begin
    yield at
    while at < end:
        count = min(BLOCK - at % BLOCK if at % BLOCK else PIECE, end - at)  # blocks are shared from a block's begin
        at += copy_piece(reader, at, count, writer)
        yield at


def copy_piece(reader: FileIO, at: int, count: int, writer: FileIO) -> int:
    """Copy up to `count` bytes, at least one; return how many."""
    return _by_the_system(reader, at, count, writer) or _by_hand(reader, at, count, writer)


def write_all(writer: FileIO, data: bytes | memoryview) -> None:
    """Write all of it: an unbuffered file may take a part at a time."""
    left = memoryview(data)
    while left:
        left = left[writer.write(left) :]


def _by_the_system(reader: FileIO, at: int, count: int, writer: FileIO) -> int:
    """Returns 0 where the system cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(reader.fileno(), writer.fileno(), count, offset_src=at)
    except OSError as error:
        if error.errno in CANNOT:
            return 0
        raise


def _by_hand(reader: FileIO, at: int, count: int, writer: FileIO) -> int:
    reader.seek(at)
    piece = reader.read(min(count, BUFFER))
    if not piece:
        raise CheckpointError(f"{reader.name}: ended in the middle of a tensor; fetch the model again")
    write_all(writer, piece)
    return len(piece)
