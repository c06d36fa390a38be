"""Open what was written in a fresh process, and compare it with what is expected of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from shortgpt.basics.inputs import OpenOptions
from shortgpt.checkpoints.weights import CACHE_LINE, Weights
from shortgpt.errors import VerificationError
from shortgpt.models.family import Family
from shortgpt.models.probing.expected_logits import Expectation
from shortgpt.models.probing.logit_comparison import ROUNDED, compare_logits
from shortgpt.models.removal import starred
from shortgpt.values.plan import Verification
from shortgpt.verification.fresh_process import Answer, ask
from shortgpt.verification.judgement import fingerprint, fingerprinted, generated, generated_behind, judge


def check(
    directory: Path,
    family: Family,
    expected: Expectation,
    options: OpenOptions,
    *,
    folded: bool = False,
    shifted: bool = False,
    rounding: float = 0.0,
    unrounded: tuple[Path, str] | None = None,
) -> Verification:
    """Open a checkpoint in a fresh process and compare it with what is expected of it.

    Args:
        unrounded: the same checkpoint with its folded weights as they are before they are rounded, which is compared
            in the place of this one; and the dtype that they are rounded to.
        folded: weights were changed to make up for a block's new place, which rounds them.
        shifted: weights stand at other places of a cache line, see `moved`.
        rounding: what else explains a difference, relative to the largest logit.

    Raises:
        VerificationError: it cannot be opened, or differs.
    """
    options = replace(options, stream=expected.streamed)
    proven = directory if unrounded is None else unrounded[0]
    answer = ask(proven, family, expected.probe, options)
    if isinstance(answer, Verification):
        return answer
    refuse_left_over(answer, family, expected.depth, expected.left_over)
    outcome = judge(answer, expected, family, options, folded=folded, shifted=shifted, rounding=rounding)
    if outcome.verified and expected.continued:
        outcome = _with_continued(outcome, answer, expected, family, options)
    outcome = replace(outcome, left_over=tuple(sorted(expected.left_over)))
    if unrounded is None or not outcome.verified:
        return outcome
    saved = ask(directory, family, expected.probe, options)
    if isinstance(saved, Verification):
        return saved
    refuse_left_over(saved, family, expected.depth, expected.left_over)
    eps = max(torch.finfo(getattr(torch, dtype)).eps for dtype in unrounded[1].split(" and "))
    moved_by = compare_logits(saved.logits, expected.logits, ROUNDED * eps)
    if not moved_by.equal:
        raise VerificationError(f"rounded to {unrounded[1]}, the logits {moved_by.told('the unrounded ones')}")
    return replace(
        outcome,
        generated=generated(saved, options.device),
        fingerprint=fingerprint(saved.logits),
        long_fingerprint=() if saved.long_logits is None else fingerprint(saved.long_logits),
        near=fingerprinted(expected.near, saved.near_logits),
        rounded_to=unrounded[1],
        rounding=moved_by.difference,
    )


def _with_continued(
    outcome: Verification, answer: Answer, expected: Expectation, family: Family, options: OpenOptions
) -> Verification:
    """The same with what was generated behind the long probe, which is judged by the original's own cache.

    Some libraries' caches are wrong behind a window, or where RoPE switches: in the original as well. That is told.
    """
    behind = f"cached generation behind {0 if expected.long_ids is None else expected.long_ids.shape[1]} tokens"
    try:
        return replace(outcome, generated_behind=generated_behind(answer, options.device))
    except VerificationError as error:
        if expected.origin is None:
            raise
        original = ask(expected.origin, family, replace(expected.probe, near=()), options)
        if isinstance(original, Verification):
            return replace(outcome, beyond=(*outcome.beyond, f"{behind} ({error}; {original.reason})"))
        try:
            generated_behind(original, options.device)
        except VerificationError:
            told = f"{behind}, which fails in the original as well"
            return replace(outcome, beyond=(*outcome.beyond, told))
        raise error from None


def refuse_left_over(answer: Answer, family: Family, depth: int, allowed: Collection[str]) -> None:
    """Raise a `VerificationError` for a tensor that the library passes over here and not in the original.

    Args:
        depth: the blocks that the checkpoint has.
        allowed: what it passes over of the original, see `BlockSequence.left_over`.
    """
    if answer.left_over is None:
        return
    left_over = starred(answer.left_over.split("\n"), family.block_lists[0], depth)
    if strange := sorted(left_over.difference(allowed)):
        raise VerificationError(
            f"the files hold {len(strange)} tensors ({strange[0]}, ...) that the library passes over, and that it does "
            "not pass over in the original"
        )


def moved(before: Weights, after: Weights, renamed: Mapping[str, str]) -> bool:
    """Whether a tensor stands at another place of a cache line than it did: files are mapped into memory, and some
    kernels (those for experts) sum in an order that depends on it.

    Args:
        renamed: new tensor name → old one; names that `after` does not have are passed over.
    """
    now = {name: entry.begin for table in after.tensors.values() for name, entry in table.items()}
    then = {name: entry.begin for table in before.tensors.values() for name, entry in table.items()}
    return any((now[new] - then[old]) % CACHE_LINE for new, old in renamed.items() if new in now)
