"""Exercises made by a seeded generator and judged by rule: copying, closing brackets, adding.

::

    worked examples ─┐
    the question ────┴─▶ prompt ─▶ greedy text, its first line ─▶ equal to the one right answer?

What depth pruning destroys first, and multiple choice hides. An item is drawn from the run's seed and its own number.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.task import OwnTask, TaskOptions
from shortgpt.values.evaluation.outcomes import Outcome

AVAILABLE = 4096
"""Items of each exercise: more than anybody needs."""
NEW_TOKENS, CHARACTERS = 64, 64


class Question(NamedTuple):
    """What is asked, and the one right answer to it."""

    asked: str
    answer: str


class Exercise(OwnTask):
    """A task of questions, each behind some others with their answers."""

    version = "1"
    metric = "exact answers"
    default_items = 60
    default_shots: int

    def __init__(self, options: TaskOptions) -> None:
        self.seed = options.seed
        self.shots = self.default_shots if options.shots is None else options.shots
        self.settings = {"shots": self.shots}

    def __len__(self) -> int:
        return AVAILABLE

    @abstractmethod
    def question(self, draw: random.Random, item: int) -> Question:
        """A question of the difficulty that the item's number says."""

    def prompt(self, item: int) -> Question:
        """The question of an item behind its worked examples, and the right answer."""
        draw = random.Random(f"{self.seed} {self.name} {item}")
        examples = [self.question(draw, item + shot) for shot in range(self.shots)]
        asked, answer = self.question(draw, item)
        return Question("".join(f"{one.asked} {one.answer}\n" for one in examples) + asked, answer)

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        questions = [self.prompt(item) for item in items]
        prompts = [model.encode(question.asked) for question in questions]
        given = model.generate(prompts, NEW_TOKENS, until=("\n",), characters=CHARACTERS)
        found = []
        for question, generated in zip(questions, given, strict=True):
            answer = self.read(generated.text)
            right = answer == self.read(question.answer)
            found.append(Outcome(float(right), 1.0, (answer,), (right,)))
        return found

    def read(self, text: str) -> str:
        """The answer in a text, as it is compared."""
        return " ".join(text.split())


WORDS = re.findall(
    r"\w+",
    "air arm art bag ball band bank bell bird boat book box bread bus car card cat chair city cloud coat corn cow cup "
    "day desk dog door dress dust ear east egg eye face farm fire fish flag floor food fruit game gate girl gold grass "
    "hair hand hat hill home horse ice iron key king lake lamp leaf leg light lion map milk moon neck nest night nose",
)


class Copy(Exercise):
    """Repeat the words of the line above."""

    name = "copy"
    chance = 0.0
    default_shots = 2

    def question(self, draw: random.Random, item: int) -> Question:
        words = " ".join(draw.sample(WORDS, 3 + item % 4))
        return Question(f"words: {words}\nagain:", words)


PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


class Brackets(Exercise):
    """Close what is open, in the right order: `( [ {` is closed by `} ] )`. Chance is that of guessing each sign."""

    name = "brackets"
    default_shots = 4
    depths = (2, 3, 4, 5)
    chance = sum(len(PAIRS) ** -depth for depth in depths) / len(depths)

    def question(self, draw: random.Random, item: int) -> Question:
        opened = draw.choices(list(PAIRS), k=self.depths[item % len(self.depths)])
        return Question(f"open: {' '.join(opened)} close:", " ".join(PAIRS[sign] for sign in reversed(opened)))

    def read(self, text: str) -> str:
        return "".join(text.split())


class Arithmetic(Exercise):
    """Sums of two numbers of 1, 2 and 3 digits in turn: `12 + 30 = 42`. Chance is that of guessing among the sums that
    there are."""

    name = "arithmetic"
    default_shots = 6
    chance = (1 / 19 + 1 / 181 + 1 / 1801) / 3

    def question(self, draw: random.Random, item: int) -> Question:
        digits = 1 + item % 3
        first, second = (draw.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in range(2))
        return Question(f"{first} + {second} =", str(first + second))

    def read(self, text: str) -> str:
        number = re.match(r"\s*(\d+)", text)
        return number[1] if number else " ".join(text.split())
