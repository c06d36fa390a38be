"""What a command that is interrupted leaves on purpose, to be gone on from: told when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_NOTED: ContextVar[dict[Path, str] | None] = ContextVar("noted", default=None)


def note_kept(path: Path, how: str) -> None:
    """Note a file or folder that stays, and how to go on from it: such as "the same command"."""
    noted = _NOTED.get()
    if noted is not None:
        noted[path] = how


@contextmanager
def noting() -> Iterator[dict[Path, str]]:
    """Inside the context it is noted what stays: a file or folder → how to go on from it."""
    noted: dict[Path, str] = {}
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def told(noted: dict[Path, str]) -> str:
    """What stays, in words."""
    there = {path: how for path, how in noted.items() if path.is_file() or (path.is_dir() and any(path.iterdir()))}
    if not there:
        return "nothing was left behind"
    return "; ".join(f"what was done is kept in {path}, and {how} goes on from it" for path, how in there.items())
