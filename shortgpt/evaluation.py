"""How well a model, whole or with blocks left out, predicts the next token of a text.

::

    logits of token t ─▶ evaluator, a value a token ─▶ float64 sums [sequence] ─▶ mean ─▶ summary (exp, for perplexity)

Blocks are left out by skipping; nothing is rebuilt. What is left out in turn shares what comes before it
(`BlockSequence.ablated`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shortgpt import plugins
from shortgpt.blocks import Cut
from shortgpt.errors import CalibrationError, PluginError
from shortgpt.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.blocks import BlockSequence, TokenBatch
    from shortgpt.calibration import Calibration
    from shortgpt.scores import Progress

DEFAULT_EVALUATOR = "perplexity"
NUMBERS_AT_A_TIME = 1 << 24  # logits taken to float32 together


class Evaluator(ABC):
    """How good a prediction of the next token is.

    Attributes:
        lower_is_better: whether a smaller summary is the better one.
    """

    lower_is_better: ClassVar[bool] = True

    @abstractmethod
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The value of each prediction.

        Args:
            logits: float32, [tokens, vocabulary].
            targets: the tokens that came, [tokens].

        Returns:
            [tokens].
        """

    def summary(self, mean: float) -> float:
        """What is told of the mean over all predictions."""
        return mean


@dataclass(frozen=True)
class Quality(Value):
    """An evaluator's values on a text.

    Attributes:
        sums: float64 sums of the values, [sequences].
        counts: the predictions of each sequence, [sequences].
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Over all predictions."""
        return sum(self.sums) / sum(self.counts)


def open_evaluator(name: str) -> Evaluator:
    """An installed evaluator.

    Raises:
        UnknownNameError: there is none of that name.
    """
    entry = plugins.lookup("evaluator", plugins.registry().evaluators, name)
    evaluator = plugins.load_target(entry.target)
    with plugins.running("evaluator", entry):
        made = evaluator()
    if not isinstance(made, Evaluator):
        raise PluginError(f"evaluator {name!r} (plugin {entry.plugin}) is no shortgpt.Evaluator")
    return made


def evaluate(model: BlockSequence, data: Calibration, evaluator: Evaluator, removed: Iterable[int] = ()) -> Quality:
    """The quality of a model without some of its blocks.

    Raises:
        CalibrationError: no sequence has two tokens.
    """
    gone = tuple(removed)
    sums: list[float] = []
    counts: list[int] = []
    for batch in data.batches:
        with model.skipping(gone):
            found, predictions = batch_sums(model.logits(batch), batch, evaluator)
        sums += found.tolist()
        counts += predictions
    return _checked(model, sums, counts)


def evaluate_cuts(
    model: BlockSequence,
    data: Calibration,
    evaluator: Evaluator,
    cuts: Sequence[Cut],
    removed: Iterable[int] = (),
    progress: Progress | None = None,
) -> list[Quality]:
    """The quality without each of the cuts in turn, and without the blocks `removed`.

    Args:
        progress: called with "cuts" after each one of each batch.
    """
    gone = tuple(removed)
    sums: list[list[float]] = [[] for _ in cuts]
    counts: list[int] = []
    done, total = 0, len(cuts) * len(data.batches)
    for batch in data.batches:
        predictions: list[int] = []
        for column, logits in zip(sums, model.ablated(batch, cuts, gone), strict=True):
            found, predictions = batch_sums(logits, batch, evaluator)
            column += found.tolist()
            done += 1
            if progress is not None:
                progress("cuts", done, total)
        counts += predictions
    return [_checked(model, column, counts) for column in sums]


def batch_sums(logits: Tensor, batch: TokenBatch, evaluator: Evaluator) -> tuple[Tensor, list[int]]:
    """The sums of an evaluator's values over each sequence, float64 on the CPU, [sequences]; and their numbers.

    Args:
        logits: [batch, tokens, vocabulary].
    """
    import torch

    ids = batch["input_ids"].to(logits.device)
    mask = batch.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(logits.device).bool()
    here = real[:, 1:] & real[:, :-1]
    home = "cpu" if logits.device.type == "mps" else logits.device  # which has no float64
    sums = []
    for row in range(len(ids)):
        rows, targets = logits[row, :-1][here[row]], ids[row, 1:][here[row]]
        size = max(1, NUMBERS_AT_A_TIME // logits.shape[-1])
        values = [
            evaluator.values(part.float(), wanted)
            for part, wanted in zip(rows.split(size), targets.split(size), strict=True)
        ]
        sums.append(torch.cat(values).to(home, torch.float64).sum())
    return torch.stack(sums).cpu(), here.sum(1).tolist()


def _checked(model: BlockSequence, sums: Sequence[float], counts: Sequence[int]) -> Quality:
    if not sum(counts):
        raise CalibrationError("no sequence has two tokens, so there is nothing to predict; give longer texts")
    return Quality(tuple(sums), tuple(counts))
