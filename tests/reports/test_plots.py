"""Pictures: what is drawn is what was measured, it is told apart without colour, and nothing half drawn is left."""

from __future__ import annotations

import importlib.util
import math
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

import shortgpt
from shortgpt import Comparison
from shortgpt.errors import OutputError
from shortgpt.reports.plots import check_plot, draw, style
from shortgpt.reports.plots.comparison import comparison_figure
from shortgpt.reports.plots.scores import scores_figure
from shortgpt.reports.plots.spans import spans_figure
from shortgpt.values.choosing.spans import Spans
from shortgpt.values.comparison import Row
from tests.support import Playback, scores_of


def spans(depth: int, step: float = 0.1) -> Spans:
    pairs = [(i, j) for i in range(depth) for j in range(i + 1, depth + 1)]
    return Spans("block-influence", depth, (tuple(1 - math.cos(step * (j - i)) for i, j in pairs),), (1,))


def grey(colour: Any) -> float:
    """Lightness as a grey printer sees it (Rec. 709)."""
    return float(numpy.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def texts(figure: Figure) -> set[str]:
    """All that is written on a figure, as it is shown."""
    from matplotlib.text import Text

    return {text.get_text().replace(r"\$", "$") for text in figure.findobj(Text)}  # type: ignore[attr-defined]


# -- scores ---------------------------------------------------------------------------------------------------


def test_a_bar_a_block_with_its_standard_error() -> None:
    one = scores_of([0.4, 0.25, 0.1])
    (axes,) = scores_figure(one).axes
    assert [bar.get_height() for bar in axes.patches] == list(one.values)
    bars = next(c for c in axes.containers if isinstance(c, BarContainer))
    (lines,) = bars.errorbar.lines[2]  # type: ignore[union-attr]
    ends = [(low, high) for (_, low), (_, high) in lines.get_segments()]
    assert ends == [
        pytest.approx((value - error, value + error)) for value, error in zip(one.values, one.stderr, strict=True)
    ]
    assert axes.get_xlabel() == "block, counted from 0"
    assert axes.get_ylabel() == "score ± standard error"
    assert axes.get_title() == "block-influence: 1 - cos(x_i, x_i+1), Eq. 1 of ShortGPT"


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.4, 0.1], "linear"), ([0.9, 0.01], "log"), ([0.9, 0.0], "linear"), ([0.9, -0.01], "linear")],
)
def test_the_axis_is_logarithmic_where_values_are_far_apart_and_positive(values: list[float], scale: str) -> None:
    (axes,) = scores_figure(scores_of(values)).axes
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[0] < min(value for value in values) or min(values) == 0


def test_marked_and_pinned_blocks_are_told_apart_without_colour() -> None:
    drawn = scores_figure(scores_of([0.4, 0.3, 0.2], pinned={0: "why"}), marked=(2,))
    (axes,) = drawn.axes
    pinned, stays, gone = axes.patches
    assert len({pinned.get_hatch(), stays.get_hatch(), gone.get_hatch()}) == 3
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["stays", "would be removed", "pinned"]
    assert scores_figure(scores_of([0.4, 0.3])).legends == []


def test_every_criterion_has_a_panel_and_spans_have_one_more() -> None:
    one = scores_of([0.4, 0.3])
    both = replace(one, criteria=("a", "b"), sums=one.sums * 2, counts=one.counts * 2, spans=spans(2))
    titles = [axes.get_title() for axes in scores_figure(both).axes if axes.get_title()]
    assert titles == ["a", "b", "block-influence of every run of blocks"]


def test_without_standard_errors_there_are_none_on_the_axis() -> None:
    stream = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    one = shortgpt.score(Playback(stream), [{"input_ids": torch.arange(20)[None]}])
    (axes,) = scores_figure(one).axes
    assert axes.get_ylabel() == "score"
    assert len(axes.collections) == 0


# -- comparisons ----------------------------------------------------------------------------------------------


