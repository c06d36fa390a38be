"""What stands in a shorter checkpoint beside the model: its plan, its card, its exports."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortgpt.checkpoints import exports
from shortgpt.errors import OutputError
from shortgpt.values.plan import CARD_FILE, PLAN_FILE, Plan


def write_records(directory: Path, plan: Plan, source: Path | None = None) -> Plan:
    """Write `shortgpt.json`, the model card, and what the plan exports, into a checkpoint.

    Args:
        source: the folder of the model that it was made from, whose card says under which licence it stands.

    Returns:
        The plan as it was written: with a note where that card could not be read.
    """
    from shortgpt.checkpoints.card import model_card, source_metadata

    metadata: dict[str, Any] = {}
    try:
        metadata = source_metadata(source / CARD_FILE) if source is not None else {}
    except ValueError as error:
        note = f"The licence and what else the card of the source says is not carried over: {error}."
        plan = replace(plan, notes=(*plan.notes, note))
    try:
        exports.write_exports(directory, plan)
        (directory / PLAN_FILE).write_text(plan.to_json() + "\n", encoding="utf-8")
        (directory / CARD_FILE).write_text(model_card(plan, metadata), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{directory}: cannot be written ({error.strerror})") from None
    return plan


def unread_note(known: Collection[Path]) -> tuple[str, ...]:
    """The note on files whose hashes were not taken."""
    if not known:
        return ()
    return (
        f"SHA-256 of {len(known)} of the source's files is what the hub's cache names them by: sizes were checked, and "
        "nothing was read for it (`--rehash` reads them).",
    )
