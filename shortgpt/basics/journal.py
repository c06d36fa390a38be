"""What a long run has measured, in a file, so that it can go on where it was stopped.

::

    {"schema": "shortgpt/journal/1", "identity": {...}, "sum": ...}
    {"key": "score block-influence 0", "value": {...}, "sum": ...}

A line is written when it is measured, and holds its own checksum; the disk is waited for every `AT_LEAST_EVERY` seconds
and at the end. A line that was cut off at the end of the file is dropped; a damaged one elsewhere is an error. Floats
are written so that they are read as they were. The file is locked while a run writes it, and taken away at the end
where nothing was measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from shortgpt.basics.kept import note_kept
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import OutputError, ResumeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA = "shortgpt/journal/1"
CHECKSUM = "sum"
AT_LEAST_EVERY = 0.2
"""Seconds of work that a machine's end may cost. (A process's end costs none: the system has what was written.)"""


class Journal:
    """A file of what was measured, each value kept as soon as it is.

    Args:
        file: made where it is not there, with its folder.
        identity: what the values hang on: a name → values of JSON.
        meanings: for some of these names, what it means that they differ; of others, both values are told.
        others: files of other processes of the same run, of which what they hold is known here too.

    Raises:
        ResumeError: the file is of another run, is damaged, or another run writes it.
        OutputError: it cannot be written.
    """

    def __init__(
        self,
        file: str | Path,
        identity: Mapping[str, Any],
        meanings: Mapping[str, str] = MappingProxyType({}),
        others: Iterable[Path] = (),
    ) -> None:
        self.file = local_path(file, OutputError)
        self.meanings = meanings
        self._values: dict[str, Any] = {}
        self._header = json.loads(json.dumps({"schema": SCHEMA, "identity": identity}, default=str))
        self._synced, self._locked = 0.0, False
        try:
            self._made = [folder for folder in self.file.parents if not folder.exists()]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._out = open(self.file, "ab")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror})") from None
        try:
            self._lock()
            note_kept(self.file, "the same command")
            self._size = self._read(self.file)
            self._out.truncate(self._size)
            for other in others:
                if other != self.file:
                    self._read(other)
        except BaseException as error:
            self._let_go()
            if isinstance(error, OSError):
                raise OutputError(f"{self.file}: cannot be written ({error.strerror})") from None
            raise

    def get(self, key: str) -> Any:
        """What was measured by that name; None where nothing was."""
        return self._values.get(key)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every name, and what was measured."""
        yield from self._values.items()

    def add(self, key: str, value: Any) -> None:
        """Keep what was measured: values of JSON."""
        self._values[key] = value
        lines = [self._header] if not self._size else []
        data = b"".join(map(_sealed, (*lines, {"key": key, "value": value})))
        try:
            self._out.write(data)
            self._out.flush()
            self._size += len(data)
            if time.monotonic() - self._synced >= AT_LEAST_EVERY:
                self._sync()
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror}); free some space") from None

    def close(self) -> None:
        """Have the disk hold all of it; a file in which nothing was measured is taken away."""
        if self._out.closed:
            return
        try:
            self._sync()
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror}); free some space") from None
        finally:
            self._let_go()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._out.fileno())
        self._synced = time.monotonic()

    def _let_go(self) -> None:
        """Close the file; an empty one that is this run's goes, with the folders that were made for it."""
        with suppress(OSError):
            if self._locked and not os.fstat(self._out.fileno()).st_size:
                self.file.unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()
        self._out.close()

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResumeError(
                    f"{self.file}: another run writes into it; wait for it, or name another place"
                ) from None
            except OSError:  # a file system without locks
                return
        self._locked = True

    def _read(self, file: Path) -> int:
        """Take what a file holds; how many of its bytes are whole lines."""
        data = file.read_bytes()
        end = data.rfind(b"\n") + 1
        if not end and not _sealed(self._header).startswith(data):
            raise ResumeError(f"{file}: nothing that shortgpt wrote to go on from; name another place (--resume)")
        for number, text in enumerate(data[:end].splitlines(), start=1):
            line = _opened(text)
            if line is None:
                raise ResumeError(
                    f"{file}, line {number}: damaged, or no line that shortgpt wrote; take a copy of before, or remove "
                    "the file to measure from the beginning"
                )
            if number == 1:
                self._check(file, line)
            else:
                self._values[line["key"]] = line["value"]
        return end

    def _check(self, file: Path, found: Mapping[str, Any]) -> None:
        if found.get("schema") != SCHEMA:
            raise ResumeError(
                f"{file}: found the schema {found.get('schema')!r}, this version of shortgpt reads {SCHEMA!r}; name "
                "another place"
            )
        before, now = found["identity"], self._header["identity"]
        names = [name for name in (*now, *(before.keys() - now.keys())) if before.get(name) != now.get(name)]
        others = [self.meanings.get(name) or first_other(before.get(name), now.get(name), name) for name in names]
        if others:
            raise ResumeError(
                f"{file}: not the run that is asked for: {'; '.join(map(str, others))}. Name another place (--resume), "
                "or ask as before"
            )


def resumed_folder(folder: str | Path) -> Path:
    """The folder that a run is resumed from; it need not be there.

    Raises:
        OutputError: it is a file.
    """
    place = local_path(folder, OutputError)
    if place.exists() and not place.is_dir():
        raise OutputError(f"{folder}: a run is resumed from a folder, and this is a file")
    return place


def first_other(before: Any, now: Any, where: str = "") -> str | None:
    """The first thing that is another of two values of JSON, in words; None where nothing is."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in (*before, *(key for key in now if key not in before)):
            if told := first_other(before.get(key), now.get(key), f"{where} {key}".strip()):
                return told
        return None
    return None if before == now else f"{where} was {_brief(before)}, now it is {_brief(now)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sealed(line: Mapping[str, Any]) -> bytes:
    text = json.dumps(line)
    return f'{text[:-1]}, "{CHECKSUM}": "{_seal(text)}"}}\n'.encode()


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _opened(text: bytes) -> dict[str, Any] | None:
    """A line as it was sealed; None where it is not whole."""
    try:
        line = json.loads(text)
        seal = line.pop(CHECKSUM)
        return line if _seal(json.dumps(line)) == seal else None
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
