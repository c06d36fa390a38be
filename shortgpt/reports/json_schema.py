"""The JSON Schema of a kind of value (draft 2020-12), made of its dataclass: types from the annotations, descriptions
from the docstring's `Attributes`. So it says what `to_json` writes and `from_json` takes, and cannot say anything else.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from shortgpt.basics.value import SCHEMA, Value

Node = dict[str, Any]
_SCALARS: dict[Any, Node] = {
    # NaN and infinity are null in JSON
    float: {"type": ["number", "null"]},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Any: {},
}


def json_schema(kind: type[Value]) -> Node:
    """The schema of a document of that kind. Values inside it are under `$defs`, by the name of their class."""
    inner: dict[str, Node] = {}
    top = _object(kind, inner)
    top["properties"] = {SCHEMA: {"const": kind.schema()}} | top["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": inner}


def descriptions(kind: type[Value]) -> dict[str, str]:
    """What the docstrings of a kind, and of those it extends, say of its fields."""
    told: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        _, _, section = _docstring(owner).partition("\nAttributes:\n")
        for names, text in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            told |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return {field.name: told[field.name] for field in dataclasses.fields(kind) if field.name in told}


def summary(kind: type[Value]) -> str:
    """What the docstring says of a kind, without its `Attributes`."""
    return _docstring(kind).partition("\nAttributes:\n")[0].strip()


def _docstring(owner: type) -> str:
    return inspect.cleandoc(vars(owner).get("__doc__") or "")


def _object(kind: type[Value], inner: dict[str, Node]) -> Node:
    hints, told = typing.get_type_hints(kind), descriptions(kind)
    fields = dataclasses.fields(kind)
    properties = {
        field.name: _node(hints[field.name], inner) | ({"description": told[field.name]} if field.name in told else {})
        for field in fields
    }
    for name in kind.derived:
        getter = inspect.getattr_static(kind, name).fget
        told_of_it = " ".join(inspect.cleandoc(getter.__doc__ or "").split())
        node = _node(typing.get_type_hints(getter)["return"], inner)
        properties[name] = node | {"description": f"Derived, and passed over when read. {told_of_it}"}
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return {
        "title": kind.__name__,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _node(hint: Any, inner: dict[str, Node]) -> Node:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_node(a, inner) if a is not type(None) else {"type": "null"} for a in arguments]}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": _node(arguments[0], inner)}
        items = [_node(a, inner) for a in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is not None and issubclass(origin, Mapping):
        numbered: Node = {"propertyNames": {"pattern": "^[0-9]+$"}} if arguments[0] is int else {}
        return {"type": "object", "additionalProperties": _node(arguments[1], inner)} | numbered
    if isinstance(hint, type) and issubclass(hint, Value):
        if hint.__name__ not in inner:
            inner[hint.__name__] = {}  # a plan may hold a plan
            inner[hint.__name__] = _object(hint, inner)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return dict(_SCALARS[hint])
