"""Frozen dataclasses to JSON and back. What is read must be exactly what is written: unknown keys are rejected.

A document says what it is, `{"schema": "shortgpt/scores/1", ...}`: a kind of value and the version of its form. The
values inside it do not repeat that. docs/json.md describes every kind.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from shortgpt.basics.targets import load_target
from shortgpt.errors import OutputError, ShortGPTError

T = TypeVar("T", bound="Value")

REPR_WIDTH, ITEM_WIDTH = 160, 40
"""In characters: of a value's `repr`, and of a field in it."""

SCHEMA = "schema"
"""The key of a document that names its kind and version."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A plain result. Subclasses are frozen dataclasses of numbers, strings, tuples, mappings and other values.

    Class attributes:
        schema_version: of the kind's JSON. It is raised where a document of before can no longer be read as it is.
        derived: properties that are written beside the fields, for readers that do not compute them. They are passed
            over when a document is read.
    """

    schema_version: ClassVar[int] = 1
    derived: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__repr__ = Value.__repr__  # type: ignore[method-assign]  # or `dataclass` would write one of all numbers

    @classmethod
    def schema(cls) -> str:
        """What a document of this kind says of itself, such as `shortgpt/scores/1`."""
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()
        return f"shortgpt/{kind}/{cls.schema_version}"

    def tables(self) -> tuple[Table, ...]:
        """The value as tables for reading, the main one first.

        Raises:
            OutputError: this kind has none.
        """
        shown = _report("TABLES", self)
        if shown is None:
            raise OutputError(f"there is no table of a {type(self).__name__}; take --format json")
        return shown(self)

    def tidy(self) -> Table:
        """Every number measured in one table, a row a measurement: what CSV is. It is the first of `tables` but for
        kinds that say otherwise."""
        shown = _report("TIDY", self)
        return self.tables()[0] if shown is None else shown(self)

    def rows(self) -> list[dict[str, Cell]]:
        """`tidy` as plain rows, such as `pandas.DataFrame` takes; what does not exist is None.

        Raises:
            OutputError: this kind has no table.
        """
        table = self.tidy()
        return [
            {name: None if cell != cell else cell for name, cell in zip(table.columns, row, strict=True)}
            for row in table.rows
        ]

    def plot(self, **shown: Any) -> Any:
        """The picture of this kind of value, as a `matplotlib.figure.Figure` (the extra `plot`).

        Args:
            shown: what the picture shows besides, such as `marked` blocks of scores.

        Raises:
            OutputError: there is no picture of this kind, or matplotlib is not installed.
        """
        return load_target("shortgpt.reports.plots:figure")(self, **shown)

    def __repr__(self) -> str:
        """One line: the kind and the beginning of what it holds. All of it is in `to_json`."""
        parts = (f"{field.name}={_brief(getattr(self, field.name))}" for field in dataclasses.fields(self))
        return _cut(f"{type(self).__name__}({', '.join(parts)})", REPR_WIDTH)

    def _repr_html_(self) -> str | None:
        """The tables, for a notebook; None where this kind has none, so that it shows the text."""
        if _report("TABLES", self) is None:
            return None
        shown: str = load_target("shortgpt.reports.html.notebook:as_html")(self)
        return shown

    def __rich__(self) -> Any:
        from rich.text import Text

        shown = _report("RENDERED", self)
        return Text(str(self)) if shown is None else shown(self)

    def __str__(self) -> str:
        if _report("RENDERED", self) is None:
            return repr(self)
        return load_target("shortgpt.reports:as_text")(self)

    def check(self) -> None:
        """Raise a `ShortGPTError` where the parts contradict each other. Called on what was read."""

    def to_dict(self) -> dict[str, Any]:
        """The value as JSON types: its fields, and what is `derived` of them."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: _plain(getattr(self, name)) for name in (*names, *self.derived)}

    def to_json(self) -> str:
        """The value as a JSON document. NaN and infinity, which JSON lacks, are written as null."""
        return json.dumps({SCHEMA: self.schema()} | self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls: type[T], data: Any) -> T:
        """The value that `to_dict` gave, or a document with its schema.

        Raises:
            ShortGPTError: it is of another kind or version, a key is unknown or missing, a value has the wrong type, or
                the values contradict each other.
        """
        if not isinstance(data, Mapping):
            raise ShortGPTError(f"{cls.__name__}: expected a JSON object, found {type(data).__name__}")
        if SCHEMA in data:
            _check_schema(cls, data[SCHEMA])
        data = {name: value for name, value in data.items() if name not in (SCHEMA, *cls.derived)}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(fields))
        if unknown:
            raise ShortGPTError(f"{cls.__name__}: unknown keys {unknown}; known are {sorted(fields)}")
        required = {
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        if required - set(data):
            raise ShortGPTError(f"{cls.__name__}: the keys {sorted(required - set(data))} are missing")
        hints = typing.get_type_hints(cls)
        made = cls(**{name: _read(f"{cls.__name__}.{name}", hints[name], value) for name, value in data.items()})
        made.check()
        return made

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """The value that `to_json` gave, with or without its schema (before schemas there were none).

        Raises as `from_dict` does, also for text that is no JSON.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ShortGPTError(f"{cls.__name__}: not JSON ({error})") from None
        return cls.from_dict(data)


