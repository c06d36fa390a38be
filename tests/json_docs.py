"""Writes docs/json.md from the dataclasses: `python -m tests.json_docs docs/json.md`. A test holds the page to them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import shortgpt
from shortgpt.basics.value import Value
from shortgpt.reports.json_schema import json_schema, summary

HEAD = """\
<!-- Made from the dataclasses by `python -m tests.json_docs docs/json.md`; not to be edited by hand. -->

# The JSON of results

What `--json FILE` and `--format json` write, `to_json()` returns and `from_json()` reads. A document is an object that
says what it is:

```text
{"schema": "shortgpt/scores/1", "model": "zoo:llama", ...}
```

- `schema` is `shortgpt/KIND/VERSION`. The version is raised where a document of before can no longer be read. A
  document of another kind or version is refused, with what was found and what is read. The values inside a document do
  not repeat it.
- A document without `schema` was written by a shortgpt that had none yet. It is read as what it is asked to be.
- Unknown keys are refused, and so are numbers that do not fit together. Keys that have a default may be missing.
- JSON has neither NaN nor infinity. Both are written as `null`, and read as NaN.
- Blocks are counted from 0. Floats are written with all their digits, so what is read is what was written, bit for bit.

`shortgpt score` writes [scores](#scores), `compare` a [comparison](#comparison), `evaluate` an
[evaluation](#evaluation), `cost` a [cost](#cost), `prune` a [plan](#plan) (in
`shortgpt.json` too), `verify` a [verification](#verification), `inspect` an [inspection](#inspection) and `plugins` the
[registry](#registry). `shortgpt.reports.json_schema.json_schema(shortgpt.Scores)` is the JSON Schema of a kind, for
tools that validate.

The kinds, in the order of the alphabet:
"""


def kinds() -> dict[str, type[Value]]:
    """Every kind of value of the engine, by its name in a schema."""
    for module in pkgutil.walk_packages(shortgpt.__path__, "shortgpt."):
        # The latter needs triton, and holds no value.
        if module.name not in ("shortgpt.__main__", "shortgpt.measuring.scoring.kernel"):
            importlib.import_module(module.name)
    found: dict[str, type[Value]] = {}
    waiting = Value.__subclasses__()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("shortgpt."):
            found[kind.schema().split("/")[1]] = kind
    return dict(sorted(found.items()))


def page() -> str:
    """The whole of docs/json.md."""
    return "\n".join([HEAD, *(_section(name, kind) for name, kind in kinds().items())])


def _section(name: str, kind: type[Value]) -> str:
    described = json_schema(kind)
    rows = [
        f"| `{field}` | {_type(node)} | {'' if field in described['required'] else 'may be missing'} | "
        f"{node.get('description', '').replace('|', chr(92) + '|')} |"
        for field, node in described["properties"].items()
        if field != "schema"
    ]
    table = ["| field | type | | |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", f"`{kind.schema()}`: {summary(kind)}", "", *table, ""])


def _type(node: dict[str, Any]) -> str:
    """A node of a JSON Schema in words."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        anchor = next(kind for kind, value in kinds().items() if value.__name__ == name)
        return f"[{anchor}](#{anchor})"
    if "anyOf" in node:
        return " or ".join(_type(part) for part in node["anyOf"])
    if "prefixItems" in node:
        return f"array of ({', '.join(_type(part) for part in node['prefixItems'])})"
    kind = node.get("type", "anything")
    if kind == "array":
        return f"array of {_type(node['items'])}"
    if kind == "object":
        keys = "block numbers" if "propertyNames" in node else "names"
        return f"object of {keys} to {_type(node['additionalProperties'])}"
    return "number" if isinstance(kind, list) else str(kind)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
