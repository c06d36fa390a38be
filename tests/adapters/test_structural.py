"""Types of transformers without an adapter of their own, by what is odd about each.

What was written is opened by plain transformers, which must miss nothing, and compared with the original whose blocks
are bypassed by a hook written in `tests.support`: not by a bit may they differ.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shortgpt_adapters.transformers.family import TransformersFamily
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    dynamic_module_utils,
)

import shortgpt
from shortgpt import Plan, prune_checkpoint
from shortgpt.checkpoints.inspection import inspect
from shortgpt.errors import ModelError, SelectionError, UnknownArchitectureError
from tests.support import Ran, opened, saved, skipped_by_hand
from tests.support import tiny as tiny_llama
from tests.tiny_types import tiny_config, tiny_model

from .test_baichuan_model import build, write_original_layout

pytestmark = pytest.mark.usefixtures("one_process")

IDS = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(0))
FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"


def randomised(model: Any) -> Any:
    """All weights matter, those of norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def changed(model_type: str, **fields: Any) -> Any:
    """A tiny model of that type whose config says something else."""
    config = tiny_config(model_type)
    config = type(config)(**{**config.to_dict(), **fields})
    return randomised(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit(folder: Path, *gone: str, **fields: Any) -> None:
    """Change a config.json as by hand."""
    config = settings(folder) | fields
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in gone}))


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def proven(model: Any, source: Path, path: str, gone: tuple[int, ...], verify: bool = True) -> dict[str, Any]:
    """Prune a folder beside it, compare what was written with `model`, and give its config."""
    out = source.with_name("out")
    plan = prune_checkpoint(source, out, gone, device="cpu", verify=verify)
    assert plan.verification is not None
    assert plan.verification.verified is verify
    shorter = opened(out)
    expected = skipped_by_hand(model, path, gone, IDS)
    assert not torch.equal(expected, logits_of(model))
    assert torch.equal(logits_of(shorter), expected)
    return settings(out)


def written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def stream_by_hooks(model: nn.Module, path: str, **batch: Tensor) -> list[Tensor]:
    """What each block is given first, and what the last one gives, in float64."""
    seen: list[Tensor] = []
    found = list(model.get_submodule(path).children())

    def given(module: nn.Module, args: Any) -> None:
        seen.append(args[0].double())

    def gave(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).double())

    hooks = [*(block.register_forward_pre_hook(given) for block in found), found[-1].register_forward_hook(gave)]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def influence(stream: Iterable[Tensor]) -> list[float]:
    """1 − E cos(x_i, x_{i+1})."""
    return [1 - torch.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(stream)]


# -- Llama 4 --------------------------------------------------------------------------------------------------


def test_llama4_numbers_its_expert_blocks_anew_even_where_their_list_is_as_long_as_the_model(tmp_path: Path) -> None:
    model = changed("llama4_text", moe_layers=None, interleave_moe_layer_step=1)
    assert model.config.moe_layers == [0, 1, 2, 3, 4, 5]
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (2, 3))
    assert found["moe_layers"] == [0, 1, 2, 3]


def test_llama4_expert_blocks_between_others_are_those_that_they_were(tmp_path: Path) -> None:
    model = changed("llama4_text", moe_layers=[1, 3, 4])
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (1, 2), verify=False)
    assert found["moe_layers"] == [1, 2]
    assert [block.is_moe_layer for block in opened(tmp_path / "out").model.layers] == [False, True, True, False]


def test_llama4_blocks_without_rotary_positions_stay_without_though_no_field_of_the_file_says_which(
    tmp_path: Path,
) -> None:
    model = changed("llama4_text", moe_layers=None, no_rope_layers=None, layer_types=None, interleave_moe_layer_step=2)
    source = written(model, tmp_path / "in")
    edit(source, "moe_layers", "no_rope_layers", "layer_types")
    found = proven(model, source, "model.layers", (1, 2), verify=False)
    assert found["no_rope_layers"] == [1, 0, 1, 1]  # of 1 1 1 0 1 1; four blocks would be given 1 1 1 0
    assert found["layer_types"] == [CHUNKED, FULL, CHUNKED, CHUNKED]
    assert "moe_layers" not in found  # of 1, 3 and 5 stay 1 and 3, which the library derives itself


# -- Qwen 3 Next ----------------------------------------------------------------------------------------------