class Rows(tuple[T, ...]):
    """The rows of a value that has a field of that name: a tuple of them; called, what `Value.rows` gives."""

    def of(self, owner: Value) -> Rows[T]:
        self.owner = owner
        return self

    def __call__(self) -> list[dict[str, Cell]]:
        return Value.rows(self.owner)


def _brief(item: Any) -> str:
    """A field in a few characters: of a collection with more than a few, how many there are."""
    if isinstance(item, (Mapping, tuple, list)) and len(repr(item)) > ITEM_WIDTH:
        return f"<{len(item)}>"
    return _cut(repr(item), ITEM_WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _report(way: str, value: Value) -> Any:
    """The function that shows this kind of value, None where there is none. It is found by the kind's name, as the
    targets of plugins are, so that values import no reports."""
    target = load_target(f"shortgpt.reports:{way}").get(type(value).__name__)
    return None if target is None else load_target(target)


def _check_schema(cls: type[Value], found: Any) -> None:
    wanted = cls.schema()
    if found == wanted:
        return
    told = f"{cls.__name__}: found the schema {found!r}, this version of shortgpt reads {wanted!r}"
    ours = re.fullmatch(r"shortgpt/([a-z-]+)/(\d+)", found) if isinstance(found, str) else None
    if ours is None:
        raise ShortGPTError(f"{told}; it was not written by shortgpt")
    if ours[1] != wanted.split("/")[1]:
        raise ShortGPTError(f"{told}; it is of another kind ({ours[1]})")
    way = "upgrade shortgpt" if int(ours[2]) > cls.schema_version else "write it again"
    raise ShortGPTError(f"{told}; {way}")


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _read(where: str, hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _read(where, hint, value)
    if isinstance(hint, type) and issubclass(hint, Value):
        return hint.from_dict(value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ShortGPTError(f"{where}: expected a list, found {type(value).__name__}")
        if arguments[-1] is Ellipsis:
            return tuple(_read(where, arguments[0], item) for item in value)
        if len(value) != len(arguments):
            raise ShortGPTError(f"{where}: expected {len(arguments)} items, found {len(value)}")
        return tuple(_read(where, kind, item) for kind, item in zip(arguments, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ShortGPTError(f"{where}: expected an object, found {type(value).__name__}")
        numbered = arguments[0] is int
        wrong = [key for key in value if numbered and not key.isdecimal()]
        if wrong:
            raise ShortGPTError(f"{where}: expected int, found {wrong[0]!r}")
        return {int(k) if numbered else k: _read(where, arguments[1], v) for k, v in value.items()}
    if hint is float:
        if value is None:
            return float("nan")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise ShortGPTError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {type(value).__name__}")


Cell = str | int | float | None
"""None, and NaN, are empty: there is no such value."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        title: what it shows; empty where that goes without saying.
        columns: their names, with units where there are some.
        rows: each with a cell a column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns: {row}")

    def is_number(self, column: int) -> bool:
        """Whether all cells of a column that are not empty are numbers, and there is one."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, (int, float)) for cell in cells)
