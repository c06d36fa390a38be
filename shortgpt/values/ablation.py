"""The damage that each block, or part of one, does when it is left out alone."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Value
from shortgpt.errors import ShortGPTError
from shortgpt.values.scores import Scores

BLOCK = "block"


@dataclass(frozen=True)
class Correlation(Value):
    """Whether a criterion orders the blocks as their ablation does.

    Attributes:
        criterion: its name.
        rho: Spearman's ρ between the criterion's scores and the damage that each block's absence does, with mid-ranks
            for ties; 1 where the criterion would take the least harmful block first, and so on. NaN where it is not
            defined.
        low, high: its 95% confidence interval, the blocks taken for a sample of such blocks: Fisher's z with the
            variance of Bonett and Wright 2000 (Psychometrika 65, 23-28). NaN where it is not defined: fewer than four
            blocks, or a ρ of ±1.
    """

    criterion: str
    rho: float
    low: float
    high: float


@dataclass(frozen=True)
class Ablation(Value):
    """What a model is without each of its blocks, and without each of their parts.

    Attributes:
        scores: each criterion's, on other windows of the same text.
        evaluator: what the quality is.
        lower_is_better: whether a smaller one is the better one.
        whole: the quality of the whole model, on held-out text.
        without: by what is left out ("block", "mixer", "mlp"), the quality without it, [blocks]; None for a block that
            has no such part. Parts only where they are known.
        parts_refused: why they are not known; None where they are.
        correlations: one a criterion, in the order of the scores.
        held_out: the text that the quality was measured on; nothing of it was scored.
    """

    scores: Scores
    evaluator: str
    lower_is_better: bool
    whole: float
    without: dict[str, tuple[float | None, ...]]
    parts_refused: str | None
    correlations: tuple[Correlation, ...]
    held_out: CalibrationInfo

    def check(self) -> None:
        """Raise a `ShortGPTError` where the columns do not fit the blocks, or the correlations the criteria."""
        fits = BLOCK in self.without and all(len(column) == len(self.scores) for column in self.without.values())
        if not fits or tuple(one.criterion for one in self.correlations) != self.scores.criteria:
            raise ShortGPTError(f"Ablation: the numbers do not fit {len(self.scores)} blocks and their criteria")
