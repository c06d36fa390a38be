"""A shorter model that was trained, before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Value


@dataclass(frozen=True)
class Healed(Value):
    """A moment of the training.

    Attributes:
        step: updates so far.
        loss: log-perplexity on a text; of a training by distillation what is made small on the training text.
    """

    step: int
    loss: float


@dataclass(frozen=True)
class Healing(Value):
    """How a shorter model was trained, and what came of it. Losses are log-perplexities, a token.

    Attributes:
        original, shorter: the models as they were named.
        method: "lora", "full" or "mlp".
        whole: the original's loss on the held-out text; None where it was not measured.
        before, after: the shorter model's, before and after.
        gap_closed: (before − after) / (before − whole); None where the original was not measured.
        gap_closed_stderr: its standard error, paired by sequence or document, the gap taken as known.
        training: losses on the training text, one each some steps; by distillation, the divergence from the original's
            distribution times the square of the temperature.
        held_out: losses on the held-out text, the first before the first step.
        steps: updates made; fewer than asked for where it was stopped early.
        trained: how many numbers were trained.
        settings: learning rate, sequences a step and the other numbers that it was trained with.
        text: what it was trained on.
        judged_on: the held-out text.
        seconds: of training, in this run.
    """

    original: str
    shorter: str
    method: str
    before: float
    after: float
    whole: float | None = None
    gap_closed: float | None = None
    gap_closed_stderr: float | None = None
    training: tuple[Healed, ...] = ()
    held_out: tuple[Healed, ...] = ()
    steps: int = 0
    trained: int = 0
    settings: dict[str, float] | None = None
    text: CalibrationInfo | None = None
    judged_on: CalibrationInfo | None = None
    seconds: float = 0.0

    @property
    def is_distilled(self) -> bool:
        """Whether it learnt the original's distribution."""
        return "temperature" in (self.settings or {})

    def __str__(self) -> str:
        how = f"{self.method}, distilled" if self.is_distilled else self.method
        told = [
            f"{how}: {self.steps:,} steps in {self.seconds:,.0f} s, {self.trained:,} numbers trained",
            f"perplexity on held-out text: {math.exp(self.before):.4g} shortened → {math.exp(self.after):.4g} healed",
        ]
        if self.whole is not None and self.gap_closed is not None:
            told[1] += f", {math.exp(self.whole):.4g} whole"
            told.append(
                f"gap in log-perplexity closed: {self.gap_closed:.1%} ± {self.gap_closed_stderr or float('nan'):.1%}"
            )
        return "\n".join(told)
