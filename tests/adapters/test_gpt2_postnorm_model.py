"""The post-norm GPT-2 classes: the same function as GPT-1, and a full citizen of transformers."""

import json
from pathlib import Path

import pytest
import torch
from shortgpt_adapters.families.gpt2_postnorm_model import (
    PostNormGPT2Block,
    PostNormGPT2Config,
    PostNormGPT2LMHeadModel,
    PostNormGPT2Model,
)
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

SHAPE = {"vocab_size": 53, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def randomise(model: torch.nn.Module) -> None:
    """Give every parameter, norms and biases too, a value that shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def model() -> PostNormGPT2LMHeadModel:
    torch.manual_seed(0)
    model = PostNormGPT2LMHeadModel(PostNormGPT2Config(**SHAPE, **SPECIAL, **NO_DROPOUT)).eval()
    randomise(model)
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, SHAPE["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_same_logits_as_gpt1_with_the_same_weights(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    # GPT-1's "gelu" is the tanh form that GPT-2 calls "gelu_new".
    gpt1 = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SHAPE, **NO_DROPOUT, afn="gelu")).eval()
    renamed = {
        name.replace(".wte.", ".tokens_embed.").replace(".wpe.", ".positions_embed."): tensor
        for name, tensor in model.state_dict().items()
    }
    gpt1.load_state_dict(renamed)
    torch.testing.assert_close(model(ids).logits, gpt1(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_adds_then_normalises(model: PostNormGPT2LMHeadModel) -> None:
    block = model.transformer.h[1].double()
    stream = torch.randn(2, 5, SHAPE["n_embd"], dtype=torch.float64)
    middle = torch.nn.functional.layer_norm(
        stream + block.attn(stream)[0], [24], block.ln_1.weight, block.ln_1.bias, 1e-5
    )
    expected = torch.nn.functional.layer_norm(
        middle + block.mlp(middle), [24], block.ln_2.weight, block.ln_2.bias, 1e-5
    )
    torch.testing.assert_close(block(stream), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_last_hidden_state_is_the_last_block_s_output(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    seen = []
    handle = model.transformer.h[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    last = model.transformer(ids).last_hidden_state
    handle.remove()
    assert torch.equal(last, seen[0])
    assert torch.equal(model(ids).logits, model.lm_head(seen[0]))


@torch.no_grad()
def test_differs_from_gpt2_with_the_same_weights(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    prenorm = GPT2LMHeadModel(GPT2Config(**SHAPE, **SPECIAL)).eval()
    missing = prenorm.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    assert (prenorm(ids).logits - model(ids).logits).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_through_the_auto_classes(tied: bool, ids: Tensor, tmp_path: Path) -> None:
    model = PostNormGPT2LMHeadModel(PostNormGPT2Config(**SHAPE, **SPECIAL, tie_word_embeddings=tied)).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2_postnorm"
    assert type(AutoConfig.from_pretrained(tmp_path)) is PostNormGPT2Config
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is PostNormGPT2LMHeadModel
    assert not any(info.values()), info
    assert torch.equal(reloaded(ids).logits, model(ids).logits)
    assert (reloaded.lm_head.weight is reloaded.transformer.wte.weight) == tied
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk) is PostNormGPT2Model
    assert torch.equal(trunk(ids).last_hidden_state, model.transformer(ids).last_hidden_state)


@torch.no_grad()
def test_cached_generation_equals_uncached(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))
    assert cached.shape[1] > ids.shape[1]


@torch.no_grad()
def test_a_cache_continues_the_sequence(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    first = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], past_key_values=first.past_key_values)
    logits = torch.cat([first.logits, rest.logits], dim=1)
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_beam_search_is_the_same_with_and_without_cache(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(
        model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings)
    )


@torch.no_grad()
def test_left_padding_changes_nothing(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    padding = torch.zeros(2, 4, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # learnt positions must be told
    padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(padded, model(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_eager_and_sdpa_attention_agree(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    model.set_attn_implementation("sdpa")
    sdpa = model(ids).logits
    model.set_attn_implementation("eager")
    eager = model(ids, output_attentions=True)
    torch.testing.assert_close(eager.logits, sdpa, atol=1e-5, rtol=1e-5)
    assert [weights.shape for weights in eager.attentions] == [(2, 3, 9, 9)] * 3


@torch.no_grad()
def test_hidden_states_are_recorded_at_every_boundary(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == SHAPE["n_layer"] + 1
    assert torch.equal(model.transformer.h[0](states[0], attention_mask=None), states[1])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the newer name is not in all supported versions
def test_gradient_checkpointing_gives_the_same_gradients(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    model.train()
    plain, calls = gradients(), []
    model.transformer.h[0].attn.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    recomputed = gradients()
    assert len(calls) == 2, "the block was not run again in the backward pass"
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)


def test_the_model_can_learn() -> None:
    torch.manual_seed(0)
    model = PostNormGPT2LMHeadModel(PostNormGPT2Config(**SHAPE, **SPECIAL, **NO_DROPOUT))
    text = torch.arange(1, 25).repeat(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(text, labels=text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_cross_attention_is_refused(model: PostNormGPT2LMHeadModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="no cross-attention: found add_cross_attention=True"):
        PostNormGPT2LMHeadModel(PostNormGPT2Config(**SHAPE, add_cross_attention=True))
    with pytest.raises(ValueError, match="no cross-attention: found encoder_hidden_states"):
        model(ids, encoder_hidden_states=torch.zeros(2, 3, SHAPE["n_embd"]))


def test_blocks_are_found_as_gpt2_s_are(model: PostNormGPT2LMHeadModel) -> None:
    assert all(type(block) is PostNormGPT2Block for block in model.transformer.h)
    assert [block.attn.layer_idx for block in model.transformer.h] == [0, 1, 2]
    assert "PostNormGPT2Block" in model.transformer._no_split_modules
    assert not list(model.transformer.ln_f.parameters())
