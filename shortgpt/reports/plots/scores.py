"""Scores as bars with standard errors, a panel a criterion. Blocks that would go are hatched, pinned ones dotted."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from matplotlib.patches import Patch

from shortgpt.plugins import registry
from shortgpt.reports.plots.spans import draw_spans
from shortgpt.reports.plots.style import COLOURS, far_apart, headed, panels, titled, whole_numbers
from shortgpt.values.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGE = "#222222"
LOOKS: dict[str, dict[str, Any]] = {
    "stays": {"facecolor": COLOURS[0], "hatch": ""},
    "would be removed": {"facecolor": "white", "hatch": "////"},
    "pinned": {"facecolor": COLOURS[4], "hatch": "...."},
}


def scores_figure(scores: Scores, marked: Collection[int] = ()) -> Figure:
    """A bar a block, a panel a criterion; with spans, their triangle as the last panel."""
    number = len(scores.criteria) + (scores.spans is not None)
    width = min(max(6.4, 0.14 * len(scores)), 14)
    figure, axes = panels(number, width, 3.2, columns=1 if number < 4 else 2)
    headed(figure, f"{scores.model}, {scores.calibration.source}")
    for panel, criterion in zip(axes, scores.criteria, strict=False):
        _bars(panel, scores.of(criterion), marked)
    present = [look for look in LOOKS if look in _looks(scores, marked)]
    if present != ["stays"]:
        handles = [Patch(label=look, edgecolor=EDGE, linewidth=0.6, **LOOKS[look]) for look in present]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    if scores.spans is not None:
        draw_spans(axes[-1], scores.spans, scores.pinned)
    return figure


def describe(criterion: str) -> str:
    """A criterion's name and, where it is installed, its definition, which says what its unit is."""
    told = [entry.description for entry in registry().criteria if entry.name == criterion and entry.description]
    return f"{criterion}: {told[0]}" if told else criterion


def _bars(axes: Axes, scores: Scores, marked: Collection[int]) -> None:
    measured = scores.stderr[0] == scores.stderr[0]
    bars = axes.bar(
        range(len(scores)),
        scores.values,
        yerr=scores.stderr if measured else None,
        error_kw={"elinewidth": 1, "capsize": 2, "ecolor": EDGE},
        edgecolor=EDGE,
        linewidth=0.6,
    )
    for bar, look in zip(bars, _looks(scores, marked), strict=True):
        bar.set(**LOOKS[look])
    axes.set_xlim(-0.7, len(scores) - 0.3)
    if far_apart(scores.values):
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=min(scores.values) / 2)
    titled(axes, describe(scores.criteria[0]), 9)
    axes.set_xlabel("block, counted from 0")
    axes.set_ylabel("score ± standard error" if measured else "score")
    whole_numbers(axes)


def _looks(scores: Scores, marked: Collection[int]) -> list[str]:
    return [
        "would be removed" if i in marked else "pinned" if i in scores.pinned else "stays" for i in range(len(scores))
    ]
