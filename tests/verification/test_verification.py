"""Verification: what passes, what does not, and what is said where it cannot be done."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from torch import Tensor

import shortgpt
from shortgpt import Plan, Verification, prune_checkpoint
from shortgpt.basics.inputs import OpenOptions
from shortgpt.checkpoints import writing
from shortgpt.errors import VerificationError
from shortgpt.models.memory import lacking_memory
from shortgpt.models.probing.expected_logits import Expectation, expected_logits
from shortgpt.models.probing.probes import probe
from shortgpt.verification import fresh_process as reloading
from shortgpt.verification.checking import check
from shortgpt.verification.judgement import compare_generation, judge
from tests.support import Ran, ids_of, saved, skipped_by_hand, tiny

GONE = (1, 4)
EPS = torch.finfo(torch.float32).eps


# -- the whole road, in a fresh process -----------------------------------------------------------------------


@pytest.mark.fresh_process
def test_a_pruned_checkpoint_is_verified_and_says_so(
    tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Ran]
) -> None:
    ran = run_cli("prune", llama_folder, "--output", tmp_path / "out", "--remove", "1,4", "--device", "cpu")
    assert ran.status == 0, ran.err
    found = Plan.read(tmp_path / "out").verification
    assert found is not None
    assert found.verified
    assert (found.max_difference, found.tolerance) == (0.0, 0.0)
    assert (found.probe, found.generated, found.device, found.dtype) == ((2, 32), 8, "cpu", "float32")
    expected = skipped_by_hand(tiny("llama"), "model.layers", GONE, probe(257))
    assert found.max_logit == pytest.approx(expected.abs().max().item(), rel=1e-6)
    assert "verified: logits differ by 0 " in ran.out
    assert "Verified: logits differ by 0 " in (tmp_path / "out" / "README.md").read_text()


def test_a_result_with_one_wrong_number_is_not_kept(
    tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Any = writing.write

    def corrupting(weights: Any, folder: Path, *arguments: Any) -> None:
        write(weights, folder, *arguments)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.2.mlp.down_proj.weight"][0, 0] += 0.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(writing, "write", corrupting)
    ran = run_cli("prune", llama_folder, "--output", tmp_path / "out", "--remove", "1,4", "--device", "cpu")
    assert ran.status == 1
    assert ran.err.startswith("shortgpt: verification failed: the shorter model's logits differ by ")
    assert len(ran.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fresh_process
def test_it_runs_in_another_process_with_the_same_import_path_and_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected := Answer(tmp_path)).write()
    for module in ("json", "tempfile", "torch"):
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('{module} of the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend("relative")
    found = check(tmp_path, expected.family("noting_process"), expected.expectation, OpenOptions(dtype="bfloat16"))
    assert found.verified
    process, parent, options = (tmp_path / "process").read_text().split(" ", 2)
    assert int(process) != os.getpid()
    assert int(parent) == os.getpid()
    assert options == "[('device', 'cpu'), ('dtype', 'bfloat16'), ('trust_remote_code', False)]"


# -- what is compared -----------------------------------------------------------------------------------------


class Answer:
    """What a reloaded checkpoint is to answer; at first exactly what is expected of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.logits = torch.randn(2, 32, 50)
        self.cached = self.uncached = torch.randn(8, 50)
        self.expectation = Expectation(probe(50), self.logits)

    def family(self, loader: str = "recorded", tolerance: float = 0.0) -> Any:
        return SimpleNamespace(loader=f"tests.reloaders:{loader}", tolerance=tolerance)

    def write(self) -> None:
        tensors = {"logits": self.logits, "cached": self.cached.clone(), "uncached": self.uncached.clone()}
        save_file(tensors, self.folder / "answer.safetensors")


@pytest.fixture
def answer(tmp_path: Path, one_process: None) -> Answer:
    return Answer(tmp_path)


def checked(answer: Answer, *, folded: bool = False, **family: Any) -> Verification:
    answer.write()
    return check(answer.folder, answer.family(**family), answer.expectation, OpenOptions(), folded=folded)


def test_equal_logits_and_equal_generation_are_verified(answer: Answer) -> None:
    found = checked(answer)
    assert found == Verification(
        verified=True,
        max_difference=0.0,
        max_logit=answer.logits.abs().max().item(),
        tolerance=0.0,
        probe=(2, 32),
        generated=8,
        device="cpu",
        dtype="float32",
        probe_ids=tuple(tuple(row) for row in answer.expectation.input_ids.tolist()),
        fingerprint=found.fingerprint,
    )
    assert len(found.fingerprint) == 256
    assert set(found.fingerprint) <= set(answer.logits.flatten().tolist())


