"""A shorter model in memory that is made up for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from shortgpt.basics.inputs import CalibrationOptions, Progress
from shortgpt.basics.progress import shown
from shortgpt.measuring.calibration import calibrate
from shortgpt.measuring.compensation.fit import fit
from shortgpt.measuring.compensation.fitted import Fitted
from shortgpt.models.removal import remove
from shortgpt.models.sequence import BlockSequence, check_opened

if TYPE_CHECKING:
    from shortgpt.values.plan import Plan


def compensate(
    model: BlockSequence,
    blocks: Plan | Iterable[int],
    calibration: Any = "stdlib",
    *,
    progress: Progress | bool | None = None,
    **options: Unpack[CalibrationOptions],
) -> BlockSequence:
    """Remove blocks in memory, and make up for each removed run by a linear map in the block in front of it.

    The map is multiplied into the last projection of that block, so the shorter model has no parameter more than
    `shortgpt.remove` gives it, and is saved and loaded like any other. Three quarters of the calibration's sequences
    are fitted, and the others say how large the map is to be, and whether it is kept; `result.plan.compensation` tells
    what was done about each run, and why nothing could be done about some.

    Args:
        blocks: what goes: block numbers, or a `Plan`.
        calibration: the text, as `shortgpt.score` takes it. More of it makes a better map.
        progress: True for bars; or it is called with "runs" after each of them.
        options: as for `shortgpt.score`.

    Returns:
        A model that shares its tensors with `model` but for those that changed; `model` is untouched.

    Raises:
        SelectionError: those blocks cannot be removed.
        CalibrationError: see `shortgpt.calibrate`; or there is one sequence only.
        HiddenStateError: the shorter model gives NaN or infinity.
    """
    progress = shown(progress)
    check_opened(model)
    shorter = remove(model, blocks)
    assert shorter.plan is not None
    fitted = fit(model, shorter.plan.blocks, calibrate(calibration, model, **options), progress=progress)
    return compensated(shorter, fitted)


def compensated(shorter: BlockSequence, fitted: Fitted) -> BlockSequence:
    """A model that was made shorter, with what was fitted for its removal; it is changed itself."""
    assert shorter.plan is not None
    stays = [block for block in range(shorter.plan.depth) if block not in fitted.blocks]
    shorter.change([change.at(stays.index(change.projection.block)) for change in fitted.changes])
    shorter.plan = replace(shorter.plan, compensation=fitted.record)
    return shorter
