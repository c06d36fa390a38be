"""Names of modules in a config: those of blocks are renumbered, those of removed blocks left out.

::

    block 1 goes:  ["model.layers.0.mlp.gate", "model.layers.1*", "model.layers.2.mlp", "lm_head"]   version "0.12.2"
                →  ["model.layers.0.mlp.gate",                    "model.layers.1.mlp", "lm_head"]           "0.12.2"

A quantisation section names the modules that it leaves alone, or treats in a way of their own: as paths, as globs
(`model.layers.1*`, which means 10 to 19 as well), or as regular expressions (`re:.*layers\\.(0|1)\\..*`, `-:...`). A
string speaks of a block where a number stands behind the name of the block list. What could be one and is not certain
is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

LIST_NAMES = frozenset({"layers", "layer", "h", "blocks", "block"})
"""What libraries call a block list."""

_WRAPPERS = frozenset({"model", "language_model", "text_model", "transformer", "base_model", "backbone", "*"})
"""Modules around a block list that one library has and another has not; in a glob, any of them."""

_OTHER_LISTS = re.compile(r"vision|visual|image|audio|video|speech|encoder|mtp|nextn|draft|expert")
"""In a path: another list than the model's blocks, unless their own path says so too."""

_PATH = re.compile(r"(?P<list>[A-Za-z_*][\w*]*(?:\.[A-Za-z_*][\w*]*)*)\.(?P<number>\d[\w*?\[\]-]*)(?P<rest>(?:\..*)?)")
_EXPRESSION = re.compile(r"re:|[+-]:|\.\*|.*[\\|(^$]", re.DOTALL)
_BLOCK_IN_EXPRESSION = re.compile(
    r"""(?P<before>.*?(?<![A-Za-z0-9]))(?P<list>[A-Za-z_]+)(?P<dot>\\?\.|\[\.\])
        (?P<number>\d+|\((?:\?:)?(?:[\d|+\[\]-]|\\d)+\)|\[[\d-]+\])
        (?P<rest>(?:\\\.|\[\.\]|\$|\.(?=[A-Za-z_])).*)""",
    re.VERBOSE | re.DOTALL,
)
_ANY_NUMBER = re.compile(r"\\d|\[0-9\]|\{[\d,]+\}|experts?(?:\\?\.|\[\.\])\d+")
"""In an expression: no certain number, or that of an expert."""

_LONE_NUMBER = re.compile(r"(?<![A-Za-z0-9_])(?:\d+|\[[\d-]+\])(?![A-Za-z0-9_])")


class Renumbering:
    """What becomes of the names of modules when the blocks `keep` of `depth` stay.

    Args:
        block_lists: dotted paths of the block list, the model's own first.
    """

    def __init__(self, block_lists: Sequence[str], depth: int, keep: Sequence[int]) -> None:
        self.depth = depth
        self.place = {old: new for new, old in enumerate(keep)}
        self.own = {part for path in block_lists for part in path.split(".")}
        self.list_names = {path.rpartition(".")[2] for path in block_lists}

    def __call__(self, value: Any) -> Any:
        """What a value of a config becomes, nested as it may be.

        Raises:
            ValueError: a string names blocks, and which ones is not certain, or none of them stays where one must.
        """
        if isinstance(value, dict):
            return self._dict(value)
        if isinstance(value, (list, tuple)):
            return [new for item in value for new in (self.names(item) if isinstance(item, str) else [self(item)])]
        if not isinstance(value, str):
            return value
        names = self.names(value)
        if len(names) != 1:
            raise ValueError(f"it names {value!r}, which {len(names)} names would stand for")
        return names[0]

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        rewritten: dict[Any, Any] = {}
        for key, item in value.items():
            if key != "weight_block_size" and _ABOUT_BLOCKS.search(str(key)) and _is_numbers(item):
                raise ValueError(f"its {key!r} may be numbers of blocks ({item})")
            new = self(item)
            if isinstance(item, dict) and item.get("targets") and not new["targets"]:
                continue  # a way of quantising for which no module is left
            rewritten |= dict.fromkeys(self.names(key) if isinstance(key, str) else [key], new)
        return rewritten

    def names(self, text: str) -> list[str]:
        """What a string becomes: nothing where its block is gone, several where a glob names several blocks.

        Raises:
            ValueError: it names blocks, and which ones is not certain.
        """
        if _EXPRESSION.match(text):
            return self._expression(text)
        if "," in text:
            kept = [new for part in text.split(",") for new in self.names(part)]
            return [",".join(kept)] if kept else []
        match = _PATH.fullmatch(text)
        if match is None or not self._holds_the_blocks(match["list"].split("."), text):
            return [text]
        path, number, rest = match.groups()
        if number.isdecimal():
            return [f"{path}.{new}{rest}" for new in self._places(number)]
        if rest or not number.rstrip("*").isdecimal():
            raise _uncertain(text)
        return [f"{path}.{new}{ending}" for new in self._places(number) for ending in self._endings(new)]

    def _holds_the_blocks(self, path: list[str], text: str) -> bool:
        """Whether a list of modules is the model's blocks.

        Raises:
            ValueError: it may be.
        """
        if any(_OTHER_LISTS.search(part) and part not in self.own for part in path):
            return False
        if path[-1] in self.list_names and set(path) <= self.own | _WRAPPERS:
            return True
        if path[-1] in self.list_names | LIST_NAMES | {"*"}:
            raise _uncertain(text)
        return False

    def _places(self, glob: str) -> list[int]:
        return [new for old, new in self.place.items() if fnmatchcase(str(old), glob)]

    def _endings(self, block: int) -> tuple[str, ...]:
        """What makes of a block's path globs for it and all its modules, and for no other block."""
        others = [str(other) for other in self.place.values() if other != block]
        return ("", ".*") if any(other.startswith(str(block)) for other in others) else ("*",)

    def _expression(self, text: str) -> list[str]:
        """What becomes of a regular expression: its part for the block's number is tried with every number."""
        if not _LONE_NUMBER.search(_ANY_NUMBER.sub("", text)):
            return [text]
        match = _BLOCK_IN_EXPRESSION.fullmatch(text)
        if match is None or any(_LONE_NUMBER.search(_ANY_NUMBER.sub("", match[part])) for part in ("before", "rest")):
            raise _uncertain(text)
        path = [*re.findall(r"[A-Za-z_]\w*", re.sub(r"^re:", "", match["before"])), match["list"]]
        if not self._holds_the_blocks(path, text):
            return [text]
        number = re.compile(match["number"])
        new = [str(place) for old, place in self.place.items() if number.fullmatch(str(old))]
        if not new:
            if "(?" in match["before"] or "|" in match["before"] + match["rest"]:
                raise _uncertain(text)  # it says more than that this block is meant
            return []
        choice = new[0] if match["number"].isdecimal() else f"({'|'.join(new)})"
        return [f"{match['before']}{match['list']}{match['dot']}{choice}{match['rest']}"]


_ABOUT_BLOCKS = re.compile(r"layer|block")


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of distinct integers."""
    whole = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
    return whole and 1 < len(value) == len(set(value))


def _uncertain(text: str) -> ValueError:
    return ValueError(f"it names {text!r}, and which blocks that means is not certain")
