"""How a shorter model is to be trained: the keywords of `shortgpt.heal` but for what is trained, and on which text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from shortgpt.basics.inputs import MeasuringOptions
from shortgpt.errors import SelectionError

LORA, FULL, MLP = "lora", "full", "mlp"
LEARNING_RATES = {LORA: 3e-4, FULL: 1e-4, MLP: 1e-3}
"""For each method, the learning rate where none is given."""
WHOLE = ("steps", "step_sequences", "accumulate", "rank", "width", "every", "patience", "top_k")
REAL = ("learning_rate", "temperature")
"""Fields that are 1 or more, and above 0."""


class HealingOptions(MeasuringOptions, total=False):
    """The keywords of `shortgpt.heal` for the training, whose meaning `Recipe` says, and for texts and models."""

    method: str
    steps: int
    learning_rate: float | None
    step_sequences: int
    accumulate: int
    rank: int
    width: int | None
    every: int | None
    patience: int | None
    distil: bool
    temperature: float
    top_k: int
    checkpointing: bool
    bf16: bool


@dataclass(frozen=True)
class Recipe:
    """How a shorter model is trained.

    Attributes:
        method: "lora", "full" or "mlp"; see `shortgpt.healing.methods`.
        steps: updates.
        learning_rate: default: 3e-4 with LoRA, 1e-4 for all weights, 1e-3 for MLPs; it rises for a twentieth of the
            steps and falls as a cosine.
        step_sequences, accumulate: sequences that are held at a time, and how many such parts an update sums.
        rank: of LoRA's maps.
        width: of the MLPs; default: the stream's own.
        every: steps between looks at the held-out text; default: a tenth of all.
        patience: end after so many looks that found nothing better, and take the weights of the best one.
        distil: learn the original's distribution of the next token, not the token that came.
        temperature: of both distributions.
        top_k: how many of the original's likeliest tokens are kept at each place; the others count as one.
        checkpointing: compute blocks anew on the way back, which needs less memory and more time.
        bf16: compute in bfloat16 where that does no harm (autocast); the weights stay in float32.
    """

    method: str = LORA
    steps: int = 500
    learning_rate: float | None = None
    step_sequences: int = 8
    accumulate: int = 1
    rank: int = 16
    width: int | None = None
    every: int | None = None
    patience: int | None = None
    distil: bool = False
    temperature: float = 1.0
    top_k: int = 64
    checkpointing: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        """Raise a `SelectionError` for what cannot be."""
        if self.method not in LEARNING_RATES:
            raise SelectionError(f"unknown method {self.method!r}; supported are {', '.join(LEARNING_RATES)}")
        for name in (*WHOLE, *REAL):
            number = getattr(self, name)
            if number is not None and not (number >= 1 if name in WHOLE else number > 0):
                least = "at least 1" if name in WHOLE else "above 0"
                raise SelectionError(f"{name.replace('_', ' ')} must be {least}, found {number}")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def look_every(self) -> int:
        """Steps between looks at the held-out text."""
        return self.every or max(1, self.steps // 10)

    def numbers(self, seed: int) -> dict[str, float]:
        """What a record tells of it."""
        own = {LORA: {"rank": self.rank}, MLP: {} if self.width is None else {"width": self.width}}.get(self.method, {})
        distilled = {"temperature": self.temperature, "top_k": self.top_k} if self.distil else {}
        switched = {name: 1.0 for name in ("checkpointing", "bf16") if getattr(self, name)}
        numbers = {
            "max_steps": self.steps,
            "learning_rate": self.rate,
            "per_device_train_batch_size": self.step_sequences,
            "gradient_accumulation_steps": self.accumulate,
            "save_steps": self.look_every,
            "seed": seed,
        }
        return {name: float(value) for name, value in (numbers | own | distilled | switched).items()}


def recipe_apart(options: HealingOptions) -> tuple[Recipe, MeasuringOptions]:
    """The recipe in some keywords, and the other keywords.

    Raises:
        SelectionError: the recipe cannot be.
    """
    names = {field.name for field in fields(Recipe)}
    recipe: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return Recipe(**recipe), cast(MeasuringOptions, others)
