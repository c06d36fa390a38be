"""How results look: at 80 columns, without colour, and that the numbers shown are the numbers measured."""

import io
import math
import re
from dataclasses import replace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import shortgpt
from shortgpt import Comparison
from shortgpt.reports import as_text
from shortgpt.reports.cells import count, number
from shortgpt.reports.scores import scores_table
from shortgpt.reports.spans import spans_map
from shortgpt.values.choosing.spans import Spans
from shortgpt.values.comparison import Row
from tests.support import Playback, scores_of

SHADES = "▁▂▃▄▅▆▇█"


def rendered(result: object, width: int = 80, *, colour: bool = False) -> str:
    buffer = io.StringIO()
    system = "truecolor" if colour else None
    Console(file=buffer, width=width, color_system=system, force_terminal=colour).print(result)  # type: ignore[arg-type]
    return buffer.getvalue()


# -- scores ---------------------------------------------------------------------------------------------------


def test_a_row_a_block_with_score_error_bar_parameters_rank_and_mark() -> None:
    text = as_text(scores_table(scores_of([0.5, 0.25, 0.0001]), marked=(2,)))
    rows = [line.split() for line in text.splitlines() if re.match(r"\s*\d", line)]
    assert rows[0] == ["0", "0.5000", "0.0050", "█" * 20, "100", "3"]
    assert rows[1] == ["1", "0.2500", "0.0025", "█" * 10, "101", "2"]
    assert rows[2] == ["2", "0.00010", "1.0e-06", "102", "1", "remove"]
    assert "model  playback, unknown-norm, 3 blocks, 1.3k parameters, float32" in text


def test_what_would_go_is_summed_up() -> None:
    text = as_text(scores_table(scores_of([0.5, 0.4, 0.1, 0.2]), marked=(2, 3)))
    share = (102 + 103) / (100 + 101 + 102 + 103 + 1000)
    assert f"to remove: 2-3 (2 of 4 blocks, {share:.1%} of the parameters); the same set in 100% of" in text


def test_pinned_blocks_are_marked() -> None:
    text = as_text(scores_table(scores_of([0.5, 0.4], pinned={0: "why"}), marked=(1,)))
    assert text.splitlines()[2].endswith("pinned")


def test_all_criteria_that_were_measured_are_shown() -> None:
    stream = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    batch = [{"input_ids": torch.arange(20)[None]}]
    both = shortgpt.score(Playback(stream), batch, criteria=["block-influence", "angular-distance"])
    rows = [line.split() for line in as_text(both).splitlines() if re.match(r"\s*\d", line)]
    assert [row[1] for row in rows] == [f"{value:.4f}" for value in both.values]
    assert [row[3] for row in rows] == [f"{value:.4f}" for value in both.of("angular-distance").values]


def test_many_criteria_are_shown_below_each_other_within_80_columns() -> None:
    names = tuple(f"criterion-number-{i}" for i in range(14))
    one = scores_of([0.5, 0.25])
    sums = tuple(((i + 0.25, i + 0.5),) for i in range(14))
    text = as_text(replace(one, criteria=names, sums=sums, counts=((1,),) * 14))
    assert max(map(len, text.splitlines())) <= 80
    shown = {cell for line in text.splitlines() for cell in line.split()}
    assert {f"{i + part:.4f}" for i in range(14) for part in (0.25, 0.5)} <= shown
    assert "…" not in text


def test_criteria_that_were_refused_are_told_with_the_reason() -> None:
    assert "kl was not measured: it has no head" in as_text(scores_of([0.5, 0.4], refused={"kl": "it has no head"}))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.25, "0.2500"),
        (-0.25, "-0.2500"),
        (0.0, "0.0000"),
        (1.234e-5, "0.000012"),
        (1.234e-6, "1.2e-06"),
        (-1.234e-5, "-0.000012"),
        (20345.678, "20345.7"),
        (3.2e9, "3.2e+09"),
        (math.nan, "-"),
        (math.inf, "∞"),
    ],
)
def test_numbers_of_any_size_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_of_one_sequence_no_error_and_no_certainty_is_shown() -> None:
    stream = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    one = shortgpt.score(Playback(stream), [{"input_ids": torch.arange(20)[None]}])
    text = as_text(scores_table(one, marked=(0,)))
    assert "nan" not in text.lower()
    assert "bootstrap" not in text


def test_zero_scores_are_drawn_without_a_bar() -> None:
    assert "█" not in as_text(scores_of([0.0, 0.0]))


@pytest.mark.parametrize("width", [80, 60, 50, 48])
def test_in_a_narrow_terminal_the_bar_gives_way_and_no_number_is_cut(width: int) -> None:
    text = rendered(scores_table(scores_of([0.5, 0.25, 0.0001]), marked=(2,)), width)
    rows = [line.split() for line in text.splitlines() if re.match(r"\s*\d ", line)]
    numbers = [[cell for cell in row if not set(cell) & set("█▏▎▍▌▋▊▉")] for row in rows]
    assert numbers == [
        ["0", "0.5000", "0.0050", "100", "3"],
        ["1", "0.2500", "0.0025", "101", "2"],
        ["2", "0.00010", "1.0e-06", "102", "1", "remove"],
    ]
    assert max(map(cell_len, text.splitlines())) <= width


