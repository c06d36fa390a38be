"""Baichuan and Baichuan2, 7B and 13B: checked against a forward written out by hand, against Llama, and as files."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shortgpt_adapters.baichuan.model import (
    BaichuanConfig,
    BaichuanForCausalLM,
    BaichuanModel,
    BaichuanTokenizer,
    NormHead,
    alibi_slopes,
    as_llama,
    rotate,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY, WIDTH, HEADS, BLOCKS = 61, 24, 3, 3
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "rms_norm_eps": 1e-5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "Baichuan-7B": {"max_position_embeddings": 64, "norm_head": False},
    "Baichuan-13B": {"model_max_length": 64, "norm_head": False},
    "Baichuan2-7B": {"max_position_embeddings": 64, "norm_head": True},
    "Baichuan2-13B": {"model_max_length": 64, "norm_head": True},
}
ROPE, ALIBI = ["Baichuan-7B", "Baichuan2-7B"], ["Baichuan-13B", "Baichuan2-13B"]


def build(variant: str, **changes: Any) -> BaichuanForCausalLM:
    """A tiny model of the variant whose every parameter has a value that shows."""
    torch.manual_seed(0)
    model = BaichuanForCausalLM(BaichuanConfig(**SHAPE | VARIANTS[variant] | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------ the function the model computes


def logits_by_hand(tensors: dict[str, Tensor], ids: Tensor, alibi: bool, norm_head: bool) -> Tensor:
    """The whole model in float64, one sequence [tokens] at a time, one head at a time, without transformers."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    slopes = [2**-4, 2**-8, 2**-2]  # three heads: the two slopes of two heads, then the first of four
    head_width, tokens = WIDTH // HEADS, len(ids)

    def norm(stream: Tensor, name: str) -> Tensor:
        return stream / torch.sqrt((stream**2).mean(-1, keepdim=True) + 1e-5) * weights[name]

    def turned(states: Tensor) -> Tensor:
        result = states.clone()
        half = head_width // 2
        for position in range(tokens):
            for pair in range(half):
                angle = position * 10_000 ** (-2 * pair / head_width)
                one, other = states[position, pair].item(), states[position, pair + half].item()
                result[position, pair] = one * math.cos(angle) - other * math.sin(angle)
                result[position, pair + half] = other * math.cos(angle) + one * math.sin(angle)
        return result

    stream = weights["model.embed_tokens.weight"][ids]
    for index in range(BLOCKS):
        prefix = f"model.layers.{index}."
        packed = norm(stream, prefix + "input_layernorm.weight") @ weights[prefix + "self_attn.W_pack.weight"].T
        outputs = []
        for head in range(HEADS):
            columns = slice(head * head_width, (head + 1) * head_width)
            query, key, value = (packed[:, part * WIDTH : (part + 1) * WIDTH][:, columns] for part in range(3))
            if not alibi:
                query, key = turned(query), turned(key)
            scores = query @ key.T / math.sqrt(head_width)
            for row in range(tokens):
                for column in range(tokens):
                    if column > row:
                        scores[row, column] = -math.inf
                    elif alibi:
                        scores[row, column] -= slopes[head] * (row - column)
            outputs.append(torch.softmax(scores, dim=-1) @ value)
        stream = stream + torch.cat(outputs, dim=-1) @ weights[prefix + "self_attn.o_proj.weight"].T
        inner = norm(stream, prefix + "post_attention_layernorm.weight")
        gate = inner @ weights[prefix + "mlp.gate_proj.weight"].T
        up = inner @ weights[prefix + "mlp.up_proj.weight"].T
        stream = stream + (gate * torch.sigmoid(gate) * up) @ weights[prefix + "mlp.down_proj.weight"].T
    head_rows = weights["lm_head.weight"]
    if norm_head:
        head_rows = head_rows / torch.sqrt((head_rows**2).sum(-1, keepdim=True))
    return norm(stream, "model.norm.weight") @ head_rows.T


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_the_formulas(variant: str, attention: str, ids: Tensor) -> None:
    model = build(variant)
    model.set_attn_implementation(attention)
    expected = torch.stack(
        [logits_by_hand(model.state_dict(), row, variant in ALIBI, VARIANTS[variant]["norm_head"]) for row in ids]
    )
    torch.testing.assert_close(model(ids).logits.double(), expected, atol=2e-5, rtol=1e-5)


