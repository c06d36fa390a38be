"""How well the next token is predicted."""

import math

import torch
from torch import Tensor

from shortgpt.measuring.evaluation import Evaluator


class Perplexity(Evaluator):
    """`exp(−1/T Σ log p(token t | tokens before it))`: how many tokens the model hesitates between."""

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    def summary(self, mean: float) -> float:
        return math.exp(mean) if mean < 700 else math.inf  # beyond a float


class Accuracy(Evaluator):
    """The share of tokens that the model takes for the likeliest."""

    lower_is_better = False

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(-1) == targets).to(logits.dtype)
