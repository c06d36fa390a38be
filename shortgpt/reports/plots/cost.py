"""A cost as a picture: what each block takes of parameters, cache and time, as shares of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shortgpt.reports.costs.units import duration, operations, size
from shortgpt.reports.plots.style import COLOURS, headed, panels, titled, whole_numbers
from shortgpt.values.cost import Cost, PartCost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS: tuple[tuple[str, Callable[[PartCost], Any], Callable[[Any], str]], ...] = (
    ("weights", lambda part: part.bytes, size),
    ("cache a token", lambda part: part.cache and part.cache.per_token, size),
    ("state of a sequence", lambda part: part.cache and part.cache.fixed, size),
    ("operations of a pass", lambda part: part.flops, operations),
    ("time of a pass", lambda part: part.prefill, duration),
    ("time of a decoding step", lambda part: part.decoding, duration),
)


def cost_figure(cost: Cost) -> Figure:
    """A panel for each thing that is known and not nothing, with a bar a block in percent of the whole model; the
    hatched bar behind them is what is outside the blocks."""
    shown = [panel for panel in PANELS if any(panel[1](part) for part in cost.blocks)]
    made, every = panels(len(shown), 4.2, 2.6, columns=2)
    headed(made, f"{cost.model}, {len(cost)} blocks")
    for axes, (name, value, show) in zip(every, shown, strict=True):
        numbers = [value(part) or 0 for part in (*cost.blocks, cost.outside)]
        whole = sum(numbers)
        shares = [100 * number / whole for number in numbers]
        axes.bar(range(len(cost)), shares[:-1], color=COLOURS[0])
        axes.bar([len(cost) + 0.5], shares[-1:], color="white", edgecolor=COLOURS[6], hatch="///", label="outside")
        titled(axes, f"{name}: {show(whole)} in all", 9)
        axes.set_ylabel("% of the model")
        axes.set_xlabel("block (hatched: outside the blocks)")
        whole_numbers(axes)
    return made
