"""Verification with the weights read block by block: the same verdict, and neither model is ever in memory."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.families.llama import Llama
from shortgpt_adapters.transformers.loader import ReloadedCausalLM, reload
from shortgpt_adapters.transformers.streaming import StreamedWeights
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt import Plan, Verification, prune_checkpoint
from shortgpt.checkpoints import writing
from shortgpt.errors import StreamingError, VerificationError
from shortgpt.models.probing.probes import Probe, probe
from shortgpt.verification import original as originals
from shortgpt.verification.fresh_process import Answer
from shortgpt.verification.judgement import compare_generation
from shortgpt.verification.record import verify_again
from tests.support import Ran, ids_of, saved, tiny
from tests.tiny_types import tiny_model, upstream_mended

GONE = (1, 4)
EPS = torch.finfo(torch.float32).eps


def pruned(source: Path, output: Path, blocks: Any = GONE, **options: Any) -> Verification:
    """What the verification of a removal on disk says."""
    plan = prune_checkpoint(source, output, blocks, device="cpu", **options)
    assert plan.verification is not None
    assert Plan.read(output) == plan
    return plan.verification


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for two blocks of a model and what is beside the blocks, and not for all of it."""
    asked: list[int] = []

    def lacking(size: int, device: str) -> str | None:
        asked.append(size)
        return "it needs too much" if size == max(asked[-2:]) else None

    monkeypatch.setattr(originals, "lacking_memory", lacking)


# -- the same verdict -----------------------------------------------------------------------------------------


def test_a_streamed_verification_in_a_fresh_process_is_the_one_in_memory_and_says_that_it_was_streamed(
    tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Ran]
) -> None:
    options = ("--remove", "1,4", "--device", "cpu")
    ran = run_cli("prune", llama_folder, "--output", tmp_path / "streamed", *options, "--stream")
    assert ran.status == 0, ran.err
    assert "verified: logits differ by 0 " in ran.out
    assert "(float32 on cpu, weights read block by block)" in ran.out
    assert "weights read block by block" in (tmp_path / "streamed" / "README.md").read_text()
    whole = pruned(llama_folder, tmp_path / "whole")
    streamed = Plan.read(tmp_path / "streamed").verification
    assert streamed == replace(whole, streamed=True)
    assert (whole.max_difference, whole.generated, whole.streamed) == (0.0, 8, False)


@pytest.mark.sampled("gpt2", "mixtral")
@pytest.mark.parametrize("name", ["gpt2", "mamba", "rwkv", "recurrent_gemma", "xlnet", "mixtral", "gemma4_text"])
def test_so_it_is_for_other_types(tmp_path: Path, name: str, one_process: None) -> None:
    with upstream_mended():
        model = tiny(name) if name in ("gpt2", "mamba", "rwkv") else tiny_model(name)
        model.save_pretrained(tmp_path / "in", max_shard_size="100KB")
        whole = pruned(tmp_path / "in", tmp_path / "whole", [2])
        streamed = pruned(tmp_path / "in", tmp_path / "streamed", [2], stream=True)
    assert streamed == replace(whole, streamed=True)


def test_generation_from_streamed_weights_is_the_librarys_own(llama_folder: Path) -> None:
    streamed, ids = reload(llama_folder, device="cpu", dtype="auto", stream="model.layers"), ids_of(rows=1)
    assert streamed.model.model.layers[0].mlp.up_proj.weight.is_meta
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    for cached in (True, False):
        text, logits = ids, []
        past = None
        for _ in range(8):  # greedy, by hand
            with torch.no_grad():
                output = model(text if past is None else text[:, -1:], past_key_values=past, use_cache=cached)
            past = output.past_key_values if cached else None
            logits.append(output.logits[:, -1])
            scores = logits[-1].clone()
            scores[:, 256] = -torch.inf  # the end of the text
            text = torch.cat((text, scores.argmax(-1, keepdim=True)), 1)
        found = streamed.generate(ids, 8, cached=cached)
        assert torch.allclose(found, torch.cat(logits), rtol=0, atol=1e-5)  # the head of one token sums otherwise


def test_one_wrong_number_is_found(
    tmp_path: Path, llama_folder: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Any = writing.write

    def corrupting(weights: Any, folder: Path, *arguments: Any) -> None:
        write(weights, folder, *arguments)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.2.mlp.down_proj.weight"][0, 0] += 0.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(writing, "write", corrupting)
    with pytest.raises(VerificationError, match="the shorter model's logits differ by "):
        pruned(llama_folder, tmp_path / "out", stream=True)
    assert not (tmp_path / "out").exists()


def test_blocks_that_share_a_cache_are_found_out(llama_folder: Path) -> None:
    reloaded = reload(llama_folder, device="cpu", dtype="auto", stream="model.layers")
    for layer in reloaded.model.model.layers:
        layer.self_attn.layer_idx = 0
    answer = Answer.by(reloaded, Probe(probe(257)))
    assert answer.cached is not None
    assert answer.uncached is not None
    with pytest.raises(VerificationError, match="cached generation differs from uncached at token"):
        compare_generation(answer.cached, answer.uncached, EPS)


# -- memory ---------------------------------------------------------------------------------------------------


def test_neither_model_is_ever_in_memory(
    tmp_path: Path, llama_folder: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.Tensor]] = []
    parts: list[int] = []
    most = 0
    load = StreamedWeights.load

    def watched(self: StreamedWeights, part: int) -> None:
        nonlocal most
        load(self, part)
        parts.append(part)
        module = list(self.parts.values())[part]
        loaded.append(weakref.ref(next(module.parameters())))
        most = max(most, sum(ref() is not None for ref in loaded))

    monkeypatch.setattr(StreamedWeights, "load", watched)
    assert pruned(llama_folder, tmp_path / "out", stream=True).verified
    assert most <= 2
    original = [0, 2, 3, 5, 6]  # blocks, and the head
    assert parts == original + 17 * [0, 1, 2, 3, 4], "the logits, and 8 tokens with a cache and without"


