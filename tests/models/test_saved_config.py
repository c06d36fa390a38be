"""The config.json of a model that was made shorter in memory: its source's text, or names for old and new readers."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import shortgpt
from tests.support import saved, tiny
from tests.tiny_types import tiny_model


def edited(folder: Path, *lost: str, **fields: Any) -> str:
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({name: value for name, value in config.items() if name not in lost} | fields, indent=3) + "\n"
    (folder / "config.json").write_text(text)
    return text


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A tiny Llama with the config of one that was published before transformers 5."""
    folder = saved(tiny("llama"), tmp_path / "in")
    edited(folder, "rope_parameters", "dtype", rope_theta=5e5, torch_dtype="float32", note="as it was")
    return folder


def test_a_shorter_model_in_memory_is_saved_with_the_words_of_its_source(published: Path, tmp_path: Path) -> None:
    text = (published / "config.json").read_text()
    model = shortgpt.load(published)
    model.without([0, 3]).without([1]).save(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == text.replace(
        '"num_hidden_layers": 6', '"num_hidden_layers": 3'
    )


def test_the_precision_that_a_model_was_opened_in_is_what_is_saved(published: Path, tmp_path: Path) -> None:
    text = (published / "config.json").read_text().replace('"torch_dtype": "float32"', '"torch_dtype": "bfloat16"')
    shortgpt.load(published, dtype="bfloat16").without([0]).save(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == text.replace(
        '"num_hidden_layers": 6', '"num_hidden_layers": 5'
    )


def test_a_config_that_was_changed_in_memory_is_saved_as_it_is(published: Path, tmp_path: Path) -> None:
    shorter: Any = shortgpt.load(published).without([0])
    shorter.model.config.rope_parameters["rope_theta"] = 7e5
    shorter.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 7e5


OLD_NAMES = {  # what transformers 4 reads, from its configuration classes
    "llama": {"rope_theta": 1e4, "torch_dtype": "float32"},
    "gpt_neox": {"rotary_emb_base": 1e4, "rotary_pct": 0.25},
    "gemma3_text": {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "gpt2": {"num_hidden_layers": 5, "n_layer": 5},
}


@pytest.mark.sampled("llama", "gemma3_text")
@pytest.mark.parametrize("model_type", OLD_NAMES)
def test_a_model_born_in_memory_is_saved_under_the_names_of_older_readers_too(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    shortgpt.wrap(model).without([0]).save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written.get(name) for name in OLD_NAMES[model_type]} == OLD_NAMES[model_type]
    read, rope = AutoConfig.from_pretrained(tmp_path / "out"), getattr(model.config, "rope_parameters", None)
    assert getattr(read, "rope_parameters", None) == rope


def test_a_scaling_of_positions_is_saved_under_its_older_name_too(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    model = tiny("llama", rope_parameters={**scaling, "rope_theta": 5e5})
    shortgpt.wrap(model).without([0]).save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["rope_theta"], written["rope_scaling"]) == (5e5, scaling)
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == {**scaling, "rope_theta": 5e5}