def test_qwen3_next_expert_blocks_by_step_and_exception_become_a_list(tmp_path: Path) -> None:
    model = changed("qwen3_next", decoder_sparse_step=2, mlp_only_layers=[1])
    kinds = [type(block.mlp).__name__ for block in model.model.layers]
    assert [kind.endswith("MoeBlock") for kind in kinds] == [False, False, False, True, False, True]
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (0, 2))
    assert (found["decoder_sparse_step"], found["mlp_only_layers"]) == (1, [0, 2])
    assert found["layer_types"] == [FULL, LINEAR, FULL, LINEAR]
    kept = [type(block.mlp).__name__ for block in opened(tmp_path / "out").model.layers]
    assert kept == [kinds[1], kinds[3], kinds[4], kinds[5]]


def test_qwen3_next_keeps_an_attention_block_since_its_cache_counts_tokens_there(tmp_path: Path) -> None:
    model = tiny_model("qwen3_next")
    gone = [i for i, kind in enumerate(model.config.layer_types) if kind == FULL]
    reason = r"structural: no attention block would be left, which the library's cache asks for the number of cached"
    with pytest.raises(SelectionError, match=reason):
        shortgpt.remove(shortgpt.wrap(model), gone)
    with pytest.raises(SelectionError, match=reason):
        prune_checkpoint(written(model, tmp_path / "in"), tmp_path / "out", gone, device="cpu")
    assert not (tmp_path / "out").exists()
    assert len(shortgpt.remove(shortgpt.wrap(model), gone[1:])) == 5


# -- DeepSeek V3 and V4 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gone", "dense"), [((0, 4), 2), ((3, 5), 3), ((0, 1, 2), 0)])
def test_deepseek_v3_counts_the_dense_blocks_that_stay(tmp_path: Path, gone: tuple[int, ...], dense: int) -> None:
    model = changed("deepseek_v3", first_k_dense_replace=3)
    found = proven(model, written(model, tmp_path / "in"), "model.layers", gone, verify=False)
    assert found["first_k_dense_replace"] == dense
    kinds = [type(block.mlp).__name__ for block in opened(tmp_path / "out").model.layers]
    assert kinds == ["DeepseekV3MLP"] * dense + ["DeepseekV3MoE"] * (6 - len(gone) - dense)


def test_deepseek_v3_loses_its_extra_prediction_heads_and_the_model_card_says_so(tmp_path: Path) -> None:
    model = changed("deepseek_v3", num_nextn_predict_layers=1)
    source = written(model, tmp_path / "in")
    assert settings(source)["num_nextn_predict_layers"] == 1
    assert proven(model, source, "model.layers", (4,))["num_nextn_predict_layers"] == 0
    said = "`num_nextn_predict_layers` is 0 now: the extra prediction heads behind the last block were trained on all"
    assert said in (tmp_path / "out" / "README.md").read_text()
    shortgpt.remove(shortgpt.load(source, device="cpu"), [4]).save(tmp_path / "memory")
    assert said in (tmp_path / "memory" / "README.md").read_text()
    assert settings(tmp_path / "memory")["num_nextn_predict_layers"] == 0


def test_without_extra_prediction_heads_nothing_is_said_of_them(tmp_path: Path) -> None:
    model = changed("deepseek_v3", num_nextn_predict_layers=0)
    proven(model, written(model, tmp_path / "in"), "model.layers", (4,), verify=False)
    assert "prediction heads" not in (tmp_path / "out" / "README.md").read_text()


def test_the_influence_of_a_deepseek_v4_block_is_over_all_streams_of_a_token() -> None:
    model = tiny_model("deepseek_v4")
    stream = stream_by_hooks(model, "model.layers", input_ids=IDS)
    assert stream[0].shape == (2, 20, 3, 64)
    expected = influence(torch.cat([x[:, :, s] for s in range(3)], -1) for x in stream)
    found = shortgpt.score(shortgpt.wrap(model), [{"input_ids": IDS}]).values
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(influence(x.mean(2) for x in stream), rel=1e-2)  # it could not have been the mean
    assert found != pytest.approx(influence(stream), rel=1e-2)  # nor each stream by itself


def test_a_shorter_deepseek_v4_hands_all_streams_on(tmp_path: Path) -> None:
    model = tiny_model("deepseek_v4")
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (2, 3))
    kinds = model.config.layer_types
    assert found["layer_types"] == [*kinds[:2], *kinds[4:]]
    assert found["mlp_layer_types"] == ["hash_moe", "moe", "moe", "hash_moe"]


# -- Gemma 3 --------------------------------------------------------------------------------------------------


