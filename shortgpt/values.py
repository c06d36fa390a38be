"""Frozen dataclasses to JSON and back. What is read must be exactly what is written: unknown keys are rejected."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from shortgpt.errors import ShortGPTError

T = TypeVar("T", bound="Value")


@dataclasses.dataclass(frozen=True)
class Value:
    """A plain result. Subclasses are frozen dataclasses of numbers, strings, tuples, mappings and other values."""

    def to_dict(self) -> dict[str, Any]:
        """The value as JSON types."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def to_json(self) -> str:
        """The value as JSON text. NaN and infinity, which JSON lacks, are written as null."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls: type[T], data: Any) -> T:
        """The value that `to_dict` gave.

        Raises:
            ShortGPTError: a key is unknown or missing, or a value has the wrong type.
        """
        if not isinstance(data, Mapping):
            raise ShortGPTError(f"{cls.__name__}: expected a JSON object, found {type(data).__name__}")
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
        return cls(**{name: _read(f"{cls.__name__}.{name}", hints[name], value) for name, value in data.items()})

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """The value that `to_json` gave. Raises as `from_dict` does, also for text that is no JSON."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ShortGPTError(f"{cls.__name__}: not JSON ({error})") from None
        return cls.from_dict(data)


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
        return tuple(_read(where, arguments[0], item) for item in value)
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
