"""What pictures share: a figure, and lines that are told apart without colour too."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Of Okabe and Ito: told apart by the colour-blind too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", "-.", ":")
HEAT = "viridis"
"""A colour map whose lightness rises evenly, so that it reads in grey."""


def figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches, and its axes. No window, no global state."""
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def line(number: int) -> dict[str, str]:
    """How the line of that number looks: colour, marker and dashes together."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }
