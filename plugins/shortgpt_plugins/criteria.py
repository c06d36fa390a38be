"""Criteria that look at the stream before and after a block, token by token, all of them in one pass.

Written with x_i for the stream before block i, x_{i+1} for the stream behind it, and f(x_i) = x_{i+1} − x_i for what
the block adds. Lower means: remove first. Block Influence itself is `shortgpt.measuring.scoring.influence`.
"""

import math

import torch
from torch import Tensor

from shortgpt.measuring.criteria import StepCriterion
from shortgpt.measuring.step import Step


class AngularDistance(StepCriterion):
    """`arccos(cos(x_i, x_{i+1})) / π`, the angle as a share of a half turn, over all tokens.

    Gromov et al. 2024 (arXiv:2403.17887), Eq. 7, who take the last token only: see `AngularDistanceLast`. It is taken
    from the chord, `2 arcsin(√(d/2))` for the cosine distance d, which keeps small angles' digits.
    """

    def of_step(self, step: Step) -> Tensor:
        return 2 / math.pi * torch.asin((step.distance / 2).clamp(max=1).sqrt())


class AngularDistanceLast(AngularDistance):
    """The same at the last token of each sequence, the only one that sees all others: Gromov et al. 2024
    (arXiv:2403.17887), Eq. 7."""

    tokens = "last"


class RelativeMagnitude(StepCriterion):
    """`‖f(x_i)‖ / ‖x_i + f(x_i)‖`, the share of the stream that the block wrote.

    Samragh et al. 2023 (arXiv:2312.09299), and "Relative Magnitude" in section 4.3 of ShortGPT (arXiv:2403.03853).
    """

    def of_step(self, step: Step) -> Tensor:
        return step.update / step.after


class Norm(StepCriterion):
    """`−‖x_{i+1}‖`: the blocks that leave the longest stream behind go first.

    "Norm" in section 4.3 of ShortGPT (arXiv:2403.03853), which says that it gives the same order as its reverse-order,
    shallow blocks being the important ones: the stream of a pre-norm model grows with depth, and what a block adds
    weighs less the longer the stream is. Hence the sign, since lower means to remove first.
    """

    def of_step(self, step: Step) -> Tensor:
        return -step.after


class EuclideanDistance(StepCriterion):
    """`‖x_{i+1} − x_i‖`, the length of what the block adds."""

    def of_step(self, step: Step) -> Tensor:
        return step.update


class RelativeEuclideanDistance(StepCriterion):
    """`‖x_{i+1} − x_i‖ / ‖x_i‖`, what the block adds for the stream that it was given; relative L2 distance.

    It differs from `RelativeMagnitude`, which has the stream behind the block below the bar and is bounded where the
    block outgrows its input.
    """

    def of_step(self, step: Step) -> Tensor:
        return step.update / step.before
