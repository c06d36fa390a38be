"""Configs that name old classes, code of their own, or what the library refuses: the type that is found, and what is
told."""

import json
from pathlib import Path
from typing import Any

import pytest
from shortgpt_adapters.transformers.loader import loading_class, read_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MusicgenForCausalLM,
)

from shortgpt.errors import LONGEST, CheckpointError, ModelError, reason_of
from shortgpt.models.recognition import recognise, resolve
from shortgpt.verification.fresh_process import _reason

AUTO_MAP = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 99}


def family_of(folder: Path, **config: Any) -> Any:
    """The family of a folder with this config, which it has read."""
    (folder / "config.json").write_text(json.dumps(SIZES | config), encoding="utf-8")
    source = resolve(folder)
    family = recognise(source)
    family.read_config(source)
    return family


@pytest.mark.parametrize("model_type", ["llama", "exaone4"])
@pytest.mark.parametrize("extra", [{}, {"auto_map": AUTO_MAP}])
def test_the_reason_why_the_library_refuses_a_config_is_told_whole(
    tmp_path: Path, model_type: str, extra: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as told:
        family_of(tmp_path, model_type=model_type, layer_types=["full_attention"] * 5, **extra)
    assert "`num_hidden_layers` (4) must be equal to the number of `layer_types` (5)" in str(told.value)
    assert "\n" not in str(told.value)


def test_code_beside_a_type_that_the_library_knows_is_not_run_and_not_needed(tmp_path: Path) -> None:
    names = {"model_type": "qwen3", "architectures": ["XForCausalLM"], "auto_map": AUTO_MAP}
    assert family_of(tmp_path, **names).architecture == "structural"
    config = read_config(tmp_path)
    assert type(config).__module__.startswith("transformers.")
    assert loading_class(config) is AutoModelForCausalLM
    with pytest.raises(OSError, match="configuration_x"):  # trusted, it is run, as the Auto classes do
        read_config(tmp_path, trust_remote_code=True)


def test_code_of_a_type_that_the_library_lacks_has_to_be_trusted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"code of its own.*--trust-remote-code"):
        family_of(tmp_path, model_type="kimi_k9", architectures=["LlamaForCausalLM"], auto_map=AUTO_MAP)


def test_the_config_classes_of_parts_may_name_code_of_their_own() -> None:
    config = Gemma3Config(architectures=["Gemma3ForConditionalGeneration"], auto_map=AUTO_MAP)
    assert loading_class(config) in (AutoModelForCausalLM, AutoModelForImageTextToText)
    config.architectures = ["OtherForConditionalGeneration"]
    assert loading_class(config) is AutoModelForCausalLM


@pytest.mark.parametrize(
    "names", [["LLaMAForCausalLM"], ["MistralForCausalLM"], ["MixFormerSequentialForCausalLM"], [], None]
)
def test_a_class_of_another_time_or_type_resolves_by_the_type(names: list[str] | None) -> None:
    assert loading_class(LlamaConfig(architectures=names)) is AutoModelForCausalLM


def test_a_class_of_the_type_itself_or_of_a_part_is_taken_as_it_is_named() -> None:
    assert loading_class(LlamaConfig(architectures=["LlamaModel"])) is LlamaModel
    part = MusicgenForCausalLM.config_class(architectures=["MusicgenForCausalLM"])
    assert loading_class(part) is MusicgenForCausalLM


def test_a_class_that_the_library_knows_opens_a_type_that_it_lacks(tmp_path: Path) -> None:
    family_of(tmp_path, model_type="of_another_name", architectures=["LlamaForCausalLM"])
    assert loading_class(read_config(tmp_path)) is LlamaForCausalLM


def test_a_reason_is_one_paragraph_that_prints_and_ends() -> None:
    assert reason_of(ValueError("one:\n    two\t\x1b[31m three \n")) == "one: two [31m three"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of("x" * 10_000)) == LONGEST


def test_the_reason_of_a_process_is_the_error_with_what_is_indented_below() -> None:
    stderr = (
        "Traceback:\n  File \"x\"\na.b.StrictError: for 'y':\n    ValueError: 4 is not 5\nadvice: read the manual\n"
    )
    assert _reason(stderr) == "a.b.StrictError: for 'y': ValueError: 4 is not 5"
    assert _reason("killed\n") == "killed"
