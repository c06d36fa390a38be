"""What an adapter must bring: told at once, all of it, each with what it returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from shortgpt.errors import AdapterError

HELP = "docs/writing-an-adapter.md leads through them, and shortgpt.testing.check_adapter checks what they do"


def check_written(cls: type, attributes: Iterable[str]) -> None:
    """Raise where a class leaves out methods that its base asks for, or has no `architecture`.

    Args:
        attributes: the class attributes that it may have to set.

    Raises:
        AdapterError: it lists the methods, each with what it returns, and the attributes without a value.
    """
    methods = sorted(getattr(cls, "__abstractmethods__", ()))
    unset = [name for name in attributes if not hasattr(cls, name)]
    if methods or "architecture" in unset:
        raise _unfinished(cls, [*(_method(cls, name) for name in methods), *(_attribute(cls, name) for name in unset)])


def check_attributes(made: object, attributes: Iterable[str]) -> None:
    """Raise where an object lacks attributes.

    Raises:
        AdapterError: it lists them.
    """
    if unset := [name for name in attributes if not hasattr(made, name)]:
        raise _unfinished(type(made), [_attribute(type(made), name) for name in unset])


def _unfinished(cls: type, lacking: list[str]) -> AdapterError:
    found = f"{cls.__module__}.{cls.__qualname__} is not complete: an adapter must also say"
    return AdapterError("\n".join([found, *(f"  {line}" for line in lacking), HELP]))


def _method(cls: type, name: str) -> str:
    """`name(arguments) -> returned: what it does`, as the base declares it."""
    member: Any = inspect.getattr_static(cls, name)
    if isinstance(member, property):
        head = f"{name} (a property) -> {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
    else:
        signature = inspect.signature(member)
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
        head = f"{name}{signature.replace(parameters=parameters)}"
    said = (inspect.getdoc(member) or "").split("\n\n")[0]
    return ": ".join(filter(None, (re.sub(QUOTED, r"\1\2", head), " ".join(said.split()))))


QUOTED = r"(: |-> )'([^']*)'"
"""An annotation that is not evaluated."""


def _attribute(cls: type, name: str) -> str:
    """`name: type: what it is`, from the annotation and the docstring of the base that declares it."""
    for base in cls.__mro__:
        if name in vars(base).get("__annotations__", {}):
            kind = re.sub(r"^ClassVar\[(.*)\]$", r"\1", str(base.__annotations__[name]))
            described = re.search(rf"^ *{name}: (.*(?:\n {{8,}}.*)*)", inspect.getdoc(base) or "", re.MULTILINE)
            return f"{name}: {kind}" + (f": {' '.join(described[1].split())}" if described else "")
    return name
