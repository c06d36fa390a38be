"""The pages of docs/ and the README: their blocks of code, and what these do when they are run.

::

    python -m tests.pages docs/tutorial.md ...      run these pages, and write what their commands print into them
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
GENERATED = {"real-model.md": "make real", "performance.md": "make bench", "architectures.md": "make types"}
"""Pages whose commands are run by what writes them."""
SHELL = ("", "console", "text")
"""What blocks are called that hold commands, and what they print."""


@dataclass(frozen=True)
class Command:
    """A command after a `$`, and what the page shows that it prints."""

    line: str
    shown: str

    @property
    def words(self) -> list[str]:
        """What the shell makes of it, without a comment."""
        return shlex.split(self.line.replace("\\\n", " "), comments=True)

    @property
    def must_fail(self) -> bool:
        """Whether the line says so: `... || echo $?`."""
        return self.words[-3:] == ["||", "echo", "$?"]

    @property
    def ours(self) -> list[str] | None:
        """The arguments of `shortgpt`; None for another program."""
        program, *arguments = self.words
        return (
            list(takewhile(lambda word: word not in ("|", "||", "&&", ">"), arguments))
            if program == "shortgpt"
            else None
        )


@dataclass(frozen=True)
class Block:
    """A fenced block: the number of lines above its first one, and what the comment before it says."""

    page: Path
    line: int
    language: str
    code: str
    mark: str

    @property
    def file(self) -> str | None:
        """The file whose text it must be."""
        kind, _, path = self.mark.partition(": ")
        return path if kind == "file" else None

    @property
    def is_left_out(self) -> bool:
        """Whether the page gives a reason not to run it."""
        return self.mark.startswith("not run: ") or self.page.name in GENERATED

    @property
    def is_python(self) -> bool:
        """Whether it is Python that is run."""
        return self.language == "python" and not self.file and not self.is_left_out

    @property
    def commands(self) -> list[Command]:
        """The commands of a block of the shell: after `$`, or on lines of ours where there is no `$`."""
        if self.language not in SHELL:
            return []
        has_prompt = re.search(r"^\$ ", self.code, re.MULTILINE)
        start = r"\$ " if has_prompt else r"(?=shortgpt |python )"
        found = re.finditer(
            rf"^{start}(?P<line>(?:[^\n]*\\\n)*[^\n]*)\n(?P<shown>(?:(?!{start})[^\n]*\n)*)", self.code, re.MULTILINE
        )
        return [Command(m["line"], m["shown"]) for m in found]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start("code")].count("\n"), m["language"], m["code"], m["mark"] or "")
        for m in BLOCK.finditer(text)
    ]


def indented(page: Path) -> list[Command]:
    """The commands of ours in blocks that are indented and not fenced: long runs, of which the page says what came."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^ {4}(shortgpt (?:[^\n]*\\\n)*[^\n]*)$", text, re.MULTILINE)
    return [Command(line, "") for line in lines]


def is_run(page: Path) -> bool:
    """Whether the page has something to run, here and with no package of examples/."""
    runs = [b for b in blocks_of(page) if b.is_python or (b.language == "console" and not b.is_left_out)]
    return bool(runs) and not any("shortgpt_pebble" in b.code or "shortgpt_extras" in b.code for b in runs)


def printed_by(page: Path, folder: Path) -> Iterator[tuple[Block, Command, str]]:
    """Run all of a page in `folder`: its Python in one namespace, and its commands; what each command printed.

    A command of ours runs in this process; any other one by the shell.

    Raises:
        AssertionError: a command ended with another exit status than 0, which its own line does not expect by
            `|| echo $?`.
    """
    from tests.support import run_cli

    namespace: dict[str, Any] = {"__name__": "__main__"}
    environment = {"COLUMNS": "80", "NO_COLOR": "1"}
    with contextlib.chdir(folder), mock.patch.dict(os.environ, environment):
        for block in blocks_of(page):
            if block.is_python:
                exec(compile("\n" * block.line + block.code, page.name, "exec"), namespace)
            if block.language != "console" or block.is_left_out:
                continue
            for command in block.commands:
                arguments = command.ours
                assert arguments is not None, f"{page.name}: {command.line} is not run here; say why by `not run`"
                ran = run_cli(*arguments)
                told = f"{page.name}: {command.line}: exit status {ran.status}\n{ran.out}{ran.err}"
                assert (ran.status != 0) == command.must_fail, told
                yield block, command, ran.out + ran.err + (f"{ran.status}\n" if command.must_fail else "")


def main(pages: list[Path]) -> None:
    from tests.fresh_processes import forked_verification

    for page in pages:
        text = page.read_text(encoding="utf-8")
        folder = Path(tempfile.mkdtemp())
        try:
            with forked_verification():
                for block, command, printed in printed_by(page, folder):
                    if command.shown.strip() and not re.search(r"^ *\.\.\.$", command.shown, re.MULTILINE):
                        lines = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
                        gap = "\n" if command.shown.endswith("\n\n") else ""
                        before = f"$ {command.line}\n{command.shown}"
                        assert block.code.count(before) == 1, command.line
                        text = text.replace(before, f"$ {command.line}\n{lines}{gap}", 1)
        finally:
            shutil.rmtree(folder)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([Path(name).absolute() for name in sys.argv[1:]])
