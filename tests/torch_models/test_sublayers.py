"""The parts of blocks: what the model gives without one is what it gives when that part's last weights are zero."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import shortgpt
from shortgpt import BlockSequence, Cut
from shortgpt.errors import ModelError
from tests.support import ids_of, tiny

IDS = ids_of(rows=2, tokens=20)

LAST_WEIGHTS = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "rwkv": ("attention.output", "feed_forward.value"),
    "opt": ("self_attn.out_proj", "fc2"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "granitemoehybrid": ("self_attn.o_proj|mamba.out_proj", "shared_mlp.output_linear"),
}
"""Where the last linear map of a block's mixer and of its MLP lies. GPT-NeoX computes both of the same stream, OPT has
an activation of its own between the MLP's two layers, and the hybrid's mixers are of two kinds."""

SMALL: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "max_position_embeddings": 64},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "use_parallel_residual": True},
    "granitemoehybrid": {
        "hidden_size": 32,
        "shared_intermediate_size": 48,
        "num_local_experts": 0,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
    },
}


def model_of(name: str) -> PreTrainedModel:
    if name not in SMALL:
        return tiny(name, blocks=4)
    torch.manual_seed(0)
    settings = {"vocab_size": 257, "num_hidden_layers": 4, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings | SMALL[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def without_by_hand(blocks: BlockSequence, model: PreTrainedModel, block: int, names: str) -> Tensor:
    """The logits when the named linear map of a block, weights and bias, is zero: none of our code."""
    zeroed = deepcopy(model)
    for name, module in zeroed.get_submodule(blocks.block_names[block]).named_modules():
        if name in names.split("|"):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    with torch.no_grad():
        return zeroed(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", LAST_WEIGHTS)
def test_without_a_part_the_logits_are_those_with_its_last_weights_zero(name: str) -> None:
    model = model_of(name)
    blocks = shortgpt.wrap(model)
    assert blocks.refuse_parts() is None
    assert blocks.parts == (("mixer", "mlp"),) * 4
    whole = blocks.logits({"input_ids": IDS})
    for block in range(4):
        for part, names in zip(("mixer", "mlp"), LAST_WEIGHTS[name], strict=True):
            with blocks.cutting(Cut(block, part)):
                found = blocks.logits({"input_ids": IDS})
            expected = without_by_hand(blocks, model, block, names)
            assert torch.equal(found, expected), f"{part} of block {block}"
            assert not torch.equal(found, whole), f"{part} of block {block}"
    assert torch.equal(blocks.logits({"input_ids": IDS}), whole)


@pytest.mark.parametrize("name", ["llama", "gpt2", "rwkv"])
def test_parts_left_out_in_turn_are_what_they_are_one_by_one(name: str) -> None:
    model = model_of(name)
    blocks = shortgpt.wrap(model)
    cuts = [Cut(block, part) for block in range(4) for part in ("mlp", "mixer")]
    for cut, logits in zip(cuts, blocks.ablated({"input_ids": IDS}, cuts), strict=True):
        expected = without_by_hand(blocks, model, cut.block, LAST_WEIGHTS[name][cut.part == "mlp"])
        assert torch.equal(logits, expected), cut


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
def test_a_block_that_is_one_mixer_has_no_parts_and_is_itself_what_its_last_weights_add(name: str) -> None:
    model = tiny(name, blocks=3)
    blocks = shortgpt.wrap(model)
    assert blocks.parts == ()
    assert "no two parts" in (blocks.refuse_parts() or "")
    for block in range(3):
        with blocks.cutting(Cut(block)):
            found = blocks.logits({"input_ids": IDS})
        assert torch.equal(found, without_by_hand(blocks, model, block, "mixer.out_proj"))
    with pytest.raises(ModelError, match="no two parts"), blocks.cutting(Cut(0, "mixer")):
        pass


@pytest.mark.parametrize("name", ["gpt2_postnorm", "openai-gpt"])
def test_blocks_with_a_norm_on_the_stream_have_no_parts(name: str) -> None:
    blocks = shortgpt.wrap(tiny(name, blocks=3))
    assert blocks.parts == ()
    assert "changes the stream even without" in (blocks.refuse_parts() or "")


# -- blocks of no library ---------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """x + attn(x), then that + mlp of it; either may be another layer's, or missing."""

    def __init__(self, attn: nn.Module | None, mlp: nn.Module | None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.attn, self.mlp, self.norm = attn, mlp, norm

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x) if self.attn is not None else x
        part = self.mlp(x) if self.mlp is not None else 0
        return x + (self.norm(part) if self.norm is not None else part)


class Net(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(257, 8), nn.ModuleList(layers), nn.Linear(8, 257)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def net(make: Callable[[int], Layer]) -> BlockSequence:
    torch.manual_seed(0)
    return shortgpt.wrap(Net([make(i) for i in range(3)]).eval(), architecture="plain-torch")


def test_a_block_may_lack_a_part_that_others_have() -> None:
    blocks = net(lambda i: Layer(nn.Linear(8, 8), None if i == 1 else nn.Linear(8, 8)))
    assert blocks.parts == (("mixer", "mlp"), ("mixer",), ("mixer", "mlp"))
    with pytest.raises(ModelError, match=r"layers.1 has no part 'mlp' that is known, only mixer"):
        next(blocks.ablated({"input_ids": IDS}, [Cut(1, "mlp")]))


def test_a_module_that_two_blocks_share_is_no_part() -> None:
    shared = nn.Linear(8, 8)
    blocks = net(lambda i: Layer(nn.Linear(8, 8), shared))
    assert blocks.parts == ()
    assert "share a part" in (blocks.refuse_parts() or "")


def test_a_norm_behind_a_part_that_makes_something_of_nothing_leaves_the_parts_unknown() -> None:
    def layer(i: int) -> Layer:
        made = Layer(nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8))
        if i == 2:
            nn.init.ones_(made.norm.bias)  # type: ignore[union-attr, arg-type]
        return made

    assert "a Layer changes the stream even without" in (net(layer).refuse_parts() or "")
    assert net(lambda i: layer(0)).refuse_parts() is None


def test_a_block_that_does_not_run_without_its_parts_has_none() -> None:
    class Fragile(Layer):
        def forward(self, x: Tensor) -> Tensor:
            assert self.attn is not None
            assert self.attn(x).any(), "nothing came of it"
            return super().forward(x)

    refusal = net(lambda i: Fragile(nn.Linear(8, 8), nn.Linear(8, 8))).refuse_parts()
    assert refusal is not None
    assert "do not run" in refusal
    assert "nothing came of it" in refusal


def test_parts_of_a_streamed_model_are_not_known(llama_folder: Any) -> None:
    blocks = shortgpt.load(llama_folder, device="cpu", stream=True)
    assert blocks.parts == ()
    assert "streamed" in (blocks.refuse_parts() or "")
