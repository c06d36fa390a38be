"""An evaluation as a picture: what each shorter model keeps, task by task; of a single model its scores."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from shortgpt.reports.plots.style import COLOURS, MARKERS, far_apart, figure, plain
from shortgpt.values.evaluation.estimates import Estimate
from shortgpt.values.evaluation.evaluation import Evaluation
from shortgpt.values.evaluation.outcomes import TaskRow

NORMAL_95 = 1.96
SPREAD = 0.5
"""Models of one task stand within this share of its row."""


def evaluation_figure(evaluation: Evaluation) -> Figure:
    """A row a task and a marker a model, with 95% intervals. Hollow markers stand for tasks at chance."""
    shorter = [at for at, one in enumerate(evaluation.models) if at and one.error is None]
    models = shorter or [0]
    rows = [row for row in evaluation.tasks if any(_value(evaluation, row, at) is not None for at in models)]
    made, axes = figure(6.8, max(2.4, 0.42 * len(rows) * max(1, len(models) ** 0.5) + 1.2))
    seen: list[float] = []
    for place, model in enumerate(models):
        shift = SPREAD * ((place + 0.5) / len(models) - 0.5)
        for at, row in enumerate(rows):
            found = _value(evaluation, row, model)
            if found is None or math.isnan(found.value):
                continue
            reach = 0.0 if math.isnan(found.stderr) else NORMAL_95 * found.stderr
            hollow = evaluation.is_at_chance(row)
            colour = COLOURS[place % len(COLOURS)]
            axes.errorbar(
                found.value,
                at + shift,
                xerr=reach,
                marker=MARKERS[place % len(MARKERS)],
                color=colour,
                markerfacecolor="white" if hollow else colour,
                capsize=2,
                linestyle="",
                label=plain(evaluation.models[model].model) if at == 0 else None,
            )
            seen.append(found.value)
    axes.set_yticks(range(len(rows)), [plain(f"{row.task}{' ↓' if row.lower_is_better else ''}") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.4, color="#dddddd")
    if far_apart(seen):
        axes.set_xscale("log")
    if shorter:
        axes.axvline(1.0, color="#888888", linewidth=0.8)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(plain(f"share of what {evaluation.models[0].model} scores, 95% intervals paired by item"))
    else:
        axes.set_xlabel("score, 95% intervals")
    if len(models) > 1:
        made.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return made


def _value(evaluation: Evaluation, row: TaskRow, model: int) -> Estimate | None:
    """What is drawn: the share that is kept; of the original its score."""
    return evaluation.kept(row, model) if model else evaluation.score(row, model)
