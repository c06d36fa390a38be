"""The axis of a quality, alike in all pictures that have one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from shortgpt.ablation import Ablation
from shortgpt.calibration import CalibrationInfo
from shortgpt.curves import Curves
from shortgpt.plots.style import plain


def quality_axis(axes: Axes, result: Ablation | Curves, held_out: CalibrationInfo, values: Iterable[float]) -> None:
    """Say what stands on the y axis. It is logarithmic where lower is better: what has no upper end, as perplexity."""
    label = f"{result.evaluator} on held-out {held_out.source}"
    if result.lower_is_better and all(value > 0 for value in values if math.isfinite(value)):
        label += ", log scale"
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(plain(label))
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
