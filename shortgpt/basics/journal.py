"""What a long run has measured, in a file, so that it can go on where it was stopped.

::

    {"schema": "shortgpt/journal/1", "identity": {...}, "sum": ...}
    {"key": "score block-influence 0", "value": {...}, "sum": ...}

A line is on the disk when it is measured, and holds its own checksum. One that was cut off at the end of the file is
dropped; a damaged one elsewhere is an error. Floats are written so that they are read as they were. The file is locked
while a run writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from shortgpt.basics.untrusted import local_path
from shortgpt.errors import OutputError, ResumeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA = "shortgpt/journal/1"
CHECKSUM = "sum"


class Journal:
    """A file of what was measured, each value kept as soon as it is.

    Args:
        file: made where it is not there, with its folder.
        identity: what the values hang on: a name → a text.
        meanings: for each of these names, what it means that it differs.
        others: files of other processes of the same run, of which what they hold is known here too.

    Raises:
        ResumeError: the file is of another run, is damaged, or another run writes it.
        OutputError: it cannot be written.
    """

    def __init__(
        self, file: str | Path, identity: Mapping[str, str], meanings: Mapping[str, str], others: Iterable[Path] = ()
    ) -> None:
        self.file = local_path(file, OutputError)
        self.meanings = meanings
        self._values: dict[str, Any] = {}
        header = {"schema": SCHEMA, "identity": dict(identity)}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._out = open(self.file, "ab")  # noqa: SIM115 - closed by `close`
            self._lock()
            whole = self._read(self.file, header)
            self._out.truncate(whole)
            for other in others:
                if other != self.file:
                    self._read(other, header)
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror})") from None
        if not whole:
            self._append(header)

    def get(self, key: str) -> Any:
        """What was measured by that name; None where nothing was."""
        return self._values.get(key)

    def add(self, key: str, value: Any) -> None:
        """Keep what was measured: values of JSON."""
        self._values[key] = value
        self._append({"key": key, "value": value})

    def close(self) -> None:
        self._out.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResumeError(f"{self.file}: another run writes into it; wait for it, or name another folder") from None
        except OSError:  # a file system without locks
            return

    def _append(self, line: dict[str, Any]) -> None:
        try:
            self._out.write(_sealed(line))
            self._out.flush()
            os.fsync(self._out.fileno())
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror}); free some space") from None

    def _read(self, file: Path, header: Mapping[str, Any]) -> int:
        """Take what a file holds; how many of its bytes are whole lines."""
        data = file.read_bytes()
        end = data.rfind(b"\n") + 1
        for number, text in enumerate(data[:end].splitlines(), start=1):
            line = _opened(text)
            if line is None:
                raise ResumeError(
                    f"{file}, line {number}: damaged, or no line that shortgpt wrote; take a copy of before, or remove "
                    "the file to measure from the beginning"
                )
            if number == 1:
                self._check(file, line, header)
            else:
                self._values[line["key"]] = line["value"]
        return end

    def _check(self, file: Path, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if found.get("schema") != SCHEMA:
            raise ResumeError(
                f"{file}: found the schema {found.get('schema')!r}, this version of shortgpt reads {SCHEMA!r}; name "
                "another folder"
            )
        before, now = found["identity"], header["identity"]
        others = [reason for name, reason in self.meanings.items() if before.get(name) != now.get(name)]
        if others or before != now:
            why = "; ".join(others) or "it was asked for otherwise"
            raise ResumeError(f"{file}: not the run that is asked for: {why}. Name another folder, or ask as before")


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
