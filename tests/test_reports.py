"""How results look: at 80 columns, without colour, and that the numbers shown are the numbers measured."""

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import shortgpt
from shortgpt import Comparison, Scores
from shortgpt.comparison import Row
from shortgpt.reports import as_text
from shortgpt.reports.scores import scores_table
from tests.support import Playback

SHADES = "▁▂▃▄▅▆▇█"


def scores(values: list[float], name: str = "model", **changes: object) -> Scores:
    """Scores of two sequences with these values, whose standard errors are 1% of them."""
    stream = torch.randn(len(values) + 1, 20, 8, generator=torch.Generator().manual_seed(0))
    measured = shortgpt.score(Playback(stream, name=name), [{"input_ids": torch.arange(20).reshape(2, 10)}])
    sums = tuple(tuple(10 * v * factor for v in values) for factor in (0.99, 1.01))
    return replace(measured, sums=(sums,), **changes)  # type: ignore[arg-type]


def rendered(result: object, width: int = 80, *, colour: bool = False) -> str:
    buffer = io.StringIO()
    system = "truecolor" if colour else None
    Console(file=buffer, width=width, color_system=system, force_terminal=colour).print(result)  # type: ignore[arg-type]
    return buffer.getvalue()


# -- scores ---------------------------------------------------------------------------------------------------


def test_a_row_a_block_with_score_error_bar_parameters_rank_and_mark() -> None:
    text = as_text(scores_table(scores([0.5, 0.25, 0.0001]), marked=(2,)))
    rows = [line.split() for line in text.splitlines() if re.match(r"\s*\d", line)]
    assert rows[0] == ["0", "0.5000", "0.0050", "█" * 20, "100", "3"]
    assert rows[1] == ["1", "0.2500", "0.0025", "█" * 10, "101", "2"]
    assert rows[2] == ["2", "1.0e-04", "1.0e-06", "102", "1", "remove"]
    assert "model  playback, unknown-norm, 3 blocks, 1.3k parameters, float32" in text


def test_what_would_go_is_summed_up() -> None:
    text = as_text(scores_table(scores([0.5, 0.4, 0.1, 0.2]), marked=(2, 3)))
    share = (102 + 103) / (100 + 101 + 102 + 103 + 1000)
    assert f"to remove: 2-3 (2 of 4 blocks, {share:.1%} of the parameters); the same set in 100% of" in text


def test_pinned_blocks_are_marked() -> None:
    text = as_text(scores_table(scores([0.5, 0.4], pinned={0: "why"}), marked=(1,)))
    assert text.splitlines()[2].endswith("pinned")


def test_all_criteria_that_were_measured_are_shown() -> None:
    stream = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    batch = [{"input_ids": torch.arange(20)[None]}]
    both = shortgpt.score(Playback(stream), batch, criteria=["block-influence", "angular-distance"])
    text = as_text(both)
    assert "angular-distance" in text
    assert f"{both.of('angular-distance').values[1]:.4f}" in text


def test_of_one_sequence_no_error_and_no_certainty_is_shown() -> None:
    stream = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    one = shortgpt.score(Playback(stream), [{"input_ids": torch.arange(20)[None]}])
    text = as_text(scores_table(one, marked=(0,)))
    assert "nan" not in text.lower()
    assert "bootstrap" not in text


def test_zero_scores_are_drawn_without_a_bar() -> None:
    assert "█" not in as_text(scores([0.0, 0.0]))


def test_printing_a_result_is_printing_its_table() -> None:
    measured = scores([0.5, 0.25])
    assert str(measured) == as_text(measured)


# -- comparisons ----------------------------------------------------------------------------------------------


def strip_of(text: str, model: str) -> str:
    return next(re.sub(f"[^{SHADES}]", "", line) for line in text.splitlines() if line.startswith(model))


def test_models_of_different_depth_are_drawn_over_the_same_relative_depth() -> None:
    shallow, deep = [1.0, 0.01, 0.001], [1.0] * 8 + [0.01] * 8 + [0.001] * 8
    text = str(Comparison((Row("shallow", scores(shallow)), Row("deep", scores(deep)))))
    expected = "█" * 8 + "▃" * 8 + "▁" * 8  # 0.01 lies a third of the way from 0.001 to 1, by logarithm
    assert strip_of(text, "shallow") == expected
    assert strip_of(text, "deep") == expected


def test_the_numbers_are_mean_min_max_shares_and_the_span() -> None:
    values = [0.5, 0.1, 0.009, 0.04, 0.05, 0.2, 0.001, 0.3]
    text = str(Comparison((Row("m", scores(values, norm_placement="post")),)))
    numbers = [line.split() for line in text.splitlines() if line.startswith("m ")][1]
    assert numbers == ["m", "0.1500", "0.0010", "0.5000", "25%", "38%", "50%", "2-3", "(0.0245)"]
    assert any(line.split()[:3] == ["m", "post", "8"] for line in text.splitlines())


def test_a_failed_model_is_a_row_with_its_reason_said_once() -> None:
    text = str(Comparison((Row("bad", error="bad: it is broken"), Row("good", scores([0.1, 0.2])))))
    assert "bad: it is broken" in text
    assert "bad: bad:" not in text
    assert text.index("good") < text.index("bad: it")


def test_with_no_model_measured_there_is_no_empty_table() -> None:
    assert str(Comparison((Row("bad", error="why"),))).strip() == "bad: why"
    assert str(Comparison(())) == ""


NAMES = ["m", "organisation/a-model-with-a-rather-long-name-7B-instruct-v0.3", "x" * 200, "模型/非常长的名字" * 6]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    many = scores([0.1 + 0.01 * i for i in range(48)], name=NAMES[2])
    rows = [Row(name, many) for name in NAMES] + [Row(NAMES[1], error="why " * 60)]
    for result in (Comparison(tuple(rows)), many):
        assert max(cell_len(line) for line in rendered(result, width).splitlines()) <= width


def test_at_80_columns_no_number_and_no_strip_is_cut() -> None:
    model = scores([0.0001 * (i + 1) for i in range(80)])
    text = rendered(Comparison(tuple(Row(name, model) for name in NAMES)))
    assert "…" not in text
    assert text.count(f"60-79 ({sum(0.0001 * (i + 1) for i in range(60, 80)) / 20:.4f})") == 0
    assert text.count("0-19 (") == len(NAMES)
    strips = re.findall(f"[{SHADES}]{{24}}", text)
    assert len(strips) == len(NAMES)


def test_names_are_never_read_as_markup() -> None:
    odd = scores([0.1, 0.2], name="[red]a[/red]")
    assert "[red]a[/red]" in str(odd)
    assert "[red]a[/red]" in str(Comparison((Row("[red]a[/red]", odd), Row("[b]x", error="[i]why[/i]"))))
    assert "[b]x: [i]why[/i]" in str(Comparison((Row("[b]x", error="[i]why[/i]"),)))
    assert "[red]a[/red]" in rendered(Comparison((Row("[red]a[/red]", odd),)))


def test_colour_is_only_where_the_terminal_has_it() -> None:
    result = Comparison((Row("m", scores([0.1, 0.2])),))
    assert "\x1b[" not in rendered(result)
    assert "\x1b[38;2;" in rendered(result, colour=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", rendered(result, colour=True)).split() == rendered(result).split()
