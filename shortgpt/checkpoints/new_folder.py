"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shortgpt.errors import OutputError


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `output` when the context ends well, and vanishes when it does not.

    Raises:
        OutputError: `output` exists and is not an empty folder, or the disk is full or not writable.
    """
    target = check_output(output)
    made = [folder for folder in target.parents if not folder.exists()]
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is not None and not _inside(error.filename, target.parent):
            raise
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}); nothing was left behind"
        ) from error
    except Exception as error:
        # safetensors has an error of its own for what the operating system refuses, worded as Rust words it.
        if type(error).__name__ == "SafetensorError" and (found := re.search(r"[^:]*\(os error \d+\)", str(error))):
            raise OutputError(f"{target}: cannot be written ({found[0].strip()}); nothing was left behind") from error
        raise
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def check_output(output: str | Path) -> Path:
    """The folder to write, which must not exist, or be empty; another one takes its place.

    Raises:
        OutputError: it exists and is not an empty folder, or is one that cannot be replaced.
    """
    if not str(output):
        raise OutputError("the name of the folder to write is empty; name a new one")
    target = Path(output).expanduser().resolve()
    if target == Path.cwd() or target.is_mount():
        kind = "the current folder" if target == Path.cwd() else "a mount point"
        raise OutputError(f"{target}: is {kind}, which cannot be replaced; name a new folder inside it")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target}: exists and is not an empty folder; name a new one, nothing is overwritten")
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _inside(name: Any, folder: Path) -> bool:
    try:
        return Path(os.fsdecode(name)).resolve().is_relative_to(folder.resolve())
    except TypeError:
        return True
