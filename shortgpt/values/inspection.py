"""A model as the remover sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from shortgpt.basics.value import Value

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