def test_printing_a_result_is_printing_its_table() -> None:
    measured = scores_of([0.5, 0.25])
    assert str(measured) == as_text(measured)


# -- comparisons ----------------------------------------------------------------------------------------------


def strip_of(text: str, model: str) -> str:
    return next(re.sub(f"[^{SHADES}]", "", line) for line in text.splitlines() if line.startswith(model))


def test_models_of_different_depth_are_drawn_over_the_same_relative_depth() -> None:
    shallow, deep = [1.0, 0.01, 0.001], [1.0] * 8 + [0.01] * 8 + [0.001] * 8
    text = str(Comparison((Row("shallow", scores_of(shallow)), Row("deep", scores_of(deep)))))
    expected = "█" * 8 + "▃" * 8 + "▁" * 8  # 0.01 lies a third of the way from 0.001 to 1, by logarithm
    assert strip_of(text, "shallow") == expected
    assert strip_of(text, "deep") == expected


def test_the_numbers_are_mean_min_max_shares_and_the_span() -> None:
    values = [0.5, 0.1, 0.009, 0.04, 0.05, 0.2, 0.001, 0.3]
    text = str(Comparison((Row("m", scores_of(values, norm_placement="post")),)))
    numbers = [line.split() for line in text.splitlines() if line.startswith("m ")][1]
    assert numbers == ["m", "0.1500", "0.0010", "0.5000", "25%", "38%", "50%", "2-3", "(0.0245)"]
    assert any(line.split()[:3] == ["m", "post", "8"] for line in text.splitlines())


def test_a_failed_model_is_a_row_with_its_reason_said_once() -> None:
    text = str(Comparison((Row("bad", error="bad: it is broken"), Row("good", scores_of([0.1, 0.2])))))
    assert "bad: it is broken" in text
    assert "bad: bad:" not in text
    assert text.index("good") < text.index("bad: it")


def test_with_no_model_measured_there_is_no_empty_table() -> None:
    assert str(Comparison((Row("bad", error="why"),))).strip() == "bad: why"
    assert str(Comparison(())) == ""


def test_several_criteria_have_a_strip_and_numbers_each() -> None:
    both = scores_of([0.5, 0.25], "m")
    both = replace(
        both, criteria=("block-influence", "norm"), sums=(*both.sums, ((30.0, 10.0),)), counts=(*both.counts, (1,))
    )
    one = scores_of([0.5, 0.25], "n")
    text = str(Comparison((Row("m", both), Row("n", one)), ("block-influence", "norm")))
    first, second = text.split("\n\n", 2)[0::2]
    assert "block-influence: redundant |" in first
    assert "(0.001 to 1, logarithmic)" in first
    assert "norm: redundant |▁▂▃▄▅▆▇█| influential (10 to 30, linear)" in second
    assert "█" * 12 + "▁" * 12 in second
    assert [line.split() for line in second.splitlines() if line.startswith("m ")][-1] == (
        ["m", "20.0000", "10.0000", "30.0000", "1-1", "(10.0000)"]
    )
    assert "n: norm: only block-influence were measured" in text


NAMES = ["m", "organisation/a-model-with-a-rather-long-name-7B-instruct-v0.3", "x" * 200, "模型/非常长的名字" * 6]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    many = scores_of([0.1 + 0.01 * i for i in range(48)], name=NAMES[2])
    rows = [Row(name, many) for name in NAMES] + [Row(NAMES[1], error="why " * 60)]
    for result in (Comparison(tuple(rows)), many):
        assert max(cell_len(line) for line in rendered(result, width).splitlines()) <= width


def test_at_80_columns_no_number_and_no_strip_is_cut() -> None:
    model = scores_of([0.0001 * (i + 1) for i in range(80)])
    text = rendered(Comparison(tuple(Row(name, model) for name in NAMES)))
    assert "…" not in text
    assert text.count(f"60-79 ({sum(0.0001 * (i + 1) for i in range(60, 80)) / 20:.4f})") == 0
    assert text.count("0-19 (") == len(NAMES)
    strips = re.findall(f"[{SHADES}]{{24}}", text)
    assert len(strips) == len(NAMES)


def test_names_are_never_read_as_markup() -> None:
    odd = scores_of([0.1, 0.2], name="[red]a[/red]")
    assert "[red]a[/red]" in str(odd)
    assert "[red]a[/red]" in str(Comparison((Row("[red]a[/red]", odd), Row("[b]x", error="[i]why[/i]"))))
    assert "[b]x: [i]why[/i]" in str(Comparison((Row("[b]x", error="[i]why[/i]"),)))
    assert "[red]a[/red]" in rendered(Comparison((Row("[red]a[/red]", odd),)))


