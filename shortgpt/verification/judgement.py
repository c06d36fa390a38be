"""Does a reloaded model compute what is expected of it? The comparison behind a verification, and what it allows.

Logits must be equal on the CPU: a shorter model computes what the longer one computes under skipping. What rounds is
named: weights that were folded, weights at other places of memory, other kernels on a GPU, another architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shortgpt.basics.inputs import NearDistance, OpenOptions
from shortgpt.errors import VerificationError
from shortgpt.models.family import Family
from shortgpt.models.probing.expected_logits import Expectation
from shortgpt.models.probing.logit_comparison import (
    CACHED,
    CACHED_ON_ACCELERATOR,
    ELSEWHERE,
    EXACT,
    FOLDED,
    MOVED,
    compare_logits,
    is_half,
    proves_nothing,
)
from shortgpt.values.plan import Verification
from shortgpt.verification.fresh_process import Answer

if TYPE_CHECKING:
    from torch import Tensor


def judge(
    answer: Answer,
    expected: Expectation,
    family: Family,
    options: OpenOptions,
    *,
    folded: bool = False,
    shifted: bool = False,
    rounding: float = 0.0,
) -> Verification:
    """Compare what a reloaded model answered with what is expected of it. See `check`.

    Where half precision cannot tell, the result is not verified and names its `dtype`; see `needs_float32`.
    """
    tolerance = tolerance_for(family, options.device, folded=folded, shifted=shifted, rounding=rounding)
    needs_float32 = tolerance > EXACT and is_half(answer.dtype)
    if needs_float32:
        tolerance = EXACT
    differences = []
    for on, logits, without_blocks in _pairs(answer, expected):
        if nothing := proves_nothing(without_blocks):
            return Verification(
                verified=False,
                reason=f"the original's logits{on} with these blocks skipped {nothing}, which proves nothing",
            )
        difference = compare_logits(logits, without_blocks, tolerance)
        if needs_float32 and not difference.equal:
            reason = f"in {answer.dtype} rounding would hide what is wrong"
            return Verification(verified=False, reason=reason, dtype=answer.dtype)
        if not difference.equal:
            skipped = "the original's with these blocks skipped"
            raise VerificationError(f"the shorter model's logits{on} {difference.told(skipped)}")
        differences.append(difference)
    long = expected.long_logits if answer.float32_long_logits is None else answer.float32_long_logits
    return Verification(
        verified=True,
        max_difference=max(difference.difference for difference in differences),
        max_logit=differences[0].largest,
        tolerance=tolerance,
        probe=tuple(expected.input_ids.shape),
        generated=generated(answer, options.device),
        not_generated=answer.cannot_generate,
        device=options.device,
        dtype=answer.dtype,
        streamed=options.stream,
        probe_ids=tuple(map(tuple, expected.input_ids.tolist())),
        fingerprint=fingerprint(expected.logits if answer.float32_logits is None else answer.float32_logits),
        generation_dtype=answer.generation_dtype,
        mended=answer.mended,
        long_ids=() if expected.long_ids is None else tuple(expected.long_ids[0].tolist()),
        long_fingerprint=() if long is None else fingerprint(long),
        side_inputs=dict(expected.side),
        beyond=expected.beyond,
        idle=expected.idle,
        near=fingerprinted(expected.near, answer.near_logits),
    )


def tolerance_for(
    family: Family, device: str, *, folded: bool = False, shifted: bool = False, rounding: float = 0.0
) -> float:
    """By how much the logits of removing and skipping may differ, relative to the largest: not at all, unless there is
    a reason to round otherwise."""
    reasons = [family.tolerance, rounding]
    if folded or family.tolerance > 0:
        reasons.append(FOLDED)
    if shifted:
        reasons.append(MOVED)
    if device != "cpu":
        reasons.append(ELSEWHERE)
    return max(EXACT, *reasons)


def needs_float32(outcome: Verification) -> bool:
    """Whether models were compared in half precision, and only float32 can tell."""
    return not outcome.verified and outcome.dtype is not None


def _pairs(answer: Answer, expected: Expectation) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Logits that were found and those that are expected, each pair with the tokens that it is of, for a message."""
    yield "", answer.logits, expected.logits
    if expected.long_ids is not None and expected.long_logits is not None and answer.long_logits is not None:
        yield f" on {expected.long_ids.shape[1]} tokens", answer.long_logits, expected.long_logits
    near_logits = () if answer.near_logits is None else answer.near_logits
    for near, logits, wanted in zip(expected.near, near_logits, expected.near_logits, strict=True):
        yield f" with {near} set to {near.small}", logits, wanted


def fingerprint(logits: Tensor) -> tuple[float, ...]:
    """256 of the logits of the probe batch, always at the same places. JSON has no infinity: masks are written as the
    lowest number of float32."""
    import torch

    places = torch.randint(0, logits.numel(), (256,), generator=torch.Generator().manual_seed(0))
    return tuple(logits.flatten()[places].clamp(min=torch.finfo(torch.float32).min).tolist())


def fingerprinted(near: Sequence[NearDistance], logits: Tensor | None) -> tuple[NearDistance, ...]:
    """Distances that were set small, each with the fingerprint of its logits, [distances, 2, tokens, vocabulary]."""
    if logits is None:
        return ()
    return tuple(replace(one, fingerprint=fingerprint(of)) for one, of in zip(near, logits, strict=True))


def generated(answer: Answer, device: str) -> int:
    """How many greedy tokens were the same with a cache and without; 0 where there are none."""
    return _compared(answer, answer.cached, answer.uncached, device)


def generated_behind(answer: Answer, device: str) -> int:
    """The same of the tokens behind the long probe.

    Raises:
        VerificationError: logits differ by more than rounding, or the model could not generate them.
    """
    if answer.cannot_continue is not None:
        raise VerificationError(f"behind the long probe it generates no tokens ({answer.cannot_continue})")
    return _compared(answer, answer.long_cached, answer.long_uncached, device)


def _compared(answer: Answer, cached: Tensor | None, uncached: Tensor | None, device: str) -> int:
    import torch

    if cached is None or uncached is None:
        return 0
    least = CACHED if device == "cpu" else CACHED_ON_ACCELERATOR
    eps = torch.finfo(getattr(torch, answer.generation_dtype or answer.dtype)).eps
    return compare_generation(cached, uncached, eps, least)


def compare_generation(cached: Tensor, uncached: Tensor, eps: float, least: float = CACHED) -> int:
    """Compare the logits of greedy tokens, [tokens, vocabulary], up to the first one that rounding made another.

    From that one on the texts differ. Equal tokens alone would say little: a mixed-up cache often leaves the first ones
    as they are. So the logits are compared, to 64 roundings or `least` of the largest; in bfloat16, where 64 roundings
    would be half of it, to an eighth.

    Returns:
        How many tokens were the same.

    Raises:
        VerificationError: logits differ by more than rounding.
    """
    tolerance = min(max(64 * eps, least), 0.125)
    for step, (with_cache, without) in enumerate(zip(cached, uncached, strict=True)):
        difference = compare_logits(with_cache, without, tolerance)
        if not difference.equal:
            by = difference.fault or f"by {difference.difference:.3g} ({difference.bounds})"
            raise VerificationError(f"cached generation differs from uncached at token {step}: its logits {by}")
        if int(with_cache.argmax()) != int(without.argmax()):
            return step
    return len(cached)
