"""How far the probes of a verification reach: past every window of the config, and into every part of the blocks."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

import shortgpt
from shortgpt import Verification
from shortgpt.errors import VerificationError
from shortgpt.models.probing.expected_logits import expected_logits, with_near
from shortgpt.models.probing.probes import some_of
from shortgpt.models.probing.reach import Reach, distances, near_distances, set_near
from shortgpt.torch_models.reads import noting_reads
from shortgpt.verification import record
from tests.tiny_types import tiny_model

# -- how far a config reaches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"sliding_window": 4096, "max_window_layers": 28, "sliding_window_pattern": 6}, {4096}),
        ({"text_config": {"attention_chunk_size": 8192, "floor_scale": 8192}, "vision_config": {"window": 14}}, {8192}),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096, "factor": 8.0}}, {4096}),
        ({"rope_parameters": {"full_attention": {"original_max_position_embeddings": 4096}}}, {4096}),
        ({"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192}}, set()),  # at every length
        (
            {"rope_parameters": {"type": "yarn", "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.1}},
            {8},
        ),
        ({"window_size": 256, "num_local_experts": 32, "num_experts_per_tok": 4}, {256}),
        (
            {"index_block_size": 128, "index_topk_blocks": 16, "index_n_heads": 4, "index_head_dim": 128},
            {16, 128, 2048},
        ),
        ({"block_size": 64, "num_random_blocks": 3}, {64, 704}),  # sparse from (5 + 2 · 3) · 64 tokens on
        ({"index_topk": 512, "compress_rates": {"sparse": 4, "heavy": 128}}, {4, 128, 512, 2048}),
        ({"windows": {"0": 64, "1": 256}, "attn_windows": [32, 48]}, {64, 256, 32, 48}),
        ({"hidden_size": 4096, "vocab_size": 32000, "head_dim": 128, "num_attention_heads": 32, "top_k": 50}, set()),
        ({"quantization_config": {"weight_block_size": [128, 128]}, "local_attention": True}, set()),
    ],
)
def test_the_distances_of_a_config_are_found_by_its_fields_names(config: dict[str, Any], found: set[int]) -> None:
    assert {tokens for _, tokens in distances(config)} == found


class Sized:
    """As much of a model as decides how far its probe reaches."""

    def __init__(
        self, config: dict[str, Any], parameters: int = 10**6, longest: int | None = None, own_code: bool = False
    ) -> None:
        self.config, self.parameters, self.max_tokens, self.vocab_size = config, parameters, longest, 1000
        self.own_code = own_code

    def total_parameters(self) -> int:
        return self.parameters

    def __len__(self) -> int:
        return 12


def reach(config: dict[str, Any], **size: Any) -> tuple[int, tuple[str, ...]]:
    model: Any = Sized(config, **size)
    found = Reach.of(model, 32)
    return found.tokens, found.beyond


def test_the_long_probe_passes_the_farthest_distance_that_can_be_afforded() -> None:
    windows = {"sliding_window": 128, "original_max_position_embeddings": 2048}
    assert reach({"hidden_size": 512}) == (0, ())
    assert reach({"sliding_window": 31}) == (0, ())  # the short probe passes it
    assert reach({"sliding_window": 32}) == (64, ())
    assert reach(windows) == (2048 + 32, ())
    assert reach(windows, parameters=7 * 10**9) == (160, ("original_max_position_embeddings 2,048",))
    assert reach({"sliding_window": 512}, parameters=7 * 10**10) == (544, ())
    assert reach({"window": 100_000}) == (0, ("window 100,000",))


def test_what_a_models_own_window_never_reaches_needs_no_proof() -> None:
    assert reach({"sliding_window": 2048}, longest=2048) == (0, ())
    assert reach({"sliding_window": 2040}, longest=2048) == (2048, ())
    assert reach({"sliding_window": 128}, longest=24) == (0, ())


def test_code_of_the_folders_own_may_call_a_window_anything() -> None:
    assert reach({"hidden_size": 512}, own_code=True) == (1024, ())
    assert reach({"farthest": 2048}, own_code=True) == (2080, ())
    assert reach({"farthest": 2048}, own_code=True, parameters=10**10) == (1024, ())
    assert reach({}, own_code=True, longest=256) == (256, ())


def test_of_a_long_probe_tokens_all_along_it_and_the_last_ones_are_compared() -> None:
    logits = torch.arange(640.0)[None, :, None].expand(1, 640, 3)
    found = some_of(logits, 640)[0, :, 0].tolist()
    assert len(found) < 100
    assert found[0] == 0
    assert found[-32:] == list(range(608, 640))
    assert max(b - a for a, b in pairwise(found)) <= 11
    assert some_of(torch.ones(1, 7, 3), 640).shape == (1, 7, 3)  # not one for each token


# -- what it finds --------------------------------------------------------------------------------------------


def saved_windowed(folder: Path, window: int) -> Path:
    """A model whose blocks 0, 3 and 4 attend to the last `window` tokens."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2 * window if window > 1000 else 256,
        use_sliding_window=True,
        sliding_window=window,
        layer_types=["sliding_attention" if i in (0, 3, 4) else "full_attention" for i in range(6)],
    )
    Qwen3ForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    return saved_windowed(tmp_path / "in", 48)


