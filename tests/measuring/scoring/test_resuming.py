"""A run that was stopped goes on: exactly what an uninterrupted one gives, of the same model and text alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt.basics.journal import Journal
from shortgpt.cli.process import signals
from shortgpt.errors import OutputError, ResumeError
from shortgpt.measuring.scoring import resuming
from shortgpt.models.sequence import BlockSequence
from tests.support import raising, run_cli, saved, tiny

TEXTS = [f"text {n}: " + "some words of it " * (n + 1) for n in range(6)]
ON: dict[str, Any] = {"tokens": 32, "batch_size": 1}


class Stopped(Exception):
    """What ends a run in the middle."""


def stopping(after: int, counted: str) -> Callable[[str, int, int], None]:
    seen = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal seen
        seen += what == counted
        if seen > after:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama", 4), tmp_path_factory.mktemp("resuming") / "model")


@pytest.fixture
def model(folder: Path) -> BlockSequence:
    return shortgpt.load(folder, device="cpu")


def test_scores_of_a_run_that_was_stopped_are_those_of_an_uninterrupted_one(
    model: BlockSequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("block-influence", "last-token-influence")
    names = tuple(name for name in names if name in {one.name for one in shortgpt.plugins.registry().criteria})
    whole = shortgpt.score(model, TEXTS, criteria=names, spans=True, **ON)
    with pytest.raises(Stopped):
        shortgpt.score(model, TEXTS, criteria=names, spans=True, resume=tmp_path, progress=stopping(3, "batches"), **ON)
    assert len((tmp_path / "score-0.jsonl").read_text().splitlines()) == 1 + 4
    traced = []
    trace = model.trace
    monkeypatch.setattr(model, "trace", lambda batch, tap: (traced.append(batch), trace(batch, tap)))
    found = shortgpt.score(model, TEXTS, criteria=names, spans=True, resume=tmp_path, **ON)
    assert len(traced) == 2
    assert found == whole
    assert shortgpt.score(model, TEXTS, criteria=names, spans=True, resume=tmp_path, **ON) == whole
    assert len(traced) == 2
    shortgpt.score(model, TEXTS, resume=tmp_path, **ON)  # other criteria are measured for themselves
    assert len(traced) == 8


def test_batches_of_other_processes_are_taken_too(model: BlockSequence, tmp_path: Path) -> None:
    whole = shortgpt.score(model, TEXTS, resume=tmp_path, **ON)
    (tmp_path / "score-0.jsonl").rename(tmp_path / "score-1.jsonl")
    again = shortgpt.score(model, TEXTS, resume=tmp_path, progress=None, **ON)
    assert again == whole
    assert not (tmp_path / "score-0.jsonl").exists(), "nothing was measured here"


def test_streamed_scores_are_kept_when_they_have_passed_all_blocks(folder: Path, tmp_path: Path) -> None:
    streamed = shortgpt.load(folder, device="cpu", stream=True)
    whole = shortgpt.score(streamed, TEXTS, resume=tmp_path, **ON)
    assert shortgpt.score(streamed, TEXTS, resume=tmp_path, **ON) == whole == shortgpt.score(streamed, TEXTS, **ON)


@pytest.mark.parametrize("counted", ["batches", "cuts"])
def test_a_curve_and_an_ablation_go_on(model: BlockSequence, tmp_path: Path, counted: str) -> None:
    for run, name in ((shortgpt.curve, "curve"), (shortgpt.ablate, "ablate")):
        whole = run(model, TEXTS, **ON)  # type: ignore[operator]
        place = tmp_path / name
        try:
            stopped = run(model, TEXTS, resume=place, progress=stopping(2, counted), **ON)  # type: ignore[operator]
            assert "Stopped" in stopped.rows[0].error
        except Stopped:
            pass
        assert list(place.glob("*.jsonl"))
        assert run(model, TEXTS, resume=place, **ON) == whole  # type: ignore[operator]


def test_each_model_of_a_comparison_has_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    models = [folder, "zoo:llama"]
    whole = shortgpt.compare(models, TEXTS, device="cpu", **ON)
    assert shortgpt.compare(models, TEXTS, resume=tmp_path, device="cpu", **ON) == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model-1", "model-2"]
    assert shortgpt.compare(models, TEXTS, resume=tmp_path, device="cpu", **ON) == whole


def test_another_model_text_or_version_is_refused(
    model: BlockSequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortgpt.score(model, TEXTS, resume=tmp_path, **ON)
    with pytest.raises(ResumeError, match="it was measured on another text, or in other batches"):
        shortgpt.score(model, TEXTS[:5], resume=tmp_path, **ON)
    with pytest.raises(ResumeError, match="in other batches"):
        shortgpt.score(model, TEXTS, resume=tmp_path, tokens=32, batch_size=2)
    other = tiny("llama", 4)
    with torch.no_grad():
        next(iter(other.model.layers[2].parameters()))[0, 0] += 1e-3
    with pytest.raises(ResumeError, match="the model's weights or config are others"):
        shortgpt.score(shortgpt.wrap(other, tokenizer=model.tokenizer), TEXTS, resume=tmp_path, **ON)
    monkeypatch.setattr("shortgpt.measuring.scoring.resuming.__version__", "9.9")
    with pytest.raises(ResumeError, match="another version of shortgpt wrote it"):
        shortgpt.score(model, TEXTS, resume=tmp_path, **ON)


def test_the_command_line_goes_on_too(folder: Path, tmp_path: Path) -> None:
    command = ("--sequences", 2, "--tokens", 16, "--device", "cpu", "--resume", tmp_path / "kept", "--json", "-")
    first, again = (run_cli("score", folder, *command) for _ in range(2))
    assert first.status == again.status == 0, first.err
    assert first.out == again.out
    assert (tmp_path / "kept" / "score-0.jsonl").is_file()
    (tmp_path / "file").write_text("")
    refused = run_cli("ablate", folder, "--resume", tmp_path / "file", "--sequences", 2, "--tokens", 16)
    assert (refused.status, "and this is a file" in refused.err) == (2, True)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (signals.Ended(143), 143)])
def test_who_interrupts_is_told_what_is_kept_and_how_to_go_on(
    folder: Path, tmp_path: Path, stop: BaseException, status: int
) -> None:
    (tmp_path / "text.txt").write_text("A line of text, and then another one.\n" * 50)
    text = ("--calibration", tmp_path / "text.txt", "--sequences", 3, "--tokens", 16, "--batch-size", 1)
    command = ("score", folder, *text, "--device", "cpu", "-q")
    for after, kept in ((0, "nothing was left behind"), (1, f"kept in {tmp_path / 'kept' / 'score-0.jsonl'}, and the")):
        with raising(resuming.Kept, "add", stop, after=after):
            ended = run_cli(*command, "--resume", tmp_path / "kept")
        assert ended.status == status
        assert kept in ended.err
        assert (tmp_path / "kept").exists() == bool(after)


# -- the journal ----------------------------------------------------------------------------------------------------

IDENTITY, MEANINGS = {"model": "a"}, {"model": "another model"}


def kept_in(file: Path) -> None:
    with Journal(file, IDENTITY, MEANINGS) as journal:
        journal.add("one", [0.1, 1e-320, 2**53 + 1])
        journal.add("two", {"a": None})


def test_what_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    kept_in(tmp_path / "j")
    with Journal(tmp_path / "j", IDENTITY, MEANINGS) as journal:
        assert journal.get("one") == [0.1, 1e-320, 2**53 + 1]
        assert journal.get("two") == {"a": None}
        assert journal.get("three") is None


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_was_cut_off_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    kept_in(tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-cut])
    with Journal(tmp_path / "j", IDENTITY, MEANINGS) as journal:
        assert journal.get("one") is not None
        assert journal.get("two") is None
        journal.add("two", {"a": None})
    assert (tmp_path / "j").read_bytes() == data


def test_a_damaged_line_another_schema_and_another_writer_are_told(tmp_path: Path) -> None:
    kept_in(tmp_path / "j")
    text = (tmp_path / "j").read_text()
    (tmp_path / "j").write_text(text.replace("1e-320", "2e-320"))
    with pytest.raises(ResumeError, match="line 2: damaged"):
        Journal(tmp_path / "j", IDENTITY, MEANINGS)
    (tmp_path / "j").write_text(text)
    with pytest.raises(ResumeError, match="not the run that is asked for: another model"):
        Journal(tmp_path / "j", {"model": "b"}, MEANINGS)
    with Journal(tmp_path / "j", IDENTITY, MEANINGS), pytest.raises(ResumeError, match="another run writes into it"):
        Journal(tmp_path / "j", IDENTITY, MEANINGS)
    (tmp_path / "j").write_text(json.dumps({"schema": "other"}) + "\n")
    with pytest.raises(ResumeError, match="damaged"):
        Journal(tmp_path / "j", IDENTITY, MEANINGS)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Journal(tmp_path / "file" / "j", IDENTITY, MEANINGS)


def test_a_file_that_is_none_of_ours_stays_as_it_is(tmp_path: Path) -> None:
    for text in ("a note", "a note\n"):
        (tmp_path / "j").write_text(text)
        with pytest.raises(ResumeError):
            Journal(tmp_path / "j", IDENTITY, MEANINGS)
        assert (tmp_path / "j").read_text() == text


def test_where_nothing_was_measured_nothing_is_left_but_not_what_another_run_writes(tmp_path: Path) -> None:
    with Journal(tmp_path / "a" / "b" / "j", IDENTITY) as first:
        with pytest.raises(ResumeError, match="another run writes into it"):
            Journal(tmp_path / "a" / "b" / "j", IDENTITY)
        assert first.file.exists()
    assert list(tmp_path.iterdir()) == []


def test_values_that_differ_are_told_where_nothing_says_what_that_means(tmp_path: Path) -> None:
    kept_in(tmp_path / "j")
    with pytest.raises(ResumeError, match=r"another model; settings was null, now it is .*5.*Name another place"):
        Journal(tmp_path / "j", {"model": "b", "settings": {"shots": 5}}, MEANINGS)