def test_alibi_slopes_of_the_13b_models() -> None:
    assert alibi_slopes(8) == pytest.approx([2**-i for i in range(1, 9)])
    thirty_two = [2 ** (-8 * i / 32) for i in range(1, 33)]
    sixty_four = [2 ** (-8 * i / 64) for i in range(1, 65)]
    assert alibi_slopes(40) == pytest.approx(thirty_two + sixty_four[0:16:2])


@torch.no_grad()
def test_left_padding_changes_nothing(variant: str, ids: Tensor) -> None:
    model = build(variant)
    padding = torch.zeros(2, 4, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask).logits[:, 4:]
        torch.testing.assert_close(padded, model(ids).logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_alibi_with_padding_stays_finite_in_half_precision(dtype: torch.dtype) -> None:
    model = build("Baichuan2-13B").to(dtype)
    ids = torch.randint(3, VOCABULARY, (2, 300))
    mask = torch.ones_like(ids)
    mask[0, :290] = 0
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert model(ids, attention_mask=mask).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("variant", "dtype"), [("Baichuan-7B", torch.bfloat16), ("Baichuan2-7B", torch.float32)])
def test_baichuan2_rotates_in_fp32_and_baichuan_in_the_model_s_dtype(
    variant: str, dtype: torch.dtype, ids: Tensor
) -> None:
    seen = []
    model = build(variant).to(torch.bfloat16)
    model.model.layers[0].register_forward_pre_hook(
        lambda module, inputs, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    model(ids)
    cosines, sines = seen[0]
    assert cosines.dtype == sines.dtype == dtype
    states = torch.randn(1, HEADS, ids.shape[1], WIDTH // HEADS).to(torch.bfloat16)
    exact = rotate(states.double(), *model.model.rotary_emb(states.double(), torch.arange(ids.shape[1])[None]))
    rotated = rotate(states, cosines[:1], sines[:1])
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, exact.to(torch.bfloat16)) == (dtype == torch.float32)


@torch.no_grad()
def test_norm_head_is_stateless_and_ignores_the_length_of_its_rows(ids: Tensor) -> None:
    model = build("Baichuan2-13B")
    before = model.lm_head.weight.clone()
    first = model(ids).logits
    assert torch.equal(model.lm_head.weight, before)
    assert torch.equal(model(ids).logits, first)
    model.lm_head.weight.mul_(torch.linspace(0.5, 8.0, VOCABULARY)[:, None])
    torch.testing.assert_close(model(ids).logits, first, atol=1e-5, rtol=1e-5)
    assert type(model.lm_head) is NormHead


# --------------------------------------------------------------------------------------------- cache and generation


@torch.no_grad()
def test_a_cache_continues_the_sequence(variant: str, ids: Tensor) -> None:
    model = build(variant)
    first = model(ids[:, :6], use_cache=True)
    middle = model(ids[:, 6:7], past_key_values=first.past_key_values, use_cache=True)
    rest = model(ids[:, 7:], past_key_values=middle.past_key_values, use_cache=True)
    logits = torch.cat([first.logits, middle.logits, rest.logits], dim=1)
    torch.testing.assert_close(logits, model(ids).logits, atol=2e-5, rtol=1e-4)
    assert model(ids, use_cache=False).past_key_values is None


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_cache_and_padding(variant: str, beams: int, ids: Tensor) -> None:
    model = build(variant)
    settings = {"num_beams": beams, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    ones = torch.ones_like(ids)
    cached = model.generate(ids, attention_mask=ones, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(ids, attention_mask=ones, use_cache=False, **settings))
    padding = torch.zeros(2, 3, dtype=torch.long)
    padded = model.generate(
        torch.cat([padding, ids], dim=1), attention_mask=torch.cat([padding, ones], dim=1), **settings
    )
    assert torch.equal(padded[:, 3:], cached)


@torch.no_grad()
def test_a_static_cache_generates_the_same(variant: str, ids: Tensor) -> None:
    model = build(variant)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **settings)
    assert torch.equal(static, model.generate(ids, use_cache=False, **settings))


@torch.no_grad()
def test_logits_to_keep_keeps_the_last(variant: str, ids: Tensor) -> None:
    model = build(variant)
    assert model(ids, logits_to_keep=2).logits.shape == (2, 2, VOCABULARY)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


@torch.no_grad()
def test_hidden_states_and_attentions_are_recorded(variant: str, ids: Tensor) -> None:
    model = build(variant)
    model.set_attn_implementation("eager")
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == BLOCKS + 1
    assert torch.equal(outputs.hidden_states[0], model.model.embed_tokens(ids))
    assert [weights.shape for weights in outputs.attentions] == [(2, HEADS, 11, 11)] * BLOCKS
    assert torch.equal(outputs.attentions[0].triu(1), torch.zeros(2, HEADS, 11, 11))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the newer name is not in all supported versions
def test_gradient_checkpointing_gives_the_same_gradients(variant: str, ids: Tensor) -> None:
    model, calls = build(variant).train(), []

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    assert len(calls) == 2, "the block was not run again in the backward pass"


# --------------------------------------------------------------------------------------------------- export to Llama


@torch.no_grad()
@pytest.mark.parametrize("variant", ROPE)
def test_the_7b_models_are_llama_exactly(variant: str, ids: Tensor, tmp_path: Path) -> None:
    model = build(variant)
    stored = model.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    config, tensors = as_llama(model.config, stored)
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(tensors, strict=True)
    torch.testing.assert_close(llama(ids).logits, model(ids).logits, atol=2e-6, rtol=1e-6)
    llama.generation_config.pad_token_id = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(llama.generate(ids, **settings), model.generate(ids, **settings))
    save_file(tensors, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is LlamaForCausalLM
    assert not any(info.values()), info


@torch.no_grad()
def test_the_export_takes_the_trunk_s_names_too(ids: Tensor) -> None:
    model = build("Baichuan2-7B")
    config, tensors = as_llama(model.config, model.model.state_dict())
    llama = LlamaForCausalLM(config).eval()
    llama.model.load_state_dict(tensors, strict=True)
    torch.testing.assert_close(llama.model(ids).last_hidden_state, model.model(ids).last_hidden_state)


@pytest.mark.parametrize("variant", ALIBI)
def test_the_13b_models_are_refused_as_llama(variant: str) -> None:
    model = build(variant)
    with pytest.raises(ValueError, match="Llama has rotary positions only: found position_embedding='alibi'"):
        as_llama(model.config, model.state_dict())


# ------------------------------------------------------------------------------------------------------------ config


def test_the_published_configs_are_told_apart() -> None:
    seven = {"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096, "model_max_length": 4096}
    thirteen = {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40, "model_max_length": 4096}
    found = {}
    for name, shape, vocabulary in [
        ("Baichuan-7B", seven, 64_000),
        ("Baichuan-13B", thirteen, 64_000),
        ("Baichuan2-7B", seven, 125_696),
        ("Baichuan2-13B", thirteen, 125_696),
    ]:
        config = BaichuanConfig(**shape, vocab_size=vocabulary)
        found[name] = (config.position_embedding, config.norm_head, config.rope_in_fp32)
    assert found == {
        "Baichuan-7B": ("rope", False, False),
        "Baichuan-13B": ("alibi", False, False),
        "Baichuan2-7B": ("rope", True, True),
        "Baichuan2-13B": ("alibi", True, True),
    }


def test_added_tokens_and_removed_blocks_do_not_change_the_kind() -> None:
    config = BaichuanConfig(hidden_size=5120, num_attention_heads=40, num_hidden_layers=31, vocab_size=125_699)
    assert (config.position_embedding, config.norm_head) == ("alibi", True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 4096, "num_attention_heads": 32, "position_embedding": "alibi"}, "is Baichuan 7B, which has"),
        ({"hidden_size": 5120, "num_attention_heads": 40, "position_embedding": "rope"}, "is Baichuan 13B, which has"),
        (
            {"hidden_size": 5120, "num_attention_heads": 40, "max_position_embeddings": 4096},
            "has no max_position_embeddings: found 4096",
        ),
        (
            SHAPE | {"position_embedding": "alibi", "max_position_embeddings": 64},
            "has no max_position_embeddings: found 64",
        ),
        (SHAPE | {"position_embedding": "learned"}, "must be 'rope' or 'alibi'.*found 'learned'"),
        (SHAPE | {"vocab_size": 90_000}, "cannot tell Baichuan from Baichuan2 by a vocabulary of 90000"),
        (SHAPE | {"num_attention_heads": 5}, "must be a multiple of num_attention_heads: found 24 and 5"),
    ],
)
def test_a_contradiction_is_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BaichuanConfig(**fields)


