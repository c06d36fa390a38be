"""Results into files: all of a file or nothing; one that cannot be written is told before anything takes time."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from shortgpt.basics.leftovers import PARTIAL, lock, remove_dead, sync_folder
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import OutputError, printable


def check_target(file: str | Path) -> None:
    """Raise an `OutputError` for a file that cannot be written; nothing is left of the trial."""
    target = _target(file)
    if target.is_dir() or not target.parent.is_dir():
        reason = "it is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise OutputError(f"{file}: cannot be written ({reason})")
    try:
        if _is_special(target):
            with open(target, "ab"):
                return
        with tempfile.TemporaryFile(dir=target.parent):
            return
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from None


def write(content: bytes | str, file: str | Path) -> None:
    """Write a file, all of it or nothing. A link is followed; a device or pipe is written to.

    A file that is replaced keeps its permissions, and a new one has those that the process gives.

    Raises:
        OutputError: it cannot be written.
    """
    # a name of a file on disk may hold what is no text, and ends up in results
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    target = _target(file)
    try:
        if _is_special(target):
            target.write_bytes(data)
            return
        remove_dead(target.parent, PARTIAL)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~umask()
        # Its name cannot be guessed, and a link of that name is not followed.
        handle, partial = tempfile.mkstemp(prefix=".shortgpt-", suffix=".partial", dir=target.parent)
        try:
            with open(handle, "wb") as writer:
                lock(handle)
                writer.write(data)
                writer.flush()
                os.fsync(writer.fileno())
                os.chmod(partial, mode)
                os.replace(partial, target)
            sync_folder(target.parent)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{printable(str(file))}: cannot be written ({error.strerror})") from None


def umask() -> int:
    """The permissions that new files of this process are without."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _target(file: str | Path) -> Path:
    return Path(os.path.realpath(local_path(file, OutputError)))


def _is_special(target: Path) -> bool:
    """Such as /dev/null, which must not be replaced by a file."""
    return target.exists() and not target.is_file()
