"""What is written before it is complete, and what a process that was killed left of it.

::

    .out.partial-x7f3/     locked by the process that writes it; the system lets the lock go when that process ends,
                           however it ends, so what is not locked is left over: it is told, and removed

Where the system knows no such locks, nothing is taken for left over.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shortgpt.errors import printable, reason_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST = 60  # bytes of a target's name that are part of a temporary one: names have 255 at most
PARTIAL = re.compile(r"\..*\.partial-[a-z0-9_]{8}|\.shortgpt-[a-z0-9_]{8}\.partial")
TEMPORARY = re.compile(r"shortgpt-tmp-[a-z0-9_]{8}")

log = logging.getLogger("shortgpt")


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, locked; it vanishes with the context, unless it was renamed."""
    remove_dead(target.parent, PARTIAL)
    short = os.fsdecode(os.fsencode(target.name)[:LONGEST]).encode(errors="surrogateescape").decode(errors="ignore")
    with _locked_folder(f".{short}.partial-", target.parent) as folder:
        yield folder


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder for temporary files, locked; it vanishes with the context."""
    place = Path(tempfile.gettempdir())
    remove_dead(place, TEMPORARY)
    with _locked_folder("shortgpt-tmp-", place) as folder:
        yield folder


def no_room_for_temporary(error: BaseException) -> str | None:
    """Why temporary files cannot be written, where that is what an error says; None where it says something else."""
    text = str(error)
    is_it = isinstance(error, OSError) and (error.errno in NO_ROOM or "No usable temporary directory" in text)
    # safetensors words what the system refuses as Rust does.
    if not is_it and type(error).__name__ == "SafetensorError":
        is_it = any(f"(os error {number})" in text for number in NO_ROOM)
    if not is_it:
        return None
    try:
        place = tempfile.gettempdir()
    except OSError:
        place = "which is nowhere"
    why = (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
    return f"the folder for temporary files, {place}, cannot be written ({why}); have TMPDIR name another one"


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def remove_dead(place: Path, pattern: re.Pattern[str]) -> None:
    """Remove what processes left in a folder that are dead, and say so."""
    if fcntl is None:
        return
    with suppress(OSError):  # a folder that cannot be read is told by who writes there
        for entry in list(os.scandir(place)):
            if pattern.fullmatch(entry.name) and not entry.is_symlink():
                _remove_if_dead(Path(entry.path))


def lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock an open file or folder for as long as this process lives, or it is closed; whether it is locked now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another process has it, or the file system knows no locks
        return False
    return True


@contextmanager
def _locked_folder(prefix: str, place: Path) -> Iterator[Path]:
    folder = descriptor = None
    try:
        # Until it is locked another one may take it for left over and remove it: before it is opened, or after.
        while folder is None or not folder.exists():
            if descriptor is not None:
                os.close(descriptor)
                descriptor = None
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            if fcntl is not None:
                with suppress(FileNotFoundError):
                    descriptor = os.open(folder, os.O_RDONLY)
                    lock(descriptor)
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_if_dead(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # it is gone, or another user's
        return
    try:
        if os.fstat(descriptor).st_uid != os.getuid() or not lock(descriptor, wait=False):
            return
        if not _is_still(path, descriptor):  # who had the lock has given it its name
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        log.warning("removed what a run that was killed had left: %s", printable(str(path)))
    finally:
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def make_durable(folder: Path) -> None:
    """Have the disk hold every file of a folder, and the folder, before it is given its name."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def sync_folder(folder: Path) -> None:
    """Have the disk hold what a folder names."""
    _sync(folder)


def _sync(path: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
