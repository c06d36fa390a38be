"""What pictures share: a figure, and lines and bars that are told apart without colour too."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Of Okabe and Ito: told apart by the colour-blind too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", "-.", ":")
HEAT = "viridis"
"""A colour map whose lightness rises evenly, so that it reads in grey."""
FAR_APART = 10
"""Values are drawn on a logarithmic axis where the largest is more than this many times the least."""


class Picture(Figure):
    """A figure that shows itself at the end of a cell, also where a notebook was not told to draw figures."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png")
        return drawn.getvalue()


def figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches, and its axes. No window, no global state."""
    made, (axes,) = panels(1, width, height)
    return made, axes


def panels(number: int, width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of several axes, each of that size in inches, row by row."""
    columns = min(columns, number)
    rows = -(-number // columns)
    made = Picture(figsize=(columns * width, rows * height), layout="constrained")
    grid = made.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[number:]:
        axes.remove()
    for axes in grid[:number]:
        axes.spines[["top", "right"]].set_visible(False)
    return made, list(grid[:number])


def line(number: int) -> dict[str, Any]:
    """How the line of that number looks: colour, marker and dashes together."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def plain(name: str) -> str:
    """A name that is drawn as it is: `$` would begin a formula."""
    return " ".join(name.replace("$", r"\$").split())


def titled(axes: Axes, name: str, size: float = 9) -> None:
    """Set the title over a panel, broken into as many lines as it takes to fit."""
    drawn, grid = axes.figure, axes.get_gridspec()
    width = 0.9 * drawn.bbox.width / drawn.dpi / (1 if grid is None else grid.ncols)
    axes.set_title(_broken(name, width, size), fontsize=size)


def headed(drawn: Figure, name: str, size: float = 10) -> None:
    """Set the title over a whole figure, likewise."""
    drawn.suptitle(_broken(name, 0.95 * drawn.get_figwidth(), size), fontsize=size)


def _broken(name: str, inches: float, size: float) -> str:
    letters = int(72 * inches / (0.6 * size))
    return "\n".join(map(plain, textwrap.wrap(name, letters)))


def whole_numbers(axes: Axes, which: str = "x") -> None:
    """Ticks at whole numbers only, as for blocks."""
    for name in which:
        getattr(axes, f"{name}axis").set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def far_apart(values: Iterable[float]) -> bool:
    """Whether values are told apart only on a logarithmic axis, and can be on one."""
    finite = [value for value in values if value == value]
    return bool(finite) and min(finite) > 0 and max(finite) > FAR_APART * min(finite)
