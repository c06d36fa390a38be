"""What moves while a command runs, what `-v` tells, and progress in Python."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pytest
import torch

import shortgpt
from shortgpt.basics.progress import shown
from shortgpt.basics.stages import stage, watched
from shortgpt.cli import common
from shortgpt.cli.process import display
from tests.support import Ran, tiny

ON = ("--sequences", "2", "--tokens", "16")
Run = Callable[..., Ran]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")


def test_a_command_shows_that_it_starts_before_it_does_anything(
    terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    @common.command()
    def slow() -> None:
        seen.append(capsys.readouterr().err)
        with stage("loading \x1b[31m[red]a[/]"):
            seen.append(capsys.readouterr().err)
            common.console().print("a result")
            seen.append(capsys.readouterr().err)

    slow.main([], standalone_mode=False)
    starting, loading, hidden = seen
    assert "starting" in starting
    assert r"loading \x1b[31m[red]a[/]" in loading
    assert hidden.endswith("\x1b[2K"), "the line is taken away before something is printed"
    assert display.current() is None


def test_loading_reading_and_scoring_have_names(terminal: None, run_cli: Run, llama_folder: Path) -> None:
    told = run_cli("score", llama_folder, *ON).err
    places = [told.index(name) for name in ("starting", "loading", "reading the text", "batches")]
    assert places == sorted(places)


def test_verifying_and_hashing_have_names(terminal: None, run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    told = run_cli("prune", llama_folder, "--remove", "2", "--output", tmp_path / "out").err
    assert all(name in told for name in ("running the original", "tensors", "verifying in a fresh process", "hashing"))


def test_stages_are_logged_and_quiet_by_default_whatever_another_package_makes_of_the_root_logger(
    run_cli: Run, llama_folder: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(logging.getLogger().setLevel, logging.getLogger().level))
    logging.getLogger().setLevel(logging.INFO)
    assert run_cli("score", llama_folder, *ON).err == ""
    for arguments in (("score", llama_folder, *ON, "-v"), ("--verbose", "score", llama_folder, *ON)):
        lines = run_cli(*arguments).err.splitlines()
        assert any(line.startswith(f"shortgpt: loading {llama_folder}: ") for line in lines)
        assert any(line.startswith("shortgpt: reading the text: ") and line.endswith(" s") for line in lines)
    assert logging.getLogger("shortgpt").level == logging.NOTSET


def test_in_python_stages_are_records_of_a_logger(caplog: pytest.LogCaptureFixture, llama_folder: Path) -> None:
    with caplog.at_level(logging.INFO, logger="shortgpt"):
        shortgpt.load(llama_folder, device="cpu")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"loading {llama_folder}: ")
    assert second == f"{llama_folder}: llama, 6 blocks, on cpu"


def test_a_stage_that_fails_ends_and_is_not_told_as_done(caplog: pytest.LogCaptureFixture) -> None:
    class Watch:
        open: list[str] = []

        def begin(self, key: object, name: str, shows_itself: bool) -> None:
            self.open.append(name)

        def end(self, key: object) -> None:
            self.open.pop()

    @stage("loading")
    def aborted() -> None:
        assert watch.open == ["loading"]
        raise click.Abort

    watch = Watch()
    with caplog.at_level(logging.INFO, logger="shortgpt"), watched(watch), pytest.raises(click.Abort):
        aborted()
    assert watch.open == []
    assert caplog.records == []


def test_progress_true_draws_bars_that_end(capsys: pytest.CaptureFixture[str]) -> None:
    model = shortgpt.wrap(tiny("llama", blocks=3), tokenizer=None)
    batches = [{"input_ids": torch.arange(8).view(1, 8) + row} for row in range(2)]
    shortgpt.score(model, batches, progress=True)
    told = capsys.readouterr().err
    assert "blocks: 100%" in told
    assert "3/3" in told
    assert "batches: 100%" in told
    assert "2/2" in told
    shortgpt.score(model, batches, progress=False)
    shortgpt.score(model, batches)
    assert capsys.readouterr().err == ""


def test_a_count_that_begins_again_is_a_new_bar(capsys: pytest.CaptureFixture[str]) -> None:
    advance = shown(True)
    assert advance is not None
    for done, total in ((1, 2), (1, 3), (3, 3)):
        advance("sets", done, total)
    told = capsys.readouterr().err
    assert "1/2" in told
    assert "3/3" in told
