"""Curves as a picture: quality against blocks removed, or against the share of the depth where models are several."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from shortgpt.reports.plots.quality import quality_axis
from shortgpt.reports.plots.style import COLOURS, DASHES, MARKERS, figure, line, plain, titled, whole_numbers
from shortgpt.values.curves import Curves

HEIGHT = 4.0
SMALLEST, GROWTH = 4.0, 0.6
"""Markers, in points: a line that runs over another has smaller ones, so that both are seen."""


def curve_figure(curves: Curves) -> Figure:
    """A line a model and criterion. Colour and marker tell the models apart and dashes the criteria; of a single model,
    all three the criteria. Hollow markers stand for sets that can be skipped only."""
    measured = curves.measured()
    several = len(measured) > 1
    criteria = list(dict.fromkeys(one.criterion for _, curve in measured for one in curve.lines))
    number = sum(len(curve.lines) for _, curve in measured)
    made, axes = figure(7.0 if several else 6.4, max(HEIGHT, 0.24 * number + 1))
    seen: list[float] = []
    for at, (model, curve) in enumerate(measured):
        for one in curve.lines:
            place = criteria.index(one.criterion)
            look = _look(at, place) if several else line(place) | {"linestyle": DASHES[place % len(DASHES)]}
            blocks = [len(point.removed) / (len(curve.scores) if several else 1) for point in one.points]
            quality = [point.quality for point in one.points]
            name = f"{model}, {one.criterion}" if several and len(criteria) > 1 else model if several else one.criterion
            size = SMALLEST + GROWTH * (len(criteria) - 1 - place)
            axes.plot(blocks, quality, label=plain(name), markersize=size, linewidth=1.5, **look)
            hollow = [(x, y) for x, y, p in zip(blocks, quality, one.points, strict=True) if p.refusal]
            if hollow:
                own = {"color": look["color"], "marker": look["marker"], "markerfacecolor": "white"}
                axes.plot(*zip(*hollow, strict=True), linestyle="", markersize=size, zorder=3, **own)
            seen += quality
    if several:
        axes.set_xlabel("share of the blocks removed")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        axes.set_xlabel("blocks removed")
        whole_numbers(axes)
        titled(axes, f"{measured[0][0]}, {len(measured[0][1].scores)} blocks", 10)
    quality_axis(axes, curves, measured[0][1].held_out, seen)
    axes.margins(x=0.02)
    if number > 1:
        outside: dict[str, Any] = {"loc": "outside right upper"} if number > 4 else {}
        (made if outside else axes).legend(frameon=False, fontsize=8, handlelength=3, **outside)
    return made


def _look(model: int, criterion: int) -> dict[str, Any]:
    return {
        "color": COLOURS[model % len(COLOURS)],
        "marker": MARKERS[model % len(MARKERS)],
        "linestyle": DASHES[criterion % len(DASHES)],
    }