def test_where_memory_does_not_suffice_it_is_streamed_unasked(
    tmp_path: Path, llama_folder: Path, one_process: None, little_memory: None
) -> None:
    found = pruned(llama_folder, tmp_path / "out")
    assert (found.verified, found.streamed, found.max_difference) == (True, True, 0.0)


def test_a_type_that_cannot_be_streamed_is_then_not_verified_and_it_says_why(
    tmp_path: Path, llama_folder: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Llama, "streams", False)
    found = pruned(llama_folder, tmp_path / "out")
    assert str(found) == "not verified: it needs too much"
    found = pruned(llama_folder, tmp_path / "asked", stream=True)
    assert str(found) == "not verified: models of the adapter 'llama' cannot be streamed block by block"
    assert (tmp_path / "asked" / "model.safetensors").is_file()


@pytest.mark.parametrize("stream", [True, False])
def test_so_is_a_model_whose_blocks_share_weights(tmp_path: Path, request: pytest.FixtureRequest, stream: bool) -> None:
    if not stream:
        request.getfixturevalue("little_memory")
    with upstream_mended():
        tiny_model("zamba").save_pretrained(tmp_path / "in")
        found = pruned(tmp_path / "in", tmp_path / "out", [1], stream=stream)
    assert not found.verified
    assert found.reason is not None
    assert "are one tensor, so the blocks of a ZambaForCausalLM cannot be streamed one by one" in found.reason
    assert found.reason.startswith("memory does not suffice for the whole model, and ") != stream


def test_a_result_that_cannot_be_streamed_is_no_verdict(
    tmp_path: Path, llama_folder: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: ReloadedCausalLM, ids: torch.Tensor) -> torch.Tensor:
        raise StreamingError("its blocks are made of each other")

    monkeypatch.setattr(ReloadedCausalLM, "logits", refusing)
    found = pruned(llama_folder, tmp_path / "out", stream=True)
    assert str(found) == "not verified: its blocks are made of each other"


def test_with_less_than_two_blocks_need_it_is_not_verified(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=100 << 20))
    found = pruned(llama_folder, tmp_path / "out", stream=True)
    assert str(found) == "not verified: it needs about 0.3 GiB on cpu, 0.1 GiB are free"


# -- a model that was made shorter before ---------------------------------------------------------------------


def test_a_record_is_checked_block_by_block_where_memory_does_not_suffice(
    tmp_path: Path, llama_folder: Path, one_process: None, little_memory: None
) -> None:
    made = pruned(llama_folder, tmp_path / "out")
    _, again = verify_again(tmp_path / "out")
    assert again.streamed
    assert (again.max_difference, again.generated) == (0.0, made.generated)


def test_so_it_is_with_the_original_at_hand(
    tmp_path: Path, llama_folder: Path, one_process: None, little_memory: None, run_cli: Callable[..., Ran]
) -> None:
    pruned(llama_folder, tmp_path / "out", verify=False)
    ran = run_cli("verify", tmp_path / "out", "--original", llama_folder, "--device", "cpu")
    assert "verified: logits differ by 0 " in ran.out
    assert "weights read block by block" in ran.out


def test_a_streamed_original_is_compared_with_a_streamed_result(
    tmp_path: Path, llama_folder: Path, one_process: None
) -> None:
    pruned(llama_folder, tmp_path / "out", verify=False)
    found = shortgpt.verify(shortgpt.load(llama_folder, device="cpu", stream=True), tmp_path / "out", GONE)
    assert (found.verified, found.streamed, found.max_difference) == (True, True, 0.0)


# -- where a tensor stands ------------------------------------------------------------------------------------


def test_weights_that_stand_at_another_place_of_a_cache_line_may_be_summed_in_another_order(
    tmp_path: Path, one_process: None
) -> None:
    with upstream_mended():  # its blocks have odd sizes; experts' kernels look at the place of their weights
        tiny_model("zaya", seed=1).save_pretrained(tmp_path / "in")
        for stream in (False, True):
            found = pruned(tmp_path / "in", tmp_path / f"out{stream}", [1], stream=stream)
            assert found.tolerance == 4 * EPS


def test_weights_that_keep_their_places_have_to_give_the_same_bits(tmp_path: Path, one_process: None) -> None:
    folder = saved(tiny("llama", hidden_size=64, intermediate_size=64), tmp_path / "in")
    assert pruned(folder, tmp_path / "out").tolerance == 0.0
