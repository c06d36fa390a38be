"""Training a shorter model: step 0 is that model, and a run that was cut off ends as one that was not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt.errors import ModelError, OutputError
from shortgpt.healing import heal as healing
from shortgpt.healing.heal import heal
from shortgpt.healing.methods import prepare
from shortgpt.healing.recipe import Recipe
from shortgpt.healing.training import Watch, next_token_loss
from tests.support import ids_of, raising, saved, tiny

SMALL: dict[str, Any] = {"steps": 4, "sequences": 8, "tokens": 16, "step_sequences": 2, "every": 2}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_result_is_the_shorter_model_trained_and_opens_without_us(
    method: str, llama_folder: Path, shorter: Path, text: Path, tmp_path: Path
) -> None:
    result = heal(llama_folder, shorter, tmp_path / "out", method=method, calibration=text, learning_rate=5e-3, **SMALL)
    assert result.held_out[0].loss == result.before
    assert [healed.step for healed in result.held_out] == [0, 2, 4]
    assert result.after < result.before
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = shortgpt.load(tmp_path / "out")
    with torch.no_grad():
        by_hand = opened(input_ids=ids_of()).logits
    assert torch.equal(again.logits({"input_ids": ids_of()}), by_hand)
    before, after = (load_file(folder / "model.safetensors") for folder in (shorter, tmp_path / "out"))
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"]) == (method == "lora")
    record = json.loads((tmp_path / "out" / "shortgpt.json").read_text())
    assert record["blocks"] == [2, 3]
    assert record["verification"]["verified"] is False
    assert record["healing"]["method"] == method
    assert "what is left was trained afterwards" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "healing.json").read_text())["method"] == method
    assert not (tmp_path / "out.checkpoints").exists()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_before_the_first_step_no_bit_differs(name: str) -> None:
    model: Any = shortgpt.wrap(tiny(name))
    before = model.logits({"input_ids": ids_of()})
    module, finish = prepare(model, Recipe(rank=4))
    assert torch.equal(model.logits({"input_ids": ids_of()}), before)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert trained
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
    changed = model.logits({"input_ids": ids_of()})
    finish()
    assert not torch.equal(changed, before)
    torch.testing.assert_close(model.logits({"input_ids": ids_of()}), changed, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in model.model.named_parameters())


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    llama_folder: Path, shorter: Path, text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"method": "lora", "calibration": text, **SMALL}
    whole = heal(llama_folder, shorter, tmp_path / "whole", **options)
    with raising(Watch, "look", KeyboardInterrupt(), after=2), pytest.raises(KeyboardInterrupt):
        heal(llama_folder, shorter, tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(OutputError, match="go on with it"):
        heal(llama_folder, shorter, tmp_path / "cut", **options)
    with pytest.raises(OutputError, match=r"run of other settings \(rank 16, now 4\)"):
        heal(llama_folder, shorter, tmp_path / "cut", resume=True, rank=4, **options)
    resumed = heal(llama_folder, shorter, tmp_path / "cut", resume=True, **options)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed.held_out == whole.held_out
    assert resumed.training == whole.training


def test_patience_ends_a_run_and_takes_its_best_weights(
    llama_folder: Path, shorter: Path, text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**SMALL, "steps": 8, "patience": 1, "method": "full", "learning_rate": 10.0}
    result = heal(llama_folder, shorter, tmp_path / "out", calibration=text, **options)
    assert result.steps == 2
    assert result.after == result.before
    one, other = (load_file(folder / "model.safetensors") for folder in (shorter, tmp_path / "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_half_precision_is_written_as_it_was(llama_folder: Path, text: Path, tmp_path: Path) -> None:
    saved(tiny("llama").bfloat16(), tmp_path / "whole")
    shortgpt.prune_checkpoint(tmp_path / "whole", tmp_path / "shorter", (2,), verify=False)
    heal(tmp_path / "whole", tmp_path / "shorter", tmp_path / "out", calibration=text, method="full", **SMALL)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_padding_is_no_token_to_learn() -> None:
    logits, ids = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    rows = [
        torch.nn.functional.cross_entropy(logits[i, : n - 1], ids[i, 1:n], reduction="sum") for i, n in ((0, 6), (1, 3))
    ]
    torch.testing.assert_close(next_token_loss(logits, ids, mask), (rows[0] + rows[1]) / 7)


def test_the_command_says_what_it_won(
    llama_folder: Path, shorter: Path, text: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    numbers = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", value)]
    ran = run_cli("heal", llama_folder, shorter, "-o", tmp_path / "out", "--calibration", text, *numbers,
                  "--json", tmp_path / "healing.json", "--plot", tmp_path / "losses.png")  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert "gap in log-perplexity closed" in ran.out
    assert json.loads((tmp_path / "healing.json").read_text())["steps"] == 4
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert "gap in log-perplexity closed" in run_cli("show", tmp_path / "healing.json").out


def test_what_is_no_torch_module_is_refused_by_name() -> None:
    class Other:
        name, architecture = "model.pth", "rwkv-package"

    with pytest.raises(ModelError, match=r"no torch module.*convert it for transformers"):
        healing._trainable(Other(), Recipe())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--plot", "losses.txt"], "pictures are written as"),
        (["--resume"], "holds no run to go on with"),
        (["--sequences", "1000000"], "too short"),
    ],
)
def test_a_mistake_is_one_message(
    options: list[str], message: str, llama_folder: Path, shorter: Path, text: Path, tmp_path: Path, run_cli: Any
) -> None:
    ran = run_cli("heal", llama_folder, shorter, "-o", tmp_path / "out", "--calibration", text, *options)
    assert ran.status == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