def test_colour_is_only_where_the_terminal_has_it() -> None:
    result = Comparison((Row("m", scores_of([0.1, 0.2])),))
    assert "\x1b[" not in rendered(result)
    assert "\x1b[38;2;" in rendered(result, colour=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", rendered(result, colour=True)).split() == rendered(result).split()


# -- spans ----------------------------------------------------------------------------------------------------

CELLS = "·░▒▓█"


def turning(angles: list[float]) -> Spans:
    """The spans of a stream that each block turns by its angle, in one plane: 1 − cos of the sum."""
    depth = len(angles)
    pairs = [(i, j) for i in range(depth) for j in range(i + 1, depth + 1)]
    return Spans("block-influence", depth, (tuple(1 - math.cos(sum(angles[i:j])) for i, j in pairs),), (1,))


def rows_of(text: str) -> dict[str, tuple[str, str]]:
    """Length → cells, and what is told beside them."""
    found = re.findall(rf"^ *(\d+(?:-\d+)?)  ([{CELLS}]+) +(.*?) *$", text, re.MULTILINE)
    return {length: (cells, told) for length, cells, told in found}


def test_a_row_a_length_a_column_a_first_block_and_the_best_run_beside_it() -> None:
    angles = [0.9, 0.2, 0.05, 0.1, 0.3]
    rows = rows_of(str(turning(angles)))
    assert [len(cells) for cells, _ in rows.values()] == [10, 8, 6, 4, 2]  # two signs a run
    best = {"1": (2, 2), "2": (2, 3), "3": (1, 3), "4": (1, 4)}
    for length, (first, last) in best.items():
        run = f"{first}-{last}" if first < last else str(first)
        assert rows[length][1] == f"{run} ({1 - math.cos(sum(angles[first : last + 1])):.4f})"
    assert rows["5"][1] == "-"  # nothing would stay
    darkness = [CELLS.index(sign) for sign in rows["1"][0][::2]]
    assert darkness == [4, 2, 0, 1, 2]  # the logarithm's place between 1 − cos 0.05 and 1 − cos 1.55


def test_the_map_reads_the_same_without_colour() -> None:
    plain, coloured = rendered(turning([0.5, 0.1, 0.2])), rendered(turning([0.5, 0.1, 0.2]), colour=True)
    assert "\x1b[38;2;" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_where_all_blocks_are_equal_a_row_has_one_shade_and_the_deepest_run_is_taken() -> None:
    rows = rows_of(str(turning([0.25] * 8)))
    for length, (cells, told) in rows.items():
        assert len(set(cells)) == 1
        if length != "8":
            assert told.startswith("7 (" if length == "1" else f"{8 - int(length)}-7 (")
    assert [CELLS.index(cells[0]) for cells, _ in rows.values()] == sorted(CELLS.index(c[0]) for c, _ in rows.values())


@pytest.mark.parametrize("value", [0.0, 0.3, math.nan])
def test_where_all_runs_are_equal_there_is_a_map_all_the_same(value: float) -> None:
    rows = rows_of(str(Spans("block-influence", 3, ((value,) * 6,), (1,))))
    assert {sign for cells, _ in rows.values() for sign in cells} == {CELLS[-1] if math.isnan(value) else CELLS[0]}


def test_blocks_that_stay_are_in_no_run_that_is_told() -> None:
    told = rows_of(as_text(spans_map(turning([0.9, 0.2, 0.05, 0.1, 0.3]), kept=(2,))))
    assert [text for _, text in told.values()] == ["3 (0.0050)", "3-4 (0.0789)", "-", "-", "-"]


@pytest.mark.parametrize("depth", [1, 2, 24, 25, 48, 49, 80, 130, 300])
def test_the_map_of_any_depth_stays_within_80_columns_and_50_rows(depth: int) -> None:
    text = str(turning([0.9, *[0.6 / depth] * (depth - 1)]))
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    rows = rows_of(text)
    assert len(rows) == -(-depth // -(-depth // 48))
    assert rows["1" if depth <= 48 else f"1-{-(-depth // 48)}"]


def test_a_folded_cell_is_the_least_influential_of_its_runs() -> None:
    angles = [0.5] * 96
    angles[41] = 1e-3  # within the fold of 40 and 41
    cells, told = rows_of(str(Spans("block-influence", 96, turning(angles).sums, (1,))))["1-2"]
    assert [place for place, sign in enumerate(cells) if sign == CELLS[0]] == [20]
    assert told.startswith(("40-41 (", "41-42 ("))  # of the longer length in the row
    assert "a cell is the least of 2 lengths × 2 first blocks" in " ".join(str(turning([0.5] * 96)).split())


def test_scores_with_spans_show_both() -> None:
    text = as_text(scores_table(scores_of([0.5, 0.25, 0.1], spans=turning([0.3, 0.2, 0.1])), marked=(2,)))
    assert "block-influence of every run of blocks" in text
    assert "to remove: 2 (" in text
    assert rows_of(text)["2"][1] == "1-2 (0.0447)"


def test_what_rounds_to_a_thousand_of_a_unit_is_one_of_the_next() -> None:
    assert [count(n) for n in (999, 999_949, 999_950, 999_999_999)] == ["999", "999.9k", "1.0M", "1.0B"]
    assert [number(x) for x in (999.99994, 999.99996, 999_999.96)] == ["999.9999", "1000.0", "1.0e+06"]
