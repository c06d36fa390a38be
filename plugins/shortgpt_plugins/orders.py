"""Orders that come from a block's place, or from nothing: what a criterion has to beat. They never run the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shortgpt.measuring.criteria import OrderCriterion

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence


class Sequential(OrderCriterion):
    """From the first block on: block 0 goes first, the last block last.

    "Sequential" in section 4.3 of ShortGPT (arXiv:2403.03853): "with shallower layers being less important". (The
    sentence after it there, the negated index as importance, would be the other order.)
    """

    runs_model = False

    def order(self, model: BlockSequence, data: Calibration, progress: Progress) -> Sequence[int]:
        return range(len(model))


class ReverseOrder(OrderCriterion):
    """From the last block back: the last block goes first, block 0 last.

    "Reverse-order" in section 4.3 of ShortGPT (arXiv:2403.03853), which takes shallow blocks for the important ones.
    """

    runs_model = False

    def order(self, model: BlockSequence, data: Calibration, progress: Progress) -> Sequence[int]:
        return range(len(model))[::-1]


class Random(OrderCriterion):
    """Any order, the control: a permutation by Python's `random.Random(seed).sample`, the same on every machine.

    The seed is that of the calibration (`--seed`); 0 where nothing was sampled.
    """

    runs_model = False

    def order(self, model: BlockSequence, data: Calibration, progress: Progress) -> Sequence[int]:
        return random.Random(data.info.seed or 0).sample(range(len(model)), len(model))