def test_gemma3_kinds_of_attention_that_stand_in_no_config_are_written_out_and_stay(tmp_path: Path) -> None:
    model = changed("gemma3_text", layer_types=None, sliding_window_pattern=3)
    source = written(model, tmp_path / "in")
    edit(source, "layer_types", "_sliding_window_pattern", sliding_window_pattern=3)  # as it is on the hub
    assert not [key for key in settings(source) if "types" in key]
    found = proven(model, source, "model.layers", (1, 3))
    assert found["layer_types"] == [SLIDING, FULL, SLIDING, FULL]  # four blocks by themselves: full at 2 only


def composite(source: Path) -> Any:
    """Gemma 3 with its vision tower, whose text config does not say the kinds of attention."""
    config = tiny_config("gemma3")
    config.text_config.layer_types = [FULL if i % 3 == 2 else SLIDING for i in range(6)]
    model = randomised(transformers.Gemma3ForConditionalGeneration(config))
    model.save_pretrained(source)
    text = settings(source)["text_config"]
    edit(
        source,
        text_config={k: v for k, v in text.items() if k not in ("layer_types", "_sliding_window_pattern")}
        | {"sliding_window_pattern": 3},
    )
    return model


@pytest.mark.parametrize("road", ["disk", "memory"])
def test_a_whole_gemma3_is_written_with_its_vision_tower_and_only_its_text_config_changes(
    tmp_path: Path, road: str
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    model = composite(source)
    if road == "disk":
        prune_checkpoint(source, out, [1, 3], device="cpu")
    else:
        shortgpt.remove(shortgpt.load(source, device="cpu"), [1, 3]).save(out)
    shorter = opened(out, transformers.Gemma3ForConditionalGeneration)
    before, after = settings(source), settings(out)
    assert after["text_config"]["layer_types"] == [SLIDING, FULL, SLIDING, FULL]
    after["vision_config"].pop("dtype", None)  # that of the tensors, which the library writes beside
    assert after["vision_config"] == before["vision_config"]
    assert after["vision_config"]["num_hidden_layers"] == 2
    theirs, mine = model.state_dict(), shorter.state_dict()
    beside = [name for name in theirs if ".language_model.layers." not in name]
    assert any("vision_tower" in name for name in beside)
    assert all(torch.equal(mine[name], theirs[name]) for name in beside)
    expected = skipped_by_hand(model, "model.language_model.layers", (1, 3), IDS)
    assert torch.equal(logits_of(shorter), expected)


# -- Jamba, Nemotron H ----------------------------------------------------------------------------------------

JAMBA = {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ((2, 3), r"'attn_layer_period' \(value 3\) .*: the attn blocks that stay \(\. x x \.\) do not repeat"),
        ((1, 4), r"'expert_layer_period' \(value 2\) .*: the expert blocks that stay \(\. \. x x\) do not repeat"),
    ],
)
def test_jamba_is_refused_where_what_stays_is_not_periodic_any_more(
    tmp_path: Path, gone: tuple[int, ...], reason: str
) -> None:
    model = changed("jamba", **JAMBA)
    with pytest.raises(SelectionError, match=reason):
        shortgpt.remove(shortgpt.wrap(model), gone)
    with pytest.raises(SelectionError, match=reason):
        prune_checkpoint(written(model, tmp_path / "in"), tmp_path / "out", gone, device="cpu")
    assert not (tmp_path / "out").exists()


