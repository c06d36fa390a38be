"""Compensated checkpoints are what the whole model computes with the same maps and its blocks skipped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt.measuring.compensation import fit as fitting
from shortgpt.measuring.compensation.fit import fit
from tests.support import ids_of, saved, tiny
from tests.tiny_types import tiny_model

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(autouse=True)
def every_change_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of random tokens tells tiny models of random weights nothing, so no change would be worth it."""
    monkeypatch.setattr(fitting, "worth_it", lambda gain, stderr: True)
    monkeypatch.setattr(fitting, "RIDGES", (0.01,))
    monkeypatch.setattr(fitting, "SCALES", (1.0,))


def batches(vocabulary: int = 256) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids_of(4, 24, seed=seed) % vocabulary} for seed in range(2)]


def by_hand(folder: Path, fitted: Any, gone: tuple[int, ...], name: str, transposed: bool = False) -> dict[str, Tensor]:
    """The tensors of a folder with the maps multiplied in, named by the old block numbers."""
    tensors = load_file(folder / "model.safetensors")
    for change in fitted.changes:
        place = name.format(change.projection.block)
        weight = tensors[place].double()
        changed = (change.numbers @ weight.T).T if transposed else change.numbers @ weight
        tensors[place] = changed.float()
    return tensors


def test_what_is_written_is_the_map_times_the_weight_and_nothing_else_changes(tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "whole")
    model = shortgpt.load(folder)
    fitted = fit(model, (2, 4), shortgpt.calibrate(batches(), model))
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "out", (2, 4), fitted=fitted)
    assert plan.verification is not None
    assert plan.verification.verified
    expected = by_hand(folder, fitted, (2, 4), "model.layers.{}.mlp.down_proj.weight")
    stays, written = [0, 1, 3, 5], load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in written.items():
        old = name
        if name.startswith("model.layers."):
            number = name.split(".")[2]
            old = name.replace(f"layers.{number}.", f"layers.{stays[int(number)]}.")
        torch.testing.assert_close(tensor, expected[old], atol=1e-6, rtol=1e-6)
    record = json.loads((tmp_path / "out" / "shortgpt.json").read_text())["compensation"]
    assert [run["hash"] for run in record["runs"]] == [change.hash for change in fitted.changes]
    assert [run["block"] for run in record["runs"]] == [1, 3]


@pytest.mark.sampled("gemma2")
@pytest.mark.parametrize("model_type", ["mixtral", "gemma2"])
def test_a_checkpoint_of_experts_or_gains_is_proven(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, 6, 0)
    model.save_pretrained(tmp_path / "whole")
    blocks = shortgpt.load(tmp_path / "whole")
    fitted = fit(blocks, (2, 3), shortgpt.calibrate(batches(blocks.vocab_size), blocks))
    assert len(fitted.changes) == 1
    plan = shortgpt.prune_checkpoint(tmp_path / "whole", tmp_path / "out", (2, 3), fitted=fitted)
    assert plan.verification is not None
    assert plan.verification.verified, plan.verification
    assert plan.verification.max_difference is not None


def test_a_base_checkpoint_without_its_prefix_is_folded_by_its_own_names(tmp_path: Path) -> None:
    model = tiny("gpt2")
    saved(model.transformer, tmp_path / "whole")
    config = tmp_path / "whole" / "config.json"
    config.write_text(config.read_text().replace("GPT2Model", "GPT2LMHeadModel"))
    blocks = shortgpt.load(tmp_path / "whole")
    fitted = fit(blocks, (3,), shortgpt.calibrate(batches(), blocks))
    plan = shortgpt.prune_checkpoint(tmp_path / "whole", tmp_path / "out", (3,), fitted=fitted)
    assert plan.verification is not None
    assert plan.verification.verified
    expected = by_hand(tmp_path / "whole", fitted, (3,), "h.{}.mlp.c_proj.weight", transposed=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(written["h.2.mlp.c_proj.weight"], expected["h.2.mlp.c_proj.weight"], atol=1e-6, rtol=0)
    bias = fitted.changes[0].numbers.float() @ expected["h.2.mlp.c_proj.bias"]
    torch.testing.assert_close(written["h.2.mlp.c_proj.bias"], bias, atol=1e-6, rtol=0)


def test_half_precision_is_proven_before_it_is_rounded(tmp_path: Path) -> None:
    folder = saved(tiny("llama").bfloat16(), tmp_path / "whole")
    model = shortgpt.load(folder)
    fitted = fit(model, (2,), shortgpt.calibrate(batches(), model))
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "out", (2,), fitted=fitted)
    assert plan.verification is not None
    assert plan.verification.rounded_to == "bfloat16"
    in_memory = shortgpt.prune(model, tmp_path / "memory", remove=(2,), compensate=True, calibration=batches())
    assert in_memory is not None
    assert in_memory.verification is not None
    assert in_memory.verification.verified


def test_a_checkpoint_that_lacks_its_map_is_not_verified(tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "whole")
    model = shortgpt.load(folder)
    fitted = fit(model, (2,), shortgpt.calibrate(batches(), model))
    shortgpt.prune_checkpoint(folder, tmp_path / "plain", (2,), verify=False)
    with pytest.raises(shortgpt.ShortGPTError, match="is not what its weights were folded to"):
        shortgpt.verify(model, tmp_path / "plain", (2,), changes=fitted.changes)


@pytest.mark.parametrize("in_memory", [False, True])
def test_prune_compensates_and_its_plan_does_so_again(
    in_memory: bool, tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Any]
) -> None:
    model: Any = shortgpt.load(llama_folder) if in_memory else llama_folder
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + int(i)) for i in torch.randint(0, 26, (4000,))))
    options: dict[str, Any] = {"calibration": str(text), "sequences": 4, "tokens": 32}
    plan = shortgpt.prune(model, tmp_path / "out", blocks=2, compensate=True, effect=False, **options)
    assert plan is not None
    assert plan.compensation is not None
    assert plan.compensation.kept
    assert plan.verification is not None
    assert plan.verification.verified
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.num_parameters() == plan.parameters_after
    if in_memory:
        return
    again = run_cli("prune", llama_folder, "-o", tmp_path / "again", "--plan", tmp_path / "out", "--calibration", text,
                    "--sequences", 4, "--tokens", 32, "--no-verify")  # fmt: skip
    assert again.status == 0, again.err
    assert "compensation of" in again.out
    files = [tmp_path / name / "model.safetensors" for name in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    plain = run_cli(
        "prune", llama_folder, "-o", tmp_path / "plain", "--plan", tmp_path / "out", "--no-compensate", "--no-verify"
    )
    assert plain.status == 0, plain.err
    assert shortgpt.Plan.read(tmp_path / "plain").compensation is None


def test_the_card_tells_it_and_the_record_proves_it_again(
    tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Any]
) -> None:
    model = shortgpt.load(llama_folder)
    fitted = fit(model, (2,), shortgpt.calibrate(batches(), model))
    shortgpt.prune_checkpoint(llama_folder, tmp_path / "out", (2,), fitted=fitted)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "linear maps that make up for it were multiplied into weights that stay" in card
    assert "## Compensation" in card
    again = run_cli("verify", tmp_path / "out")
    assert again.status == 0, again.err
    refused = run_cli("verify", tmp_path / "out", "--original", llama_folder)
    assert refused.status == 2
    assert "verify it by its record, without --original" in refused.err


def test_streamed_weights_are_not_compensated(tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Any]) -> None:
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--blocks", 1, "--compensate", "--stream")
    assert (ran.status, (tmp_path / "out").exists()) == (2, False)
    assert "--compensate runs the whole model" in ran.err
