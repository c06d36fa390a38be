"""Fresh processes at the price of a fork.

A Python that begins takes some seconds to import torch and transformers. One that has imported them, and nothing of
ours, waits here for what it is to run; each time a fork of it runs that.

::

    the tests' process ── arguments, folder, environment ──▶ the waiting one ── fork ──▶ runs, ends
                       ◀────── exit status, output ──────

A fork shares nothing with the tests' process: no module that was changed, no tensor that was left over.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from shortgpt.verification.fresh_process import START
from tests import waiting_python


class WaitingPython:
    """A Python that waits to be forked. It ends with the process that started it.

    Args:
        python: its executable.
    """

    def __init__(self, python: str | Path) -> None:
        self._process = subprocess.Popen(
            [python, "-I", waiting_python.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def process(self) -> int:
        """Its id, which is that of the parent of each fork."""
        return self._process.pid

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments: `[-I] -c CODE ...`, `[-I] -m MODULE ...` or `FILE ...`."""
        with tempfile.TemporaryDirectory() as exchange:
            files = [Path(exchange, name) for name in ("stdin", "stdout", "stderr")]
            for file, text in zip(files, (stdin or "", "", ""), strict=True):
                file.write_text(text, encoding="utf-8")
            request = {
                "arguments": arguments,
                "folder": str(cwd or Path.cwd()),
                "environment": dict(os.environ if env is None else env),
                "files": [str(file) for file in files],
            }
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files[1:])
        return subprocess.CompletedProcess(arguments, status, out, err)


@cache
def waiting(python: str | Path = sys.executable) -> WaitingPython | None:
    """The one of this test run with that executable; None where there is no fork."""
    return WaitingPython(python) if hasattr(os, "fork") else None


def run_python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process; see `WaitingPython.run`."""
    command = [str(argument) for argument in arguments]
    python = waiting()
    if python is not None:
        return python.run(command, **options)
    options["input"] = options.pop("stdin", None)
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)


@contextlib.contextmanager
def forked_verification() -> Iterator[None]:
    """The fresh processes of verification are forks of the waiting one."""
    run = subprocess.run

    def forked(command: Any, *arguments: Any, **options: Any) -> Any:
        python = waiting() if START in command else None
        if python is None:
            return run(command, *arguments, **options)
        *before, request = command[1:]
        return python.run([*before, json.dumps(json.loads(request) | {"parent": python.process})])

    with mock.patch.object(subprocess, "run", forked):
        yield
