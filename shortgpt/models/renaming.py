"""Tensors' names, renumbered for the blocks that stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shortgpt.errors import CheckpointError


def rename_blocks(names: Iterable[str], lists: Sequence[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
    """New tensor name → old one for all that stays, in the order of `names`.

    `lists` are the dotted paths with which a block's tensors may begin; the one that is there is taken.

    Raises:
        CheckpointError: a block has no tensors, or there are tensors of blocks that the config does not count.
    """
    names = list(names)
    for path in lists:
        pattern = re.compile(re.escape(path) + r"\.(\d+)\.(.+)")
        matches = {name: match for name in names if (match := pattern.fullmatch(name))}
        if matches:
            break
    else:
        raise CheckpointError(f"no tensor belongs to a block: none is named {' or '.join(f'{p}.N.…' for p in lists)}")
    present = {int(match[1]) for match in matches.values()}
    missing = sorted(set(range(depth)) - present)
    if missing:
        raise CheckpointError(
            f"the config counts {depth} blocks, but {path}.{missing[0]} has no tensors; files are missing"
        )
    if max(present) >= depth:
        raise CheckpointError(f"the config counts {depth} blocks, but there are tensors of {path}.{max(present)}")
    place = {old: new for new, old in enumerate(keep)}
    renamed = {}
    for name in names:
        match = matches.get(name)
        if match is None:
            renamed[name] = name
        elif int(match[1]) in place:
            renamed[f"{path}.{place[int(match[1])]}.{match[2]}"] = name
    return renamed
