"""Baichuan through the adapter: the contract for both sizes, and the 7B written as Llama."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from shortgpt_adapters.baichuan.model import BaichuanConfig, BaichuanForCausalLM, alibi_slopes
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import shortgpt
from shortgpt.cli import main
from shortgpt.testing import CHECKS, check_adapter
from tests.fresh_processes import run_python

from . import by_hand

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "7B": {"max_position_embeddings": 64, "norm_head": False},
    "Baichuan2-7B": {"max_position_embeddings": 64, "norm_head": True},
    "13B": {"model_max_length": 64, "norm_head": False},
    "Baichuan2-13B": {"model_max_length": 64, "norm_head": True},
}


def tiny(variant: str) -> Any:
    torch.manual_seed(0)
    model = BaichuanForCausalLM(BaichuanConfig(**SIZES, **VARIANTS[variant])).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def stream_by_hand(model: Any, ids: Tensor) -> list[Tensor]:
    w, c = by_hand.weights_of(model), model.config
    x = w["model.embed_tokens.weight"][ids]
    tokens = ids.shape[1]
    distance = (torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]).double()
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / 4) for h in range(4)], dtype=torch.float64)  # for 4 heads
    bias = slopes[:, None, None] * distance if c.position_embedding == "alibi" else torch.zeros(4, 1, 1)
    stream = [x]
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}."
        u = by_hand.rms_norm(x, w[p + "input_layernorm.weight"], c.rms_norm_eps)
        q, k, v = (by_hand.heads(u @ part.T, 4) for part in w[p + "self_attn.W_pack.weight"].chunk(3))
        if c.position_embedding == "rope":
            q, k = by_hand.rotate(q), by_hand.rotate(k)
        scores = (q @ k.transpose(-1, -2) / 8**0.5 + bias).masked_fill(distance > 0, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w[p + "self_attn.o_proj.weight"].T
        u = by_hand.rms_norm(x, w[p + "post_attention_layernorm.weight"], c.rms_norm_eps)
        gate, up = (u @ w[f"{p}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (by_hand.silu(gate) * up) @ w[p + "mlp.down_proj.weight"].T
        stream.append(x)
    return stream


def test_the_slopes_of_alibi_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == [2.0 ** -(i + 1) for i in range(8)]  # arXiv:2108.12409, section 3


@pytest.mark.sampled("Baichuan2-7B", "13B")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_contract_holds_with_the_stream_computed_by_hand(variant: str, tmp_path: Path) -> None:
    model = tiny(variant)
    held = check_adapter(
        lambda: shortgpt.wrap(deepcopy(model)),
        tmp_path,
        reference=lambda sequence, batch: stream_by_hand(model, batch["input_ids"]),
    )
    assert len(held) == len(CHECKS)


@pytest.mark.sampled("Baichuan2-7B")
@pytest.mark.parametrize("variant", ["7B", "Baichuan2-7B"])
def test_a_shorter_7b_written_as_llama_computes_the_same(variant: str, tmp_path: Path) -> None:
    model = tiny(variant)
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "prune",
                str(tmp_path / "in"),
                "-o",
                str(tmp_path / "out"),
                "--remove",
                "1,4",
                "--as-llama",
                "--device",
                "cpu",
            ]
        )
    assert stop.value.code == 0
    llama, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(llama) is LlamaForCausalLM
    assert not any(info.values())
    assert llama.config.num_hidden_layers == 4
    ids = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(1))
    whole = shortgpt.wrap(model)
    with whole.skipping([1, 4]), torch.no_grad():
        expected = whole.logits({"input_ids": ids})
        assert (llama.eval()(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert "LlamaForCausalLM" not in (tmp_path / "in" / "config.json").read_text()


def test_alibi_cannot_be_written_as_llama(tmp_path: Path) -> None:
    tiny("13B").save_pretrained(tmp_path / "in")
    with pytest.raises(shortgpt.ShortGPTError, match=r"ALiBi|rotary"):
        shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [1], verify=False, export_as="llama")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_family_says_what_it_can_be_written_as(tmp_path: Path) -> None:
    tiny("7B").save_pretrained(tmp_path / "in")
    with pytest.raises(shortgpt.ShortGPTError, match="supported: llama"):
        shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [1], verify=False, export_as="gpt2")


def test_what_is_written_as_llama_brings_a_tokenizer_that_plain_transformers_loads(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog 12 times\n" * 50)
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "bpe"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        user_defined_symbols=["<reserved_106>"],
        minloglevel=2,
    )
    processor = spm.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    torch.manual_seed(0)
    config = BaichuanConfig(**{**SIZES, "vocab_size": processor.get_piece_size()}, **VARIANTS["7B"])
    BaichuanForCausalLM(config).save_pretrained(tmp_path / "in")
    (tmp_path / "bpe.model").rename(tmp_path / "in" / "tokenizer.model")
    (tmp_path / "in" / "tokenization_baichuan.py").write_text("raise RuntimeError('code of another time')")
    (tmp_path / "in" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "BaichuanTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
            }
        )
    )
    shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [1], verify=False, export_as="llama")
    code = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print(json.dumps([t(text)['input_ids'] for text in json.loads(sys.argv[2])])); "
        "assert not any(name.startswith('shortgpt') for name in sys.modules)"
    )
    texts = ["the quick  fox", " naïve 漢字\n\tx", "12 lazy<reserved_106>dogs"]
    run = run_python("-c", code, tmp_path / "out", json.dumps(texts))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [processor.encode(text) for text in texts]
    assert not list((tmp_path / "out").glob("*.py"))
