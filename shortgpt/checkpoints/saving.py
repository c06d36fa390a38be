"""A model in memory, written as a checkpoint with its plan and card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shortgpt.basics import file_changes
from shortgpt.basics.inputs import Source
from shortgpt.checkpoints import companions
from shortgpt.checkpoints.companions import Kept
from shortgpt.checkpoints.hashing import hashes_of
from shortgpt.checkpoints.new_folder import new_folder
from shortgpt.checkpoints.records import unread_note, write_records
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import CheckpointError
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.plan import Plan


def save(model: BlockSequence, directory: str | Path) -> None:
    """Write a checkpoint into a new folder, all or nothing; the body of `BlockSequence.save`.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
        CheckpointError: the source, whose hashes are recorded, was changed since the model was opened.
    """
    with new_folder(directory) as temporary:
        plan = write(model, temporary)
        if plan is not None:
            write_records(temporary, plan, model.source.path if model.source is not None else None)


def write(model: BlockSequence, folder: Path, *, rehash: bool = False) -> Plan | None:
    """Write weights, config and what lies beside them, without the records.

    Args:
        rehash: read the source's files for their hashes even where the hub's cache names them by these.

    Returns:
        The plan to record; None for a model that was not made shorter.
    """
    model.write(folder)
    plan = model.plan
    if model.source is None:
        return plan
    notes = companions.settle(model.source, folder, _kept(model, plan))
    if plan is None:
        return None
    plan = replace(plan, notes=(*plan.notes, *notes))
    if not plan.source_hashes:
        files, known = _hashed(model.source)
        known = {} if rehash else known
        notes = (*plan.notes, *unread_note(known))
        plan = replace(plan, source_hashes=hashes_of(files, known=known), notes=notes)
        file_changes.check(model.name, {file: stamp for file, stamp in model.source.stamps.items() if file in files})
    return plan


def _hashed(source: Source) -> tuple[list[Path], dict[Path, str]]:
    """The config and every weight file, and the hashes that a cache tells; every file where only the family that opened
    the model can read them."""
    try:
        weights = Weights(source)
    except CheckpointError:
        return list(source.stamps), {}
    return weights.hashed, weights.cached_hashes()


def _kept(model: BlockSequence, plan: Plan | None) -> Kept | None:
    """The blocks that stay of the source's; None where no plan tells."""

    if plan is None or model.source is None:
        return None
    plans, of_source = [plan], Plan.beside(model.source.path)
    while (base := plans[-1].base) is not None and base != of_source:
        plans.append(base)
    keep = tuple(range(plans[-1].depth))
    for removal in reversed(plans):
        keep = tuple(block for place, block in enumerate(keep) if place not in removal.blocks)
    return Kept(keep, plans[-1].depth, (model.block_names[0].rpartition(".")[0],))
