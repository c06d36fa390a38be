"""What shells are offered, by the classes of click that answer them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from shortgpt.cli import cli
from shortgpt.cli.options.completion import SHELLS, VARIABLE
from tests.support import run_cli


def offered(monkeypatch: pytest.MonkeyPatch, line: str, shell: str = "bash", separators: str = ":=") -> list[str]:
    """The answer to a line that ends where the cursor stands."""
    for sign in separators:
        line = line.replace(sign, f" {sign} ")
    words = line.split()
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - (not line.endswith(" ") or line.rstrip()[-1] == ":")))
    made = get_completion_class(shell)
    assert made is not None
    return made(cli, {}, "shortgpt", VARIABLE).complete().split("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("shortgpt ev", ["plain,evaluate"]),
        ("shortgpt score --crit", ["plain,--criterion"]),
        ("shortgpt score zoo:ll", ["plain,llama"]),
        ("shortgpt compare zoo:llama zoo:rw", ["plain,rwkv"]),
        ("shortgpt score zoo:llama --criterion gre", ["plain,greedy"]),
        ("shortgpt score zoo:llama --format mark", ["plain,markdown"]),
        ("shortgpt score zoo:llama --calibration=std", ["plain,stdlib"]),
        ("shortgpt evaluate x --task clo", ["plain,cloze"]),
        ("shortgpt score x --dtype bf", ["plain,bfloat16"]),
        ("shortgpt inspect x --architecture mamba-", ["plain,mamba-ssm"]),
        ("shortgpt score x --json sc", ["file,sc"]),
        ("shortgpt prune x --output sh", ["dir,sh"]),
        ("shortgpt show sc", ["file,sc"]),
    ],
)
def test_what_is_offered(monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]) -> None:
    kind = expected[0].partition(",")[0]
    assert [answer for answer in offered(monkeypatch, line) if answer.startswith(kind)] == expected


def test_a_model_may_be_a_name_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *names = offered(monkeypatch, "shortgpt score zo")
    assert first == "file,zo"
    assert "plain,zoo:llama" in names
    assert offered(monkeypatch, "shortgpt score zoo:")[1:] == [
        f"plain,{name.removeprefix('plain,zoo:')}" for name in names
    ]


def test_fish_gets_the_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "shortgpt score x --criterion")
    monkeypatch.setenv("COMP_CWORD", "block-i")
    made = get_completion_class("fish")
    assert made is not None
    answer = made(cli, {}, "shortgpt", VARIABLE).complete()
    assert "block-influence" in answer


@pytest.mark.parametrize("shell", SHELLS)
def test_the_lines_that_switch_it_on(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run_cli("completion", shell)
    assert printed.status == 0
    assert f"{VARIABLE}={shell}_complete" in printed.out
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert run_cli("completion").out == printed.out


def test_a_shell_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "name one of bash, zsh, fish" in run_cli("completion").err


def test_bash_itself_and_no_torch(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    program = tmp_path / "shortgpt"
    told = "import sys; print('torch' in sys.modules, file=open('torch', 'w'))"
    program.write_text(
        f"#!{sys.executable}\nimport atexit\nfrom shortgpt.cli import main\n"
        f"atexit.register(lambda: exec({told!r}))\nmain()\n"
    )
    program.chmod(0o755)
    script = run_cli("completion", "bash").out
    line = "COMP_WORDS=(shortgpt score zoo : mis); COMP_CWORD=4; _shortgpt_completion shortgpt; echo ${COMPREPLY[@]}"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "-c", f"{script}\ncompopt() {{ :; }}\n{line}"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "mistral"
    assert (tmp_path / "torch").read_text().strip() == "False"
