"""How well held-out text is predicted: bits per byte, perplexity, next-token accuracy, and the cloze.

The first three read the same passages, each once:

::

    context 256 characters ─▶ continuation 512 characters ─▶ log p of each of its tokens ─┬▶ Σ −log₂ p / bytes
                                                                                          ├▶ exp(Σ −log p / tokens)
                                                                                          └▶ likeliest = what came
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from shortgpt.errors import CalibrationError
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.likelihood import Likelihood, Request
from shortgpt.measuring.tasks.passages import Passages
from shortgpt.measuring.tasks.task import OwnTask, TaskOptions
from shortgpt.values.evaluation.outcomes import Outcome

CONTEXT, CONTINUATION = 256, 512


class Reading(OwnTask):
    """A task on what a model thinks of each token of a passage."""

    version = "1"
    default_items = 48

    def __init__(self, options: TaskOptions) -> None:
        self.passages = Passages(options, CONTEXT, CONTINUATION)
        self.settings = self.passages.settings()

    def __len__(self) -> int:
        return len(self.passages)

    def group(self, item: int) -> int:
        return self.passages[item].document

    def readings(self, model: LanguageModel, items: Sequence[int]) -> list[tuple[Request, list[Likelihood]]]:
        """For each passage its tokens, and what the model gives for its parts, one after another; each passage is read
        once a model."""
        key = (Reading, self.settings["text_hash"])
        known = model.memo.setdefault(key, {})
        new = [item for item in items if item not in known]
        pairs = [model.encode_pair(self.passages.context(item), self.passages.continuation(item)) for item in new]
        parts = [_parts(pair, model.window) for pair in pairs]
        given = iter(model.likelihoods([part for of_item in parts for part in of_item]))
        for item, pair, of_item in zip(new, pairs, parts, strict=True):
            known[item] = pair, [next(given) for _ in of_item]
        return [known[item] for item in items]


def _parts(pair: Request, window: int) -> list[Request]:
    """A continuation in parts that the window has room for, each read behind a quarter of a window, or more, of what
    comes before it."""
    context, continuation = pair
    if len(context) + len(continuation) <= window + 1:
        return [pair]
    size = max(1, 3 * window // 4)
    whole = context + continuation
    parts = []
    for at in range(len(context), len(whole), size):
        part = whole[at : at + size]
        parts.append(Request(whole[max(0, at - (window + 1 - len(part))) : at], part))
    return parts


class BitsPerByte(Reading):
    """`Σ −log₂ p(token) / bytes of the text`: comparable between tokenizers."""

    name = "bits-per-byte"
    metric = "bits per byte"
    lower_is_better = True
    kind = "fit"
    bounds = None

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        found = []
        for item, (_, parts) in zip(items, self.readings(model, items), strict=True):
            size = len(self.judged(item).encode("utf-8", "surrogatepass"))
            found.append(Outcome(-math.fsum(part.total for part in parts) / math.log(2), size))
        return found

    def judged(self, item: int) -> str:
        """The text whose bits are counted: white space between context and continuation belongs to the latter."""
        context, continuation = self.passages.context(item), self.passages.continuation(item)
        return context[len(context.rstrip()) :] + continuation


class TaskPerplexity(Reading):
    """`exp(Σ −log p(token) / tokens)`: between models of one tokenizer."""

    name = "perplexity"
    metric = "perplexity"
    lower_is_better = True
    kind = "fit"
    scale = "exp"
    bounds = None

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        return [
            Outcome(-math.fsum(part.total for part in parts), len(pair.continuation))
            for pair, parts in self.readings(model, items)
        ]


class NextToken(Reading):
    """The share of tokens that the model takes for the likeliest; an item's answers are its predictions."""

    name = "next-token"
    metric = "accuracy"
    chance = 0.0

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        found = []
        for pair, parts in self.readings(model, items):
            predictions = [token for part in parts for token in part.predictions]
            right = tuple(a == b for a, b in zip(predictions, pair.continuation, strict=True))
            found.append(Outcome(sum(right), len(right), tuple(map(str, predictions)), right))
        return found


CHOICES = 4


class Cloze(OwnTask):
    """Which of four continuations belongs to a passage: its own, or one of three from elsewhere in the same source?
    Judged by log-likelihood per byte; the answer is the number of the choice, 0 the right one."""

    name = "cloze"
    version = "1"
    metric = "accuracy"
    chance = 1 / CHOICES
    default_items = 100

    def __init__(self, options: TaskOptions) -> None:
        self.passages = Passages(options, 160, 64)
        if len(self.passages) < CHOICES:
            raise CalibrationError(
                f"{self.passages.source}: too short: the cloze takes {CHOICES} passages, it gives {len(self.passages)}"
            )
        self.settings = self.passages.settings()
        self.seed = options.seed

    def __len__(self) -> int:
        return len(self.passages)

    def group(self, item: int) -> int:
        return self.passages[item].document

    def choices(self, item: int) -> list[str]:
        """The right continuation, and three that follow other passages: of other documents, where there are some."""
        draw = random.Random(f"{self.seed} cloze {item}")
        others: list[int] = []
        own = self.passages[item].document
        for attempt in range(100 * CHOICES):
            other = draw.randrange(len(self.passages))
            elsewhere = attempt > 50 * CHOICES or self.passages[other].document != own
            if other != item and other not in others and elsewhere:
                others.append(other)
            if len(others) == CHOICES - 1:
                break
        return [self.passages.continuation(at) for at in (item, *others)]

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        choices = [self.choices(item) for item in items]
        pairs = [
            model.encode_pair(self.passages.context(item), choice)
            for item, texts in zip(items, choices, strict=True)
            for choice in texts
        ]
        given = iter(model.likelihoods(pairs))
        found = []
        for texts in choices:
            values = [next(given).total / len(text.encode("utf-8", "surrogatepass")) for text in texts]
            answer = max(reversed(range(len(values))), key=values.__getitem__)  # a tie is not won by the right one
            found.append(Outcome(float(answer == 0), 1.0, (str(answer),), (answer == 0,)))
        return found