def test_jamba_is_given_another_period_where_there_is_one(tmp_path: Path) -> None:
    model = changed("jamba", **JAMBA)
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (0, 3))
    solved = {"attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 3, "expert_layer_offset": 0}
    assert {key: found[key] for key in JAMBA} == solved
    kinds = [type(block).__name__ for block in opened(tmp_path / "out").model.layers]
    assert kinds == ["JambaAttentionDecoderLayer", "JambaMambaDecoderLayer"] * 2


def test_nemotron_h_has_no_field_that_counts_and_its_list_is_the_count(tmp_path: Path) -> None:
    model = tiny_model("nemotron_h")
    kinds = [LINEAR, "moe", FULL, "mlp", FULL, LINEAR]
    source = written(model, tmp_path / "in")
    assert settings(source)["layers_block_type"] == kinds
    found = proven(model, source, "model.layers", (0, 3))
    assert "num_hidden_layers" not in found
    assert found["layers_block_type"] == ["moe", FULL, FULL, LINEAR]


def test_nemotron_h_of_the_hub_names_its_blocks_by_signs_and_a_count(tmp_path: Path) -> None:
    model = tiny_model("nemotron_h")
    source = written(model, tmp_path / "in")
    edit(source, "layers_block_type", hybrid_override_pattern="ME*-*M", num_hidden_layers=6)
    found = proven(model, source, "model.layers", (0, 3), verify=False)
    assert found["hybrid_override_pattern"] == "E**M"
    assert found.get("num_hidden_layers", 4) == 4


# -- GPT-OSS --------------------------------------------------------------------------------------------------


def test_gpt_oss_keeps_windows_sinks_and_experts_with_their_blocks(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (0, 4))
    assert found["layer_types"] == [FULL, SLIDING, SLIDING, SLIDING]
    kept = [1, 2, 3, 5]
    for new, block in enumerate(opened(tmp_path / "out").model.layers):
        old = model.model.layers[kept[new]]
        assert torch.equal(block.self_attn.sinks, old.self_attn.sinks)
        assert torch.equal(block.mlp.experts.gate_up_proj, old.mlp.experts.gate_up_proj)


@pytest.mark.parametrize(
    ("names", "refusal"),
    [
        (["model.layers.*.self_attn", "lm_head"], None),
        (["model.layers.0.self_attn", "model.layers.1.mlp"], None),
        ([r"re:.*\.1\..*"], "and which blocks that means is not certain"),
    ],
)
def test_a_quantisation_is_refused_where_it_is_not_certain_which_blocks_it_names(
    tmp_path: Path, names: list[str], refusal: str | None
) -> None:
    source = written(tiny_model("gpt_oss"), tmp_path / "in")
    edit(source, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": names})
    found = inspect(source, [1]).refusal
    assert (found is None) if refusal is None else (refusal in str(found))


# -- blocks side by side, tuples, and other places ------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "path", "fields", "placement"),
    [
        ("phi", "model.layers", {}, "parallel"),  # one norm that attention and feed-forward both read
        ("gpt_neox", "gpt_neox.layers", {"use_parallel_residual": True}, "parallel"),  # two norms that read the stream
        ("gpt_neox", "gpt_neox.layers", {"use_parallel_residual": False}, "pre"),
        ("falcon", "transformer.h", {"parallel_attn": True}, "parallel"),
        ("falcon", "transformer.h", {"parallel_attn": False}, "pre"),
        ("falcon", "transformer.h", {"new_decoder_architecture": True}, "parallel"),
        ("opt", "model.decoder.layers", {}, "pre"),
        ("opt", "model.decoder.layers", {"do_layer_norm_before": False}, "post"),  # as the 350M is
        ("mpt", "transformer.blocks", {}, "pre"),
        ("bloom", "transformer.h", {}, "pre"),
    ],
)
def test_norms_are_told_where_they_are_and_what_is_left_computes_the_same(
    tmp_path: Path, model_type: str, path: str, fields: dict[str, Any], placement: str
) -> None:
    model = changed(model_type, **fields)
    blocks = shortgpt.wrap(model)
    assert blocks.norm_placement == placement
    assert blocks.block_names == tuple(f"{path}.{i}" for i in range(6))
    proven(model, written(model, tmp_path / "in"), path, (1, 4), verify=False)


@pytest.mark.parametrize(("model_type", "path"), [("falcon", "transformer.h"), ("mpt", "transformer.blocks")])
def test_of_a_block_that_gives_a_tuple_the_stream_is_scored_and_handed_on(model_type: str, path: str) -> None:
    model = tiny_model(model_type)
    outputs: list[Any] = []
    hook = model.get_submodule(f"{path}.0").register_forward_hook(lambda module, args, out: outputs.append(out))
    expected = influence(stream_by_hooks(model, path, input_ids=IDS))
    hook.remove()
    assert isinstance(outputs[0], tuple)
    blocks = shortgpt.wrap(model)
    assert shortgpt.score(blocks, [{"input_ids": IDS}]).values == pytest.approx(expected, rel=1e-5)
    with blocks.skipping([1, 4]):
        assert torch.equal(blocks.logits({"input_ids": IDS}), skipped_by_hand(model, path, (1, 4), IDS))


@pytest.mark.parametrize(
    ("model_type", "base", "named", "path"),
    [
        ("bloom", "transformer", "h.0.", "transformer.h"),
        ("opt", "model", "decoder.layers.0.", "model.decoder.layers"),
        ("mpt", "transformer", "blocks.0.", "transformer.blocks"),
    ],
)
def test_a_base_checkpoint_whose_names_lack_the_prefix_is_pruned_under_those_names(
    tmp_path: Path, model_type: str, base: str, named: str, path: str
) -> None:
    model = tiny_model(model_type)
    source = written(model.get_submodule(base), tmp_path / "in")
    edit(source, architectures=[type(model).__name__])  # as the hub has them
    assert any(name.startswith(named) for name in load_file(source / "model.safetensors"))
    proven(model, source, path, (1, 4), verify=False)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert names == {name for name in load_file(source / "model.safetensors") if not name.startswith(blocks_4_5(named))}


def blocks_4_5(named: str) -> tuple[str, ...]:
    return tuple(named.replace(".0.", f".{i}.") for i in (4, 5))


# -- xLSTM, RecurrentGemma ------------------------------------------------------------------------------------


def test_xlstm_counts_its_blocks_in_two_fields(tmp_path: Path) -> None:
    model = tiny_model("xlstm")
    found = proven(model, written(model, tmp_path / "in"), "backbone.blocks", (1, 4))
    assert (found["num_blocks"], found["num_hidden_layers"]) == (4, 4)


@pytest.mark.parametrize(("model_type", "path"), [("xlstm", "backbone.blocks"), ("recurrent_gemma", "model.layers")])
def test_a_recurrent_model_does_not_see_the_padding_on_the_left_of_a_batch(model_type: str, path: str) -> None:
    model = tiny_model(model_type)
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    batch["attention_mask"][0, :7] = 0
    # Each row by itself: nothing is padded.
    rows = [stream_by_hooks(model, path, input_ids=ids) for ids in (IDS[:1, 7:], IDS[1:])]
    expected = influence(torch.cat([x[0] for x in boundary]) for boundary in zip(*rows, strict=True))
    assert shortgpt.score(shortgpt.wrap(model), [batch]).values == pytest.approx(expected, rel=1e-5)


def test_recurrent_gemma_says_a_cycle_of_kinds_which_is_written_out(tmp_path: Path) -> None:
    model = tiny_model("recurrent_gemma")
    cycle = ["recurrent", "recurrent", "attention"]
    assert model.config.block_types == cycle
    found = proven(model, written(model, tmp_path / "in"), "model.layers", (0, 1))
    assert found["block_types"] == ["attention", "recurrent", "recurrent", "attention"]


# -- mixtures of experts on disk ------------------------------------------------------------------------------


def test_a_mixtral_whose_experts_are_tensors_of_their_own_is_pruned_by_blocks_not_by_experts(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    source = written(model, tmp_path / "in")
    before = load_file(source / "model.safetensors")
    assert "model.layers.5.block_sparse_moe.experts.3.w1.weight" in before
    proven(model, source, "model.layers", (1, 4))
    after = load_file(tmp_path / "out" / "model.safetensors")
    place = {"0": "0", "2": "1", "3": "2", "5": "3"}
    expected = {}
    for name, tensor in before.items():
        parts = name.split(".")
        if parts[:2] != ["model", "layers"]:
            expected[name] = tensor
        elif parts[2] in place:
            expected[".".join([*parts[:2], place[parts[2]], *parts[3:]])] = tensor
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())


# -- encoders -------------------------------------------------------------------------------------------------

BERT = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 48}


