"""Where results go: `--format`, `--output`, `--plot`, `--json`; what cannot be is told before anything is measured."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt import Comparison, Scores
from shortgpt.cli import common
from shortgpt.errors import OutputError
from shortgpt.measuring.scoring import score as scoring
from shortgpt.models import loading
from shortgpt.reports import files, plots
from shortgpt.values.choosing.spans import Spans
from tests.support import Playback, Ran, message_of, raising

Run = Callable[..., Ran]


@pytest.fixture
def measured(tmp_path: Path) -> list[Path]:
    """Scores of two models, as files that were made elsewhere: their models are not here."""
    made = []
    for name, blocks in (("far/away", 3), ("not/here", 5)):
        stream = torch.randn(blocks + 1, 257, 16, generator=torch.Generator().manual_seed(blocks)).cumsum(0)
        scores = shortgpt.score(
            Playback(stream, name=name), ["some text", "more"], criteria=["block-influence", "angular-distance"]
        )
        made.append(tmp_path / f"{blocks}.json")
        made[-1].write_text(scores.to_json(), encoding="utf-8")
    return made


# -- in every format, into files ----------------------------------------------------------------------------------


def test_every_output_at_once(run_cli: Run, measured: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ran = run_cli(
        *("compare", *measured, "--format", "csv", "--output", out / "a.csv"),
        *("--plot", out / "a.png", "--json", out / "a.json"),
    )
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert len(list(csv.DictReader((out / "a.csv").read_text().splitlines()))) == 3 + 5
    assert [row.model for row in Comparison.from_json((out / "a.json").read_text()).rows] == ["far/away", "not/here"]
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in out.iterdir()) == ["a.csv", "a.json", "a.png"]


def test_the_table_goes_into_a_file_without_colour(run_cli: Run, measured: list[Path], tmp_path: Path) -> None:
    ran = run_cli("compare", *measured, "--output", tmp_path / "a.txt")
    assert (ran.status, ran.out) == (0, "")
    assert (tmp_path / "a.txt").read_text() == run_cli("compare", *measured).out
    assert "\x1b" not in (tmp_path / "a.txt").read_text()


def test_the_commands_that_measure_nothing_have_formats_too(run_cli: Run, llama_folder: Path) -> None:
    assert run_cli("plugins", "--format", "csv").out.startswith("kind,name,plugin,description,target\n")
    assert "| block | class | parameters | pinned |" in run_cli("inspect", llama_folder, "--format", "markdown").out
    assert json.loads(run_cli("plugins", "--format", "json").out)["schema"] == "shortgpt/registry/1"


def test_plugins_lists_everything_that_a_plugin_may_provide(run_cli: Run) -> None:
    lines = run_cli("plugins").out.splitlines()
    kinds = {"architectures", "criteria", "calibrations", "evaluators", "reporters", "models"}
    assert kinds <= {line.split()[0] for line in lines if line}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, nothing_is_loaded: None) -> Playback:
    """Whatever model is named, this one is opened."""
    stream = torch.randn(5, 257, 16, generator=torch.Generator().manual_seed(0)).cumsum(0)
    model = Playback(stream, name="played")
    monkeypatch.setattr(common, "named", lambda name, *more: name)
    monkeypatch.setattr(loading, "load", lambda *args, **options: model)
    return model


def test_the_picture_shows_what_the_table_marks(
    run_cli: Run, opened: Playback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(plots, "draw", lambda result, file, **more: shown.append((result, file, more)))
    ran = run_cli("score", "any", "--sequences", 2, "--tokens", 64, "--ratio", 0.5, "--plot", tmp_path / "a.png")
    assert ran.status == 0
    ((result, file, more),) = shown
    assert file == str(tmp_path / "a.png")
    assert more == {"marked": result.least_influential(2)}


def test_spans_are_asked_for_and_shown(
    run_cli: Run, opened: Playback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = scoring.score, []

    def score(*args: Any, spans: bool = False, **options: Any) -> Scores:
        asked.append(spans)
        found = Spans("block-influence", 4, (tuple(0.1 * (i + 1) for i in range(10)),), (1,)) if spans else None
        return replace(real(*args, **options), spans=found)

    monkeypatch.setattr(scoring, "score", score)
    options = ("--sequences", 2, "--tokens", 64)
    assert "every run" not in run_cli("score", "any", *options).out
    with_spans = run_cli("score", "any", *options, "--spans", "--plot", tmp_path / "a.png")
    assert asked == [False, True]
    assert "block-influence of every run of blocks" in with_spans.out
    assert "     2  " in with_spans.out
    assert (tmp_path / "a.png").is_file()


# -- files of scores made elsewhere -----------------------------------------------------------------------------------


def test_files_of_scores_are_compared_without_torch_or_transformers(measured: list[Path]) -> None:
    program = (
        "import sys\n"
        "from shortgpt.cli import main\n"
        "for more in ([], ['--format', 'markdown'], ['--json', '-']):\n"
        f"    try: main(['compare', *{[str(file) for file in measured]!r}, '--criterion', 'angular-distance', *more])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "print('MODULES', *sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "far/away" in ran.stdout
    modules = ran.stdout.rpartition("MODULES ")[2].split()
    assert "shortgpt.measuring.comparison" in modules
    assert not {"torch", "transformers", "numpy"} & set(modules)


def test_files_by_a_criterion_that_is_not_installed_here(run_cli: Run, measured: list[Path]) -> None:
    for file in measured:
        file.write_text(file.read_text().replace('"angular-distance"', '"of-another-house"'))
    ran = run_cli("compare", *measured, "--criterion", "of-another-house")
    assert ran.status == 0
    assert "of-another-house: redundant |" in ran.out


def test_a_file_that_lacks_a_criterion_is_compared_by_the_others(run_cli: Run, measured: list[Path]) -> None:
    one = Scores.from_json(measured[0].read_text())
    data = one.to_dict() | {"criteria": one.criteria[:1], "sums": one.to_dict()["sums"][:1], "counts": [[9, 4]]}
    measured[0].write_text(json.dumps(data))
    ran = run_cli("compare", *measured, "--criterion", "block-influence", "--criterion", "angular-distance")
    assert ran.status == 0
    assert "far/away: angular-distance: only block-influence were measured" in ran.out
    assert len([line for line in ran.out.splitlines() if line.startswith("not/here ")]) == 4


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"schema": "shortgpt/plan/1"}', "it is of another kind (plan)"),
        ('{"schema": "shortgpt/scores/9"}', "upgrade shortgpt"),
        ('{"schema": "else"}', "it was not written by shortgpt"),
        ('{"rows": []}', "unknown keys ['rows']"),
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_of_another_kind_is_a_row_that_says_what_it_is(
    run_cli: Run, measured: list[Path], tmp_path: Path, content: str, why: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    ran = run_cli("compare", tmp_path / "x.json", measured[0])
    assert ran.status == 0
    assert why in " ".join(ran.out.split())
    assert why in message_of(run_cli("compare", tmp_path / "x.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"sums": [[[1.0, 2.0], [1.0, 2.0]]], "criteria": ["block-influence"], "counts": [[1, 1]]},  # of 3 blocks
        {"criteria": []},
        {"criteria": ["block-influence"]},
        {"counts": [[0, 0], [0, 0]]},
        {"counts": [[-1, 5], [1, 1]]},
        {"parameters": [1]},
        {"pinned": {"7": "why"}},
        {"block_names": []},
        {"spans": {"criterion": "x", "depth": 2, "sums": [[1, 1, 1]], "counts": [1]}},
        {"spans": {"criterion": "x", "depth": 3, "sums": [[1, 1, 1]], "counts": [1]}},
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(
    run_cli: Run, measured: list[Path], change: dict[str, Any]
) -> None:
    measured[0].write_text(json.dumps(json.loads(measured[0].read_text()) | change))
    assert "do not fit" in message_of(run_cli("compare", measured[0]))


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_is_loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in where results go is told before a model is opened."""

    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load", load)


