"""The types of arguments and options, which say what a shell offers for them.

They check nothing: the commands do, whose messages say what is there and what to do.
"""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem


class PathName(click.Path):
    """A file or a folder, as it was written."""

    def __init__(self, *, folder: bool = False, written: bool = False) -> None:
        super().__init__(file_okay=not folder)
        self.written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


class Name(click.ParamType):
    """A name of something that plugins provide; a path too, where that is taken as well.

    Args:
        kinds: the tables of `shortgpt.basics.registry.Registry` that hold it.
        others: names that are always there.
    """

    name = "name"

    def __init__(self, *kinds: str, others: tuple[str, ...] = (), or_path: bool = False) -> None:
        self.kinds, self.others, self.or_path = kinds, others, or_path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        from shortgpt.plugins import registry

        known = {entry.name: entry.description for kind in self.kinds for entry in getattr(registry(), kind)}
        known |= dict.fromkeys(self.others, "")
        # bash forgets what stands before a file
        files = [CompletionItem(incomplete, type="file")] if self.or_path else []
        names = sorted(name for name in known if name.startswith(incomplete))
        return [*files, *(CompletionItem(name, help=known[name] or None) for name in names)]


FILE = PathName()
WRITTEN_FILE = PathName(written=True)
FOLDER = PathName(folder=True)
WRITTEN_FOLDER = PathName(folder=True, written=True)
MODEL = Name("models", or_path=True)
CRITERION = Name("criteria")
EVALUATOR = Name("evaluators", "tasks")
FORMAT = Name("reporters")
TASK = Name("tasks")
PUBLISHED = Name("published")
ARCHITECTURE = Name("architectures")
TEXT = Name("calibrations", or_path=True)
DEVICE = Name(others=("auto", "cpu", "cuda", "mps"))
