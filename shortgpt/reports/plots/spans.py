"""Spans as a heat map: the triangle of first block × length, light where a run is influential."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy
from matplotlib.colors import LogNorm, Normalize

from shortgpt.reports.plots.style import HEAT, far_apart, panels, plain, titled, whole_numbers
from shortgpt.reports.spans import best_runs
from shortgpt.values.choosing.spans import Spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def spans_figure(spans: Spans, kept: Collection[int] = ()) -> Figure:
    """The map alone; a ring is on the least influential run of each length that holds none of the `kept` blocks."""
    figure, (axes,) = panels(1, 6.4, 5.0)
    draw_spans(axes, spans, kept)
    return figure


def draw_spans(axes: Axes, spans: Spans, kept: Collection[int] = ()) -> None:
    """Draw the map into axes, with a colour bar beside it."""
    depth = spans.depth
    grid = numpy.full((depth, depth), numpy.nan)  # [length - 1, first block]
    for first, row in enumerate(spans.triangle):
        grid[: len(row), first] = row
    positive = [value for value in spans.means if value > 0]
    scale: Normalize = Normalize(min(spans.means), max(spans.means))
    if min(spans.means) >= 0 and far_apart(positive):
        scale = LogNorm(min(positive), max(positive), clip=True)
    edges = numpy.arange(depth + 1) - 0.5
    image = axes.pcolormesh(edges, edges + 1, numpy.ma.masked_invalid(grid), norm=scale, cmap=HEAT)
    best = best_runs(spans, kept)
    if best:
        axes.plot(
            [run[0] for run in best.values()],
            list(best),
            linestyle="none",
            marker="o",
            markersize=max(2.0, min(6.0, 120 / depth)),
            markerfacecolor="white",
            markeredgecolor="black",
            label="least influential of its length",
        )
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    whole_numbers(axes, "xy")
    titled(axes, f"{spans.criterion} of every run of blocks", 9)
    axes.set_xlabel("first block, counted from 0")
    axes.set_ylabel("length (blocks)")
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(plain(f"{spans.criterion} of the run"))
