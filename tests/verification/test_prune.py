"""`shortgpt.prune`: all that the command does, from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt import Plan
from shortgpt.errors import ModelError, SelectionError
from tests.support import Ran, ids_of, skipped_by_hand

TEXT = [f"line {i}: {i * i} is the square of {i}, and {i**3} its cube" for i in range(40)]
ON: dict[str, Any] = {"sequences": 4, "tokens": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(TEXT * 20))
    return file


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(ids_of()).logits


@pytest.mark.parametrize(
    ("rule", "option"),
    [
        ({"blocks": 2}, ("--blocks", 2)),
        ({"ratio": 0.5, "keep": [2]}, ("--ratio", 0.5, "--keep", "2")),
        ({"contiguous": 2}, ("--contiguous", 2)),
        ({"max_perplexity_ratio": 1.5, "criterion": "relative-magnitude"}, None),
    ],
)
def test_it_writes_what_the_command_writes(
    run_cli: Callable[..., Ran], llama_folder: Path, text: Path, tmp_path: Path, rule: dict[str, Any], option: Any
) -> None:
    option = option or ("--max-perplexity-ratio", 1.5, "--criterion", "relative-magnitude")
    plan = shortgpt.prune(llama_folder, tmp_path / "python", **rule, calibration=text, effect=False, verify=False, **ON)
    words = ("--calibration", text, "--sequences", 4, "--tokens", 32, "--device", "cpu", "--no-effect", "--no-verify")
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "command", *option, *words)
    assert ran.status == 0, ran.err
    assert plan == Plan.read(tmp_path / "python")
    for file in (tmp_path / "command").iterdir():
        assert file.read_bytes() == (tmp_path / "python" / file.name).read_bytes(), file.name


@pytest.mark.usefixtures("one_process")
def test_named_blocks_go_and_the_result_computes_what_skipping_them_does(llama_folder: Path, tmp_path: Path) -> None:
    plan = shortgpt.prune(llama_folder, tmp_path / "out", remove="1,3-4", device="cpu")
    assert plan is not None
    assert (plan.blocks, plan.verification.verified, plan.effect) == ((1, 3, 4), True, None)
    whole = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert torch.equal(logits_of(tmp_path / "out"), skipped_by_hand(whole, "model.layers", (1, 3, 4), ids_of()))


@pytest.mark.usefixtures("one_process")
def test_a_model_in_memory_is_written_as_it_is_there(llama_folder: Path, text: Path, tmp_path: Path) -> None:
    model = shortgpt.load(llama_folder, device="cpu")
    with torch.no_grad():
        model.model.lm_head.weight.mul_(2)  # the folder does not know of it
    plan = shortgpt.prune(model, tmp_path / "out", blocks=2, calibration=text, sequences=4, tokens=32)
    assert plan is not None
    assert plan.verification.verified
    assert plan == Plan.read(tmp_path / "out")
    assert plan.effect is not None
    assert plan.effect.ratio is not None
    assert torch.equal(logits_of(tmp_path / "out"), skipped_by_hand(model.model, "model.layers", plan.blocks, ids_of()))
    assert len(model) == 6


def test_a_plan_goes_on_to_other_folders(llama_folder: Path, tmp_path: Path) -> None:
    plan = shortgpt.prune(llama_folder, tmp_path / "a", remove=[2], verify=False)
    for number, given in enumerate((plan, tmp_path / "a", str(tmp_path / "a" / "shortgpt.json"))):
        again = shortgpt.prune(llama_folder, tmp_path / str(number), plan=given, verify=False)
        assert again is not None
        assert again.blocks == (2,)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "nothing was chosen"),
        ({"blocks": 1, "ratio": 0.5}, "two choices at once"),
        ({"remove": [9]}, "blocks 9 do not exist"),
        ({"remove": [1], "sequences": 3}, "--sequences: nothing is scored with --remove"),
        ({"remove": [1], "calibration": "stdlib"}, "--calibration: nothing is scored with --remove"),
        ({"remove": [True]}, "blocks are named by whole numbers"),
        ({"blocks": 6}, "from 1 to 5 of the 6 blocks"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(
    llama_folder: Path, tmp_path: Path, rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        shortgpt.prune(llama_folder, tmp_path / "out", **rule)
    assert not (tmp_path / "out").exists()


def test_what_would_do_nothing_with_a_model_in_memory_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    model = shortgpt.load(llama_folder, device="cpu")
    with pytest.raises(SelectionError, match="in memory, so that dtype would do nothing"):
        shortgpt.prune(model, tmp_path / "out", blocks=1, dtype="float32")
    with pytest.raises(ModelError, match="written from a checkpoint"):
        shortgpt.prune(model, tmp_path / "out", remove=[1], exports=["mergekit"])
    assert not (tmp_path / "out").exists()


def test_a_misspelt_keyword_is_pythons_own_error(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sequnces"):
        shortgpt.prune(llama_folder, tmp_path / "out", blocks=1, sequnces=3)
