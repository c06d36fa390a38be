"""`shortgpt.prune`: all that the command does, from Python."""

import json
from collections.abc import Callable
from dataclasses import replace
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
    with pytest.raises(ModelError, match="in memory, so that dtype would do nothing"):
        shortgpt.prune(model, tmp_path / "out", blocks=1, dtype="float32")
    with pytest.raises(ModelError, match="written from a checkpoint"):
        shortgpt.prune(model, tmp_path / "out", remove=[1], exports=["mergekit"])
    assert not (tmp_path / "out").exists()


def test_a_misspelt_keyword_is_pythons_own_error(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sequnces"):
        shortgpt.prune(llama_folder, tmp_path / "out", blocks=1, sequnces=3)


# -- scores that were measured before, and dry runs ------------------------------------------------------------


def test_scores_measured_elsewhere_choose_the_same_blocks(
    run_cli: Callable[..., Ran], llama_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = ("--calibration", text, "--sequences", 4, "--tokens", 32, "--device", "cpu")
    file = tmp_path / "s.json"
    both = ("--criterion", "relative-magnitude", "--criterion", "block-influence")
    run_cli("score", llama_folder, *on, *both, "--json", file)
    by: dict[str, Any] = {"criterion": "relative-magnitude", "calibration": text, "verify": False, "effect": False}
    measured = shortgpt.prune(llama_folder, tmp_path / "a", blocks=2, **by, **ON)

    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("shortgpt.models.loading.load", load)
    for number, scores in enumerate((file, shortgpt.Scores.read(file))):
        plan = shortgpt.prune(llama_folder, tmp_path / str(number), blocks=2, scores=scores, verify=False)
        assert plan is not None
        assert measured is not None
        assert plan.blocks == measured.blocks
    by_influence: dict[str, Any] = {"scores": file, "criterion": "block-influence"}
    other = shortgpt.prune(llama_folder, tmp_path / "b", blocks=1, **by_influence, verify=False)
    assert other is not None
    assert other.blocks == shortgpt.Scores.read(file).of("block-influence").least_influential(1)
    kept = shortgpt.prune(llama_folder, tmp_path / "c", blocks=1, scores=file, keep=plan.blocks, verify=False)
    assert kept is not None
    assert not set(kept.blocks) & set(plan.blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": [1]}, "--scores: nothing is chosen by score with --remove"),
        ({"blocks": 1, "sequences": 3}, "--sequences: --scores were measured before"),
        ({"blocks": 1, "criterion": "nonsense"}, "'nonsense' was not measured here"),
        ({"contiguous": 2}, "runs of blocks were not measured"),
    ],
)
def test_what_scores_cannot_say_is_told(
    llama_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    scores = shortgpt.score(shortgpt.load(llama_folder, device="cpu"), TEXT[:2])
    with pytest.raises(shortgpt.ShortGPTError, match=message):
        shortgpt.prune(llama_folder, tmp_path / "out", scores=scores, **options)
    other = shortgpt.prune("zoo:llama", remove=[1], dry_run=True)
    assert other is not None
    with pytest.raises(ModelError, match="the scores are of 6 blocks of the architecture llama, zoo:llama has 12"):
        shortgpt.prune("zoo:llama", tmp_path / "out", scores=scores, blocks=1)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    run_cli: Callable[..., Ran], llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    foreseen = shortgpt.prune(llama_folder, blocks=2, calibration=text, effect=False, dry_run=True, **ON)
    done = shortgpt.prune(llama_folder, tmp_path / "out", blocks=2, calibration=text, effect=False, verify=False, **ON)
    assert foreseen is not None
    assert done is not None
    assert foreseen.blocks == done.blocks
    assert (foreseen.parameters_before, foreseen.parameters_after) == (done.parameters_before, done.parameters_after)
    before = sorted(tmp_path.rglob("*"))
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "none", "--remove", "1", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    assert "to remove: 1: 6 → 5 blocks" in ran.out
    assert ran.out.endswith("nothing was written (--dry-run)\n")
    assert sorted(tmp_path.rglob("*")) == before
    refused = run_cli("prune", llama_folder, "--remove", "1")
    assert (refused.status, "name one (--output)" in refused.err) == (2, True)


def test_an_effect_that_is_measured_now_is_kept_though_the_plan_is_from_other_weights(
    llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    plan = shortgpt.prune(llama_folder, tmp_path / "a", remove=[2], verify=False)
    assert plan is not None
    options: dict[str, Any] = {"calibration": text, "verify": False, **ON}
    foreign = replace(plan, source_hashes={"model.safetensors": "0" * 64})
    again = shortgpt.prune(llama_folder, tmp_path / "b", plan=foreign, effect=True, **options)
    assert again is not None
    assert again.effect is not None
    assert again.effect.ratio is not None
    without = shortgpt.prune(llama_folder, tmp_path / "c", plan=again, effect=False, verify=False)
    assert without is not None
    assert without.effect is None


def test_inspect_refuses_what_prune_refuses_and_says_so_by_its_status(
    run_cli: Callable[..., Ran], llama_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in llama_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))  # but six in the file
    asked, done = (
        run_cli(*command, "--remove", "1") for command in (("inspect", broken), ("prune", broken, "-o", tmp_path / "o"))
    )
    assert (asked.status, done.status) == (2, 2)
    assert "1 cannot be removed:" in asked.out
    assert run_cli("inspect", llama_folder, "--remove", "1").status == 0
