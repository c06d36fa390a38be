"""Results as pictures, by matplotlib (the extra `plot`). Readable in grey, and by the colour-blind."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt.errors import OutputError
from shortgpt.plugins import load_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
PICTURES: dict[str, str] = {
    "Ablation": "shortgpt.plots.ablation:ablation_figure",
    "Curves": "shortgpt.plots.curve:curve_figure",
}
"""For each kind of result, the function that makes its figure."""


def check_plot(file: str) -> None:
    """Raise an `OutputError` where no picture of that name can be drawn."""
    if Path(file).suffix.lower() not in SUFFIXES:
        raise OutputError(f"{file}: pictures are written as {', '.join(SUFFIXES)}; name one of them")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("pictures are drawn by matplotlib, which is not installed; pip install 'shortgpt[plot]'")


def draw(result: object, file: str) -> None:
    """Draw a result into a file.

    Raises:
        OutputError: there is no picture of such a result, or the file cannot be written.
    """
    check_plot(file)
    target = PICTURES.get(type(result).__name__)
    if target is None:
        raise OutputError(f"there is no picture of a {type(result).__name__}; leave --plot out")
    figure: Figure = load_target(target)(result)
    try:
        figure.savefig(Path(file).expanduser(), dpi=150)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from None