def bert(by: Any) -> Any:
    torch.manual_seed(0)
    return randomised(by(BertConfig(**BERT, vocab_size=257, max_position_embeddings=128)))


def test_bert_is_scored_compared_and_pruned_and_its_generation_is_not_compared(tmp_path: Path) -> None:
    model = bert(BertForMaskedLM)
    source, out = written(model, tmp_path / "in"), tmp_path / "out"
    assert settings(source)["is_decoder"] is False
    blocks = shortgpt.load(source, device="cpu")
    assert (blocks.architecture, blocks.norm_placement, type(blocks.model)) == ("structural", "post", BertForMaskedLM)  # type: ignore[attr-defined]
    expected = influence(stream_by_hooks(model, "bert.encoder.layer", input_ids=IDS))
    assert shortgpt.score(blocks, [{"input_ids": IDS}]).values == pytest.approx(expected, rel=1e-5)
    rows = shortgpt.compare([source, saved(tiny_llama("llama"), tmp_path / "llama")], [{"input_ids": IDS}]).rows
    assert rows[0].scores is not None
    assert rows[0].scores.values == pytest.approx(expected, rel=1e-5)
    assert [row.error for row in rows] == [None, None]
    plan = prune_checkpoint(source, out, [1, 4], device="cpu")
    assert plan.verification is not None
    assert (plan.verification.verified, plan.verification.generated) == (True, 0)
    assert plan.verification.not_generated == "a BertForMaskedLM does not generate"
    assert "cached generation was not compared: a BertForMaskedLM does" in (out / "README.md").read_text()
    assert "AutoModelForMaskedLM.from_pretrained" in plan.load
    shorter = opened(out, BertForMaskedLM)
    assert torch.equal(logits_of(shorter), skipped_by_hand(model, "bert.encoder.layer", (1, 4), IDS))


