"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shortgpt.basics.leftovers import NO_ROOM, make_durable, partial_folder, sync_folder
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import OutputError, ShortGPTError, printable
from shortgpt.reports.files import umask


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `output` when the context ends well, and vanishes when it does not.

    Raises:
        OutputError: `output` exists and is not an empty folder, or the disk is full or not writable.
    """
    target = check_output(output)
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as temporary:
            temporary.chmod(0o777 & ~umask())
            yield temporary
            make_durable(temporary)
            os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        own = error.errno in NO_ROOM if error.filename is None else _inside(error.filename, target.parent)
        if not own:  # a file of the source, or one that has nothing to do with either
            shown = printable(str(error.filename or "a file"))
            raise ShortGPTError(f"{shown}: {error.strerror or error}; nothing was left at {target}") from error
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}); nothing was left behind"
        ) from error
    except Exception as error:
        # safetensors has an error of its own for what the operating system refuses, worded as Rust words it.
        if type(error).__name__ == "SafetensorError" and (found := re.search(r"[^:]*\(os error \d+\)", str(error))):
            raise OutputError(f"{target}: cannot be written ({found[0].strip()}); nothing was left behind") from error
        raise
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def check_output(output: str | Path) -> Path:
    """The folder to write, which must not exist, or be empty; another one takes its place.

    Raises:
        OutputError: it exists and is not an empty folder, or is one that cannot be replaced; or there nothing can be
            written. (It is tried: nothing stays.)
    """
    if not str(output):
        raise OutputError("the name of the folder to write is empty; name a new one")
    target = Path(os.path.realpath(local_path(output, OutputError)))
    if target == Path.cwd() or target.is_mount():
        kind = "the current folder" if target == Path.cwd() else "a mount point"
        raise OutputError(f"{target}: is {kind}, which cannot be replaced; name a new folder inside it")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target}: exists and is not an empty folder; name a new one, nothing is overwritten")
    there = next(folder for folder in target.parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".shortgpt-", dir=there):
            pass
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({there}: {error.strerror})") from None
    return target


def _inside(name: Any, folder: Path) -> bool:
    try:
        return Path(os.fsdecode(name)).resolve().is_relative_to(folder.resolve())
    except TypeError:
        return True
