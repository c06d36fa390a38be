"""Removal as a rewrite: which blocks stay → a new config and new tensor names.

::

    blocks kept   0  1  3  4          config   n_layer 5 → 4, layer_types[2] gone, moe_layers 3 → 2 ...
                  │  │  │  │          tensors  layers.3.mlp.weight → layers.2.mlp.weight ...
    renumbered    0  1  2  3

The same two rewrites serve in memory (`remove`) and on disk (`shortgpt.verification.removal_on_disk`). That of the
config is driven by `shortgpt.models.configs.rules`; that of the names is `shortgpt.models.renaming`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from shortgpt.basics.block_lists import block_numbers
from shortgpt.errors import ModelError
from shortgpt.models.sequence import check_opened
from shortgpt.values.plan import Plan

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence


def starred(names: Iterable[str], path: str, depth: int) -> frozenset[str]:
    """Tensor names with `*` in place of a block's number: what is called alike in several blocks is one name then.

    Names outside the block list at `path`, and those of blocks that a model of that depth does not have, stay as they
    are. A name's list may stand with more of the path around it than `path`, or with less.
    """

    def star(name: str) -> str:
        split = split_block_name(name, path)
        return f"{split[0]}.*.{split[2]}" if split is not None and split[1] < depth else name

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
    from shortgpt.values.plan import Plan

    check_opened(model)
    plan = blocks if isinstance(blocks, Plan) else plan_of(model, blocks)
    check_plan(model, plan)
    shorter = model.without(plan.blocks)
    shorter.plan = replace(
        plan,
        base=model.plan,
        parameters_before=model.total_parameters(),
        parameters_after=shorter.total_parameters(),
        load=shorter.load_example,
        notes=model.notes_without(plan.blocks),
    )
    return shorter


def check_plan(model: BlockSequence, plan: Plan) -> None:
    """Raise a `ModelError` where a plan is for another architecture or depth."""
    if plan.architecture != model.architecture:
        raise ModelError(f"the plan is for the architecture {plan.architecture}, {model.name} is {model.architecture}")
    if plan.depth != len(model):
        raise ModelError(f"the plan is for a model of {plan.depth} blocks, {model.name} has {len(model)}")


def plan_of(model: BlockSequence, blocks: Iterable[int]) -> Plan:
    """The plan that removes the named blocks.

    Raises:
        SelectionError: there are no such blocks.
    """
    return Plan(
        model=model.name,
        architecture=model.architecture,
        depth=len(model),
        blocks=block_numbers(blocks, len(model)),
        base=model.plan,
    )
