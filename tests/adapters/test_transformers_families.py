"""Each family of transformers: the contract, with the stream computed by hand in float64 as the independent tap."""

import json
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from shortgpt_adapters.families.gpt2_postnorm_model import PostNormGPT2Config, PostNormGPT2LMHeadModel
from torch import Tensor
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RwkvConfig,
    RwkvForCausalLM,
)

import shortgpt
from shortgpt.testing import CHECKS, boundaries, check_adapter
from tests.support import GROUPS

from . import by_hand

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 6, "vocab_size": 100}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 6, "n_head": 4, "vocab_size": 100, "n_positions": 64}
HEADS: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1}

FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], list[Tensor]], str]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**HEADS)), by_hand.llama, "pre"),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**HEADS, sliding_window=8)), by_hand.mistral, "pre"),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT, **ENDS)), by_hand.gpt2, "pre"),
    "gpt2_postnorm": (
        lambda: PostNormGPT2LMHeadModel(PostNormGPT2Config(**GPT, **ENDS)),
        by_hand.gpt2_postnorm,
        "post",
    ),
    "openai-gpt": (lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT)), by_hand.openai_gpt, "post"),
    "mamba": (lambda: MambaForCausalLM(MambaConfig(**SIZES, state_size=4)), by_hand.mamba, "pre"),
    "mamba2": (
        lambda: Mamba2ForCausalLM(
            Mamba2Config(**SIZES, state_size=8, num_heads=8, head_dim=8, n_groups=GROUPS, chunk_size=16)
        ),
        by_hand.mamba2,
        "pre",
    ),
    "falcon_mamba": (
        lambda: FalconMambaForCausalLM(FalconMambaConfig(**SIZES, state_size=4)),
        by_hand.falcon_mamba,
        "pre",
    ),
    "rwkv": (
        lambda: RwkvForCausalLM(RwkvConfig(**SIZES, attention_hidden_size=32, context_length=64, rescale_every=0)),
        by_hand.rwkv,
        "pre",
    ),
}


