"""The text of a pruned config.json: the source's, but for the fields that the removal changes, under all their names.

What is expected is written out by hand for each old spelling that transformers reads.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from shortgpt_adapters.transformers.config_files import aliases
from shortgpt_adapters.transformers.loader import read_config
from shortgpt_adapters.transformers.verbosity import quiet

from shortgpt.errors import ConfigRewriteError
from shortgpt.models.configs import spelling as config_spelling
from shortgpt.models.configs.rules import Config, rewrite_config
from shortgpt.models.configs.spelling import Removal

GONE = object()
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DEEP = {"num_hidden_layers": 6}
SHALLOW = {"num_hidden_layers": 4}


def pruned(text: str, folder: Path, keep: tuple[int, ...], depth: int, part: tuple[str, ...] = ()) -> str:
    """What is written for a config of text `text` whose blocks are counted in `part` of it."""
    (folder / "config.json").write_text(text, encoding="utf-8")
    with quiet():
        config = read_config(folder)
        resolved = config.to_dict()
        rewritten = rewrite_config(resolved[part[0]] if part else resolved, keep, depth)
        whole = {**resolved, part[0]: rewritten} if part else rewritten
        removal = Removal(resolved, whole, keep, depth, part, aliases(config, part))
        config_spelling.write(text, removal, folder / "config.json", lambda: read_config(folder).to_dict())
    return (folder / "config.json").read_text(encoding="utf-8")


def differences(before: Any, after: Any, path: str = "") -> dict[str, Any]:
    """Where two configs differ: path → the new value, `GONE` for none."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return {} if json.dumps(before) == json.dumps(after) else {path: after}
    found: dict[str, Any] = {}
    for key in {**before, **after}:
        here = f"{path}.{key}" if path else key
        if key in before and key in after:
            found |= differences(before[key], after[key], here)
        else:
            found[here] = after.get(key, GONE)
    return found