@pytest.mark.parametrize("command", ["score", "compare"])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--format", "markdwon"),
            "unknown format 'markdwon'. Did you mean 'markdown'? Installed: csv, json, markdown",
        ),
        (("--output", "no/a.txt"), "there is no folder"),
        (("--output", "."), "it is a folder"),
        (("--json", "no/a.json"), "there is no folder"),
        (("--plot", "no/a.png"), "there is no folder"),
        (("--plot", "a.jpg"), "pictures are written as .png, .svg, .pdf"),
        (("--plot", "-"), "pictures are written as .png, .svg, .pdf"),
        (("--format", "csv", "--json", "-"), "--format and --json both go to the standard output"),
        (("--output", "-", "--json", "-"), "--output and --json both go to the standard output"),
        (("--output", "a.txt", "--json", "./a.txt"), "--output and --json both go to "),
        (("--plot", "a.svg", "--json", "a.svg"), "--plot and --json both go to "),
    ],
)
def test_a_result_that_has_no_place_is_told_before_anything_is_done(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert why in message_of(run_cli(command, "zoo:llama", *options))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_matplotlib_is_told_before_anything_is_done(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    message = message_of(run_cli("score", "zoo:llama", "--plot", tmp_path / "a.png"))
    assert "pip install 'shortgpt-blocks[plot]'" in message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where nobody can make files")
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_folder_that_takes_no_files_is_told_before_anything_is_done(run_cli: Run, option: str) -> None:
    assert "/proc/self/a.json: cannot be written (" in message_of(
        run_cli("score", "zoo:llama", option, "/proc/self/a.json")
    )


def test_a_format_that_fails_says_whose_it_is_and_the_json_is_kept(
    run_cli: Run, plug: Callable[[str, str], str], measured: list[Path], tmp_path: Path
) -> None:
    module = plug(
        "extras",
        "from shortgpt import Extension, hookimpl\n"
        "@hookimpl\n"
        "def shortgpt_reporters(): return (Extension('odd', __name__ + ':odd'),)\n"
        "def odd(result): return result.nothing\n",
    )
    ran = run_cli("compare", *measured, "--format", "odd", "--json", tmp_path / "kept.json")
    assert module
    assert "Comparison in format 'odd' (plugin extras) failed: AttributeError" in message_of(ran)
    assert len(Comparison.from_json((tmp_path / "kept.json").read_text()).rows) == 2


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")
    with raising(os, "replace", OSError(28, "No space left on device")), pytest.raises(OutputError, match="No space"):
        files.write("after", file)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    files.write("after ü", file)
    assert file.read_text(encoding="utf-8") == "after ü"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to("target")
    files.write("after", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "after"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.check_target(pipe)
        files.write("text", pipe)
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    files.check_target(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    files.write("model \udcff", tmp_path / "a")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "model ?"