def test_the_last_bit_of_one_logit_is_enough_to_fail(answer: Answer) -> None:
    answer.logits = answer.logits.clone()
    answer.logits[1, 31, 7] = torch.nextafter(answer.logits[1, 31, 7], torch.tensor(9.0))
    with pytest.raises(VerificationError, match=r"logits differ by .* from the original's with these blocks skipped"):
        checked(answer)
    assert checked(answer, folded=True).tolerance == 16 * EPS  # folded weights are rounded


def test_a_familys_own_tolerance_is_relative_to_the_largest_logit(answer: Answer) -> None:
    largest = answer.logits.abs().max().item()
    answer.logits = answer.logits + 0.9e-4 * largest
    found = checked(answer, tolerance=1e-4)
    assert found.max_difference == pytest.approx(0.9e-4 * largest, rel=1e-2)
    with pytest.raises(VerificationError, match="allowed"):
        checked(answer, tolerance=0.8e-4)


def test_nan_never_passes(answer: Answer) -> None:
    answer.logits = answer.logits.clone()
    answer.logits[0, 0, 0] = torch.nan
    with pytest.raises(VerificationError, match="differ by nan"):
        checked(answer, tolerance=1.0)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda logits: logits * 0, "are all zero"),
        (lambda logits: logits * 0 + 1, "are one and the same number throughout"),
        (lambda logits: logits[:1, :1].expand(logits.shape).contiguous(), "are the same at every token"),
        (lambda logits: logits * torch.nan, "hold NaN or infinity"),
    ],
)
def test_an_original_with_which_any_model_would_agree_proves_nothing(
    answer: Answer, spoilt: Callable[[Tensor], Tensor], reason: str
) -> None:
    answer.logits = spoilt(answer.logits)
    answer.expectation = replace(answer.expectation, logits=answer.logits)
    found = checked(answer)
    assert not found.verified
    assert str(found).startswith(f"not verified: the original's logits with these blocks skipped {reason}")


