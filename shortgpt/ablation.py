"""Each block left out alone, and its parts alone: what they are worth, and whether a criterion knows it (Table 1 of
ShortGPT, arXiv:2403.03853).

::

    source ─┬─ windows to score on ─▶ Scores ────────────────────────────────┐
            │                                                                ├─▶ rank correlation by block
            └─ as many others, held out ─▶ quality without block, mixer, MLP ┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shortgpt import plugins, ranks
from shortgpt.blocks import BlockSequence, Cut
from shortgpt.calibration import CalibrationInfo, calibrate_and_hold_out
from shortgpt.errors import ShortGPTError
from shortgpt.evaluation import DEFAULT_EVALUATOR, evaluate, evaluate_cuts, open_evaluator
from shortgpt.scores import DEFAULT_CRITERION, Progress, Scores
from shortgpt.scoring import score
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shortgpt.tables import Table

BLOCK = "block"


@dataclass(frozen=True)
class Correlation(Value):
    """Whether a criterion orders the blocks as their ablation does.

    Attributes:
        criterion: its name.
        rho: Spearman's ρ between the criterion's scores and the damage that each block's absence does, with mid-ranks
            for ties; 1 where the criterion would take the least harmful block first, and so on. NaN where it is not
            defined.
        low, high: its 95% confidence interval, the blocks taken for a sample of such blocks: Fisher's z with the
            variance of Bonett and Wright 2000 (Psychometrika 65, 23-28). NaN where it is not defined: fewer than four
            blocks, or a ρ of ±1.
    """

    criterion: str
    rho: float
    low: float
    high: float


@dataclass(frozen=True)
class Ablation(Value):
    """What a model is without each of its blocks, and without each of their parts.

    Attributes:
        scores: each criterion's, on other windows of the same text.
        evaluator: what the quality is.
        lower_is_better: whether a smaller one is the better one.
        whole: the quality of the whole model, on held-out text.
        without: by what is left out ("block", "mixer", "mlp"), the quality without it, [blocks]; None for a block that
            has no such part. Parts only where they are known.
        parts_refused: why they are not known; None where they are.
        correlations: one a criterion, in the order of the scores.
        held_out: the text that the quality was measured on; nothing of it was scored.
    """

    scores: Scores
    evaluator: str
    lower_is_better: bool
    whole: float
    without: dict[str, tuple[float | None, ...]]
    parts_refused: str | None
    correlations: tuple[Correlation, ...]
    held_out: CalibrationInfo

    def check(self) -> None:
        """Raise a `ShortGPTError` where the columns do not fit the blocks, or the correlations the criteria."""
        fits = BLOCK in self.without and all(len(column) == len(self.scores) for column in self.without.values())
        if not fits or tuple(one.criterion for one in self.correlations) != self.scores.criteria:
            raise ShortGPTError(f"Ablation: the numbers do not fit {len(self.scores)} blocks and their criteria")

    def tables(self) -> tuple[Table, ...]:
        from shortgpt.reports.ablation import tables

        return tables(self)

    def tidy(self) -> Table:
        from shortgpt.reports.ablation import tidy

        return tidy(self)

    def __rich__(self) -> RenderableType:
        from shortgpt.reports.ablation import ablation_table

        return ablation_table(self)

    def __str__(self) -> str:
        from shortgpt.reports import as_text

        return as_text(self)


def ablate(
    model: BlockSequence,
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] = (DEFAULT_CRITERION,),
    evaluator: str = DEFAULT_EVALUATOR,
    sequences: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    field: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Ablation:
    """Leave out each block alone and, where they are known, its mixer and its MLP alone.

    A part that is left out adds nothing to the stream; the block's other part then reads what came in. The criteria's
    scores are taken on the calibration's windows, the quality is that on as many others of the same source (see
    `shortgpt.calibration.calibrate_and_hold_out`).

    Args:
        criteria: names of installed criteria, to be held against the ablation.
        evaluator: the name of an installed evaluator.
        calibration and the rest: as for `shortgpt.score`.
        progress: also called with "cuts" after each part of each batch.

    Raises:
        UnknownNameError: no criterion or evaluator of that name is installed.
        HiddenStateError: without one of them, or whole, the model gives NaN or infinity.
        CalibrationError: see `shortgpt.calibrate`; or the source has no text left to hold out.
        ModelError: the model is streamed.
    """
    for name in criteria:
        plugins.lookup("criterion", plugins.registry().criteria, name)
    judge = open_evaluator(evaluator)
    data, held_out = calibrate_and_hold_out(
        calibration, model, sequences=sequences, tokens=tokens, seed=seed, field=field, batch_size=batch_size
    )
    scores = score(model, data, criteria=criteria, progress=progress)
    whole = judge.summary(evaluate(model, held_out, judge).mean)
    depth = range(len(model))
    cuts = [Cut(block) for block in depth]
    cuts += [Cut(block, part) for block, parts in enumerate(model.parts) for part in parts]
    found = evaluate_cuts(model, held_out, judge, cuts, progress=progress)
    quality = {cut: judge.summary(one.mean) for cut, one in zip(cuts, found, strict=True)}
    without = {part or BLOCK: tuple(quality.get(Cut(block, part)) for block in depth) for part in _parts(cuts)}
    damage = [quality[Cut(block)] * (1 if judge.lower_is_better else -1) for block in depth]
    return Ablation(
        scores=scores,
        evaluator=evaluator,
        lower_is_better=judge.lower_is_better,
        whole=whole,
        without=without,
        parts_refused=model.refuse_parts(),
        correlations=tuple(_correlation(scores.of(name), damage) for name in scores.criteria),
        held_out=held_out.info,
    )


def _parts(cuts: Sequence[Cut]) -> list[str | None]:
    """What is left out: blocks first, then their parts by name."""
    return sorted({cut.part for cut in cuts}, key=lambda part: part or "")


def _correlation(scores: Scores, damage: Sequence[float]) -> Correlation:
    rho = ranks.spearman(scores.values, damage)
    return Correlation(scores.criteria[0], rho, *ranks.interval(rho, len(damage)))