# ------------------------------------------------------------------------------------------------------------- files


@torch.no_grad()
def test_a_saved_model_loads_as_it_was(variant: str, ids: Tensor, tmp_path: Path) -> None:
    model = build(variant)
    model(ids)  # the original's head writes into its weight here
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for field in ("position_embedding", "norm_head", "rope_in_fp32", "max_position_embeddings", "model_max_length"):
        assert getattr(reloaded.config, field) == getattr(model.config, field)
    assert torch.equal(reloaded(ids).logits, model(ids).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk) is BaichuanModel
    assert torch.equal(trunk(ids).last_hidden_state, model.model(ids).last_hidden_state)


def write_original_layout(folder: Path, variant: str, model: BaichuanForCausalLM) -> None:
    """What the published folder of the variant holds, with remote code that must not be run."""
    config: dict[str, Any] = {
        "architectures": ["BaiChuanForCausalLM" if variant == "Baichuan-7B" else "BaichuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_max_length": 64,
        "model_type": "baichuan",
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.29.2",
        "use_cache": True,
        **SHAPE,
    }
    tensors = dict(model.state_dict())
    if variant in ROPE:
        config["max_position_embeddings"] = 64
    if variant == "Baichuan-7B":
        for index in range(BLOCKS):
            tensors[f"model.layers.{index}.self_attn.rotary_emb.inv_freq"] = torch.full((4,), math.nan)
    if variant == "Baichuan2-13B":
        config["gradient_checkpointing"] = [False]
    if "Baichuan2" in variant:
        # A tiny vocabulary cannot say that it is Baichuan2's; a real one does.
        config["norm_head"] = True
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    for name in ("configuration_baichuan.py", "modeling_baichuan.py", "tokenization_baichuan.py"):
        (folder / name).write_text("raise RuntimeError('remote code was run')\n")
    torch.save(tensors, folder / "pytorch_model.bin")


@torch.no_grad()
@pytest.mark.parametrize("trust", [None, True])
def test_the_original_layout_loads_without_its_code(
    variant: str, trust: bool | None, ids: Tensor, tmp_path: Path
) -> None:
    model = build(variant)
    write_original_layout(tmp_path, variant, model)
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)) is BaichuanConfig
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust, output_loading_info=True)
    assert type(reloaded) is BaichuanForCausalLM
    assert not any(info.values()), info
    assert not any(module.gradient_checkpointing for module in reloaded.model.layers)
    assert torch.equal(reloaded(ids).logits, model(ids).logits)


