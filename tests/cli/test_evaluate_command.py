"""`shortgpt evaluate` and `prune --require`: what they print and write, and how they end."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import shortgpt
from tests.plugins.test_tasks import TEXTS
from tests.support import Ran, saved, tiny

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama", blocks=4), tmp_path_factory.mktemp("evaluated") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS), encoding="utf-8")
    return file


@pytest.fixture
def little(text: Path) -> tuple[object, ...]:
    return ("--text", text, "--items", 4, "--task", "cloze", "--device", "cpu", "-q")


def test_a_table_for_the_terminal_and_json_csv_markdown_and_a_picture(
    run_cli: Run, model: Path, little: tuple[object, ...], tmp_path: Path
) -> None:
    files = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg")
    ran = run_cli("evaluate", model, "--remove", "1-2", "--task", "bits-per-byte", *little, *files)
    assert ran.status == 0, ran
    assert "without 1-2" in " ".join(ran.out.split())
    assert "bits per byte ↓" in ran.out
    assert "right→wrong" in ran.out
    assert "items of" in ran.out
    read = shortgpt.Evaluation.from_json((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [row.task for row in read.tasks] == ["bits-per-byte", "cloze"]
    assert (tmp_path / "r.svg").read_text(encoding="utf-8").count("<svg") == 1
    rows = list(csv.DictReader(io.StringIO(run_cli("evaluate", model, *little, "--format", "csv").out)))
    score = read.score(read.task("cloze"))
    assert score is not None
    assert float(rows[0]["score"]) == score.value
    assert rows[0]["kept"] == "", "there is nothing beside it"
    markdown = run_cli("evaluate", model, "--remove", 1, *little, "--format", "markdown").out
    assert "| task | kept | difference | changed | right→wrong | wrong→right |" in markdown


def test_a_plan_names_the_blocks(run_cli: Run, model: Path, little: tuple[object, ...], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(shortgpt.Plan(str(model), "llama", 4, (2,)).to_json(), encoding="utf-8")
    ran = run_cli("evaluate", model, "--plan", plan, *little, "--format", "csv")
    assert [row["removed"] for row in csv.DictReader(io.StringIO(ran.out))] == ["", "2"]


@pytest.mark.parametrize(
    ("requirement", "status"), [("few<=0.9", 0), ("few>=0.9", 1), ("few<=0.9x", 3), ("few-difference<=0.1", 3)]
)
def test_the_exit_status_says_whether_a_requirement_holds(
    requirement: str, status: int, run_cli: Run, model: Path, plug: Callable[[str, str], str]
) -> None:
    """Twenty wrong answers of each model: a score that is seen to be below 0.9, and a ratio that there is none of."""
    plug("few", FEW)
    ran = run_cli("evaluate", model, "--remove", 1, "--task", "few", "-q", "--device", "cpu", "--require", requirement)
    assert ran.status == status, ran
    state = {0: "holds", 1: "fails", 3: "not settled"}[status]
    assert f"{requirement}: {state} for" in " ".join(ran.out.split())
    assert ran.err == ""


def test_a_task_without_data_is_named_the_others_go_on_and_the_status_is_2(
    run_cli: Run, model: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    options = ("--text", short, "--items", 2, "--device", "cpu", "-q")
    ran = run_cli("evaluate", model, "--task", "cloze", "--task", "copy", *options, "--format", "csv")
    assert ran.status == 2
    assert [row["task"] for row in csv.DictReader(io.StringIO(ran.out))] == ["cloze", "copy"]
    assert "not everything was measured: cloze: " in ran.err
    assert ran.err.count("\n") == 1


def test_what_is_wrong_is_told_in_one_message_and_nothing_is_written(
    run_cli: Run, model: Path, little: tuple[object, ...], text: Path, tmp_path: Path
) -> None:
    bare = saved(tiny("llama", blocks=2), tmp_path / "bare", tokenizer=False)
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        ((model, *little, "--task", "clzoe"), "unknown task 'clzoe'. Did you mean 'cloze'"),
        ((bare, *little), "has no tokenizer, so tasks cannot be put to it; name one (--tokenizer NAME"),
        ((model, *little, "--require", "cloze"), "is no requirement; write a task"),
        ((model, *little, "--require", "copy>=0.1"), "is about the task 'copy', which is not run"),
        ((model, *little, "--remove", "9"), "blocks 9 do not exist"),
        ((model, *little, "--remove", "x"), "is not a list of blocks"),
        ((model, model, *little), "stands there twice"),
        ((model, *little, "--until-settled"), "until what is settled?"),
        ((model, *little, "--items", "0"), "items must be at least 1"),
        ((model, *little, "--text", tmp_path / "none.txt"), "no such file or folder"),
        ((model, *little, "--resume", text), "a run is resumed from a folder, and this is a file"),
        ((model, *little, "--json", tmp_path / "none" / "r.json"), "there is no folder"),
        (("nowhere/at/all", *little), "nowhere/at/all"),
    ):
        ran = run_cli("evaluate", *arguments)
        assert (ran.status, ran.out) == (2, ""), (arguments, ran)
        assert message in ran.err, arguments
        assert ran.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_run_of_the_same_command_takes_what_the_first_one_measured(
    run_cli: Run, model: Path, little: tuple[object, ...], tmp_path: Path
) -> None:
    command = ("evaluate", model, *little, "--resume", tmp_path / "run", "--format", "json")
    first = run_cli(*command)
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert run_cli(*command).out == first.out
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    other = run_cli(*command, "--seed", 1)
    assert other.status == 2
    assert "seed was 0, now it is 1" in other.err


@pytest.mark.parametrize(("requirement", "status"), [("few<=0.9", 0), ("few>=0.9", 1), ("few>=1x", 3)])
def test_prune_keeps_nothing_where_what_is_required_does_not_hold(
    requirement: str, status: int, run_cli: Run, model: Path, tmp_path: Path, plug: Callable[[str, str], str]
) -> None:
    plug("few", FEW)
    output = tmp_path / "short"
    options = ("--remove", 1, "--no-verify", "--device", "cpu", "-q")
    ran = run_cli("prune", model, "-o", output, *options, "--require", requirement)
    assert ran.status == status, ran
    assert output.exists() is (status == 0)
    if status:
        assert ran.err.startswith(f"shortgpt: required: {requirement} ")
        assert ran.err.endswith("; nothing was kept\n")
    else:
        assert "few<=0.9 holds: 0, on 20 items of few" in ran.out


FEW = """
from shortgpt import Extension, hookimpl
from shortgpt.measuring.tasks.task import OwnTask
from shortgpt.values.evaluation.outcomes import Outcome

class Few(OwnTask):
    name, version, metric = "few", "1", "accuracy"
    def __init__(self, options):
        pass
    def __len__(self):
        return 20
    def outcomes(self, model, items):
        return [Outcome(0.0) for _ in items]

@hookimpl
def shortgpt_tasks():
    return [Extension("few", f"{__name__}:Few")]
"""


def test_prune_refuses_a_requirement_that_says_nothing_before_it_does_anything(
    run_cli: Run, model: Path, tmp_path: Path
) -> None:
    for requirement, message in (("cloze", "is no requirement"), ("clzoe>=1x", "unknown task 'clzoe'")):
        ran = run_cli("prune", model, "-o", tmp_path / "short", "--remove", 1, "--require", requirement)
        assert (ran.status, ran.out) == (2, "")
        assert message in ran.err
    ran = run_cli("prune", model, "--dry-run", "--remove", 1, "--require", "copy>=0.1")
    assert ran.status == 2
    assert "--dry-run writes nothing" in ran.err