# Of six blocks the first and the fourth go: 1, 2, 4 and 5 stay.
SPELLINGS: dict[str, tuple[Config, Config]] = {
    "rope_theta, rope_scaling, torch_dtype": (
        {
            "model_type": "llama",
            **DEEP,
            "rope_theta": 500000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "torch_dtype": "bfloat16",
            "transformers_version": "4.31.0",
            "a_field_of_ours": {"layers": "all"},
        },
        SHALLOW,
    ),
    "a count under two names": (
        {"model_type": "gpt2", "n_layer": 6, "num_hidden_layers": 6, "n_ctx": 64, "n_embd": 16, "n_head": 2},
        {"n_layer": 4, "num_hidden_layers": 4},
    ),
    "a count under the other name": ({"model_type": "gpt2", "num_hidden_layers": 6}, SHALLOW),
    "num_experts": (
        {"model_type": "qwen3_moe", **DEEP, "num_experts": 8, "mlp_only_layers": [1, 3], "decoder_sparse_step": 1},
        {**SHALLOW, "mlp_only_layers": [0]},
    ),
    "full_attn_idxs": (
        {"model_type": "lfm2", **DEEP, "full_attn_idxs": [2, 3, 5]},
        {**SHALLOW, "full_attn_idxs": [1, 3]},
    ),
    "full_attn_idxs beside layer_types": (
        {
            "model_type": "lfm2",
            **DEEP,
            "full_attn_idxs": [2, 3, 5],
            "layer_types": ["conv", "conv", FULL, FULL, "conv", FULL],
        },
        {**SHALLOW, "full_attn_idxs": [1, 3], "layer_types": ["conv", FULL, "conv", FULL]},
    ),
    "sliding_window_pattern of Gemma 3": (
        {"model_type": "gemma3_text", **DEEP, "sliding_window_pattern": 3, "rope_local_base_freq": 1e4},
        {**SHALLOW, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    ),
    "sliding_window_pattern of Cohere 2": (
        {"model_type": "cohere2", **DEEP, "sliding_window_pattern": 3},
        {**SHALLOW, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    ),
    "max_window_layers": (
        {"model_type": "qwen2", **DEEP, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4},
        {**SHALLOW, "layer_types": [FULL, FULL, SLIDING, SLIDING]},
    ),
    "a period that says the same of fewer blocks": (
        {"model_type": "qwen3_next", **DEEP, "full_attention_interval": 6},
        {**SHALLOW, "layer_types": [LINEAR, LINEAR, LINEAR, FULL]},
    ),
    "hybrid_override_pattern": (
        {"model_type": "nemotron_h", **DEEP, "hybrid_override_pattern": "ME*-*M"},
        {**SHALLOW, "hybrid_override_pattern": "E**M"},
    ),
    "kinds of blocks by their old names": (
        {"model_type": "zamba", **DEEP, "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"]},
        {**SHALLOW, "layers_block_type": ["hybrid", "mamba", "hybrid", "mamba"]},
    ),
    "kinds of blocks under both names": (
        {
            "model_type": "granitemoehybrid",
            **DEEP,
            "layer_types": ["mamba", "attention", "mamba", "mamba", "attention", "mamba"],
            "layers_block_type": ["mamba", "attention", "mamba", "mamba", "attention", "mamba"],
        },
        {
            **SHALLOW,
            "layer_types": ["attention", "mamba", "attention", "mamba"],
            "layers_block_type": ["attention", "mamba", "attention", "mamba"],
        },
    ),
    "attn_layer_indices": (
        {"model_type": "bamba", **DEEP, "attn_layer_indices": [2, 3, 5]},
        {**SHALLOW, "attn_layer_indices": [1, 3]},
    ),
    "a period and an offset": (
        {
            "model_type": "jamba",
            **DEEP,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 6,
            "expert_layer_offset": 5,
        },
        {**SHALLOW, "attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 4, "expert_layer_offset": 3},
    ),
    "block_types, which is a cycle": (
        {"model_type": "recurrent_gemma", **DEEP, "block_types": ["recurrent", "recurrent", "attention"]},
        {**SHALLOW, "block_types": ["recurrent", "attention", "recurrent", "attention"]},
    ),
    "attention_types": (
        {"model_type": "gpt_neo", "num_layers": 6, "attention_types": [[["global", "local"], 3]]},
        {
            "num_layers": 4,
            "attention_types": [[["local"], 1], [["global"], 1], [["global"], 1], [["local"], 1]],
        },
    ),
    "compress_ratios and num_hash_layers": (
        {
            "model_type": "deepseek_v4",
            **DEEP,
            "compress_ratios": [128, 128, 4, 128, 4, 0, 0],
            "num_hash_layers": 2,
            "num_nextn_predict_layers": 1,
        },
        {**SHALLOW, "compress_ratios": [128, 4, 4, 0], "num_hash_layers": 1, "num_nextn_predict_layers": 0},
    ),
    "linear_attn_config, counted from 1": (
        {
            "model_type": "kimi_linear",
            **DEEP,
            "first_k_dense_replace": 1,
            "linear_attn_config": {"kda_layers": [1, 2, 4, 5], "full_attn_layers": [3, 6], "num_heads": 4},
        },
        {
            **SHALLOW,
            "first_k_dense_replace": 0,
            "linear_attn_config.kda_layers": [1, 3],
            "linear_attn_config.full_attn_layers": [2, 4],
        },
    ),
    "moe_layer_freq and sparse_attention_config": (
        {
            "model_type": "minimax_m3_vl_text",
            **DEEP,
            "moe_layer_freq": [0, 0, 1, 1, 1, 1],
            "sparse_attention_config": {"sparse_attention_freq": [0, 0, 1, 0, 0, 1], "sparse_block_size": 8},
        },
        {
            **SHALLOW,
            "moe_layer_freq": [0, 1, 1, 1],
            "sparse_attention_config.sparse_attention_freq": [0, 1, 0, 1],
        },
    ),
    "index_topk_pattern": (
        {"model_type": "glm_moe_dsa", **DEEP, "index_topk_pattern": "FFSFSS", "first_k_dense_replace": 2},
        {**SHALLOW, "index_topk_pattern": "FSSS", "first_k_dense_replace": 1},
    ),
    "first_k_dense_replace": (
        {"model_type": "axk1", **DEEP, "first_k_dense_replace": 3},
        {**SHALLOW, "first_k_dense_replace": 2},
    ),
    "moe_layers_enum, and lists with entries of an extra head": (
        {
            "model_type": "step3p5",
            **DEEP,
            "num_nextn_predict_layers": 1,
            "moe_layers_enum": "3,4,5",
            "layer_types": [FULL, SLIDING, SLIDING, FULL, SLIDING, FULL, FULL],
            "rope_theta": [5e6, 1e4, 1e4, 5e6, 1e4, 5e6, 5e6],
        },
        {
            **SHALLOW,
            "num_nextn_predict_layers": 0,
            "moe_layers_enum": "2,3",
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
            "rope_theta": [1e4, 1e4, 1e4, 5e6],
        },
    ),
    "an encoder is not the decoder, though its count has the general name": (
        {"model_type": "bart", "num_hidden_layers": 6, "encoder_layers": 6, "decoder_layers": 6},
        {"decoder_layers": 4},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_is_written_differs_from_its_source_in_what_the_removal_changes(name: str, tmp_path: Path) -> None:
    before, expected = SPELLINGS[name]
    text = json.dumps(before, indent=2) + "\n"
    after = pruned(text, tmp_path, (1, 2, 4, 5), 6)
    assert differences(before, json.loads(after)) == expected
    assert list(json.loads(after))[: len(before)] == list(before)


def test_a_part_of_a_larger_config_is_changed_and_what_repeats_it_outside(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 6, "no_rope_layers": [1, 1, 1, 0, 1, 1], "moe_layers": [1, 3, 5], "vocab_size": 99}
    before = {"model_type": "llama4", "num_hidden_layers": 6, "vocab_size": 99, "text_config": text}
    after = json.loads(pruned(json.dumps(before), tmp_path, (1, 2, 4, 5), 6, ("text_config",)))
    assert differences(before, after) == {
        "num_hidden_layers": 4,
        "text_config.num_hidden_layers": 4,
        "text_config.no_rope_layers": [1, 1, 1, 1],
        "text_config.moe_layers": [0, 3],
    }


def test_a_part_that_old_configs_hold_in_the_whole_stays_there(tmp_path: Path) -> None:
    before = {"model_type": "qwen2_vl", "num_hidden_layers": 6, "vision_config": {"depth": 6}}
    after = json.loads(pruned(json.dumps(before), tmp_path, (1, 2, 4, 5), 6, ("text_config",)))
    assert differences(before, after) == {"num_hidden_layers": 4}


def test_a_count_in_the_whole_that_the_library_does_not_read_is_written_into_the_part_too(tmp_path: Path) -> None:
    before = {"model_type": "gemma3", "num_hidden_layers": 26, "text_config": {}}  # 26 is what its text has by default
    keep = tuple(range(24))
    after = json.loads(pruned(json.dumps(before), tmp_path, keep, 26, ("text_config",)))
    assert differences(before, after) == {"num_hidden_layers": 24, "text_config.num_hidden_layers": 24}


def test_a_field_that_the_library_reads_otherwise_than_it_should_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    removal = Removal({"n_layer": 6, "width": 8}, {"n_layer": 4, "width": 8}, (0, 1, 2, 3), 6)
    with pytest.raises(ConfigRewriteError, match=r"config field 'width' cannot be written: the library makes 4 of it"):
        config_spelling.write('{"n_layer": 6}', removal, tmp_path / "config.json", lambda: {"n_layer": 4, "width": 4})


def test_a_field_that_the_library_reads_and_does_not_keep_needs_a_rule(tmp_path: Path) -> None:
    removal = Removal({"n_layer": 6, "kinds": [0] * 6}, {"n_layer": 4, "kinds": [0] * 4}, (0, 1, 2, 3), 6)
    text = '{"n_layer": 6, "kind_of_each_block": [0, 0, 0, 0, 0, 0]}'
    with pytest.raises(ConfigRewriteError, match="config field 'kind_of_each_block'"):
        config_spelling.write(text, removal, tmp_path / "config.json", dict)


COUNTS = ("num_hidden_layers", "num_layers", "n_layer")
HEADS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
FIRST = ("first_k_dense_replace", "num_hash_layers")


def by_hand(name: str, old: Any, keep: tuple[int, ...], depth: int) -> Any:
    """What a field of a published config becomes, by the meaning that its name and its shape have."""
    if name in COUNTS and old == depth:
        return len(keep)
    if name in HEADS and old:
        return 0
    if name in FIRST:
        return sum(block < old for block in keep)
    if isinstance(old, str) and len(old) == depth and set(old) <= set("ME*-"):
        return "".join(old[block] for block in keep)
    if isinstance(old, list) and len(old) >= depth:
        return [old[block] for block in keep]
    return old


def test_published_configs_change_in_what_speaks_of_their_blocks_alone(published_configs: Path, tmp_path: Path) -> None:
    written = 0
    for file in sorted(published_configs.glob("*.json")):
        text = file.read_text(encoding="utf-8")
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        try:
            with quiet():
                config = read_config(tmp_path)
            own = config.get_text_config(decoder=True)
            part = next(((key,) for key in config.sub_configs if getattr(config, key, None) is own), ())
            depth = own.num_hidden_layers
            keep = tuple(block for block in range(depth) if block not in (1, depth - 2))
            after = json.loads(pruned(text, tmp_path, keep, depth, part))
        except (ValueError, StrictDataclassError, ConfigRewriteError):
            continue  # a type that is not known, code of its own, or a field without a rule: nothing is written
        before = json.loads(text)
        for level in ((), part):
            old, new = (_inner(whole, level) for whole in (before, after))
            expected = {name: by_hand(name, value, keep, depth) for name, value in old.items()}
            others = {"quantization_config", *part, *(name for name in new if name not in old)}
            assert {n: v for n, v in new.items() if n not in others} == {
                n: v for n, v in expected.items() if n not in others
            }, file.name
            assert all(new[name] in (len(keep), 0) or len(new[name]) == len(keep) for name in new if name not in old)
        written += 1
    assert written > 20


def _inner(config: Config, part: tuple[str, ...]) -> Config:
    inner: Config = config[part[0]] if part else config
    return inner
