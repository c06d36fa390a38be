"""What the original says of each window: kept on disk, and what is learnt of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shortgpt
from shortgpt.errors import ModelError
from shortgpt.healing import training
from shortgpt.healing.heal import heal
from shortgpt.healing.teacher import ask, distillation_loss, shares
from shortgpt.values.healing import Healing
from tests.support import ids_of, raising, saved, tiny

SMALL: dict[str, Any] = {"steps": 4, "sequences": 8, "tokens": 16, "step_sequences": 2, "every": 2, "method": "full"}


def test_what_is_kept_is_the_originals_own_distribution(tmp_path: Path) -> None:
    model = tiny("llama")
    blocks = shortgpt.wrap(model)
    data = shortgpt.calibrate([{"input_ids": ids_of(2, 12, seed=seed)} for seed in range(2)], blocks)
    counted: list[int] = []
    kept = ask(blocks, data, tmp_path, temperature=2.0, top_k=5, progress=lambda what, done, all: counted.append(done))
    row = kept.row(3)
    with torch.no_grad():
        expected = (model(input_ids=ids_of(2, 12, seed=1)).logits[1].double() / 2).log_softmax(-1)
    likeliest = expected.topk(5)
    assert torch.equal(row["tokens"].long(), likeliest.indices)
    torch.testing.assert_close(row["shares"][:, :5].double(), likeliest.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(row["shares"].double().exp().sum(-1), torch.ones(12).double(), atol=1e-5, rtol=0)
    assert counted == [1, 2]
    ask(blocks, data, tmp_path, temperature=2.0, top_k=5, progress=lambda what, done, all: counted.append(done))
    assert counted == [1, 2]


def test_with_all_tokens_the_loss_is_the_whole_divergence() -> None:
    own, original = torch.randn(2, 6, 11), torch.randn(2, 6, 11)
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    tokens = original.topk(10).indices
    found = distillation_loss(own, shares(original, tokens, 1.5), tokens, mask, 1.5)
    p, q = ((logits.double() / 1.5).log_softmax(-1) for logits in (original, own))
    divergence = (p.exp() * (p - q)).sum(-1)
    expected = 1.5**2 * torch.cat((divergence[0, :5], divergence[1, :2])).mean()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_least_loss_is_the_originals_own_distribution_among_the_likeliest() -> None:
    original = torch.randn(1, 6, 11)
    tokens = original.topk(3).indices
    own = original.clone().requires_grad_(True)
    loss = distillation_loss(own, shares(original, tokens, 1.0), tokens, None, 1.0)
    loss.backward()
    assert loss.abs() < 1e-6
    assert own.grad is not None
    assert own.grad.abs().max() < 1e-6


def test_distilling_brings_the_shorter_model_closer_to_the_original(
    llama_folder: Path, shorter: Path, text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**SMALL, "calibration": text, "distil": True, "learning_rate": 5e-3}
    with raising(training, "distillation_loss", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        heal(llama_folder, shorter, tmp_path / "cut", **options)
    (kept,) = (tmp_path / "cut.checkpoints").glob("teacher-*")
    assert {file.name for file in kept.iterdir()} == {"shares.npy", "tokens.npy"}
    result = heal(llama_folder, shorter, tmp_path / "out", **options)
    assert result.is_distilled
    assert "full, distilled: 4 steps" in str(result)
    assert result.settings is not None
    assert result.settings["top_k"] == 64
    ids = ids_of()
    whole, before, after = (shortgpt.load(folder).logits({"input_ids": ids}).log_softmax(-1)
                            for folder in (llama_folder, shorter, tmp_path / "out"))  # fmt: skip
    gap = [float((whole.exp() * (whole - other)).sum(-1).mean()) for other in (before, after)]
    assert gap[1] < gap[0]


def test_an_original_of_other_tokens_cannot_teach(shorter: Path, text: Path, tmp_path: Path) -> None:
    other = saved(tiny("llama", 2, vocab_size=300), tmp_path / "other")
    with pytest.raises(ModelError, match="knows 300 tokens and the shorter model 257, so it cannot teach it"):
        heal(other, shorter, tmp_path / "out", distil=True, calibration=text, **SMALL)


@pytest.fixture(scope="module")
def plain(llama_folder: Path, shorter: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "plain"
    heal(llama_folder, shorter, folder, calibration=text, **SMALL)
    return folder


@pytest.mark.parametrize("switch", ["checkpointing", "bf16"])
def test_what_saves_memory_changes_the_weights_by_rounding_alone(
    switch: str, llama_folder: Path, shorter: Path, plain: Path, text: Path, tmp_path: Path
) -> None:
    saving = heal(llama_folder, shorter, tmp_path / "saving", calibration=text, **{switch: True}, **SMALL)
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, tmp_path / "saving"))
    assert {tensor.dtype for tensor in other.values()} == {torch.float32}
    assert all(torch.equal(one[name], other[name]) for name in one) == (switch == "checkpointing")
    expected = Healing.from_json((plain / "healing.json").read_text())
    assert saving.held_out[0] == expected.held_out[0]
    assert saving.after == pytest.approx(expected.after, abs=1e-2)