def with_windows_of_other_blocks(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["layer_types"][1:3] = config["layer_types"][2:0:-1]
    file.write_text(json.dumps(config))


def test_a_window_of_the_wrong_block_is_found_out_by_both_ways_of_verifying(
    tmp_path: Path, windowed: Path, one_process: None
) -> None:
    plan = shortgpt.prune_checkpoint(windowed, tmp_path / "out", [1], device="cpu")
    made = plan.verification
    assert made is not None
    assert len(made.long_ids) == 80
    assert " on 2 × 32 and 1 × 80 tokens; 8 tokens of cached generation and 3 behind the longer one equal" in str(made)
    assert record.verify_again(tmp_path / "out")[1].verified
    with_windows_of_other_blocks(tmp_path / "out")
    with pytest.raises(VerificationError, match=r"the shorter model's logits on 80 tokens differ by"):
        shortgpt.verify(shortgpt.load(windowed, device="cpu"), tmp_path / "out", [1])
    with pytest.raises(VerificationError, match=r"differ by .* from those that were expected when it was made"):
        record.verify_again(tmp_path / "out")


def test_a_window_that_no_probe_reaches_is_set_small_in_both_models(tmp_path: Path, one_process: None) -> None:
    source = saved_windowed(tmp_path / "in", 20_000)
    plan = shortgpt.prune_checkpoint(source, tmp_path / "out", [1], device="cpu")
    made = plan.verification
    assert made is not None
    assert ([str(near) for near in made.near], made.beyond, made.long_ids) == (["sliding_window 20,000"], (), ())
    assert "; with sliding_window 20,000 set to 8 in both, they are equal too" in str(made)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 20_000
    assert record.verify_again(tmp_path / "out")[1].verified
    with_windows_of_other_blocks(tmp_path / "out")
    with pytest.raises(VerificationError, match=r"logits with sliding_window 20,000 set to 8 differ by"):
        shortgpt.verify(shortgpt.load(source, device="cpu"), tmp_path / "out", [1])
    with pytest.raises(VerificationError, match=r"differ by .* from those that were expected when it was made"):
        record.verify_again(tmp_path / "out")


def test_a_distance_without_effect_when_it_is_small_stays_among_those_not_proven(tmp_path: Path) -> None:
    model = shortgpt.load(saved_windowed(tmp_path / "in", 20_000), device="cpu")
    expected = expected_logits(model, [1])
    found = with_near(expected, model.config, [1], lambda near: model)
    assert (found.near, found.beyond) == ((), ("sliding_window 20,000",))


def test_a_distance_is_set_small_wherever_its_field_holds_it() -> None:
    config = {"text_config": {"windows": [4096, 512], "depth": 4096}, "vision_config": {"window": 4096}}
    (near,) = near_distances(config, ["windows 4,096"])
    assert set_near(config, near) == {
        "text_config": {"windows": [8, 512], "depth": 4096},
        "vision_config": {"window": 4096},
    }


def test_a_cache_that_is_wrong_behind_a_window_is_found_out_where_the_original_has_a_right_one(
    windowed: Path, tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortgpt.prune_checkpoint(windowed, tmp_path / "out", [1], device="cpu")
    generate = ReloadedCausalLM.generate

    def wrong(model: ReloadedCausalLM, ids: torch.Tensor, new: int, *, cached: bool) -> torch.Tensor:
        off = cached and ids.shape[1] > 32 and len(blocks_of(model)) in lengths
        return generate(model, ids, new, cached=cached) + (1.0 if off else 0.0)

    def blocks_of(model: ReloadedCausalLM) -> Any:
        return model.model.get_submodule("model.layers")

    monkeypatch.setattr(ReloadedCausalLM, "generate", wrong)
    lengths = {5}
    with pytest.raises(VerificationError, match="cached generation differs from uncached at token 0"):
        shortgpt.verify(shortgpt.load(windowed, device="cpu"), tmp_path / "out", [1])
    lengths = {5, 6}
    found = shortgpt.verify(shortgpt.load(windowed, device="cpu"), tmp_path / "out", [1])
    assert found.generated_behind == 0
    assert found.beyond == ("cached generation behind 80 tokens, which fails in the original as well",)


def test_a_record_without_a_long_probe_is_still_read() -> None:
    old = Verification(True, None, 0.0, 12.5, 0.0, (2, 32), 8, "cpu", "float32").to_dict()
    for field in ("long_ids", "long_fingerprint", "side_inputs", "beyond", "idle", "near", "generated_behind"):
        del old[field]
    assert Verification.from_dict(old).long_ids == ()


def test_a_record_says_what_is_not_proven() -> None:
    found = Verification(True, None, 0.0, 1.0, 0.0, (2, 32), 8, "cpu", "float32", beyond=("window 8,192",), idle=("a",))
    assert str(found).endswith("; not proven, for nothing of the probe reaches it: window 8,192; a")


def test_a_model_that_does_not_run_on_the_long_probe_is_told_as_not_proven_there(
    windowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shortgpt.load(windowed, device="cpu")
    whole: Callable[[Any], Any] = model.logits

    def short_only(batch: Any) -> Any:
        if batch["input_ids"].shape[1] > 32:
            raise RuntimeError("too long")
        return whole(batch)

    monkeypatch.setattr(model, "logits", short_only)
    found = expected_logits(model, [1])
    assert found.long_ids is None
    assert found.beyond == ("what lies beyond 32 tokens, for the original does not run on 80 (too long)",)


# -- parts that a text leaves idle ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "given"), [("mllama", "cross_attention_states"), ("whisper", "encoder_outputs")]
)
def test_cross_attention_is_proven_with_what_it_reads(
    tmp_path: Path, model_type: str, given: str, one_process: None
) -> None:
    original = shortgpt.wrap(tiny_model(model_type))
    shortgpt.remove(original, [2]).save(tmp_path / "out")
    found = shortgpt.verify(original, tmp_path / "out", [2])
    assert (list(found.side_inputs), found.idle) == ([given], ())
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    outwards = r".*layers\.1\.(cross_attn\.o_proj|encoder_attn\.out_proj)\.weight"
    name = next(name for name in tensors if re.fullmatch(outwards, name))
    tensors[name] += 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="the original's with these blocks skipped"):
        shortgpt.verify(original, tmp_path / "out", [2])


def test_parts_that_nothing_is_invented_for_are_named() -> None:
    found = expected_logits(shortgpt.wrap(tiny_model("xlnet")), [2])  # they read the segments of a text
    assert found.idle == ("blocks 0-1, 3-5: rel_attn.r_s_bias, rel_attn.seg_embed",)


class Part(nn.Module):
    """Reads weights in all ways, and leaves some idle."""

    def __init__(self) -> None:
        super().__init__()
        self.by_another, self.by_itself, self.never = nn.Linear(4, 4), nn.LSTM(4, 4), nn.Linear(4, 4)
        self.scale, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.linear(x, self.by_another.weight) * self.scale + self.by_another.bias
        return self.experts[2](self.by_itself(x)[0])


def test_what_is_never_read_is_told_by_block_and_numbered_parts_by_their_number() -> None:
    blocks = [Part(), Part(), nn.Linear(4, 4), Part()]
    with noting_reads(blocks) as reads:
        blocks[0](torch.ones(2, 4))
        blocks[1](torch.ones(2, 4))
    assert reads.idle({3}) == ("blocks 0-1: unused, never, experts.* (6)", "block 2")
    with noting_reads(blocks) as reads:
        pass
    assert reads.idle(()) == ("blocks 0-3",)