def test_of_a_language_model_that_looks_to_both_sides_generation_is_not_compared_either(tmp_path: Path) -> None:
    model = bert(BertLMHeadModel)
    plan = prune_checkpoint(written(model, tmp_path / "in"), tmp_path / "out", [1, 4], device="cpu")
    assert plan.verification is not None
    assert plan.verification.verified
    assert plan.verification.not_generated is not None
    assert plan.verification.not_generated.startswith("its blocks attend to both sides")


def test_a_bert_without_a_head_is_proven_by_its_last_hidden_state(tmp_path: Path) -> None:
    model = bert(BertModel)
    source = written(model, tmp_path / "in")
    blocks = shortgpt.load(source, device="cpu")
    expected = influence(stream_by_hooks(model, "encoder.layer", input_ids=IDS))
    assert shortgpt.score(blocks, [{"input_ids": IDS}]).values == pytest.approx(expected, rel=1e-5)
    plan = prune_checkpoint(source, tmp_path / "out", [1, 4], device="cpu")
    assert plan.verification is not None
    assert plan.verification.verified
    shorter = opened(tmp_path / "out", BertModel)
    kept = [model.encoder.layer[i] for i in (0, 2, 3, 5)]
    with torch.no_grad():
        hidden = model.embeddings(IDS)
        for block in kept:
            hidden = block(hidden)
        assert torch.equal(shorter(input_ids=IDS).last_hidden_state, hidden)
    assert plan.verification.max_logit == pytest.approx(blocks_of_probe(shorter, plan).abs().max().item(), rel=1e-6)


def blocks_of_probe(shorter: Any, plan: Plan) -> Tensor:
    """The last hidden state on the tokens that verification took."""
    assert plan.verification is not None
    with torch.no_grad():
        return shorter(input_ids=torch.tensor(plan.verification.probe_ids)).last_hidden_state


# -- code that a folder brings along --------------------------------------------------------------------------

CONFIGURATION = """
from transformers import PreTrainedConfig

class MineConfig(PreTrainedConfig):
    model_type = "mine"
    attribute_map = {"num_hidden_layers": "num_layers"}

    def __init__(self, vocab_size=64, width=16, num_layers=6, **kwargs):
        self.vocab_size, self.width, self.num_layers = vocab_size, width, num_layers
        super().__init__(**kwargs)
"""
MODELING = '''
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_mine import MineConfig

class Cell(nn.Module):
    """Adds to a token what it makes of the mean of all up to it."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        seen = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return x + torch.tanh(self.mix(self.norm(x).cumsum(1) / seen))

class MineForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.cells = nn.ModuleList([Cell(config.width) for _ in range(config.num_layers)])
        self.out = nn.Linear(config.width, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.token

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        x = self.token(input_ids)
        for cell in self.cells:
            x = cell(x)
        return CausalLMOutput(logits=self.out(x))
'''
CODE = ("configuration_mine.py", "modeling_mine.py")


