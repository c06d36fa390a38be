"""Results into files: all of a file or nothing; one that cannot be written is told before anything takes time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from shortgpt.errors import OutputError


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

    Raises:
        OutputError: it cannot be written.
    """
    # a name of a file on disk may hold what is no text, and ends up in results
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    target = _target(file)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if _is_special(target):
            target.write_bytes(data)
            return
        try:
            partial.write_bytes(data)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from None


def _target(file: str | Path) -> Path:
    return Path(os.path.realpath(Path(file).expanduser()))


def _is_special(target: Path) -> bool:
    """Such as /dev/null, which must not be replaced by a file."""
    return target.exists() and not target.is_file()
