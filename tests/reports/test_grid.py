"""Tables in terminals of any width: nothing is cut, and what does not fit stands below."""

import pytest
from rich.console import Console
from rich.text import Text

from shortgpt.cli import common
from shortgpt.reports.grid import Grid

NUMBERS = [f"{1000 + 7 * at}.{at}" for at in range(12)]


def rendered(grid: Grid, width: int) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(grid)
    return [line.rstrip() for line in captured.get().splitlines()]


def many_columns() -> Grid:
    grid = Grid()
    grid.add_column("model")
    for at in range(len(NUMBERS)):
        grid.add_column(f"number {at}", justify="right")
    grid.add_column("note")
    grid.add_row("zoo:gpt2-postnorm", *NUMBERS, "measured on other text")
    return grid


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 400])
def test_no_name_and_no_number_is_cut_at_any_width(width: int) -> None:
    lines = rendered(many_columns(), width)
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    assert "…" not in "".join(words)
    assert set(NUMBERS) <= set(words)
    assert {"measured", "on", "other", "text"} <= set(words)
    assert words.count("zoo:gpt2-postnorm") == sum(line.startswith("model") for line in lines)
    assert (words.count("zoo:gpt2-postnorm") == 1) == (width == 400)


def test_what_fits_is_as_rich_lays_it_out() -> None:
    assert rendered(many_columns(), 400) == [
        "model              "
        + "  ".join(f"number {at}".rjust(max(len(NUMBERS[at]), len(f"number {at}"))) for at in range(12))
        + "  note",
        "zoo:gpt2-postnorm  "
        + "  ".join(NUMBERS[at].rjust(max(len(NUMBERS[at]), len(f"number {at}"))) for at in range(12))
        + "  measured on other text",
    ]


def test_a_name_longer_than_the_line_is_folded_and_whole() -> None:
    grid = Grid()
    grid.add_column("model")
    grid.add_column("score", justify="right")
    name = "/somewhere/" + "very-long-folder/" * 6
    grid.add_row(name, "0.2500")
    lines = rendered(grid, 40)
    assert max(map(len, lines)) <= 40
    assert lines[1].endswith("0.2500")
    assert "".join(line.removesuffix("0.2500").strip() for line in lines[1:]) == name


def test_signs_for_the_terminal_are_shown_before_lines_are_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    grid = Grid()
    grid.add_column("block")
    grid.add_row(Text("\x1b[2J" * 5))
    common.console().print(grid)
    common.console().print(Text("\x1b" * 12 + " end"))
    common.console().print("\x07" * 12 + " end")
    shown = "".join(line.strip() for line in capsys.readouterr().out.splitlines())
    assert shown == "block" + r"\x1b[2J" * 5 + r"\x1b" * 12 + " end" + r"\x07" * 12 + " end"
