"""A tokenizer's normaliser can make a text longer; one that makes it longer without end is refused before it runs.

::

    "normalizer": Sequence[ Replace("a" → "aaaaaaaaaa") ] × 9      each sign becomes up to 10 of them: 10⁹ in the end
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shortgpt.basics.untrusted import MAX_HEADER
from shortgpt.errors import CheckpointError

MOST = 1000
"""Signs that one sign may become. What is published stays below 10."""

UNICODE = 18
"""Signs that the longest of Unicode's compatibility decompositions has."""


def check_growth(name: str, folder: Path) -> None:
    """Raise a `CheckpointError` for a tokenizer.json by which a text would grow without end."""
    file = folder / "tokenizer.json"
    if not file.is_file() or file.stat().st_size > MAX_HEADER:
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # told by the library that reads it
        return
    if not isinstance(content, dict):
        return
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = max(growth, _growth(content.get(part)))
    if growth > MOST:
        raise CheckpointError(
            f"{name}: its tokenizer.json makes up to {min(growth, 10**18):,} signs of one, and {MOST:,} are taken for "
            "the most that can be meant; this is no tokenizer to be used"
        )


def _growth(part: Any, depth: int = 0) -> int:
    """How many signs a step, or the steps in it, can make of one."""
    if not isinstance(part, dict) or depth > 50:
        return 1
    growth = 1
    for inner in ("normalizers", "pretokenizers", "decoders"):
        for step in part.get(inner) or () if isinstance(part.get(inner), list) else ():
            growth = min(growth * _growth(step, depth + 1), 10**30)
    kind = part.get("type")
    if kind == "Replace":
        growth *= (
            _length(part.get("content")) + 1 if _is_empty(part.get("pattern")) else max(1, _length(part.get("content")))
        )
    elif kind == "Prepend":
        growth *= 1 + _length(part.get("prepend"))
    elif kind in ("NFKD", "NFKC"):
        growth *= UNICODE
    return growth


def _length(text: Any) -> int:
    return len(text) if isinstance(text, str) else 0


def _is_empty(pattern: Any) -> bool:
    """Whether a pattern can fit between two signs, so that its replacement comes in addition."""
    return isinstance(pattern, dict) and any(
        text == "" or (kind == "Regex" and str(text).endswith(("*", "?"))) for kind, text in pattern.items()
    )
