"""Each block left out alone, and its parts alone: what they are worth, and whether a criterion knows it (Table 1 of
ShortGPT, arXiv:2403.03853).

::

    source ─┬─ windows to score on ─▶ Scores ────────────────────────────────┐
            │                                                                ├─▶ rank correlation by block
            └─ as many others, held out ─▶ quality without block, mixer, MLP ┘
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from shortgpt import plugins
from shortgpt.basics.inputs import MeasuringOptions, Progress, apart
from shortgpt.basics.progress import shown
from shortgpt.basics.statistics import interval, spearman
from shortgpt.measuring.calibration import calibrate_and_hold_out
from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, evaluate, evaluate_cuts, open_evaluator
from shortgpt.measuring.scoring.resuming import journal_of
from shortgpt.measuring.scoring.score import score
from shortgpt.models.loading import opened
from shortgpt.models.sequence import Cut
from shortgpt.values.ablation import BLOCK, Ablation, Correlation
from shortgpt.values.scores import DEFAULT_CRITERION, Scores


def ablate(
    model: Any,
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] = (DEFAULT_CRITERION,),
    evaluator: str = DEFAULT_EVALUATOR,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Ablation:
    """Leave out each block alone and, where they are known, its mixer and its MLP alone.

    A part that is left out adds nothing to the stream; the block's other part then reads what came in. The criteria's
    scores are taken on the calibration's windows, the quality is that on as many others of the same source (see
    `shortgpt.measuring.calibration.calibrate_and_hold_out`).

    Args:
        model: a block sequence; a name or path, which is loaded; or a model of a library in memory, which is wrapped.
        criteria: names of installed criteria, to be held against the ablation.
        evaluator: the name of an installed evaluator.
        calibration, options: as for `shortgpt.score`.
        resume: a folder in which each batch is kept as it is measured, and from which it is taken; see
            `shortgpt.score`.
        progress: True for bars; or it is also called with "cuts" after each part of each batch.

    Raises:
        UnknownNameError: no criterion or evaluator of that name is installed.
        HiddenStateError: without one of them, or whole, the model gives NaN or infinity.
        CalibrationError: see `shortgpt.calibrate`; or the source has no text left to hold out.
        ModelError: the model is streamed.
    """
    progress = shown(progress)
    for name in criteria:
        plugins.lookup("criterion", plugins.registry().criteria, name)
    judge = open_evaluator(evaluator)
    texts, opening = apart(options)
    model = opened(model, opening)
    data, held_out = calibrate_and_hold_out(calibration, model, **texts)
    scores = score(model, data, criteria=criteria, resume=resume, progress=progress)
    depth = range(len(model))
    cuts = [Cut(block) for block in depth]
    cuts += [Cut(block, part) for block, parts in enumerate(model.parts) for part in parts]
    with journal_of(resume, "quality", model, held_out) as journal:
        whole = judge.summary(evaluate(model, held_out, judge, journal=journal).mean)
        qualities = evaluate_cuts(model, held_out, judge, cuts, progress=progress, journal=journal)
    quality = {cut: judge.summary(one.mean) for cut, one in zip(cuts, qualities, strict=True)}
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
    rho = spearman(scores.values, damage)
    return Correlation(scores.criteria[0], rho, *interval(rho, len(damage)))
