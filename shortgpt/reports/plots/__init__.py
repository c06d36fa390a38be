"""Results as pictures, by matplotlib (the extra `plot`). Readable in grey, and by the colour-blind."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.basics.targets import load_target
from shortgpt.errors import OutputError
from shortgpt.reports.files import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
PICTURES: dict[str, str] = {
    "Comparison": "shortgpt.reports.plots.comparison:comparison_figure",
    "Scores": "shortgpt.reports.plots.scores:scores_figure",
    "Spans": "shortgpt.reports.plots.spans:spans_figure",
    "Training": "shortgpt.reports.plots.training:training_figure",
    "Ablation": "shortgpt.reports.plots.ablation:ablation_figure",
    "Cost": "shortgpt.reports.plots.cost:cost_figure",
    "Curves": "shortgpt.reports.plots.curve:curve_figure",
    "Evaluation": "shortgpt.reports.plots.evaluation:evaluation_figure",
    "Healing": "shortgpt.reports.plots.healing:healing_figure",
}
"""For each kind of result, the function that makes its figure."""


def check_plot(file: str, kind: str | None = None) -> None:
    """Raise an `OutputError` where no picture of that name, and of that kind of result, can be drawn."""
    if Path(file).suffix.lower() not in SUFFIXES:
        raise OutputError(f"{file}: pictures are written as {', '.join(SUFFIXES)}; name one of them")
    if kind is not None and kind not in PICTURES:
        raise OutputError(f"there is no picture of a {kind} (only of {', '.join(sorted(PICTURES))}); leave --plot out")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            "pictures are drawn by matplotlib, which is not installed; pip install 'shortgpt-blocks[plot]'"
        )


def figure(result: object, **shown: Any) -> Figure:
    """The picture of a result.

    Raises:
        OutputError: there is none of such a result, or matplotlib is not installed.
    """
    kind = type(result).__name__
    check_plot("figure.svg", kind)
    drawn: Figure = load_target(PICTURES[kind])(result, **shown)
    return drawn


def draw(result: object, file: str, **shown: Any) -> None:
    """Draw a result into a file, all of it or nothing.

    Args:
        shown: what the picture shows besides, such as `marked` blocks of scores.

    Raises:
        OutputError: there is no picture of such a result, or the file cannot be written.
    """
    check_plot(file, type(result).__name__)
    picture = io.BytesIO()
    figure(result, **shown).savefig(picture, format=Path(file).suffix[1:].lower(), dpi=150)
    write(picture.getvalue(), file)
