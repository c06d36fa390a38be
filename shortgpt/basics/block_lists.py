"""Lists of blocks: their numbers checked, read from a text, and written as one."""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from shortgpt.errors import SelectionError

NormPlacement = Literal["pre", "post", "sandwich", "parallel", "unknown"]


def block_numbers(blocks: Iterable[int], depth: int) -> tuple[int, ...]:
    """The blocks that are named, in order, each once, as Python's own integers.

    Raises:
        SelectionError: they are not named by whole numbers, or there are no such blocks.
    """
    named = list(blocks) if isinstance(blocks, Iterable) and not isinstance(blocks, (str, bytes)) else None
    try:
        if named is None or any("bool" in str(getattr(one, "dtype", type(one))) for one in named):
            raise TypeError
        numbers = sorted({operator.index(one) for one in named})
    except TypeError:
        raise SelectionError(
            f"blocks are named by whole numbers, such as [21, 22], found {reprlib.repr(blocks)}"
        ) from None
    outside = [i for i in numbers if not 0 <= i < depth]
    if outside:
        raise SelectionError(
            f"blocks {format_blocks(outside)} do not exist: the model has {depth} blocks, numbered 0 to {depth - 1}"
        )
    return tuple(numbers)


def kept_blocks(depth: int, remove: Iterable[int], pinned: Mapping[int, str]) -> tuple[int, ...]:
    """The blocks of 0..depth-1 that stay.

    Raises:
        SelectionError: a block is out of range or pinned, or all are to go. Removing none is allowed: the result is
            the same model, which is how the contract suite tests the road.
    """
    gone = block_numbers(remove, depth)
    held = [f"block {i}: {pinned[i]}" for i in gone if i in pinned]
    if held:
        raise SelectionError(f"pinned blocks cannot be removed ({'; '.join(held)}); choose others")
    if len(gone) == depth:
        raise SelectionError(f"all {depth} blocks were asked for; at least one must stay")
    return tuple(i for i in range(depth) if i not in set(gone))


def parse_blocks(text: str) -> tuple[int, ...]:
    """`"21-29,31"` → (21, ..., 29, 31).

    Raises:
        SelectionError: the text is not a list of block numbers and ranges.
    """
    blocks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 100_000:
            raise SelectionError(f"{text!r} is not a list of blocks; write block numbers and ranges, such as 21-29,31")
        blocks.update(range(first, last + 1))
    return tuple(sorted(blocks))


def format_blocks(blocks: Collection[int]) -> str:
    """(21, 22, 23, 31) → "21-23, 31"."""
    runs: list[list[int]] = []
    for i in sorted(blocks):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
