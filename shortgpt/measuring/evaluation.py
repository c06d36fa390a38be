"""How well a model, whole or with blocks left out, predicts the next token of a text.

::

    logits of token t ─▶ evaluator, a value a token ─▶ float64 sums [sequence] ─▶ mean ─▶ summary (exp, for perplexity)

Blocks are left out by skipping; nothing is rebuilt. What is left out in turn shares what comes before it
(`BlockSequence.ablated`).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shortgpt import plugins
from shortgpt.basics.registry import Extension
from shortgpt.basics.targets import load_target
from shortgpt.basics.value import Value
from shortgpt.errors import CalibrationError, HiddenStateError, PluginError
from shortgpt.measuring.batch_parts import BatchParts
from shortgpt.models.sequence import Cut

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import Progress
    from shortgpt.basics.journal import Journal
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence, TokenBatch

DEFAULT_EVALUATOR = "perplexity"
HELD = "held"
"""Beside token ids, what an earlier pass held of them: taken in parts as they are."""
NUMBERS_AT_A_TIME = {"cpu": 1 << 21}
"""Logits taken to float32 together: as many as caches hold, and on an accelerator what keeps it busy."""


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
    evaluator = load_target(entry.target)
    with plugins.running("evaluator", entry):
        made = evaluator()
    if not isinstance(made, Evaluator):
        raise PluginError(f"evaluator {name!r} (plugin {entry.plugin}) is no shortgpt.Evaluator")
    return made


def evaluate(
    model: BlockSequence,
    data: Calibration,
    evaluator: Evaluator,
    removed: Iterable[int] = (),
    journal: Journal | None = None,
    held: Sequence[tuple[int, Tensor | None]] = (),
) -> Quality:
    """The quality of a model without some of its blocks.

    Args:
        journal: in which each batch is kept, and from which it is taken.
        held: for each batch a boundary, and what an earlier pass over it held there; see `BlockSequence.resuming`.

    Raises:
        CalibrationError: no sequence has two tokens.
        HiddenStateError: the evaluator gave NaN or infinity.
    """
    gone = tuple(removed)
    sums: list[float] = []
    counts: list[int] = []
    batch_parts = BatchParts()

    def work(part: TokenBatch) -> tuple[Tensor, list[int]]:
        ids = {name: value for name, value in part.items() if name != HELD}
        with model.skipping(gone), model.resuming(boundary, part.get(HELD)):
            return batch_sums(model.logits(ids), ids, evaluator)

    for number, batch in enumerate(data.batches):
        boundary, stream = held[number] if held else (0, None)
        key = f"{_named(evaluator)}{_without(gone)} {number}"
        kept = None if journal is None else journal.get(key)
        if kept is None:
            parts = batch_parts.each(batch if stream is None else {**batch, HELD: stream}, work)
            kept = [[value for one, _ in parts for value in one.tolist()], [n for _, more in parts for n in more]]
            if journal is not None:
                journal.add(key, kept)
        sums += kept[0]
        counts += kept[1]
    return _checked(model, sums, counts, _without(gone))


def evaluate_cuts(
    model: BlockSequence,
    data: Calibration,
    evaluator: Evaluator,
    cuts: Sequence[Cut],
    removed: Iterable[int] = (),
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Quality]:
    """The quality without each of the cuts in turn, and without the blocks `removed`.

    Args:
        progress: called with "cuts" after each one of each batch.
        journal: in which each batch is kept, and from which it is taken.

    Raises:
        CalibrationError, HiddenStateError: as `evaluate`.
    """
    gone = tuple(removed)
    left_out = [_without((*gone, cut.block), cut.part) for cut in cuts]
    return _evaluated(
        model, data, evaluator, left_out, lambda batch: model.ablated(batch, cuts, gone), progress, journal
    )


def evaluate_sets(
    model: BlockSequence,
    data: Calibration,
    evaluator: Evaluator,
    sets: Sequence[Collection[int]],
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Quality]:
    """The quality without each of these sets of blocks in turn. The empty set is the whole model.

    Args:
        progress: called with "cuts" after each one of each batch.
        journal: in which each batch is kept, and from which it is taken.

    Raises:
        CalibrationError, HiddenStateError: as `evaluate`.
    """
    left_out = [_without(tuple(sorted(blocks))) for blocks in sets]
    return _evaluated(
        model, data, evaluator, left_out, lambda batch: model.logits_without(batch, sets), progress, journal
    )


def _evaluated(
    model: BlockSequence,
    data: Calibration,
    evaluator: Evaluator,
    left_out: Sequence[str],
    run: Callable[[TokenBatch], Iterator[Tensor]],
    progress: Progress | None,
    journal: Journal | None,
) -> list[Quality]:
    """The quality by the logits that `run` gives of each batch, once for each thing `left_out`."""
    sums: list[list[float]] = [[] for _ in left_out]
    counts: list[int] = []
    before, total = 0, len(left_out) * len(data.batches)
    batch_parts = BatchParts()

    def work(part: TokenBatch) -> tuple[list[list[float]], list[int]]:
        columns: list[list[float]] = []
        predictions: list[int] = []
        for logits in run(part):
            values, predictions = batch_sums(logits, part, evaluator)
            columns.append(values.tolist())
            if progress is not None:
                progress("cuts", before + len(columns), total)
        return columns, predictions

    stage = f"{_named(evaluator)} {hashlib.sha256(repr(left_out).encode()).hexdigest()}"
    for number, batch in enumerate(data.batches):
        parts = None if journal is None else journal.get(f"{stage} {number}")
        if parts is None:
            parts = batch_parts.each(batch, work)
            if journal is not None:
                journal.add(f"{stage} {number}", parts)
        for columns, predictions in parts:
            for column, found in zip(sums, columns, strict=True):
                column += found
            counts += predictions
        before += len(left_out)
    return [_checked(model, column, counts, without) for column, without in zip(sums, left_out, strict=True)]


def batch_sums(logits: Tensor, batch: TokenBatch, evaluator: Evaluator) -> tuple[Tensor, list[int]]:
    """The sums of an evaluator's values over each sequence, float64 on the CPU, [sequences]; and their numbers.

    Args:
        logits: [batch, tokens, vocabulary].
        batch: real tokens first in every row, as `shortgpt.calibrate` gives it.

    Raises:
        PluginError: the evaluator fails, or gives no value for each prediction.
    """
    import torch

    ids = batch["input_ids"].to(logits.device)
    mask = batch.get("attention_mask")
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.bool().sum(1).tolist()
    predictions = [max(0, length - 1) for length in lengths]
    size = max(1, NUMBERS_AT_A_TIME.get(logits.device.type, 1 << 26) // logits.shape[-1])
    home = "cpu" if logits.device.type == "mps" else logits.device  # which has no float64
    entry = Extension(type(evaluator).__name__, "", plugin=type(evaluator).__module__)
    sums = torch.zeros(len(ids), dtype=torch.float64, device=home)
    for row, count in enumerate(predictions):
        for at in range(0, count, size):
            here, targets = logits[row, at : min(at + size, count)], ids[row, at + 1 : min(at + size, count) + 1]
            with plugins.running("evaluator", entry):
                values = evaluator.values(here.float(), targets)
                if values.shape != targets.shape:
                    raise ValueError(f"it gave values of shape {tuple(values.shape)} for {len(targets)} predictions")
            sums[row] += values.to(home, torch.float64).sum()
    return sums.cpu(), predictions


def _named(evaluator: Evaluator) -> str:
    return f"{type(evaluator).__module__}.{type(evaluator).__qualname__}"


def _checked(model: BlockSequence, sums: Sequence[float], counts: Sequence[int], without: str) -> Quality:
    if not sum(counts):
        raise CalibrationError("no sequence has two tokens, so there is nothing to predict; give longer texts")
    if not all(map(math.isfinite, sums)):
        raise HiddenStateError(
            f"{model.name}{without}: the evaluator gave NaN or infinity; load the model in a wider dtype "
            "(--dtype bfloat16 or float32), or check its weights"
        )
    return Quality(tuple(sums), tuple(counts))


def _without(blocks: Sequence[int], part: str | None = None) -> str:
    of = "" if part is None else f" ({part} of the last)"
    return f" without block {', '.join(map(str, blocks))}{of}" if blocks else ""
