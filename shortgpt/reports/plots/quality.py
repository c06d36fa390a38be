"""The axis of a quality, alike in all pictures that have one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.reports.plots.style import far_apart, plain
from shortgpt.values.ablation import Ablation
from shortgpt.values.curves import Curves


def quality_axis(axes: Axes, result: Ablation | Curves, held_out: CalibrationInfo, values: Iterable[float]) -> None:
    """Say what stands on the y axis. It is logarithmic where lower is better: what has no upper end, as perplexity."""
    label, seen = f"{result.evaluator} on held-out {held_out.source}", [v for v in values if math.isfinite(v)]
    if result.lower_is_better and all(value > 0 for value in seen):
        label += ", log scale"
        axes.set_yscale("log")
        # Within a power of ten, round numbers of a linear scale are near enough to each other to be ticks.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if far_apart(seen) else MaxNLocator(6))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(plain(label))
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