def loaded_code() -> list[str]:
    return [name for name in sys.modules if name.startswith("transformers_modules")]


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder of a type that transformers does not know, with the code for it; its run leaves no trace."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in zip(CODE, (CONFIGURATION, MODELING), strict=True):
        (folder / name).write_text(text)
    auto_map = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config = {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": auto_map, "num_layers": 6}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"norm.weight": (16,), "norm.bias": (16,), "mix.weight": (16, 16), "mix.bias": (16,)}
    names = {f"cells.{i}.{name}": shape for i in range(6) for name, shape in shapes.items()}
    names |= {"token.weight": (64, 16), "out.weight": (64, 16), "out.bias": (64,)}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    yield folder
    for name in loaded_code():
        del sys.modules[name]


def logits_by_formula(tensors: dict[str, Tensor], blocks: Iterable[int]) -> list[Tensor]:
    """The stream of the model above through these blocks, then its logits, in float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    x = w["token.weight"][IDS % 64]
    values = [x]
    for i in blocks:
        p = f"cells.{i}."
        u = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        u = u * w[p + "norm.weight"] + w[p + "norm.bias"]
        mean = u.cumsum(1) / torch.arange(1, IDS.shape[1] + 1)[:, None]
        x = x + torch.tanh(mean @ w[p + "mix.weight"].T + w[p + "mix.bias"])
        values.append(x)
    return [*values, x @ w["out.weight"].T + w["out.bias"]]


def test_code_of_a_folder_does_not_run_before_it_is_trusted(own_code: Path, tmp_path: Path) -> None:
    for attempt in (
        lambda: shortgpt.load(own_code, device="cpu"),
        lambda: prune_checkpoint(own_code, tmp_path / "out", [1], device="cpu"),
        lambda: inspect(own_code),
    ):
        with pytest.raises(ModelError, match=r"names code of its own .*modeling_mine\.MineForCausalLM.* only when you"):
            attempt()
    assert loaded_code() == []
    assert not (tmp_path / "out").exists()


def test_with_trusted_code_an_unknown_type_is_scored_and_pruned_and_takes_its_code_along(
    own_code: Path, tmp_path: Path, run_cli: Callable[..., Ran]
) -> None:
    tensors = load_file(own_code / "model.safetensors")
    blocks = shortgpt.load(own_code, device="cpu", trust_remote_code=True)
    assert (blocks.architecture, blocks.norm_placement, blocks.block_names[0]) == ("structural", "pre", "cells.0")
    expected = influence(logits_by_formula(tensors, range(6))[:-1])
    scores = shortgpt.score(blocks, [{"input_ids": IDS % 64}])
    assert scores.values == pytest.approx(expected, rel=1e-5)
    plan = prune_checkpoint(own_code, tmp_path / "out", [1, 4], device="cpu", trust_remote_code=True)
    assert plan.verification is not None
    assert (plan.verification.verified, plan.verification.generated) == (True, 8)
    ran = run_cli("verify", tmp_path / "out", "--trust-remote-code", "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    assert (
        'from_pretrained("DIR", dtype="auto", trust_remote_code=True)' in (tmp_path / "out" / "README.md").read_text()
    )
    for name in CODE:
        assert (tmp_path / "out" / name).read_bytes() == (own_code / name).read_bytes()
    assert settings(tmp_path / "out")["num_layers"] == 4
    assert settings(tmp_path / "out")["auto_map"] == settings(own_code)["auto_map"]
    shorter = opened(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        found = shorter(IDS % 64).logits
    assert torch.allclose(found.double(), logits_by_formula(tensors, (0, 2, 3, 5))[-1], rtol=0, atol=1e-4)


def test_a_shorter_model_of_trusted_code_is_saved_from_memory_with_its_code(own_code: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(own_code, trust_remote_code=True)
    shortgpt.remove(shortgpt.wrap(model), [1, 4]).save(tmp_path / "out")
    assert {*CODE} <= {file.name for file in (tmp_path / "out").iterdir()}
    shorter = opened(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        expected = logits_by_formula(load_file(own_code / "model.safetensors"), (0, 2, 3, 5))[-1]
        assert torch.allclose(shorter(IDS % 64).logits.double(), expected, rtol=0, atol=1e-4)


def test_the_published_folder_of_baichuan_is_pruned_without_running_its_code(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    model = build("Baichuan-7B")
    write_original_layout(source, "Baichuan-7B", model)  # its code raises where it is run
    plan = prune_checkpoint(source, out, [1], device="cpu")
    assert plan.architecture == "baichuan"
    assert plan.verification is not None
    assert plan.verification.verified
    ids = IDS % 61
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(out).eval()(ids).logits
    assert torch.equal(found, skipped_by_hand(model, "model.layers", [1], ids))
    code = sorted(file.name for file in source.glob("*.py"))
    assert sorted(file.name for file in out.glob("*.py")) == sorted([*code, "modeling_baichuan_for_transformers_5.py"])
    ours = {"AutoConfig": "BaichuanConfig", "AutoModel": "BaichuanModel", "AutoModelForCausalLM": "BaichuanForCausalLM"}
    assert settings(out)["auto_map"] == {
        auto: f"modeling_baichuan_for_transformers_5.{name}" for auto, name in ours.items()
    }


# -- what is not known ----------------------------------------------------------------------------------------


def test_a_type_that_transformers_does_not_know_is_an_unknown_architecture_that_names_what_is_installed(
    tmp_path: Path,
) -> None:
    config = {"model_type": "nothing_like_it", "architectures": ["NothingForCausalLM"], "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownArchitectureError) as error:
        shortgpt.load(tmp_path, device="cpu")
    told = str(error.value)
    assert "model_type 'nothing_like_it', architectures ['NothingForCausalLM']" in told
    assert f"transformers {transformers.__version__} has no such type" in told
    installed = told.partition("Installed: ")[2].split(". ")[0].split(", ")
    assert {"baichuan", "llama", "structural", "plain-torch", "mamba-ssm", "rwkv-package"} <= {*installed}
    assert "docs/writing-an-adapter.md" in told


@pytest.fixture
def all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads every field of a config."""
    monkeypatch.setattr(TransformersFamily, "reads", lambda family, config, field: True)


@pytest.mark.usefixtures("all_is_read")
@pytest.mark.parametrize("field", ["num_layers_special", "blocks_with_wings", "depth_of_something"])
def test_a_field_that_no_rule_explains_is_refused_by_its_name(tmp_path: Path, field: str) -> None:
    model = tiny_model("phi")
    setattr(model.config, field, 3)
    source = written(model, tmp_path / "in")
    assert settings(source)[field] == 3
    message = rf"config field '{field}' \(value 3\) cannot be rewritten: no rule says how it depends on the blocks"
    with pytest.raises(SelectionError, match=message):
        shortgpt.remove(shortgpt.wrap(model), [1])
    with pytest.raises(SelectionError, match=message):
        prune_checkpoint(source, tmp_path / "out", [1], device="cpu")
    assert not (tmp_path / "out").exists()
    scores = shortgpt.score(shortgpt.load(source, device="cpu"), [{"input_ids": IDS}])
    assert scores.values == pytest.approx(influence(stream_by_hooks(model, "model.layers", input_ids=IDS)), rel=1e-5)


@pytest.mark.usefixtures("all_is_read")
def test_a_list_with_an_entry_for_each_block_is_refused_whatever_its_name(tmp_path: Path) -> None:
    model = tiny_model("phi")
    model.config.temperatures = [1.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    with pytest.raises(SelectionError, match=r"'temperatures' .* cannot be rewritten: no rule says how"):
        prune_checkpoint(written(model, tmp_path / "in"), tmp_path / "out", [1], device="cpu")
    model.config.temperatures = [1.0, 2.0]
    shortgpt.remove(shortgpt.wrap(model), [1])


# -- files that hold more than the library loads --------------------------------------------------------------


def test_prediction_blocks_behind_the_last_one_are_left_out_as_the_library_leaves_them_out(tmp_path: Path) -> None:
    model = randomised(AutoModelForCausalLM.from_config(tiny_config("deepseek_v3", 61), dtype=torch.float32))
    folder = saved(model, tmp_path / "in")  # as published: 61 blocks, and a 62nd that predicts further tokens
    tensors = load_file(folder / "model.safetensors")
    extra = {name.replace(".60.", ".61."): tensor.clone() for name, tensor in tensors.items() if ".layers.60." in name}
    extra["model.layers.61.eh_proj.weight"] = torch.ones(64, 128)
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    prune_checkpoint(folder, tmp_path / "out", [5, 6], device="cpu")
    shorter = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits_of(shorter), skipped_by_hand(model, "model.layers", (5, 6), IDS))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {int(name.split(".")[2]) for name in written if ".layers." in name} == set(range(59))


@pytest.mark.parametrize("model_type", ["phi", "mixtral"])
def test_one_block_alone_is_what_can_stay(model_type: str, tmp_path: Path) -> None:
    model = randomised(tiny_model(model_type, 2))
    prune_checkpoint(saved(model, tmp_path / "in"), tmp_path / "out", [0], device="cpu")
    assert len(shortgpt.load(tmp_path / "out", device="cpu")) == 1
    assert len(shortgpt.remove(shortgpt.wrap(model), [0])) == 1


def test_experts_have_their_published_names_from_memory_and_from_disk(tmp_path: Path) -> None:
    folder = saved(tiny_model("mixtral"), tmp_path / "in")
    prune_checkpoint(folder, tmp_path / "disk", [1, 4], verify=False)
    shortgpt.remove(shortgpt.load(folder, device="cpu"), [1, 4]).save(tmp_path / "memory")
    disk, memory = (load_file(tmp_path / road / "model.safetensors") for road in ("disk", "memory"))
    assert memory.keys() == disk.keys()
    assert all(torch.equal(memory[name], disk[name]) for name in disk)


def test_verifying_code_that_was_not_trusted_is_a_mistake_with_advice(
    own_code: Path, tmp_path: Path, run_cli: Callable[..., Ran]
) -> None:
    prune_checkpoint(own_code, tmp_path / "out", [1], device="cpu", trust_remote_code=True)
    ran = run_cli("verify", tmp_path / "out", "--device", "cpu")
    assert ran.status == 2
    assert "--trust-remote-code" in ran.err
