"""What tables are made of: numbers, bars, and shades on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

BAR = 20
STRIP = 24
SHADES = "▁▂▃▄▅▆▇█"
LEAST, MOST = 1e-3, 1.0
"""Scores are shown on a logarithmic scale between these."""


def number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value == 0 or value >= 5e-4 else f"{value:.1e}"


def count(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def short_name(criterion: str) -> str:
    return "BI" if criterion == "block-influence" else criterion


def bar(value: float, largest: float, marked: bool) -> Text:
    eighths = round(8 * BAR * value / largest) if largest > 0 else 0
    full, rest = divmod(eighths, 8)
    return Text("█" * full + " ▏▎▍▌▋▊▉"[rest].strip(), style="red" if marked else "blue")


def heat_of(value: float) -> float:
    """A score's place on the scale, 0 to 1."""
    clamped = min(max(value, LEAST), MOST)
    return math.log(clamped / LEAST) / math.log(MOST / LEAST)


def shade(heat: float) -> tuple[str, Style]:
    """A shade that reads without colour, and a colour from blue (redundant) to red."""
    red, blue = round(40 + 200 * heat), round(240 - 200 * heat)
    return SHADES[min(int(heat * len(SHADES)), len(SHADES) - 1)], Style(color=f"rgb({red},90,{blue})")


def strip(values: Sequence[float]) -> Text:
    """The scores over relative depth: each of the strip's cells shows the block that lies under its middle."""
    text = Text()
    for cell in range(STRIP):
        block = int((cell + 0.5) / STRIP * len(values))
        text.append(*shade(heat_of(values[block])))
    return text


def scale() -> Text:
    text = Text("|")
    for step in range(len(SHADES)):
        text.append(*shade((step + 0.5) / len(SHADES)))
    return text.append("| influential")
