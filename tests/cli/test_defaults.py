"""Defaults of options from `shortgpt.toml` and `pyproject.toml`."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from shortgpt.cli import cli
from shortgpt.cli.options.defaults import Defaults, spelled
from tests.support import Ran

Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def parsed(name: str, *arguments: str) -> click.Context:
    """A command's context after its arguments were read, with the defaults of the file."""
    found = Defaults.nearest()
    assert found is not None
    command = cli.commands[name]
    return command.make_context(name, list(arguments), default_map=found.of(cli)[name])


def test_an_option_for_all_commands_and_one_for_one(here: Path) -> None:
    (here / "shortgpt.toml").write_text(
        'batch-size = 3\nquiet = true\n[score]\ncriterion = ["norm", "greedy"]\nseed = 4\n'
    )
    score = parsed("score", "zoo:llama", "--seed", "5").params
    assert (score["batch_size"], score["quiet"], score["criteria"], score["seed"]) == (3, True, ("norm", "greedy"), 5)
    curve = parsed("curve", "zoo:llama").params
    assert (curve["batch_size"], curve["criteria"], curve["seed"]) == (3, (), 0)


def test_the_nearest_file_counts_and_pyproject_has_a_table(here: Path) -> None:
    (here.parent / "pyproject.toml").write_text("[tool.shortgpt]\nsequences = 7\n[tool.shortgpt.score]\nratio = 0.5\n")
    assert parsed("score", "x").params["sequences"] == 7
    assert parsed("score", "x").params["ratio"] == 0.5
    (here / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert parsed("score", "x").params["sequences"] == 7
    (here / "pyproject.toml").write_text("not TOML of ours: [")
    assert parsed("score", "x").params["sequences"] == 7
    (here / "shortgpt.toml").write_text("sequences = 8\n")
    assert parsed("score", "x").params["sequences"] == 8


def test_one_choice_on_the_command_line_leaves_no_room_for_another(here: Path) -> None:
    (here / "shortgpt.toml").write_text("[prune]\nratio = 0.25\nseed = 1\n")
    assert parsed("prune", "x").params["ratio"] == 0.25
    given = parsed("prune", "x", "--remove", "3")
    assert (given.params["ratio"], given.params["remove"], given.params["seed"]) == (None, "3", 1)


def test_a_command_runs_by_them_and_says_so_where_it_is_told_again(
    here: Path, run_cli: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "shortgpt.toml").write_text('sequences = 2\ntokens = 16\n[score]\ncriterion = ["norm"]\n')
    monkeypatch.setattr("sys.argv", ["shortgpt", "score", "x", "--html", "x.html"])
    done = run_cli("score", llama_folder, "--json", "x.json", "--html", "x.html")
    assert done.status == 0
    scores = json.loads((here / "x.json").read_text())
    assert scores["criteria"] == ["norm"]
    assert sum(scores["tokens"]) == 2 * 16
    page = (here / "x.html").read_text()
    assert "shortgpt score x --html x.html --criterion norm --sequences 2 --tokens 16" in page


def test_they_are_spelled_as_on_the_line(here: Path) -> None:
    (here / "shortgpt.toml").write_text(
        "[prune]\nverify = false\ncompensate = true\nstream = false\n"
        'export = ["mergekit", "llama.cpp"]\nkeep = "0, 1"\n'
    )
    words = spelled(parsed("prune", "x"))
    assert set(shlex.join(words).split(" --")) == {
        *("--keep '0, 1'", "no-verify", "compensate", "export mergekit", "export llama.cpp"),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sequnces = 3", "no command has an option 'sequnces'; did you mean 'sequences'?"),
        ("[score]\nspann = true", "score has no option 'spann'; did you mean 'spans'?"),
        ("[scor]\nspans = true", "no command has an option 'scor'; did you mean 'score'?"),
        ("score = 3", "[score] is no table"),
        ('sequences = "many"', "'many' is no value for 'sequences': 'many' is not a valid integer"),
        ("spans = 1", "1 is no value for 'spans'; it takes true or false"),
        ('[score]\ncriterion = "norm"', "'norm' is no value for 'criterion'; it takes a list"),
        ('dtype = "float8"', "'float8' is no value for 'dtype'"),
        ("trust-remote-code = true", "'trust-remote-code' stands on the command line alone"),
        ('[score]\njson = "x"', "'json' stands on the command line alone"),
        ('[prune]\noutput = "x"', "'output' stands on the command line alone"),
        ("sequences = ", "shortgpt.toml: cannot be read"),
    ],
)
def test_what_is_wrong_is_told_by_name(here: Path, run_cli: Run, text: str, told: str) -> None:
    (here / "shortgpt.toml").write_text(text)
    done = run_cli("score", "zoo:llama")
    assert done.status == 2
    assert told in done.err
    assert "shortgpt.toml: " in done.err
    assert run_cli("score", "--help").status == 0


def test_every_option_that_a_command_has_is_known(here: Path) -> None:
    unset: dict[str, Any] = {}
    for name, command in cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.is_flag and option.name != "trust_remote_code":
                unset.setdefault(name, {})[max(option.opts, key=len).lstrip("-")] = False
    lines = [f"[{name}]\n" + "".join(f"{key} = false\n" for key in keys) for name, keys in unset.items()]
    (here / "shortgpt.toml").write_text("".join(lines))
    found = Defaults.nearest()
    assert found is not None
    assert {name for name, values in found.of(cli).items() if values} == set(unset)