def randomised(make: Callable[[], Any]) -> Any:
    """A model whose every weight matters: biases and norms too, which the libraries begin with 0 and 1."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.sampled("llama", "gpt2_postnorm", "mamba")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_contract_holds_with_the_stream_computed_by_hand(name: str, tmp_path: Path) -> None:
    make, hand, placement = FAMILIES[name]
    model = randomised(make)

    def wrapped() -> shortgpt.BlockSequence:
        return shortgpt.wrap(deepcopy(model))

    assert wrapped().architecture == name
    assert wrapped().norm_placement == placement
    held = check_adapter(
        wrapped,
        tmp_path,
        reference=lambda sequence, batch: hand(model, batch["input_ids"]),
    )
    assert len(held) == len(CHECKS)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_the_float64_sums_of_the_stream_computed_by_hand(name: str) -> None:
    make, hand, _ = FAMILIES[name]
    model = randomised(make)
    ids = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(1))
    stream = hand(deepcopy(model), ids)
    expected = [1 - torch.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(stream)]
    scores = shortgpt.score(shortgpt.wrap(model), [{"input_ids": ids}])
    assert scores.values == pytest.approx(expected, rel=1e-4)
    updates = [(y - x).norm(dim=-1).mean().item() for x, y in pairwise(stream)]
    assert scores.update_norm == pytest.approx(updates, rel=1e-4)
    assert scores.stream_norm == pytest.approx([x.norm(dim=-1).mean().item() for x in stream[:-1]], rel=1e-4)


def test_mistral_sees_no_further_than_its_window() -> None:
    """Not a property of the adapter but of the check above: with the window ignored, it would fail."""
    model = randomised(FAMILIES["mistral"][0])
    ids = torch.randint(0, 100, (1, 40), generator=torch.Generator().manual_seed(1))
    seen = boundaries(shortgpt.wrap(deepcopy(model)), {"input_ids": ids})[-1].double()
    assert torch.allclose(seen, by_hand.mistral(model, ids)[-1], atol=1e-4)
    assert not torch.allclose(seen, by_hand.llama(model, ids)[-1], atol=1e-4)


def test_gpt2_scaled_by_its_place_keeps_each_blocks_attention_when_blocks_move(tmp_path: Path) -> None:
    config = GPT2Config(**GPT, **ENDS, scale_attn_by_inverse_layer_idx=True)
    model = randomised(lambda: GPT2LMHeadModel(config))
    ids = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(2))
    whole = shortgpt.wrap(model)
    with whole.skipping([0, 3]):
        skipped = whole.logits({"input_ids": ids})
    whole.save(tmp_path / "whole")
    shortgpt.prune_checkpoint(tmp_path / "whole", tmp_path / "shorter", [0, 3], verify=False)
    shorter = GPT2LMHeadModel.from_pretrained(tmp_path / "shorter").eval()
    with torch.no_grad():
        assert (shorter(ids).logits - skipped).abs().max() <= 1e-6 * skipped.abs().max()
    stream = by_hand.gpt2(shorter, ids)
    assert torch.allclose(boundaries(shortgpt.wrap(shorter), {"input_ids": ids})[-1].double(), stream[-1], atol=1e-4)


def test_a_gpt2_base_checkpoint_without_prefix_is_pruned_and_loads(tmp_path: Path) -> None:
    model = randomised(FAMILIES["gpt2"][0])
    model.transformer.save_pretrained(tmp_path / "base")
    shortgpt.prune_checkpoint(tmp_path / "base", tmp_path / "shorter", [1, 4], verify=False)
    shorter, info = GPT2LMHeadModel.from_pretrained(tmp_path / "shorter", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert info["missing_keys"] <= {"lm_head.weight"}
    ids = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(2))
    whole = shortgpt.wrap(model)
    with whole.skipping([1, 4]), torch.no_grad():
        assert torch.equal(shorter.eval()(ids).logits, whole.logits({"input_ids": ids}))


def test_a_generation_config_that_the_library_would_not_save_is_kept(tmp_path: Path) -> None:
    model = randomised(FAMILIES["llama"][0])
    model.generation_config.temperature = 0.9  # without do_sample, as early Llama 2 checkpoints have it
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "by the library")
    shortgpt.remove(shortgpt.wrap(model), [1]).save(tmp_path / "shorter")
    assert json.loads((tmp_path / "shorter" / "generation_config.json").read_text())["temperature"] == 0.9


class TestRwkv:
    """RWKV-4 of transformers halves its stream and divides weights in place at the first forward pass."""

    @pytest.fixture
    def model(self) -> Any:
        return randomised(
            lambda: RwkvForCausalLM(RwkvConfig(**SIZES, attention_hidden_size=32, context_length=64, rescale_every=2))
        )

    ids = torch.randint(0, 100, (1, 24), generator=torch.Generator().manual_seed(3))

    def test_the_tap_undoes_the_halving(self, model: Any) -> None:
        expected = by_hand.rwkv(deepcopy(model), self.ids)
        seen = boundaries(shortgpt.wrap(model), {"input_ids": self.ids})
        assert model.rwkv.layers_are_rescaled
        for mine, theirs in zip(seen, expected, strict=True):
            assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()

    def test_a_stream_beyond_the_range_of_float16_is_undone_in_float32(self, model: Any) -> None:
        sequence = shortgpt.wrap(model.half())
        model.rwkv.layers_are_rescaled = True
        halved_twice = torch.full((1, 1, 4), 40_000.0, dtype=torch.float16)
        assert sequence.observed(4, halved_twice).tolist() == [[[160_000.0] * 4]]  # type: ignore[attr-defined]

    def test_the_weights_saved_after_a_forward_pass_are_the_true_ones(self, model: Any, tmp_path: Path) -> None:
        before = deepcopy(model.state_dict())
        sequence = shortgpt.wrap(model)
        sequence.logits({"input_ids": self.ids})
        sequence.save(tmp_path / "saved")
        after = RwkvForCausalLM.from_pretrained(tmp_path / "saved")
        assert after.config.rescale_every == 2
        for name, tensor in after.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_a_shorter_model_never_writes_into_the_original(self, model: Any) -> None:
        sequence = shortgpt.wrap(model)
        sequence.logits({"input_ids": self.ids})
        before = deepcopy(model.state_dict())
        sequence.without([0, 3]).logits({"input_ids": self.ids})
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_an_opened_model_runs_without_halving_and_keeps_its_config(self, model: Any, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "in")
        opened = shortgpt.load(tmp_path / "in", device="cpu")
        expected = by_hand.rwkv(model, self.ids)
        for mine, theirs in zip(boundaries(opened, {"input_ids": self.ids}), expected, strict=True):
            assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        with opened.skipping([0, 3]):
            skipped = opened.logits({"input_ids": self.ids})
        shorter = opened.without([0, 3])
        assert torch.equal(shorter.logits({"input_ids": self.ids}), skipped)
        shorter.save(tmp_path / "out")
        assert RwkvConfig.from_pretrained(tmp_path / "out").rescale_every == 2

    def test_the_norm_behind_the_embedding_moves_to_the_first_kept_block(self, model: Any, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "in")
        shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [0, 1], verify=False)
        shorter = RwkvForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.equal(shorter.rwkv.blocks[0].pre_ln.weight, model.rwkv.blocks[0].pre_ln.weight)
        assert torch.equal(shorter.rwkv.blocks[0].ln1.weight, model.rwkv.blocks[2].ln1.weight)

    def test_one_block_alone_is_refused_with_the_reason(self, model: Any) -> None:
        with pytest.raises(shortgpt.ShortGPTError, match="one block alone"):
            shortgpt.remove(shortgpt.wrap(model), range(5))
