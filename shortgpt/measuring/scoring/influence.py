"""Block Influence on tensors: `BI_i = 1 − E cos(x_i, x_{i+1})`, Eq. 1 of ShortGPT (arXiv:2403.03853).

For a redundant block 1 − cos is a difference of nearly equal numbers: at BI 1e-4, fp16 arithmetic has no correct digit
left. Two forms keep them: one of three norms, in float64, and one of the turn, in float32 too.
"""

from __future__ import annotations

from torch import Tensor

from shortgpt.measuring.criteria import StepCriterion
from shortgpt.measuring.step import Step


class BlockInfluence(StepCriterion):
    """`1 − cos(x_i, x_{i+1})`, Eq. 1 of ShortGPT (arXiv:2403.03853)."""

    def of_step(self, step: Step) -> Tensor:
        return step.distance
