"""What removal would do to a model, and why it would refuse: read from its files, without loading its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shortgpt import config_rules
from shortgpt.choice import refusal
from shortgpt.errors import CheckpointError
from shortgpt.families import Family, Source
from shortgpt.values import Value
from shortgpt.weights import Weights

if TYPE_CHECKING:
    from shortgpt.tables import Table

NO_RULE = "no rule: a removal stops here"


@dataclass(frozen=True)
class Field(Value):
    """A config field that depends on the blocks, or looks so.

    Attributes:
        name: of the field.
        value: as text.
        rule: what a removal does with it.
    """

    name: str
    value: str
    rule: str


@dataclass(frozen=True)
class Inspection(Value):
    """A model as the remover sees it.

    Attributes:
        model: as it was named.
        architecture: the adapter.
        norm_placement: where the blocks normalise the stream.
        depth: the number of blocks.
        classes: each block's class; empty where the adapter does not tell.
        parameters: the parameters of each block; empty where neither config nor files tell.
        stream: how the blocks hand the stream on, in words.
        fields: the config fields that depend on the blocks.
        pinned: blocks that cannot be removed, each with its reason.
        removed: the blocks that were asked about.
        refusal: why they cannot be removed; None where they can, or none were asked about.
    """

    model: str
    architecture: str
    norm_placement: str
    depth: int
    classes: tuple[str, ...]
    parameters: tuple[int, ...]
    stream: str
    fields: tuple[Field, ...]
    pinned: dict[int, str] = field(default_factory=dict)
    removed: tuple[int, ...] = ()
    refusal: str | None = None

    def tables(self) -> tuple[Table, ...]:
        from shortgpt.reports.inspection import tables

        return tables(self)


def inspect(
    source: Source, family: Family, remove: Iterable[int] = (), *, trust_remote_code: bool = False
) -> Inspection:
    """Look at a model without loading it.

    Args:
        remove: blocks to ask about.

    Raises:
        ModelError: its files cannot be read.
    """
    config = family.read_config(source, trust_remote_code=trust_remote_code)
    own, depth, removed = family.own(config), family.depth(config), tuple(remove)
    refused = refusal(family, config, removed) if removed else None
    classes, stream = family.describe_blocks(config)
    return Inspection(
        model=source.name,
        architecture=family.architecture,
        norm_placement=family.norm_placement,
        depth=depth,
        classes=classes,
        parameters=family.block_parameters(config) or _parameters(source, family, depth),
        stream=stream,
        fields=tuple(
            Field(
                one.field,
                config_rules.short((config | own)[one.field]),
                one.rule.name if one.rule is not None else NO_RULE,
            )
            for one in family.decisions(config, [i for i in range(depth) if i not in set(removed)] or range(depth))
            if not config_rules.is_idle(one)
        ),
        pinned=dict(family.pinned(config)),
        removed=removed,
        refusal=refused,
    )


def _parameters(source: Source, family: Family, depth: int) -> tuple[int, ...]:
    """Each block's share of the tensors in the files: what is gone without it."""
    try:
        weights = Weights(source)
    except CheckpointError:
        return ()
    whole = weights.parameters(weights.names)

    def without(block: int) -> int:
        keep = [i for i in range(depth) if i != block]
        return weights.parameters(family.rename(weights.names, depth, keep).values())

    return tuple(whole - without(block) for block in range(depth))