def test_a_line_a_model_over_relative_depth() -> None:
    rows = (Row("a", scores_of([0.4, 0.2])), Row("bad", error="why"), Row("b", scores_of([0.1, 0.2, 0.3, 0.4])))
    figure = comparison_figure(Comparison(rows))
    first, second = figure.axes[0].lines
    assert list(first.get_xdata()) == [0.25, 0.75]
    assert list(second.get_xdata()) == [0.125, 0.375, 0.625, 0.875]
    assert list(second.get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert {"a", "b", "bad: not measured"} <= texts(figure)
    assert figure.axes[0].get_xlabel().startswith("relative depth")


def test_a_model_keeps_its_line_in_every_panel() -> None:
    one = scores_of([0.4, 0.2])
    both = replace(one, criteria=("x", "y"), sums=one.sums * 2, counts=one.counts * 2)
    lacking = replace(one, criteria=("x",))
    rows = (Row("lacking", lacking), Row("both", both))
    upper, lower = comparison_figure(Comparison(rows, ("x", "y"))).axes
    assert len(upper.lines) == 2
    assert len(lower.lines) == 1
    assert lower.lines[0].get_marker() == upper.lines[1].get_marker() != upper.lines[0].get_marker()


def test_models_measured_on_other_text_are_marked() -> None:
    one = scores_of([0.4, 0.2], "a")
    other = replace(one, calibration=replace(one.calibration, text_hash="x"))
    assert "b (on other text)" in texts(comparison_figure(Comparison((Row("a", one), Row("b", other)))))


def test_forty_lines_are_told_apart_and_neighbours_without_colour() -> None:
    looks = [tuple(style.line(number).values()) for number in range(40)]
    assert len(set(looks)) == 40
    shapes = [(marker, dash) for _, marker, dash in looks]
    assert all(one != two for one, two in pairwise(shapes))


NAMES = ["_under", "$x$ and $\\frac{", "100%", "x" * 300, "a\nb"]


def test_any_name_is_drawn_as_it_is(tmp_path: Path) -> None:
    rows = tuple(Row(name, scores_of([0.4, 0.2], name)) for name in NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(Comparison(rows), str(tmp_path / "a.png"))
        for row in rows:
            assert row.scores is not None
            draw(row.scores, str(tmp_path / "a.svg"))
    told = texts(comparison_figure(Comparison(rows)))
    assert {"_under", "$x$ and $\\frac{", "100%", "…" + "x" * 43, "a b"} <= told


# -- spans ----------------------------------------------------------------------------------------------------


def test_the_triangle_is_drawn_by_first_block_and_length_with_a_colour_bar() -> None:
    figure = spans_figure(spans(4, 0.5))
    axes, bar = figure.axes
    drawn = axes.collections[0].get_array()
    assert drawn is not None
    grid = numpy.ma.filled(numpy.reshape(drawn, (4, 4)), numpy.nan)
    for length in range(1, 5):
        for first in range(4):
            expected = 1 - math.cos(0.5 * length) if first + length <= 4 else math.nan
            assert grid[length - 1, first] == pytest.approx(expected, nan_ok=True)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("first block, counted from 0", "length (blocks)")
    assert bar.get_ylabel() == "block-influence of the run"
    (rings,) = axes.lines
    assert list(zip(rings.get_xdata(), rings.get_ydata(), strict=True)) == [(3, 1), (2, 2), (1, 3)]


def test_pinned_blocks_are_in_no_run_that_is_ringed() -> None:
    axes = spans_figure(spans(4), kept=(3,)).axes[0]
    assert list(zip(axes.lines[0].get_xdata(), axes.lines[0].get_ydata(), strict=True)) == [(2, 1), (1, 2), (0, 3)]


@pytest.mark.parametrize("depth", [1, 2, 80])
@pytest.mark.parametrize("step", [0.0, 0.01])
def test_a_map_of_any_depth_and_of_equal_values_is_drawn(depth: int, step: float, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(spans(depth, step), str(tmp_path / "a.png"))


def test_the_map_gets_lighter_evenly_so_that_it_reads_in_grey() -> None:
    from matplotlib import colormaps

    lightness = [grey(colormaps[style.HEAT](step / 20)) for step in range(21)]
    assert lightness == sorted(lightness)


# -- files ----------------------------------------------------------------------------------------------------

BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "PNG": b"\x89PNG"}


@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_a_picture_is_what_its_name_says(tmp_path: Path, suffix: str) -> None:
    draw(scores_of([0.4, 0.2]), str(tmp_path / f"a.{suffix}"), marked=(1,))
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(BEGINNINGS[suffix])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a", "a.jpg", "a.", "-", "png"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(OutputError, match=r"pictures are written as \.png, \.svg, \.pdf"):
        check_plot(name)


def test_without_matplotlib_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(OutputError, match=r"pip install 'shortgpt-blocks\[plot\]'"):
        check_plot("a.png")


def test_a_kind_without_a_picture_is_refused_by_name() -> None:
    with pytest.raises(OutputError, match="there is no picture of a Registry"):
        draw(shortgpt.plugins.registry(), "a.png")


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        draw(scores_of([0.4, 0.2]), str(tmp_path / "no" / "a.png"))
    assert list(tmp_path.iterdir()) == []
