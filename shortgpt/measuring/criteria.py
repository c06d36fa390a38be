"""What a criterion is: a number for each block, by which blocks are chosen. Lower means: remove first.

::

    Criterion        looks at the stream before and after a block      any number of them in one pass of the model
    StepCriterion    of these, one that norms and angles tell         next to no cost beside another, one kernel on CUDA
    BatchCriterion   runs the model itself on each batch               another head, another pass, blocks left out
    OrderCriterion   says in which order blocks go                     by place, at random, or one after another

A class of one of these is what a plugin names in `shortgpt_criteria`; `shortgpt.score` makes an instance for each
pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from shortgpt.measuring.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence, TokenBatch


class AnyCriterion(ABC):  # noqa: B024 - its methods have a default
    """What the three kinds share.

    Attributes:
        runs_model: whether it runs the model itself, beside the pass that all share; such a one cannot be had of a
            model whose weights are still in their files.
    """

    runs_model: ClassVar[bool] = False

    def refuse(self, model: BlockSequence) -> str | None:
        """Why this model cannot be measured so, None where it can."""
        return None


class Criterion(AnyCriterion):
    """How much a block matters, token by token.

    Attributes:
        tokens: the tokens that count: "all" of a sequence, or only its "last" one.
    """

    tokens: ClassVar[Literal["all", "last"]] = "all"

    @abstractmethod
    def values(self, before: Tensor, after: Tensor) -> Tensor:
        """The value of each token.

        Args:
            before, after: the residual stream around one block, [tokens, width], float64 (float32 on a device that
                has no float64); finite, and no row of `before` or `after` is zero.

        Returns:
            [tokens], of the same dtype.
        """


class StepCriterion(Criterion):
    """A criterion that norms and angles tell: they are measured once for all such criteria."""

    @abstractmethod
    def of_step(self, step: Step) -> Tensor:
        """The value of each token, [tokens], of the same dtype."""

    def values(self, before: Tensor, after: Tensor) -> Tensor:
        from shortgpt.measuring.angles import step_between

        return self.of_step(step_between(before, after))


class BatchCriterion(AnyCriterion):
    """How much a block matters on a batch, by what the model does with it."""

    runs_model = True

    @abstractmethod
    def measure(self, model: BlockSequence, batch: TokenBatch) -> tuple[Tensor, Sequence[int]]:
        """Run the model.

        Args:
            batch: real tokens first in every row.

        Returns:
            The sums of the values of each sequence, [sequences, blocks], float64; and how many tokens each sequence's
            sums are of. A score is the one over the other.
        """


class OrderCriterion(AnyCriterion):
    """In which order the blocks go. Such a score is a place in that order; it has no uncertainty.

    One that looks at nothing but the model's blocks says `runs_model = False`.
    """

    runs_model = True

    @abstractmethod
    def order(self, model: BlockSequence, data: Calibration, progress: Progress) -> Sequence[int]:
        """All blocks of the model once each, those that go first at the beginning.

        Args:
            data: what the model may be run on.
            progress: to be called as in `shortgpt.score`, where it takes long.
        """