def test_masked_logits_are_no_measure_of_the_others(answer: Answer) -> None:
    answer.logits = answer.logits.clone()
    answer.logits[..., 3:9] = torch.finfo(torch.float32).min
    answer.expectation = replace(answer.expectation, logits=answer.logits.clone())
    assert checked(answer, folded=True).max_logit == answer.logits[answer.logits > -100].abs().max()
    answer.logits[1, 4, 30] += 0.01
    with pytest.raises(VerificationError, match=r"logits differ by 0\.01 from"):
        checked(answer, folded=True)
    answer.logits = answer.expectation.logits.clone()
    answer.logits[..., 3] = 0.0
    with pytest.raises(VerificationError, match=r"logits are masked at other places than expected \(the original's"):
        checked(answer, folded=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_only_equal_logits_are_verified(answer: Answer, dtype: str) -> None:
    def judged(factor: float, **why: Any) -> Verification:
        made = reloading.Answer(answer.logits * factor, dtype, answer.uncached, answer.uncached)
        return judge(made, answer.expectation, answer.family(), OpenOptions(), **why)

    assert judged(1.0, folded=True).verified
    assert str(judged(1.001, folded=True)) == f"not verified: in {dtype} rounding would hide what is wrong"
    with pytest.raises(VerificationError, match="logits differ by"):
        judged(1.001)


def test_a_generation_of_another_length_than_was_asked_for_is_no_comparison(answer: Answer) -> None:
    answer.cached = answer.uncached = torch.randn(32, 50)
    with pytest.raises(VerificationError, match="8 greedy tokens were asked for; 32 came with a cache, 32 without"):
        checked(answer)


def test_logits_of_another_shape_never_pass(answer: Answer) -> None:
    answer.logits = answer.logits[..., :49].contiguous()
    with pytest.raises(VerificationError, match=r"shape \(2, 32, 49\), expected \(2, 32, 50\)"):
        checked(answer)


def test_a_checkpoint_that_does_not_load_fails_with_the_loaders_reason(answer: Answer) -> None:
    with pytest.raises(VerificationError, match=r"own loader: and the last, which is the reason$"):
        checked(answer, loader="failing")


def test_cached_generation_whose_logits_differ_fails_even_where_its_tokens_are_the_same(answer: Answer) -> None:
    answer.cached = answer.uncached.clone()
    answer.cached[3] *= 1.01
    assert torch.equal(answer.cached.argmax(-1), answer.uncached.argmax(-1))
    with pytest.raises(VerificationError, match="cached generation differs from uncached at token 3: its logits by"):
        checked(answer)


def test_on_an_accelerator_generation_may_differ_by_the_rounding_of_tf32_and_no_more(answer: Answer) -> None:
    def judged(factor: float) -> Verification:
        made = reloading.Answer(answer.logits, "float32", answer.uncached * factor, answer.uncached)
        return judge(made, answer.expectation, answer.family(), OpenOptions(device="cuda"))

    assert judged(1.004).generated == 8
    with pytest.raises(VerificationError, match="cached generation differs"):
        judged(1.006)


def test_nan_in_generation_never_passes(answer: Answer) -> None:
    answer.cached = answer.uncached.clone()
    answer.cached[5, 0] = torch.nan
    with pytest.raises(VerificationError, match="at token 5: its logits by nan"):
        checked(answer)


def step(first: float, second: float) -> Tensor:
    """The logits of one token: the two that lead, and the rest at 0."""
    return torch.tensor([[first, second, 0.0, 0.0]])


def test_generation_may_flip_between_two_tokens_only_where_rounding_cannot_tell_them_apart() -> None:
    eps = torch.finfo(torch.bfloat16).eps
    same, flipped = step(10.0, 9.98), step(9.98, 10.0)
    after = step(0.0, 10.0)  # the texts are different ones from there on
    assert compare_generation(torch.cat((same, same)), torch.cat((same, same)), eps) == 2
    assert compare_generation(torch.cat((same, flipped, same)), torch.cat((same, same, after)), eps) == 1
    with pytest.raises(VerificationError, match=r"at token 0: its logits by 0\.02 \(largest logit 10, allowed 0\.01\)"):
        compare_generation(flipped, same, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slots", [(0, 0, 0, 0, 0, 0), (0, 1, 1, 3, 3, 5)])
def test_blocks_that_share_a_cache_are_found_out_in_every_dtype(dtype: torch.dtype, slots: tuple[int, ...]) -> None:
    model, ids = tiny("llama").to(dtype), ids_of(rows=1)
    eps = torch.finfo(dtype).eps
    with torch.no_grad():
        right = [ReloadedCausalLM(model).generate(ids, 8, cached=cached).float() for cached in (True, False)]
    compare_generation(*right, eps)
    for layer, slot in zip(model.model.layers, slots, strict=True):
        layer.self_attn.layer_idx = slot
    with torch.no_grad():
        try:
            wrong = [ReloadedCausalLM(model).generate(ids, 8, cached=cached).float() for cached in (True, False)]
        except RuntimeError as error:
            pytest.skip(f"this version of transformers cannot run such a cache at all ({error})")
    with pytest.raises(VerificationError, match="cached generation differs from uncached at token 0"):
        compare_generation(*wrong, eps)


# -- what is expected -----------------------------------------------------------------------------------------


def test_a_model_saved_from_memory_can_be_verified_too(tmp_path: Path, one_process: None) -> None:
    original = shortgpt.wrap(tiny("llama"))
    shortgpt.remove(original, GONE).save(tmp_path / "out")
    assert shortgpt.verify(original, tmp_path / "out", GONE).max_difference == 0.0
    with pytest.raises(VerificationError, match="the original's with these blocks skipped"):
        shortgpt.verify(original, tmp_path / "out", (1, 3))


def test_the_probe_is_2_sequences_of_32_tokens_the_same_each_time() -> None:
    assert probe(50).shape == (2, 32)
    assert torch.equal(probe(50), probe(50))
    assert 0 <= probe(50).min() < probe(50).max() < 50


def test_what_is_expected_are_the_originals_logits_with_the_blocks_skipped() -> None:
    model = tiny("llama")
    found = expected_logits(shortgpt.wrap(model), GONE)
    assert torch.equal(found.logits, skipped_by_hand(model, "model.layers", GONE, found.input_ids))
    assert not torch.equal(found.logits, model(found.input_ids).logits)


def test_a_process_that_the_system_killed_for_its_memory_is_no_verdict(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=-9, stderr=""))
    found = checked(answer)
    assert not found.verified
    assert "was killed, as for lack of memory" in str(found)


@pytest.mark.parametrize(
    "stderr",
    [
        "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "torch.AcceleratorError: CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "shortgpt.errors.ModelError: out does not fit into the memory of cuda",
    ],
)
def test_a_process_without_memory_is_no_verdict(answer: Answer, stderr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=stderr))
    found = checked(answer)
    assert not found.verified
    error = next(line for line in stderr.splitlines() if "Error: " in line)
    assert found.reason == f"the process that loaded it ran out of memory ({error})"


