"""Defaults of options from a file: `shortgpt.toml`, or the table `[tool.shortgpt]` of `pyproject.toml`.

::

    device = "cpu"              # of every command that has such an option
    [score]                     # of one command; in pyproject.toml [tool.shortgpt.score]
    criterion = ["block-influence", "perplexity"]

The nearest file counts, from the current folder upwards. What stands on the command line counts before it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from shortgpt.cli.options.types import PathName
from shortgpt.errors import ShortGPTError

FILES = {"shortgpt.toml": (), "pyproject.toml": ("tool", "shortgpt")}
"""File → the keys under which our table stands."""

ON_THE_LINE_ALONE = frozenset({"trust_remote_code", "include_path"})
"""Options that let code run. A folder that somebody else filled may be the current one, and a file in it does not ask
for that, nor for files to be written."""


@dataclass(frozen=True)
class Defaults:
    """What a file says.

    Attributes:
        file: where it stands.
        table: option → value, and command → such a table.
    """

    file: Path
    table: Mapping[str, Any]

    @classmethod
    def nearest(cls) -> Defaults | None:
        """Those of the nearest file, from the current folder upwards; None where there is none.

        Raises:
            ShortGPTError: it is no TOML, or no table.
        """
        try:
            folder = Path.cwd()
        except OSError:  # it was removed
            return None
        for place in (folder, *folder.parents):
            for name, keys in FILES.items():
                table = _table(place / name, keys)
                if table is not None:
                    return cls(place / name, table)
        return None

    def of(self, group: click.Group) -> dict[str, dict[str, Any]]:
        """The values for each command, by the names of its parameters: what click calls a default map.

        Raises:
            ShortGPTError: there is no such option or command, or its value is none that it takes.
        """
        options = {name: _options(command) for name, command in group.commands.items()}
        anywhere = {key for named in options.values() for key in named}
        shared = {key: value for key, value in self.table.items() if key not in options}
        for key in shared:
            self._check_known(key, anywhere, anywhere | set(options), "no command has an option")
        found: dict[str, dict[str, Any]] = {}
        for command, named in options.items():
            own = self.table.get(command, {})
            if not isinstance(own, Mapping):
                raise ShortGPTError(f"{self.file}: [{command}] is no table, but {own!r}")
            for key in own:
                self._check_known(key, set(named), set(named), f"{command} has no option")
            given = {key: value for key, value in {**shared, **own}.items() if key in named}
            found[command] = {
                str(named[key].name): self._checked(key, named[key], value) for key, value in given.items()
            }
        return found

    def _check_known(self, key: str, known: set[str], close_to: set[str], told: str) -> None:
        if key in known:
            return
        close = difflib.get_close_matches(key, close_to, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ShortGPTError(f"{self.file}: {told} {key!r}{hint} Options are written as on the command line, without --")

    def _checked(self, name: str, option: click.Option, value: Any) -> Any:
        if option.name in ON_THE_LINE_ALONE or (isinstance(option.type, PathName) and option.type.written):
            raise ShortGPTError(
                f"{self.file}: {name!r} stands on the command line alone: no file lets code run, or has files written"
            )
        wrong = ShortGPTError(f"{self.file}: {value!r} is no value for {name!r}")
        if option.multiple != isinstance(value, list) or isinstance(value, Mapping):
            takes = "; it takes a list" if option.multiple else ""
            raise ShortGPTError(f"{wrong}{takes}")
        if option.is_flag and not isinstance(value, bool):
            raise ShortGPTError(f"{wrong}; it takes true or false")
        try:
            option.type_cast_value(click.Context(click.Command("shortgpt")), value)
        except click.BadParameter as error:
            raise ShortGPTError(f"{wrong}: {error.message}") from None
        return value


def spelled(context: click.Context) -> list[str]:
    """What a file said, as it would stand on the command line."""
    words: list[str] = []
    for option in context.command.params:
        if context.get_parameter_source(str(option.name)) is not click.core.ParameterSource.DEFAULT_MAP:
            continue
        value, opts = context.lookup_default(str(option.name)), [*option.opts, *option.secondary_opts]
        long = [name for name in opts if name.startswith("--")]
        if isinstance(value, bool):
            words += [long[0] if value else long[-1]] if value or len(long) > 1 else []
        else:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (long[0], str(one))]
    return words


def _table(file: Path, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Our table in a file; None where there is none."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as reader:
            table = tomllib.load(reader)
    except (OSError, ValueError) as error:
        if keys:  # a file of others, which may not be about us
            return None
        raise ShortGPTError(f"{file}: cannot be read ({error})") from None
    for key in keys:
        if not isinstance(table, Mapping) or key not in table:
            return None
        table = table[key]
    if not isinstance(table, Mapping):
        raise ShortGPTError(f"{file}: [{'.'.join(keys)}] is no table")
    return table


def _options(command: click.Command) -> dict[str, click.Option]:
    """The options of a command, by their long names without dashes."""
    return {
        name.lstrip("-"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }
