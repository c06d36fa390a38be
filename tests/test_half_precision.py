"""What is proven of a checkpoint in half precision: plain removals to the bit, folded ones in float32."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.families import gpt2
from shortgpt_adapters.quirks import beam, diffllama, gpt_neox_japanese, minicpm3
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from torch import Tensor

import shortgpt
from shortgpt import Verification, prune_checkpoint
from shortgpt.checkpoints import writing
from shortgpt.errors import VerificationError
from shortgpt.models import folding
from shortgpt.verification.record import verify_again
from tests.support import saved, skipped_by_hand, tiny
from tests.tiny_types import tiny_model

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def half_of_it(factor: float) -> Any:
    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensor * ((1 + factor) / 2)

    return fold


def left_out(*_: Any) -> Any:
    return lambda tensor, tensors: tensor.clone()


def pruned(folder: Path, *blocks: int, name: str = "out", **options: Any) -> Verification:
    outcome = prune_checkpoint(folder, folder.parent / name, blocks, device="cpu", **options).verification
    assert outcome is not None
    return outcome


@pytest.fixture(params=DTYPES)
def scaled_gpt2(request: pytest.FixtureRequest, tmp_path: Path, one_process: None) -> Path:
    """A GPT-2 whose attention is divided by its place."""
    model = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    return saved(model.to(DTYPES[request.param]), tmp_path / request.param)


def test_folded_weights_are_proven_in_float32_and_are_that_rounded_once(scaled_gpt2: Path) -> None:
    found = pruned(scaled_gpt2, 1)
    assert (found.verified, found.dtype, found.rounded_to) == (True, "float32", scaled_gpt2.name)
    assert found.max_difference is not None
    assert found.max_logit is not None
    assert found.max_difference <= 16 * 2**-23 * found.max_logit
    # `rounding` is how far the saved model, opened by the library in float32, is from skipping by hand.
    model: Any = shortgpt.load(scaled_gpt2, device="cpu", dtype="float32").model
    after: Any = shortgpt.load(scaled_gpt2.parent / "out", device="cpu", dtype="float32").model
    ids = torch.tensor(found.probe_ids)
    with torch.no_grad():
        moved = (after(ids).logits - skipped_by_hand(model, "transformer.h", [1], ids)).abs().max().item()
    assert found.rounding == pytest.approx(moved, rel=1e-3)
    assert 0 < moved < 0.02 * found.max_logit
    assert f"rounded once to {scaled_gpt2.name}, which moves logits by up to" in str(found)
    assert verify_again(scaled_gpt2.parent / "out")[1].verified
    assert sorted(file.name for file in (scaled_gpt2.parent / "out").iterdir() if file.is_dir()) == []


@pytest.mark.parametrize("fold", [left_out, half_of_it])
@pytest.mark.parametrize("blocks", [(1,), (4,)])
def test_a_fold_that_is_left_out_or_halved_is_refused(
    scaled_gpt2: Path, fold: Any, blocks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = left_out if fold is left_out else lambda factor, right=gpt2._scaled_queries: right((1 + factor) / 2)
    monkeypatch.setattr(gpt2, "_scaled_queries", wrong)
    with pytest.raises(VerificationError, match="the shorter model's logits differ by"):
        pruned(scaled_gpt2, *blocks)
    assert not (scaled_gpt2.parent / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "adapter", "attribute", "wrong"),
    [
        ("diffllama", diffllama, "_times", left_out),
        ("diffllama", diffllama, "_grown", left_out),
        ("beam", beam, "_times", half_of_it),
        ("gpt_neox_japanese", gpt_neox_japanese, "_zeros", left_out()),
        ("minicpm3", minicpm3.MiniCPM3, "rules", {}),
    ],
)
def test_so_it_is_for_every_family_that_folds(
    tmp_path: Path, one_process: None, model_type: str, adapter: Any, attribute: str, wrong: Any, monkeypatch: Any
) -> None:
    folder = saved(tiny_model(model_type).bfloat16(), tmp_path / "in")
    if attribute == "rules":
        wrong = {"scale_depth": replace(minicpm3.MiniCPM3.rules["scale_depth"], apply=lambda value, blocks: value)}
    monkeypatch.setattr(adapter, attribute, wrong)
    with pytest.raises(VerificationError, match="the shorter model's logits differ by"):
        pruned(folder, 5 if model_type == "gpt_neox_japanese" else 2)


@pytest.mark.sampled("beam")
@pytest.mark.parametrize("model_type", ["diffllama", "beam", "gpt_neox_japanese"])
def test_and_right_folds_are_verified(tmp_path: Path, one_process: None, model_type: str) -> None:
    found = pruned(saved(tiny_model(model_type).bfloat16(), tmp_path / "in"), 2, 5)
    assert (found.verified, found.dtype) == (True, "float32")
    assert found.rounded_to == (None if model_type == "gpt_neox_japanese" else "bfloat16")  # zeros are not rounded


def test_saved_weights_that_are_not_the_rounding_of_the_folded_ones_are_refused(
    scaled_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Any = writing.write

    def nudging(own: Any, folder: Path, *arguments: Any) -> Any:
        hashes = write(own, folder, *arguments)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("h.2.attn.c_attn.weight"))
        bits = tensors[name].view(torch.int16)
        bits[0, 0] ^= 1  # the last bit of one number
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return hashes

    monkeypatch.setattr(writing, "write", nudging)
    with pytest.raises(VerificationError, match=r"h\.2\.attn\.c_attn\.weight: what was saved is not what its"):
        pruned(scaled_gpt2, 1)


def test_the_original_proves_folded_weights_again(scaled_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune_checkpoint(scaled_gpt2, scaled_gpt2.parent / "out", [1], verify=False)
    original = shortgpt.load(scaled_gpt2, device="cpu")
    found = shortgpt.verify(original, scaled_gpt2.parent / "out", [1])
    assert (found.verified, found.dtype, found.rounded_to) == (True, "float32", scaled_gpt2.name)
    original.source = None
    told = str(shortgpt.verify(original, scaled_gpt2.parent / "out", [1]))
    assert told.startswith("not verified: in half precision rounding would hide what is wrong, and there is no")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_removal_is_equal_to_the_bit_and_generates_in_float32(
    tmp_path: Path, one_process: None, dtype: str
) -> None:
    folder = saved(tiny("llama").to(DTYPES[dtype]), tmp_path / "in")
    found = pruned(folder, 1, 4)
    assert (found.max_difference, found.tolerance, found.dtype) == (0.0, 0.0, dtype)
    assert (found.generated, found.generation_dtype) == (8, "float32")
    assert f"8 tokens of cached generation equal uncached in float32 ({dtype} on cpu)" in str(found)
    assert verify_again(tmp_path / "out")[1].generated == 8


def test_what_rounding_does_to_generation_in_half_precision_refuses_nothing(
    tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate: Any = ReloadedCausalLM.generate

    def rounded(own: Any, ids: Tensor, tokens: int, *, cached: bool) -> Tensor:
        logits: Tensor = generate(own, ids, tokens, cached=cached)
        return logits * 2 if cached and own.dtype == torch.bfloat16 else logits

    monkeypatch.setattr(ReloadedCausalLM, "generate", rounded)
    found = pruned(saved(tiny("llama").bfloat16(), tmp_path / "in"), 1)
    assert (found.verified, found.generated, found.generation_dtype) == (True, 8, "float32")


def test_a_wrong_cache_is_found_out_in_half_precision(
    tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate: Any = ReloadedCausalLM.generate

    def slightly_off(own: Any, ids: Tensor, tokens: int, *, cached: bool) -> Tensor:
        logits: Tensor = generate(own, ids, tokens, cached=cached)
        return logits * 1.01 if cached else logits

    monkeypatch.setattr(ReloadedCausalLM, "generate", slightly_off)
    with pytest.raises(VerificationError, match="cached generation differs from uncached at token 0"):
        pruned(saved(tiny("llama").bfloat16(), tmp_path / "in"), 1)


def test_without_memory_for_float32_cached_generation_is_not_compared(
    tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortgpt.verification.fresh_process.lacking_memory", lambda size, device: "it needs more")
    found = pruned(saved(tiny("llama").bfloat16(), tmp_path / "in"), 1)
    assert (found.verified, found.generated) == (True, 0)
    assert "cached generation was not compared: that takes float32, and it needs more" in str(found)


def test_float64_is_not_widened_and_bytes_are_compared_as_bytes() -> None:
    assert folding.widened(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    nan = torch.tensor([torch.nan, -0.0])
    assert folding.same_bits(nan, nan.clone())
    assert not folding.same_bits(nan, torch.tensor([torch.nan, 0.0]))
