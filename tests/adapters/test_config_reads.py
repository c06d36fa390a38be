"""Which fields of a config the library can read, and what that means for a removal."""

import json
from pathlib import Path
from typing import Any

import pytest
from shortgpt_adapters.transformers import config_reads
from transformers import PreTrainedConfig

import shortgpt
from shortgpt import prune_checkpoint
from shortgpt.errors import SelectionError
from tests.reading_config import toy
from tests.support import run_cli, tiny
from tests.tiny_types import tiny_model

READ = ["aliased", "in_the_class", "when_trained", "with_a_cache", "put_together", "by_getattr", "popped"]


def test_a_field_can_be_read_where_running_reads_it_or_the_code_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_reads, "_LIBRARY", config_reads._LIBRARY | {"tests"})
    reads = config_reads.reads_of(toy, "layers")
    assert [field for field in READ if field not in reads] == []
    assert [field for field in ("declared", "only_told", "only_a_module", "nowhere") if field in reads] == []


def test_of_code_that_is_not_the_librarys_every_field_may_be_read() -> None:
    assert "nowhere" in config_reads.reads_of(toy, "layers")


def test_nothing_is_left_behind_on_the_config_class() -> None:
    before = PreTrainedConfig.__getattribute__
    config_reads.reads_of(toy, "layers")
    assert PreTrainedConfig.__getattribute__ is before


# Leftovers of other libraries and times, none of which the library reads for a Llama. The last are known, and fit.
LEFT_OVER: dict[str, Any] = {
    "num_layers": 40,
    "block_dim": 32,
    "lucky_numbers": [0, 4, 5],
    "by_block": {"0": "a", "5": "b"},
    "layer_types_of_old": ["a", "b"],
    "moe_layer_freq": 2,
}
KNOWN = {"mlp_only_layers": [0, 3, 5], "mtp_num_hidden_layers": 1, "first_k_dense_replace": 3}


@pytest.fixture
def left_over(tmp_path: Path) -> Path:
    """A Llama whose config.json holds fields that nobody reads."""
    folder = tmp_path / "whole"
    tiny("llama").save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | LEFT_OVER | KNOWN))
    return folder


@pytest.mark.usefixtures("one_process")
def test_fields_that_the_library_never_reads_are_carried_over_and_told(left_over: Path, tmp_path: Path) -> None:
    plan = prune_checkpoint(left_over, tmp_path / "short", [1, 2])
    assert plan.verification is not None
    assert plan.verification.verified
    written = json.loads((tmp_path / "short" / "config.json").read_text())
    assert {field: written[field] for field in LEFT_OVER} == LEFT_OVER
    assert {field: written[field] for field in KNOWN} == {
        "mlp_only_layers": [0, 1, 3],
        "mtp_num_hidden_layers": 0,
        "first_k_dense_replace": 1,
    }
    told = "\n".join(plan.notes)
    card = (tmp_path / "short" / "README.md").read_text()
    for field in LEFT_OVER:
        assert f"`{field}` is as it was" in told
        assert f"`{field}` is as it was" in card
    ran = run_cli("inspect", left_over, "--remove", "1,2", "--format", "json")
    shown = {one["name"]: one["rule"] for one in json.loads(ran.out)["fields"]}
    assert {shown[field] for field in LEFT_OVER} == {"carried over: the library never reads it"}
    assert shown["mlp_only_layers"] == "renumber"


def test_in_memory_they_are_carried_over_too(left_over: Path) -> None:
    shorter = shortgpt.remove(shortgpt.load(left_over), [1, 2])
    assert shorter.model.config.lucky_numbers == [0, 4, 5]  # type: ignore[attr-defined]
    assert any("`lucky_numbers`" in note for note in shorter.plan.notes)  # type: ignore[union-attr]


def test_a_rule_that_fails_for_these_blocks_alone_is_told_where_the_library_never_reads_its_field(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "whole"
    tiny("llama").save_pretrained(folder)
    file = folder / "config.json"
    period = {"attn_layer_period": 2, "attn_layer_offset": 0}
    file.write_text(json.dumps(json.loads(file.read_text()) | period))
    kept_whole = prune_checkpoint(folder, tmp_path / "even", [2, 3], verify=False)
    assert not [note for note in kept_whole.notes if "attn_layer_period" in note]
    broken = prune_checkpoint(folder, tmp_path / "odd", [1], verify=False)
    assert [note for note in broken.notes if note.startswith("`attn_layer_period` is as it was")]
    in_memory = shortgpt.remove(shortgpt.load(folder), [1]).plan
    assert in_memory is not None
    assert in_memory.notes == broken.notes


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class ListedConfig(LlamaConfig):
    model_type = "listed_llama"
class ListedForCausalLM(LlamaForCausalLM):
    config_class = ListedConfig
"""


@pytest.mark.parametrize("value", [[0, 4, 5], {"wide": {"blocks": [[1, 2], [3, 5]]}}])
def test_code_of_the_folder_may_read_any_field(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "whole"
    tiny("llama").save_pretrained(folder)
    (folder / "modeling_listed.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {
        "AutoConfig": "modeling_listed.ListedConfig",
        "AutoModelForCausalLM": "modeling_listed.ListedForCausalLM",
    }
    changed = {"model_type": "listed_llama", "auto_map": classes, "architectures": ["ListedForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | changed | {"wide_idx": value}))
    with pytest.raises(SelectionError, match=r"'wide_idx'.*no rule says how"):
        prune_checkpoint(folder, tmp_path / "short", [1], trust_remote_code=True)
    assert not (tmp_path / "short").exists()


def test_the_modules_that_a_quantisation_names_are_those_of_the_shorter_model() -> None:
    """Of a composite, too, where the section stands beside the config of the blocks."""
    model = tiny_model("gemma3")
    mlps = [f"model.language_model.layers.{i}.mlp*" for i in range(6)]
    section = {"quant_method": "gptq", "version": "0.12.2", "ignore": ["lm_head", *mlps, "vision_tower.layers.1.mlp"]}
    config = model.config.to_dict() | {"quantization_config": section}
    family = shortgpt.wrap(model).family  # type: ignore[attr-defined]
    short = family.rewrite_config(config, family.keep(config, [1, 2]))
    assert short["quantization_config"]["version"] == "0.12.2"
    assert short["quantization_config"]["ignore"] == ["lm_head", *mlps[:4], "vision_tower.layers.1.mlp"]