def test_a_process_that_fails_is_told_by_its_error_not_by_the_advice_behind_it(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = "Traceback (most recent call last):\n  line\nRuntimeError: CUDA error: misaligned\nCompile with DSA.\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(VerificationError, match=r"own loader: RuntimeError: CUDA error: misaligned$"):
        checked(answer)


# -- where it cannot be done ----------------------------------------------------------------------------------


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=100 << 20))


def test_without_the_memory_it_says_not_verified_everywhere(
    tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Ran], little_memory: None
) -> None:
    ran = run_cli("prune", llama_folder, "--output", tmp_path / "out", "--remove", "1,4", "--device", "cpu")
    assert ran.status == 0
    reason = "not verified: it needs about 0.3 GiB on cpu, 0.1 GiB are free"
    assert reason in ran.out
    assert reason.capitalize().replace("gib", "GiB") in (tmp_path / "out" / "README.md").read_text()
    assert Plan.read(tmp_path / "out").verification == Verification(verified=False, reason=reason[14:])


def test_no_verify_says_so_too(tmp_path: Path, llama_folder: Path, run_cli: Callable[..., Ran]) -> None:
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--remove", "1", "--no-verify")
    assert "not verified: it was not asked for" in ran.out
    assert "Not verified: it was not asked for." in (tmp_path / "out" / "README.md").read_text()


def test_the_memory_needed_grows_with_the_weights(little_memory: None) -> None:
    assert lacking_memory(1 << 30, "cpu") == "it needs about 1.4 GiB on cpu, 0.1 GiB are free"


def test_what_torch_holds_in_reserve_on_a_device_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * gib)
    assert lacking_memory(3 * gib, "cuda") is None
    assert lacking_memory(4 * gib, "cuda") == "it needs about 5.0 GiB on cuda, 4.0 GiB are free"


def test_enough_memory_is_no_reason() -> None:
    assert lacking_memory(1000, "cpu") is None


def test_nothing_is_loaded_where_verification_is_not_asked_for(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    monkeypatch.setattr(subprocess, "run", None)
    assert prune_checkpoint(llama_folder, tmp_path / "out", [1], verify=False).blocks == (1,)


def test_the_sentence_about_it_has_the_numbers() -> None:
    done = Verification(True, None, 1.5e-6, 12.3456, 1e-4, (2, 32), 8, "cuda", "bfloat16")
    assert str(done) == (
        "verified: logits differ by 1.5e-06 (largest logit 12.35) from the original's with these blocks skipped, on "
        "2 × 32 tokens; 8 tokens of cached generation equal uncached (bfloat16 on cuda)"
    )
    assert str(replace(done, verified=False, reason="why")) == "not verified: why"


def test_skipping_and_removal_check_each_other(tmp_path: Path, llama_folder: Path) -> None:
    # A removal that took other blocks than were skipped is found out: nothing in common hides it.
    prune_checkpoint(llama_folder, tmp_path / "wrong", [2, 4], verify=False)
    model = shortgpt.load(tmp_path / "wrong", device="cpu")
    expected = expected_logits(shortgpt.load(llama_folder, device="cpu"), GONE)
    assert not torch.equal(model.logits({"input_ids": expected.input_ids}), expected.logits)
    assert torch.equal(
        model.logits({"input_ids": ids_of()}), skipped_by_hand(tiny("llama"), "model.layers", (2, 4), ids_of())
    )


def test_the_fresh_process_computes_on_as_many_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            folder = saved(tiny("llama", hidden_size=512, intermediate_size=1024), tmp_path / f"in{threads}")
            plan = shortgpt.prune_checkpoint(folder, tmp_path / f"out{threads}", [1], device="cpu")
            assert plan.verification is not None
            assert plan.verification.max_difference == 0.0
    finally:
        torch.set_num_threads(before)


def test_folded_weights_are_verified_from_memory_too(tmp_path: Path) -> None:
    model = shortgpt.wrap(tiny("gpt2", scale_attn_by_inverse_layer_idx=True))
    shortgpt.remove(model, [1]).save(tmp_path / "out")
    verification = shortgpt.verify(model, tmp_path / "out", [1])
    assert verification.max_difference is not None
    assert verification.max_logit is not None
    assert verification.max_difference <= 1e-6 * verification.max_logit


def test_a_model_with_a_short_window_is_verified_within_it(tmp_path: Path) -> None:
    folder = saved(tiny("gpt2", n_positions=16), tmp_path / "in")
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "out", [1], device="cpu")
    assert plan.verification is not None
    assert plan.verification.probe == (2, 8)
