"""JSON text that is changed only where its values change: the spelling, order and layout of all else stay.

::

    {                                          {
      "n_layer": 6,              updated         "n_layer": 4,
      "layer_norm_epsilon": 1e-05,  ──▶          "layer_norm_epsilon": 1e-05,
      "note": "as it was"                        "note": "as it was"
    }                                          }
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def updated(text: str, value: Any) -> str:
    """JSON text whose value is `value`, and which is `text` wherever that already says so.

    What is equal keeps its text, the entries of lists too. New fields of an object come behind its last one, laid out
    as that is. A field that stands twice in an object is changed twice, since readers differ in which one they take.

    Raises:
        ValueError: `text` is not JSON.
    """
    start, end = _value_span(text, 0)
    if text[end:].strip():
        raise ValueError(f"there is more text behind the JSON value: {text[end:].strip()[:20]!r}")
    return text[:start] + _updated(text[start:end], value, "") + text[end:]


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1, 1.0 and true are three, NaN is itself, a tuple is a list."""
    return _key(one) == _key(other)


@dataclass(frozen=True)
class _Entry:
    """A field of an object, or an entry of a list (which has no key): where it begins, its value begins, and ends.

    `gap` is what stands between it and the entry before it, `colon` what stands between its key and its value.
    """

    key: str | None
    start: int
    value_start: int
    end: int
    gap: str
    colon: str


def _updated(text: str, value: Any, indent: str) -> str:
    """`text` holds one value and nothing around it; `indent` is the white space before its line."""
    old = json.loads(text)
    if same(old, value):
        return text
    if isinstance(old, dict) and isinstance(value, Mapping):
        return _updated_object(text, old, value, indent)
    if isinstance(old, list) and isinstance(value, (list, tuple)):
        return _updated_list(text, value, indent)
    return _dumped(value, indent, "", text)


def _updated_object(text: str, old: Mapping[str, Any], new: Mapping[str, Any], indent: str) -> str:
    entries = _entries(text)
    layout = _Layout.of(text, entries, indent)
    parts = []
    for entry in entries:
        key = str(entry.key)
        if key not in new:
            continue
        field = text[entry.start : entry.end]
        if not same(old[key], new[key]):  # where a key stands twice, `old` holds the last
            written = _updated(text[entry.value_start : entry.end], new[key], layout.indent)
            field = text[entry.start : entry.value_start] + written
        parts.append((entry.gap, field))
    for key, item in new.items():
        if key not in old:
            field = json.dumps(key, ensure_ascii=False) + layout.colon + _dumped(item, layout.indent, indent, text)
            parts.append((layout.gap, field))
    return layout.joined(parts)


def _updated_list(text: str, new: Sequence[Any], indent: str) -> str:
    entries = _entries(text)
    layout = _Layout.of(text, entries, indent)
    spelt = {_key(json.loads(text[entry.start : entry.end])): text[entry.start : entry.end] for entry in entries}
    parts = [(layout.gap, spelt.get(_key(item)) or _dumped(item, layout.indent, indent, text)) for item in new]
    return layout.joined(parts)


@dataclass(frozen=True)
class _Layout:
    """How an object or list is laid out.

    Attributes:
        before, after: the brackets, with the white space inside them.
        indent: the white space before the lines inside.
        gap: what stands between the last two entries.
        colon: what stands between a key and its value.
    """

    before: str
    after: str
    indent: str
    gap: str
    colon: str

    @classmethod
    def of(cls, text: str, entries: Sequence[_Entry], indent: str) -> _Layout:
        if not entries:
            return cls(text[0], text[-1], indent, ", ", ": ")
        first, last = entries[0], entries[-1]
        before = text[: first.start]
        inner = before.rpartition("\n")[2] if "\n" in before else indent
        gap = last.gap or (f",\n{inner}" if "\n" in before else ", ")
        return cls(before, text[last.end :], inner, gap, first.colon)

    def joined(self, parts: Sequence[tuple[str, str]]) -> str:
        """The parts, each with what stands before it, but for the first."""
        if not parts:
            return self.before[0] + self.after[-1]
        return self.before + parts[0][1] + "".join(gap + part for gap, part in parts[1:]) + self.after


def _entries(text: str) -> list[_Entry]:
    """The fields or entries of the one object or list that `text` is."""
    entries: list[_Entry] = []
    position = _skip(text, 1)
    while text[position] not in "}]":
        start, key, key_end = position, None, position
        if text[0] == "{":
            key, key_end = _DECODER.raw_decode(text, position)
            position = _skip(text, key_end) + 1  # over the colon
        value_start, end = _value_span(text, position)
        gap = text[entries[-1].end : start] if entries else ""
        entries.append(_Entry(key, start, value_start, end, gap, text[key_end:value_start]))
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return entries


def _value_span(text: str, position: int) -> tuple[int, int]:
    start = _skip(text, position)
    return start, _DECODER.raw_decode(text, start)[1]


def _skip(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None  # it matches nothing, too
    return space.end()


def _dumped(value: Any, indent: str, outer: str, like: str) -> str:
    """A value that no text spells yet, over several lines where the text around it is.

    `indent` and `outer` are the white space before its line, and before that of what it stands in.
    """
    if "\n" not in like or not isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    lines = json.dumps(value, ensure_ascii=False, indent=indent.removeprefix(outer) or 2).splitlines()
    return f"\n{indent}".join(lines)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
