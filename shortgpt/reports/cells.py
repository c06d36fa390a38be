"""What tables are made of: numbers, bars, and shades on a scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from shortgpt.basics.inputs import CalibrationInfo

BAR = 20
STRIP = 24
SHADES = "▁▂▃▄▅▆▇█"


def number(value: float) -> str:
    """Four decimals, fewer where it is large; of what they do not show two digits that count, or a power of ten. NaN is
    told as a dash."""
    size = abs(value)
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if size >= 999_999.95 or 0 < size < 1e-5:
        return f"{value:.1e}"
    if 0 < size < 5e-4:
        return f"{value:.{1 - math.floor(math.log10(size))}f}"
    return f"{value:.1f}" if size >= 999.99995 else f"{value:.4f}"


def count(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= 0.99995 * size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def short_name(criterion: str) -> str:
    return "BI" if criterion == "block-influence" else criterion


@dataclass(frozen=True)
class Bar:
    """A share of the largest value, as wide as there is room for; in a narrow table it gives way to the numbers."""

    value: float
    largest: float
    marked: bool

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inside = 0 < self.largest < math.inf and 0 < self.value <= self.largest
        eighths = round(8 * min(BAR, options.max_width) * self.value / self.largest) if inside else 0
        full, rest = divmod(eighths, 8)
        yield Text("█" * full + " ▏▎▍▌▋▊▉"[rest].strip(), style="red" if self.marked else "blue")


@dataclass(frozen=True)
class Scale:
    """Where a value lies between the least and the most, 0 to 1; by its logarithm where they are far apart."""

    least: float
    most: float
    logarithmic: bool

    @classmethod
    def within(cls, values: Iterable[float]) -> Scale:
        """The scale that these values fill, to tell them apart."""
        finite = [value for value in values if math.isfinite(value)]
        positive = [value for value in finite if value > 0]
        if positive and min(finite) >= 0 and max(positive) > 5 * min(positive):
            return cls(min(positive), max(positive), True)
        return cls(min(finite, default=0.0), max(finite, default=1.0), False)

    def heat(self, value: float) -> float:
        if math.isnan(value):
            return 1.0
        if self.most <= self.least:
            return 0.0
        clamped = min(max(value, self.least), self.most)
        if self.logarithmic:
            return math.log(clamped / self.least) / math.log(self.most / self.least)
        return (clamped - self.least) / (self.most - self.least)

    def __str__(self) -> str:
        return f"{self.least:.3g} to {self.most:.3g}, {'logarithmic' if self.logarithmic else 'linear'}"


UNIT = Scale(1e-3, 1.0, True)
"""Of Block Influence: always the same one, so that models compare."""


def colour(heat: float) -> Style:
    """From blue (redundant) to red."""
    red, blue = round(40 + 200 * heat), round(240 - 200 * heat)
    return Style(color=f"rgb({red},90,{blue})")


def shade(heat: float, shades: str = SHADES) -> tuple[str, Style]:
    """A shade that reads without colour, and a colour."""
    return shades[min(int(heat * len(shades)), len(shades) - 1)], colour(heat)


def strip(values: Sequence[float], scale: Scale = UNIT) -> Text:
    """The scores over relative depth. Each of the strip's cells shows the block that lies under its middle; where there
    are more blocks than cells, the mean of those that lie under it."""
    text = Text()
    for cell in range(STRIP):
        if len(values) > STRIP:
            under = values[cell * len(values) // STRIP : -(-(cell + 1) * len(values) // STRIP)]
            value = math.fsum(under) / len(under)
        else:
            value = values[int((cell + 0.5) / STRIP * len(values))]
        text.append(*shade(scale.heat(value)))
    return text


def legend(scale: Scale, shades: str = SHADES) -> Text:
    """What the shades mean."""
    text = Text("redundant |")
    for step in range(len(shades)):
        text.append(*shade((step + 0.5) / len(shades), shades))
    return text.append(f"| influential ({scale})")


def too_few_documents(info: CalibrationInfo, unit: str | None) -> str | None:
    """What is to be told of standard errors where windows of one document were taken for independent, else None."""
    if unit != "sequence" or info.documents is None or info.documents == info.sequences:
        return None
    if info.documents == 1:
        found = f"all {info.sequences} sequences are of one document"
    else:
        found = f"the {info.sequences} sequences are of {info.documents} documents, too few or too unlike in length"
    return f"{found}: how much other documents differ cannot be said, so the standard errors may be too small"
