"""How a removal of one type is made up for, tried on a tiny model: in memory, on disk, and opened again.

The map is a random one, so that nothing hangs on how good it is: the whole model with the map and the blocks skipped
must compute what the shorter one does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import shortgpt
from shortgpt.measuring.compensation.fitted import Fitted
from shortgpt.models.probing.logit_comparison import compare_logits
from shortgpt.models.projections import Change, Projection
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.compensation import Compensation, RunFit
from shortgpt.verification.removal_on_disk import prune_checkpoint

TOLERANCE = 1e-5
WAYS = {"map": "map", "scale": "rows", "gain": "gain"}
Verified = Callable[[BlockSequence, Path, tuple[int, ...]], Any]


def try_compensation(
    original: BlockSequence, batch: dict[str, Any], removals: list[tuple[int, ...]], place: Path, verified: Verified
) -> str:
    """What is changed and how ("map: mlp.down_proj.weight"), or "no: " and why not.

    Args:
        removals: the first of them that may be made is made up for.
        verified: raises where a folder is not what the original computes without these blocks.

    Raises:
        AssertionError: what was made computes something else. Anything else that a model's code raises.
    """
    for gone in removals:
        if gone[0] == 0 or original.refuse_removal(gone) is not None:
            continue
        projection = original.projection(gone[0] - 1, batch)
        if isinstance(projection, str):
            return f"no: {projection}"
        _check(original, batch, gone, projection, place, verified)
        names = sorted({_starred(name) for name in projection.tensors})
        return f"{WAYS[projection.form]}: {', '.join(f'`{name}`' for name in names)}"
    return "no: none of the removals may be made"


def _check(
    original: BlockSequence,
    batch: dict[str, Any],
    gone: tuple[int, ...],
    projection: Projection,
    place: Path,
    verified: Verified,
) -> None:
    generator = torch.Generator().manual_seed(0)
    width = projection.width
    numbers = 0.3 * torch.randn(width, dtype=torch.float64, generator=generator)
    if projection.form == "map":
        numbers = torch.eye(width, dtype=torch.float64) + torch.outer(numbers, numbers.flip(0))
    elif projection.form == "scale":
        numbers = 1 + numbers
    change = Change(projection, numbers)
    with original.changing((change,)), original.skipping(gone):
        expected = original.logits(batch)
    stays = [block for block in range(len(original)) if block not in gone]
    shorter = shortgpt.remove(original, gone)
    shorter.change((change.at(stays.index(projection.block)),))
    found = compare_logits(shorter.logits(batch), expected, max(TOLERANCE, getattr(shorter, "family").tolerance))  # noqa: B009
    assert found.equal, f"in memory: logits {found.told('those with the same map')}"
    with original.skipping(gone):
        plain = original.logits(batch)
    assert not torch.equal(plain, expected), "the map does nothing"
    original.save(place / "whole")
    record = Compensation((RunFit(gone, projection.block, projection.form, kept=True, hash=change.hash),))
    prune_checkpoint(place / "whole", place / "out", gone, verify=False, fitted=Fitted(gone, (change,), record))
    with original.changing((change,)):
        verified(original, place / "out", gone)


def _starred(name: str) -> str:
    """A tensor's name with `*` for an expert's number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
