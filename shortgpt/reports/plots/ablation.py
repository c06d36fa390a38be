"""Ablations as a picture: the quality without each block and its parts; and how well each criterion's ranks agree."""

from __future__ import annotations

from math import inf, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shortgpt.basics.statistics import mid_ranks
from shortgpt.reports.ablation import correlation
from shortgpt.reports.plots.quality import quality_axis
from shortgpt.reports.plots.style import headed, line, panels, plain, whole_numbers
from shortgpt.values.ablation import BLOCK, Ablation


def ablation_figure(found: Ablation) -> Figure:
    """Left a line for blocks, mixers and MLPs over depth, and the whole model; right ranks against ranks."""
    made, (left, right) = panels(2, 5.2, 4.0, columns=2)
    headed(made, f"{found.scores.model}, {len(found.scores)} blocks")
    _qualities(left, found)
    _ranks(right, found)
    return made


def _qualities(axes: Axes, found: Ablation) -> None:
    blocks = range(len(found.scores))
    for place, (part, column) in enumerate(found.without.items()):
        values = [nan if value is None else value for value in column]
        axes.plot(blocks, values, label=f"without the {part}", markersize=4.5, linewidth=1.2, **line(place))
    axes.axhline(found.whole, color="black", linestyle="--", linewidth=1, label="whole model")
    axes.set_xlabel("block")
    whole_numbers(axes)
    seen = [value for column in found.without.values() for value in column if value is not None]
    quality_axis(axes, found, found.held_out, (*seen, found.whole))
    axes.legend(frameon=False, fontsize=8)


def _ranks(axes: Axes, found: Ablation) -> None:
    sign = 1 if found.lower_is_better else -1
    damage = mid_ranks([sign * (inf if value is None else value) for value in found.without[BLOCK]])
    axes.plot((1, len(damage)), (1, len(damage)), color="#bbbbbb", linewidth=1, zorder=0)
    for place, one in enumerate(found.correlations):
        look = line(place) | {"linestyle": "", "markerfacecolor": "none"}
        ranks = mid_ranks(found.scores.of(one.criterion).values)
        axes.plot(ranks, damage, label=plain(correlation(one)), markersize=6, **look)
    axes.set_xlabel("rank by the criterion (1: removed first)")
    axes.set_ylabel("rank by the damage done (1: least)")
    whole_numbers(axes, "xy")
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(frameon=False, fontsize=8, title="Spearman, 95% confidence", title_fontsize=8, **beside)
