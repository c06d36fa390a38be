"""The example of a library call, run and type-checked as another project would; its claims are checked without it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.example_environment import EXAMPLES
from tests.fresh_processes import forked_verification

SCRIPT = EXAMPLES / "library_call.py"
MODELS = ("llama", "mamba")

STRICT = """
[mypy]
strict = True
follow_imports = skip
[mypy-shortgpt.*]
follow_imports = silent
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the script printed, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("library") / "shorter"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, forked_verification(), contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(SCRIPT), str(folder)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return printed.getvalue(), folder


@pytest.mark.parametrize("name", MODELS)
def test_it_writes_the_model_without_its_least_influential_blocks(run: tuple[str, Path], name: str) -> None:
    printed, folder = run
    ranking = [int(i) for i in re.search(rf"^zoo:{name}: least .* first (.*)$", printed, re.MULTILINE)[1].split(",")]
    assert sorted(ranking) == list(range(12))
    gone = sorted(ranking[:3])
    listed = ", ".join(map(str, gone))
    assert f"zoo:{name}: without {listed}, 12 blocks became 9\n" in printed
    assert json.loads((folder / name / "shortgpt.json").read_text(encoding="utf-8"))["blocks"] == gone


@pytest.mark.parametrize("name", MODELS)
def test_what_it_wrote_is_the_original_with_these_blocks_left_out_of_its_list(run: tuple[str, Path], name: str) -> None:
    printed, folder = run
    assert f"zoo:{name}: verified: " in printed
    import shortgpt_adapters

    zoo = Path(shortgpt_adapters.__path__[0]) / "zoo"
    original, shorter = (AutoModelForCausalLM.from_pretrained(path / name).eval() for path in (zoo, folder))
    gone = json.loads((folder / name / "shortgpt.json").read_text(encoding="utf-8"))["blocks"]
    blocks = original.base_model.layers
    original.base_model.layers = torch.nn.ModuleList(block for i, block in enumerate(blocks) if i not in gone)
    original.config.num_hidden_layers = len(original.base_model.layers)
    ids = torch.arange(64).reshape(2, 32)
    with torch.no_grad():
        assert torch.equal(shorter(ids, use_cache=False).logits, original(ids, use_cache=False).logits)


def test_it_compares_the_models_that_it_measured(run: tuple[str, Path]) -> None:
    printed, _ = run
    table = printed[printed.rindex("tokens of cached generation") :]
    assert [name for name in MODELS if re.search(rf"^\s*zoo:{name}\b.*\b12\b", table, re.MULTILINE)] == list(MODELS)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """What mypy says of the script, and of a program with two wrong calls: file → lines and codes of its errors."""
    # From elsewhere, where shortgpt is what is installed; the types of all other packages take most of a minute.
    folder = tmp_path_factory.mktemp("typed")
    (folder / "mypy.ini").write_text(STRICT, encoding="utf-8")
    wrong = "import shortgpt\n\nshortgpt.remove('zoo:llama', [1])\nnames: list[str] = shortgpt.load('x').block_names\n"
    (folder / "wrong.py").write_text(wrong, encoding="utf-8")
    shutil.copy(SCRIPT, folder)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", SCRIPT.name, "wrong.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "(checked 2 source files)" in done.stdout, done.stdout + done.stderr
    told: dict[str, list[tuple[str, str]]] = {}
    for file, line, code in re.findall(r"^(.+?):(\d+): error: .*\[(.*)\]$", done.stdout, re.MULTILINE):
        told.setdefault(file, []).append((line, code))
    return told


def test_it_is_clean_under_mypy_strict(faults: dict[str, list[tuple[str, str]]]) -> None:
    assert set(faults) <= {"wrong.py"}


def test_mypy_would_tell_a_wrong_call(faults: dict[str, list[tuple[str, str]]]) -> None:
    assert faults["wrong.py"] == [("3", "arg-type"), ("4", "assignment")]
