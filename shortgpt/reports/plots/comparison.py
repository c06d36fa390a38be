"""A comparison as lines over relative depth, a line a model, a panel a criterion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from shortgpt.reports.plots.scores import describe
from shortgpt.reports.plots.style import far_apart, line, panels, plain, titled
from shortgpt.values.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 44
CHARACTERS_PER_INCH = 15


def comparison_figure(comparison: Comparison) -> Figure:
    """Block i of a model of L blocks at (i + ½) / L. A model has one line in all panels, and one legend serves them."""
    rows = [(row.model, row.scores) for row in comparison.rows if row.scores is not None]
    criteria = [criterion for criterion, measured in comparison.measured().items() if measured]
    labels = _labels(comparison)
    columns = 1 if len(criteria) < 4 else 2
    beside = max(1, int(6.4 * columns * CHARACTERS_PER_INCH) // (max(map(len, labels), default=0) + 8))
    figure, axes = panels(max(1, len(criteria)), 6.4, 3.4, columns=columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // beside))
    for panel, criterion in zip(axes, criteria, strict=False):
        drawn: list[float] = []
        for place, (_, scores) in enumerate(rows):
            if criterion in scores.criteria:
                depths = [(block + 0.5) / len(scores) for block in range(len(scores))]
                values = scores.of(criterion).values
                panel.plot(depths, values, markersize=4, linewidth=1.2, **line(place))
                drawn += values
        if far_apart(drawn):
            panel.set_yscale("log")
        panel.set_xlim(0, 1)
        titled(panel, describe(criterion), 9)
        panel.set_xlabel("relative depth (0: before the first block, 1: behind the last)")
        panel.set_ylabel("score")
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    handles = [Line2D([], [], markersize=4, **line(place)) for place in range(len(rows))]
    handles += [Line2D([], [], linestyle="none") for _ in labels[len(rows) :]]
    figure.legend(handles, labels, loc="outside lower center", ncols=beside, fontsize=8, frameon=False)
    return figure


def _labels(comparison: Comparison) -> list[str]:
    """The models that were measured, then those that could not be."""
    rows = [(row.model, row.scores) for row in comparison.rows if row.scores is not None]
    failed = [f"{_short(row.model)}: not measured" for row in comparison.rows if row.scores is None]
    return [
        _short(model) + (" (on other text)" if comparison.on_other_text(scores) else "") for model, scores in rows
    ] + failed


def _short(name: str) -> str:
    """The end of a long name, which tells models apart where they lie in one folder."""
    return plain(name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}")
