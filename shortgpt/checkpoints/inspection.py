"""What removal would do to a model, and why it would refuse: read from its files, without loading its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shortgpt.basics.block_lists import parse_blocks
from shortgpt.basics.inputs import Config, Source
from shortgpt.checkpoints.weights import INDEXES, SINGLE_FILES, Weights
from shortgpt.errors import CheckpointError, ModelError, ShortGPTError
from shortgpt.models.configs import rules
from shortgpt.models.family import Family, refusal
from shortgpt.models.recognition import recognise, resolve
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.inspection import NO_RULE, Field, Inspection


def inspect(
    model: Any,
    remove: str | Iterable[int] = (),
    *,
    architecture: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Inspection:
    """Look at a model's files, without loading its weights.

    Args:
        model: a name or path; or a model in memory that was opened from one.
        remove: blocks to ask about: numbers, or a list of them in words, such as "21-29,31".
        architecture, trust_remote_code, revision: as `shortgpt.load` takes them.

    Raises:
        ModelError: its files cannot be read, or it has none.
    """
    source = model.source if isinstance(model, BlockSequence) else model
    if isinstance(source, (str, Path)):
        source = resolve(source, architecture, revision)
    if not isinstance(source, Source):
        raise ModelError("a model is inspected by its files, and this one has none; name its folder")
    family = recognise(source, architecture)
    config = family.read_config(source, trust_remote_code=trust_remote_code)
    own, depth = family.own(config), family.depth(config)
    removed = parse_blocks(remove) if isinstance(remove, str) else tuple(remove)
    refused = _refusal(source, family, config, removed) if removed else None
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
                rules.short((config | own)[one.field]),
                one.rule.name if one.rule is not None else NO_RULE,
            )
            for one in family.decisions(config, [i for i in range(depth) if i not in set(removed)] or range(depth))
            if not rules.is_idle(one)
        ),
        pinned=dict(family.pinned(config)),
        removed=removed,
        refusal=refused,
    )


def _refusal(source: Source, family: Family, config: Config, removed: Sequence[int]) -> str | None:
    """Why these blocks may not go, by the config and by the tensors in the files; None where they may."""
    if (reason := refusal(family, config, removed)) is not None:
        return reason
    if source.path.is_dir() and not any((source.path / name).exists() for name in (*SINGLE_FILES, *INDEXES)):
        return None  # a folder of a config alone is asked about too
    try:
        names = Weights(source).names
        family.check_tensors(config, names)
        keep = family.keep(config, removed)
        family.folds(config, keep, family.rename(names, family.depth(config), keep))
    except ShortGPTError as error:
        return str(error)
    return None


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
