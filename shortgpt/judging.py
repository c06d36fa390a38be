"""Does a reloaded model compute what is expected of it? The comparison behind a verification, and what it allows.

Logits must be equal on the CPU: a shorter model computes what the longer one computes under skipping. What rounds is
named: weights that were folded, weights at other places of memory, other kernels on a GPU, another architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortgpt.errors import VerificationError
from shortgpt.families import Family, OpenOptions
from shortgpt.plan import Verification
from shortgpt.reloading import Answer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Expectation:
    """What the shorter model's logits have to be.

    Attributes:
        streamed: computed with the weights read block by block, as the shorter model's are to be.
    """

    input_ids: Tensor
    logits: Tensor
    streamed: bool = False


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
    """Compare what a reloaded model answered with what is expected of it. See `check`."""
    import torch

    logits = answer.logits
    if logits.shape != expected.logits.shape:
        raise VerificationError(
            f"the logits have the shape {tuple(logits.shape)}, expected {tuple(expected.logits.shape)}"
        )
    difference = (logits - expected.logits).abs().max().item()
    largest = expected.logits.abs().max().item()
    eps = torch.finfo(getattr(torch, answer.dtype)).eps
    tolerance = max(family.tolerance, rounding)
    if folded or family.tolerance > 0:
        tolerance = max(tolerance, 16 * eps)
    if shifted:
        tolerance = max(tolerance, 4 * eps)
    if options.device != "cpu":  # two processes may be given different kernels there, whose sums round differently
        tolerance = max(tolerance, min(max(1e-4, 10 * eps), 4e-2))
    if not difference <= tolerance * largest:
        raise VerificationError(
            f"the shorter model's logits differ by {difference:.3g} from the original's with these blocks skipped "
            f"(largest logit {largest:.4g}, allowed {tolerance * largest:.3g})"
        )
    return Verification(
        verified=True,
        max_difference=difference,
        max_logit=largest,
        tolerance=tolerance,
        probe=tuple(expected.input_ids.shape),
        generated=generated(answer, eps, options.device),
        not_generated=answer.cannot_generate,
        device=options.device,
        dtype=answer.dtype,
        streamed=options.stream,
        probe_ids=tuple(map(tuple, expected.input_ids.tolist())),
        fingerprint=fingerprint(expected.logits),
    )


def fingerprint(logits: Tensor) -> tuple[float, ...]:
    """256 of the logits of the probe batch, always at the same places."""
    import torch

    places = torch.randint(0, logits.numel(), (256,), generator=torch.Generator().manual_seed(0))
    return tuple(logits.flatten()[places].tolist())


def generated(answer: Answer, eps: float, device: str) -> int:
    """How many greedy tokens were the same with a cache and without; 0 where there are none."""
    if answer.cached is None or answer.uncached is None:
        return 0
    # Kernels that scan a whole text (Mamba 2's) multiply float32 as TF32, a step with a cache does not.
    return compare_generation(answer.cached, answer.uncached, eps, 1e-3 if device == "cpu" else 5e-3)


def compare_generation(cached: Tensor, uncached: Tensor, eps: float, least: float = 1e-3) -> int:
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
        difference = (with_cache - without).abs().max().item()
        largest = without.abs().max().item()
        if not difference <= tolerance * largest:
            raise VerificationError(
                f"cached generation differs from uncached at token {step}: its logits by {difference:.3g} (largest "
                f"logit {largest:.4g}, allowed {tolerance * largest:.3g})"
            )
        if int(with_cache.argmax()) != int(without.argmax()):
            return step
    return len(cached)
