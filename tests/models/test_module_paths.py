"""Names of modules in a config: which speak of a block, and what becomes of them."""

from typing import Any

import pytest

from shortgpt.errors import ConfigRewriteError
from shortgpt.models.configs.module_paths import Renumbering
from shortgpt.models.configs.rules import naming_modules, rewrite_config

# Blocks 1 and 4 of 24 go: 0 2 3 5 6 7 ... 23 are 0 1 2 3 4 5 ... 21 now.
RENUMBER = Renumbering(("model.language_model.layers",), 24, [i for i in range(24) if i not in (1, 4)])


@pytest.mark.parametrize(
    "text",
    [
        "0.12.2",
        "gptqmodel:5.7.0",
        "torch==2.11.0",
        "2024.01.02",
        "12.3 GB",
        "lm_head",
        "model-00001-of-00002.safetensors",
        "model.layers.*.mlp.experts.3",
        "*.experts.3.w1",
        "model.visual.blocks.3.attn",
        "vision_tower.encoder.layers.3",
        "mtp.layers.0.mlp",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
        r"re:.*layers\.(\d+)\.mlp",
        r"re:.*layers\.[0-9]+\.mlp.*",
        r"re:.*experts\.3\..*",
        r"re:^model\.visual\.blocks\.3\..*",
    ],
)
def test_what_names_no_block_stays(text: str) -> None:
    assert RENUMBER.names(text) == [text]
    assert RENUMBER({"a": [text]}) == {"a": [text]}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model.language_model.layers.3.mlp.gate", ["model.language_model.layers.2.mlp.gate"]),
        ("language_model.model.layers.3", ["language_model.model.layers.2"]),
        ("layers.3.ffn.experts.7.w1", ["layers.2.ffn.experts.7.w1"]),
        ("*.layers.3.mlp", ["*.layers.2.mlp"]),
        ("model.layers.1.mlp", []),
        ("model.layers.24.eh_proj", []),  # a prediction head behind the last block
        ("model.layers.0*", ["model.layers.0*"]),
        ("model.layers.2.*", ["model.layers.1.*"]),
        # 2 and 20 to 23 are 1 and 18 to 21 now; `1*` would mean 10 to 19 as well
        ("model.layers.2*", ["model.layers.1", "model.layers.1.*", *(f"model.layers.{i}*" for i in range(18, 22))]),
        ("model.layers.3.a,model.layers.1.a,model.layers.5.a", ["model.layers.2.a,model.layers.3.a"]),
        (r"re:.*layers\.(0|1|2)\..*", [r"re:.*layers\.(0|1)\..*"]),
        (r"re:.*layers\.[0-3]\..*", [r"re:.*layers\.(0|1|2)\..*"]),
        (r"re:model\.layers\.([4-9]|1[0-1])\.mlp", [r"re:model\.layers\.(3|4|5|6|7|8|9)\.mlp"]),
        (r"-:model\.layers\.2\..*", [r"-:model\.layers\.1\..*"]),
        (r"-:model\.layers\.4\..*", []),
    ],
)
def test_what_names_blocks_is_renumbered_or_left_out(text: str, names: list[str]) -> None:
    assert RENUMBER.names(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "foo.layers.3.mlp",
        "decoder.h.3",
        "*.3.mlp",
        "model.layers.1*.mlp",
        r"+:.*\.18\..*gate.*",
        r"re:.*layers\.1.*",  # 10 to 19 as well
        r"re:.*layers\.1\..*|lm_head",
        r"re:(?!.*layers\.1\.).*",
    ],
)
def test_what_may_name_blocks_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match="is not certain") as error:
        RENUMBER([text])
    assert repr(text) in str(error.value)


def test_dictionaries_are_renumbered_by_their_keys_and_a_group_without_targets_goes() -> None:
    section: dict[str, Any] = {
        "quantized_layers": {f"layers.{i}.ffn": {"bits": i} for i in range(4)},
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}},
            "group_1": {"targets": ["model.layers.1.mlp"], "weights": {"num_bits": 4}},
        },
        "weight_block_size": [1, 128],
    }
    assert RENUMBER(section) == {
        "quantized_layers": {"layers.0.ffn": {"bits": 0}, "layers.1.ffn": {"bits": 2}, "layers.2.ffn": {"bits": 3}},
        "config_groups": {"group_0": section["config_groups"]["group_0"]},
        "weight_block_size": [1, 128],
    }


def test_numbers_without_a_name_and_a_name_that_is_gone_are_errors() -> None:
    with pytest.raises(ValueError, match="'skip_layers' may be numbers of blocks"):
        RENUMBER({"skip_layers": [0, 23]})
    with pytest.raises(ValueError, match=r"'model\.layers\.1', which 0 names"):
        RENUMBER({"first": "model.layers.1"})


def test_a_config_with_such_a_pattern_is_an_error_that_names_field_and_pattern() -> None:
    config = {"quantization_config": {"ignore": [r"re:.*\.3\..*"]}}
    with pytest.raises(ConfigRewriteError, match=r"'quantization_config'.*3.*is not certain"):
        rewrite_config(config, (0, 2), 3, naming_modules(("model.layers",)))