# --------------------------------------------------------------------------------------------------------- tokenizer

TEXTS = [
    "The quick brown fox",
    "  two spaces before, one after ",
    "价格是 42 元。\n\t第二行",
    "naïve café, 😀🚀",
    "<s>a special token</s> and <reserved_106>a turn",
]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``tokenizer.model`` as Baichuan's: BPE with byte fallback, no space put in front, spaces kept."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text("\n".join(f"The quick brown fox number {i} sees café {i * 7}" for i in range(50)))
    spm.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<reserved_106>"],
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def write_original_tokenizer(folder: Path, model: Path, class_name: str) -> None:
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": [f"tokenization_baichuan.{class_name}", None]},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 64,
        "tokenizer_class": class_name,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_gives_back_the_text(text: str, sentencepiece_model: Path) -> None:
    tokenizer = BaichuanTokenizer(sentencepiece_model)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_encodes_as_sentencepiece_does(sentencepiece_model: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    processor = spm.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokenizer = BaichuanTokenizer(sentencepiece_model)
    for text in TEXTS[:4]:
        assert tokenizer.encode(text) == processor.encode(text)
    fox = tokenizer("fox").input_ids
    assert tokenizer("</s>fox").input_ids == [2, *fox], "no space is put before text, after a special token neither"
    assert tokenizer("<reserved_106>fox").input_ids == [processor.piece_to_id("<reserved_106>"), *fox]
    assert tokenizer("fox").keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_tokenizer_adds_the_tokens_it_is_told_to(bos: bool, eos: bool, sentencepiece_model: Path) -> None:
    plain = BaichuanTokenizer(sentencepiece_model).encode("fox")
    tokenizer = BaichuanTokenizer(sentencepiece_model, add_bos_token=bos, add_eos_token=eos)
    assert tokenizer.encode("fox") == [1] * bos + plain + [2] * eos
    assert tokenizer.encode("fox", add_special_tokens=False) == plain
    assert tokenizer.decode(tokenizer.encode("fox"), skip_special_tokens=True) == "fox"


@pytest.mark.parametrize("trust", [None, True])
@pytest.mark.parametrize("class_name", ["BaichuanTokenizer", "BaiChuanTokenizer"])
def test_the_original_tokenizer_loads_without_its_code(
    class_name: str, trust: bool | None, sentencepiece_model: Path, tmp_path: Path
) -> None:
    write_original_layout(tmp_path, "Baichuan2-13B", build("Baichuan2-13B"))
    write_original_tokenizer(tmp_path, sentencepiece_model, class_name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust)
    assert isinstance(tokenizer, BaichuanTokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.model_max_length == 64
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_saved_or_pickled_tokenizer_is_the_same(sentencepiece_model: Path, tmp_path: Path) -> None:
    tokenizer = BaichuanTokenizer(sentencepiece_model, add_bos_token=True, pad_token="<unk>")
    tokenizer.add_tokens(["<added>"])
    build("Baichuan-13B").config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = "quick <added> fox"
    for copy in (AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert type(copy) is BaichuanTokenizer
        assert copy.encode(text) == tokenizer.encode(text)
        assert copy.get_vocab() == tokenizer.get_vocab()
        assert len(copy) == 351
        assert copy.decode(copy.encode(text), skip_special_tokens=True) == text


def test_a_folder_with_another_tokenizer_keeps_it(tmp_path: Path) -> None:
    build("Baichuan-13B").config.save_pretrained(tmp_path)
    backend = Tokenizer(BPE(vocab={"a": 0, "b": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert not isinstance(tokenizer, BaichuanTokenizer)
    assert tokenizer.encode("ab") == [0, 1]


def test_without_sentencepiece_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ImportError, match="needs sentencepiece: pip install"):
        BaichuanTokenizer(tmp_path / "tokenizer.model")
