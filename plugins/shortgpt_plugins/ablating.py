"""Criteria that run the model themselves: with blocks left out, or read out at every boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shortgpt.measuring.angles import precise, tokens_at_a_time
from shortgpt.measuring.criteria import BatchCriterion, OrderCriterion
from shortgpt.measuring.evaluation import batch_sums, evaluate_cuts
from shortgpt.measuring.scoring.score import score
from shortgpt.models.sequence import Cut
from shortgpt_plugins.evaluators import Perplexity

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence, TokenBatch


class RemovalPerplexity(BatchCriterion):
    """`−1/T Σ log p(token t | tokens before it)` of the model without block i: the logarithm of its perplexity.

    Figures 1 and 3 of ShortGPT (arXiv:2403.03853) show exp of it. The logarithm is a mean over predicted tokens, so it
    has a standard error, and ranks blocks the same. What comes before the block is computed once for all of them.
    """

    def measure(self, model: BlockSequence, batch: TokenBatch) -> tuple[Tensor, Sequence[int]]:
        cuts = [Cut(block) for block in range(len(model))]
        results = [batch_sums(logits, batch, Perplexity()) for logits in model.ablated(batch, cuts)]
        return torch.stack([sums for sums, _ in results], 1), results[0][1]


class KlDivergence(BatchCriterion):
    """`KL(p_{i+1} ‖ p_i) = Σ p_{i+1} (log p_{i+1} − log p_i)`, in nats, averaged over all tokens.

    p_i is the distribution of the next token that the model's own final norm and head make of x_i (the "logit lens",
    nostalgebraist 2020). So it says how much is lost when the head reads before the block in place of behind it.
    """

    def refuse(self, model: BlockSequence) -> str | None:
        return model.refuse_readouts()

    def measure(self, model: BlockSequence, batch: TokenBatch) -> tuple[Tensor, Sequence[int]]:
        mask = batch.get("attention_mask")
        shape = batch["input_ids"].shape
        lengths = [shape[1]] * shape[0] if mask is None else mask.bool().sum(1).tolist()
        columns: list[Tensor] = []
        before: Tensor | None = None
        for after in model.readouts(batch):
            if before is not None:
                rows = [(p[:n], q[:n]) for p, q, n in zip(before, after, lengths, strict=True)]
                columns.append(torch.stack([_divergence(*pair) for pair in rows]))
            before = after
        return torch.stack(columns, 1), lengths


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    """The sum over tokens of KL(after ‖ before), float64 on the CPU, of logits, [tokens, vocabulary].

    In float64, since for a redundant block it is a small difference of large sums.
    """
    size = tokens_at_a_time(after)
    total = torch.zeros((), dtype=torch.float64)
    for p, q in zip(after.split(size), before.split(size), strict=True):
        log_p, log_q = precise(p).log_softmax(-1), precise(q).log_softmax(-1)
        terms = (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -torch.inf, 0)  # 0 log 0 = 0
        total += terms.sum(-1).clamp_min(0).cpu().double().sum()
    return total


class Greedy(OrderCriterion):
    """One block after another, each time the one without which the perplexity of what is left is the lowest.

    SLEB, Song et al. 2024 (arXiv:2402.09025), Algorithm 1, with its metric 3. Of equal ones the deeper goes first.
    About L²/2 evaluations for L blocks.
    """

    def order(self, model: BlockSequence, data: Calibration, progress: Progress) -> Sequence[int]:
        def cost(allowed: Sequence[int], gone: Sequence[int]) -> list[float]:
            qualities = evaluate_cuts(model, data, Perplexity(), [Cut(block) for block in allowed], gone, progress)
            return [quality.mean for quality in qualities]

        return _one_by_one(model, cost, progress)


class IterativeBlockInfluence(OrderCriterion):
    """One block after another, each time that of the least Block Influence (Eq. 1 of ShortGPT, arXiv:2403.03853) in the
    model without those before it, which are skipped. Of equal ones the deeper goes first. L passes for L blocks.
    """

    def order(self, model: BlockSequence, data: Calibration, progress: Progress) -> Sequence[int]:
        def cost(allowed: Sequence[int], gone: Sequence[int]) -> list[float]:
            with model.skipping(gone):
                values = score(model, data).values
            return [values[block] for block in allowed]

        return _one_by_one(model, cost, progress)


def _one_by_one(
    model: BlockSequence, cost: Callable[[Sequence[int], Sequence[int]], list[float]], progress: Progress
) -> list[int]:
    """The order in which the cheapest block goes, then the cheapest of the others without it, and so on.

    A block goes only where the model allows it together with those that are gone. What can never go, pinned blocks
    among it, comes last, and before that what is left when no block may go any more; the deeper first.

    Args:
        cost: for the blocks that may go now and those that are gone, what each of the former would cost.
    """
    gone: list[int] = []
    while True:
        allowed = [
            block for block in range(len(model)) if block not in gone and not model.refuse_removal([*gone, block])
        ]
        if not allowed:
            break
        costs = cost(allowed, gone) if len(allowed) > 1 else [0.0]
        _, deepest = min((value, -block) for value, block in zip(costs, allowed, strict=True))
        gone.append(-deepest)
        progress("removals", len(gone), len(model))
    left = [block for block in range(len(model))[::-1] if block not in gone]
    progress("removals", len(model), len(model))
    return [*gone, *sorted(left, key=lambda block: block in model.pinned)]
