"""What a search makes as small as it can: a number a sequence of the model without a set of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from shortgpt.measuring.angles import precise, tokens_at_a_time
from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, batch_sums, open_evaluator
from shortgpt.values.choosing.search import KL, PERPLEXITY

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import TokenBatch


class Objective(ABC):
    """A mean over tokens; lower is better.

    Attributes:
        name: what users call it.
        needs_whole: whether it compares with the whole model's logits.
    """

    name: ClassVar[str]
    needs_whole: ClassVar[bool]

    @abstractmethod
    def sums(self, logits: Tensor, whole: Tensor | None, batch: TokenBatch) -> tuple[list[float], list[int]]:
        """The sums over each sequence's tokens, and how many tokens each is of, [sequences].

        Args:
            logits: without some blocks, [batch, tokens, vocabulary].
            whole: those of the whole model, where `needs_whole`.
            batch: real tokens first in every row.
        """


class LogPerplexity(Objective):
    """`−1/T Σ log p(token t | tokens before it)`, in nats."""

    name = PERPLEXITY
    needs_whole = False

    def __init__(self) -> None:
        self.evaluator = open_evaluator(DEFAULT_EVALUATOR)

    def sums(self, logits: Tensor, whole: Tensor | None, batch: TokenBatch) -> tuple[list[float], list[int]]:
        found, counts = batch_sums(logits, batch, self.evaluator)
        return found.tolist(), counts


class Divergence(Objective):
    """`KL(p ‖ q) = Σ p (log p − log q)` of the next token's distribution, in nats, p of the whole model and q of the
    shorter one; at every token of the text, whatever comes after it (Hinton et al., arXiv:1503.02531, no labels)."""

    name = KL
    needs_whole = True

    def sums(self, logits: Tensor, whole: Tensor | None, batch: TokenBatch) -> tuple[list[float], list[int]]:
        assert whole is not None
        mask, shape = batch.get("attention_mask"), batch["input_ids"].shape
        lengths = [shape[1]] * shape[0] if mask is None else mask.bool().sum(1).tolist()
        rows = zip(whole, logits, lengths, strict=True)
        return [divergence(p[:length], q[:length]) for p, q, length in rows], lengths


def divergence(p: Tensor, q: Tensor) -> float:
    """The sum over tokens of KL(p ‖ q), float64, of logits, [tokens, vocabulary]."""
    size = tokens_at_a_time(p)
    total = 0.0
    for ours, theirs in zip(p.split(size), q.split(size), strict=True):
        log_p, log_q = precise(ours).log_softmax(-1), precise(theirs).log_softmax(-1)
        terms = (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -float("inf"), 0)  # 0 log 0 = 0
        total += float(terms.sum(-1).clamp_min(0).cpu().double().sum())
    return total


def open_objective(name: str) -> Objective:
    """The objective of one of the names `shortgpt.values.choosing.search.OBJECTIVES`."""
    return LogPerplexity() if name == PERPLEXITY else Divergence()
