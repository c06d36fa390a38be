"""A training of what is left: its losses over the steps, and those of the original and of the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shortgpt.reports.plots.style import figure, line, titled, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shortgpt.values.healing import Healed, Healing


def healing_figure(healing: Healing) -> Figure:
    """The held-out text's log-perplexity, between the shortened and the whole model's; and the loss that was trained,
    on an axis of its own where that is another quantity (distillation)."""
    made, axes = figure()
    axes.plot(*_points(healing.held_out), **line(0), label="held-out text")
    distilled = healing.is_distilled
    trained_on = axes.twinx() if distilled else axes
    told = "divergence from the original (right)" if distilled else "training text"
    trained_on.plot(*_points(healing.training), **line(1), label=told)
    axes.axhline(healing.before, color="#888888", linewidth=0.8, linestyle="--", label="shortened")
    if healing.whole is not None:
        axes.axhline(healing.whole, color="#888888", linewidth=0.8, linestyle=":", label="whole")
    axes.set_xlabel("steps")
    axes.set_ylabel("log-perplexity, a token")
    whole_numbers(axes)
    lines = [*axes.get_lines(), *(trained_on.get_lines() if distilled else ())]
    axes.legend(handles=lines, frameon=False, fontsize=8)
    titled(axes, f"{healing.shorter}: {healing.method}", 10)
    return made


def _points(moments: tuple[Healed, ...]) -> tuple[list[int], list[float]]:
    return [moment.step for moment in moments], [moment.loss for moment in moments]
