"""A training as a map: blocks over steps, as light as their influence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.colors import LogNorm

from shortgpt.reports.plots.style import HEAT, far_apart, figure, titled, whole_numbers
from shortgpt.values.training import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_figure(training: Training) -> Figure:
    """Moments stand side by side at even distances, as they were measured; their steps, or tokens, are the ticks."""
    made, axes = figure()
    moments = training.moments
    values = [[moment.influence[block] for moment in moments] for block in range(len(training.block_names))]
    flat = [value for row in values for value in row]
    image = axes.imshow(values, aspect="auto", origin="lower", cmap=HEAT, norm=LogNorm() if far_apart(flat) else None)
    places = range(0, len(moments), max(1, len(moments) // 8))
    by_tokens = all(moment.tokens is not None for moment in moments)
    axes.set_xticks(list(places), [f"{(moments[p].tokens if by_tokens else moments[p].step):,}" for p in places])
    axes.set_xlabel("tokens seen" if by_tokens else "steps")
    axes.set_ylabel("block, counted from 0")
    whole_numbers(axes, "y")
    titled(axes, f"{training.model}: Block Influence in training", 10)
    made.colorbar(image, ax=axes, label="Block Influence")
    return made
