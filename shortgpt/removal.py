"""Removal as a rewrite: which blocks stay → a new config and new tensor names.

::

    blocks kept   0  1  3  4          config   n_layer 5 → 4, layer_types[2] gone, moe_layers 3 → 2 ...
                  │  │  │  │          tensors  layers.3.mlp.weight → layers.2.mlp.weight ...
    renumbered    0  1  2  3

The same two rewrites serve in memory (`remove`) and on disk (`shortgpt.checkpoint`). That of the config is driven by
the rules of `shortgpt.config_rules`; that of the names is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shortgpt.blocks import check_opened
from shortgpt.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from shortgpt.blocks import BlockSequence
    from shortgpt.plan import Plan


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


def starred(names: Iterable[str], path: str, depth: int) -> frozenset[str]:
    """Tensor names with `*` in place of a block's number: what is called alike in several blocks is one name then.

    Names outside the block list at `path`, and those of blocks that a model of that depth does not have, stay as they
    are. A name's list may stand with more of the path around it than `path`, or with less.
    """

    def star(name: str) -> str:
        found = split_block_name(name, path)
        return f"{found[0]}.*.{found[2]}" if found is not None and found[1] < depth else name

    return frozenset(map(star, names))


def split_block_name(name: str, path: str) -> tuple[str, int, str] | None:
    """A tensor's block list as its name has it, the block's number, and the rest; None outside the list at `path`."""
    for match in re.finditer(r"\.(\d+)\.", name):
        prefix = name[: match.start()]
        if f".{prefix}".endswith(f".{path}") or f".{path}".endswith(f".{prefix}"):
            return prefix, int(match[1]), name[match.end() :]
    return None


def remove(model: BlockSequence, blocks: Plan | Iterable[int]) -> BlockSequence:
    """A shorter model in memory that shares its tensors with `model`, which is untouched.

    Its parameters are the original's: to train it, train a deep copy, or save and load it.

    Args:
        blocks: what goes: block numbers, or a `Plan`, which the shorter model then records when it is saved.

    Raises:
        SelectionError: those blocks cannot be removed.
    """
    from shortgpt.plan import Plan

    check_opened(model)
    plan = blocks if isinstance(blocks, Plan) else Plan.of(model, blocks)
    if plan.architecture != model.architecture:
        raise ModelError(f"the plan is for the architecture {plan.architecture}, {model.name} is {model.architecture}")
    if plan.depth != len(model):
        raise ModelError(f"the plan is for a model of {plan.depth} blocks, {model.name} has {len(model)}")
    shorter = model.without(plan.blocks)
    shorter.plan = replace(
        plan,
        base=model.plan,
        parameters_before=model.total_parameters(),
        parameters_after=shorter.total_parameters(),
        load=shorter.load_example,
        notes=model.notes,
    )
    return shorter
