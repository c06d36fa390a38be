"""On a CUDA device: the same truths as on the CPU. Skipped where there is none."""

from collections.abc import Iterable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import shortgpt
from shortgpt.measuring.scoring import boundary_sums as batch_tap
from shortgpt.testing import boundaries

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

IDS = torch.randint(0, 100, (4, 160), generator=torch.Generator().manual_seed(0))


def model(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    return LlamaForCausalLM(config).to("cuda", dtype)


def influence_by_hand(stream: list[Tensor], pairs: Iterable[tuple[int, int]]) -> list[float]:
    wide = [hidden.double().cpu() for hidden in stream]
    values = []
    for x, y in ((wide[i], wide[j]) for i, j in pairs):
        cosine = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
        values.append((1 - cosine).mean().item())
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_the_float64_sums_of_the_same_stream(dtype: torch.dtype) -> None:
    sequence = shortgpt.wrap(model(dtype))
    stream = boundaries(sequence, {"input_ids": IDS})
    scores = shortgpt.score(sequence, [{"input_ids": IDS}])
    assert scores.values == pytest.approx(influence_by_hand(stream, pairwise(range(7))), rel=1e-6)
    assert scores.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_spans_are_the_float64_sums_of_the_same_stream(dtype: torch.dtype) -> None:
    sequence = shortgpt.wrap(model(dtype))
    stream = boundaries(sequence, {"input_ids": IDS})
    spans = shortgpt.score(sequence, [{"input_ids": IDS}], spans=True).spans
    assert spans is not None
    assert spans.means == pytest.approx(influence_by_hand(stream, combinations(range(7), 2)), rel=1e-6)


@pytest.mark.parametrize("width", [1, 64, 100, 2500, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_gives_the_float64_norms_of_the_tokens_that_count(dtype: torch.dtype, width: int) -> None:
    held, update = torch.randn(2, 3, 70, width, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    hidden = (held + 0.1 * update).transpose(0, 1).contiguous().transpose(0, 1)  # of other strides than the first
    hidden[0, 1] = float("nan")
    chosen = torch.tensor([0, 2, 69, 70, 71, 150, 209], device="cuda")
    norms, updates = torch.zeros(2, len(chosen), dtype=torch.float64, device="cuda")
    kernel = batch_tap._kernel_for(hidden)
    assert kernel is not None
    kernel(held, hidden, chosen, norms, updates)
    x, y = (part.flatten(0, 1)[chosen].double() for part in (held, hidden))
    assert norms.tolist() == pytest.approx(y.square().sum(-1).sqrt().tolist(), rel=1e-14)
    assert updates.tolist() == pytest.approx((y - x).square().sum(-1).sqrt().tolist(), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_by_the_kernel_are_those_without_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = shortgpt.wrap(model(dtype))
    mask = torch.ones_like(IDS)
    mask[1:, 100:] = 0
    given = [{"input_ids": IDS, "attention_mask": mask}]
    criteria = ("block-influence", "relative-magnitude")
    fused = shortgpt.score(sequence, given, criteria=criteria)
    monkeypatch.setattr(batch_tap, "_kernel_for", lambda hidden: None)
    plain = shortgpt.score(sequence, given, criteria=criteria)
    for criterion in criteria:
        assert fused.of(criterion).values == pytest.approx(plain.of(criterion).values, rel=1e-9)
    assert fused.update_norm == pytest.approx(plain.update_norm, rel=1e-9)


def test_padding_holding_nan_is_not_looked_at() -> None:
    sequence = shortgpt.wrap(model(torch.float32))
    mask = torch.ones_like(IDS)
    mask[1:, 100:] = 0
    plain = shortgpt.score(sequence, [{"input_ids": IDS, "attention_mask": mask}])
    rows = [{"input_ids": row[None, : int(n)]} for row, n in zip(IDS, mask.sum(1), strict=True)]
    assert plain.values == pytest.approx(shortgpt.score(sequence, rows).values, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_removal_shares_memory_on_the_device_and_equals_skipping(dtype: torch.dtype) -> None:
    sequence = shortgpt.wrap(model(dtype))
    shorter = shortgpt.remove(sequence, [1, 4])
    mine = {p.data_ptr() for p in shorter.model.parameters()}  # type: ignore[attr-defined]
    theirs = {p.data_ptr() for p in sequence.model.parameters()}  # type: ignore[attr-defined]
    assert shorter.device.type == "cuda"
    assert mine <= theirs
    with sequence.skipping([1, 4]):
        assert torch.equal(shorter.logits({"input_ids": IDS}), sequence.logits({"input_ids": IDS}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checkpoint_is_pruned_and_verified_on_the_device(dtype: str, stream: bool, tmp_path: Path) -> None:
    model(getattr(torch, dtype)).save_pretrained(tmp_path / "in")
    plan = shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [2, 3], device="cuda", stream=stream)
    assert plan.verification is not None
    assert plan.verification.verified
    assert plan.verification.streamed == stream
    assert plan.verification.device == "cuda"
    assert plan.verification.dtype == "float32"  # other kernels need a tolerance


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba", "rwkv", "gpt2", "gpt2-postnorm", "baichuan"])
def test_the_shipped_models_score_as_on_the_cpu(name: str) -> None:
    here = shortgpt.score(shortgpt.load(f"zoo:{name}", device="cuda"), sequences=4, tokens=128)
    there = shortgpt.score(shortgpt.load(f"zoo:{name}", device="cpu"), sequences=4, tokens=128)
    assert here.calibration.token_hash == there.calibration.token_hash
    assert here.values == pytest.approx(there.values, rel=1e-2)  # TF32 and kernels of their own
