"""`shortgpt inspect`: what is said of a model before anything is done to it, and that nothing large is read for it."""

import json
import math
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.transformers.family import TransformersFamily
from transformers import PreTrainedModel

import shortgpt
from shortgpt import prune_checkpoint
from shortgpt.checkpoints.inspection import inspect as look
from shortgpt.errors import SelectionError
from shortgpt.values.inspection import NO_RULE, Inspection
from tests.support import Ran, saved, tiny
from tests.tiny_types import tiny_model

Run = Callable[..., Ran]


def inspected(folder: str | Path, remove: tuple[int, ...] = ()) -> Inspection:
    return look(folder, remove)


def written(model: PreTrainedModel, folder: Path, **fields: Any) -> Path:
    """A model's folder, whose config.json says something beside."""
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A saved tiny model of a type; never written to."""
    made: dict[str, Path] = {}

    def folder(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = written(tiny_model(model_type), tmp_path_factory.mktemp("types") / model_type)
        return made[model_type]

    return folder


def plain(text: str) -> str:
    """A printout without its line breaks."""
    return " ".join(text.split())


# -- what is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["jamba", "llama4_text", "gemma3", "falcon", "mixtral"])
def test_blocks_are_told_with_class_and_parameters_as_the_model_itself_has_them(
    folders: Callable[[str], Path], model_type: str
) -> None:
    model = tiny_model(model_type)
    path = {"gemma3": "model.language_model.layers", "falcon": "transformer.h"}.get(model_type, "model.layers")
    blocks = list(model.get_submodule(path).children())
    found = inspected(folders(model_type))
    assert found.depth == len(blocks) == 6
    assert found.classes == tuple(type(block).__name__ for block in blocks)
    assert found.parameters == tuple(sum(p.numel() for p in block.parameters()) for block in blocks)
    assert found.stream.startswith(f"{path}: comes in as argument 0, goes out as ")
    assert (found.removed, found.refusal, found.pinned) == ((), None, {})


def test_a_model_of_an_adapter_of_its_own_is_told_too(llama_folder: Path) -> None:
    found = inspected(llama_folder)
    block = tiny("llama").model.layers[0]
    assert (found.architecture, found.norm_placement, found.depth) == ("llama", "pre", 6)
    assert found.classes == ("LlamaDecoderLayer",) * 6
    assert found.parameters == (sum(p.numel() for p in block.parameters()),) * 6
    assert [(field.name, field.value, field.rule) for field in found.fields] == [("num_hidden_layers", "6", "count")]


FIELDS = {
    "llama4_text": {
        "num_hidden_layers": ("6", "count"),
        "moe_layers": ("[1, 3, 4]", "renumber"),
        "interleave_moe_layer_step": ("1", "superseded by moe_layers"),
        "no_rope_layers": ("[1, 0, 1, 1, 0, 1]", "filter"),
        "no_rope_layer_interval": ("4", "superseded by no_rope_layers"),
        "layer_types": ("['chunked_attention', 'full_attention', 'chunked_attentio...", "filter"),
    },
    "qwen3_moe": {
        "num_hidden_layers": ("6", "count"),
        "decoder_sparse_step": ("1", "step 1 and a list"),
        "mlp_only_layers": ("[1, 4]", "step 1 and a list"),
    },
    "deepseek_v3": {
        "num_hidden_layers": ("6", "count"),
        "first_k_dense_replace": ("3", "count those kept below"),
        "num_nextn_predict_layers": ("1", "zero: the extra prediction heads are not loaded"),
    },
    "jamba": {
        "num_hidden_layers": ("6", "count"),
        "attn_layer_period": ("3", "solve for the period"),
        "attn_layer_offset": ("1", "solve for the period"),
        "expert_layer_period": ("2", "solve for the period"),
        "expert_layer_offset": ("1", "solve for the period"),
    },
    "recurrent_gemma": {
        "num_hidden_layers": ("6", "count"),
        "block_types": ("['recurrent', 'recurrent', 'attention']", "write out the cycle and filter"),
    },
    "xlstm": {"num_hidden_layers": ("6", "count"), "num_blocks": ("6", "count")},
    "bloom": {"n_layer": ("6", "count")},  # and not layer_norm_epsilon, which looks like one
}


@pytest.mark.parametrize(("model_type", "expected"), FIELDS.items())
def test_the_fields_that_depend_on_the_blocks_are_told_with_their_rules_and_no_others(
    folders: Callable[[str], Path], model_type: str, expected: dict[str, tuple[str, str]]
) -> None:
    found = inspected(folders(model_type)).fields
    assert {field.name: (field.value, field.rule) for field in found} == expected
    assert len(found) == len(expected)


def test_of_a_composite_the_fields_are_those_of_the_part_that_has_the_blocks(folders: Callable[[str], Path]) -> None:
    found = {field.name: field.value for field in inspected(folders("gemma3")).fields}
    assert found["num_hidden_layers"] == "6"  # the vision tower has 2
    assert found["layer_types"].startswith("['sliding_attention', 'full_attention'")


def test_a_field_without_a_rule_is_told_and_is_where_a_removal_stops(
    tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersFamily, "reads", lambda family, config, field: True)
    folder = written(tiny_model("phi"), tmp_path / "odd", num_layers_special=3)
    found = inspected(folder, (1,))
    assert {field.name: field.rule for field in found.fields} == {
        "num_hidden_layers": "count",
        "num_layers_special": NO_RULE,
    }
    assert "config field 'num_layers_special' (value 3) cannot be rewritten" in str(found.refusal)
    ran = run_cli("inspect", folder)
    assert (ran.status, ran.err) == (0, "")
    assert "num_layers_special 3 no rule: a removal stops here" in plain(ran.out)


def test_pinned_blocks_are_told_with_their_reason(folders: Callable[[str], Path], run_cli: Run) -> None:
    folder = folders("modernbert-decoder")
    found = inspected(folder, (0, 2))
    assert found.pinned.keys() == {0}
    assert found.refusal == (f"pinned blocks cannot be removed (block 0: {found.pinned[0]}); choose others")
    ran = run_cli("inspect", folder, "--remove", "0,2")
    assert ran.status == 2
    assert "ModernBertDecoderLayer" in ran.out
    rows = [line for line in ran.out.splitlines() if "ModernBertDecoderLayer" in line]
    assert [row.split()[0] for row in rows] == ["0", "1-5"]
    words = found.pinned[0].split()
    assert f"pinned: {words[0]} {words[1]}" in plain(rows[0])
    assert plain(ran.out).endswith(f"0, 2 cannot be removed: {found.refusal}")


# -- what would become of a removal ---------------------------------------------------------------------------


def test_what_is_said_of_a_removal_is_what_comes_of_it(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder, verdicts = folders("jamba"), []
    for number, gone in enumerate([*combinations(range(6), 1), *combinations(range(6), 2)]):
        said = inspected(folder, gone).refusal
        try:
            prune_checkpoint(folder, tmp_path / str(number), gone, verify=False)
            done = None
        except SelectionError as error:
            done = str(error)
        assert said == done
        verdicts.append(said is None)
    assert True in verdicts
    assert False in verdicts


@pytest.mark.parametrize(
    ("remove", "verdict"),
    [
        ("2-3", "2-3 can be removed"),
        ("4,1", "1, 4 can be removed"),
        ("6", "6 cannot be removed: blocks 6 do not exist: the model has 6 blocks, numbered 0 to 5"),
        ("0-5", "0-5 cannot be removed: all 6 blocks were asked for; at least one must stay"),
    ],
)
def test_the_verdict_on_a_removal_is_the_last_line(llama_folder: Path, run_cli: Run, remove: str, verdict: str) -> None:
    ran = run_cli("inspect", llama_folder, "--remove", remove)
    assert (ran.status, ran.err) == (2 if "cannot" in verdict else 0, "")
    assert plain(ran.out).endswith(verdict)


def test_without_a_question_there_is_no_verdict(llama_folder: Path, run_cli: Run) -> None:
    assert "removed" not in run_cli("inspect", llama_folder).out


# -- how it is printed ----------------------------------------------------------------------------------------


def test_neighbours_that_look_alike_share_a_row_that_fits_a_terminal(
    folders: Callable[[str], Path], run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run_cli("inspect", folders("deepseek_v3"))
    rows = [line.split() for line in ran.out.splitlines() if "DeepseekV3DecoderLayer" in line]
    found = inspected(folders("deepseek_v3"))
    assert rows == [
        ["0-2", "DeepseekV3DecoderLayer", f"{found.parameters[0]:,}"],
        ["3-5", "DeepseekV3DecoderLayer", f"{found.parameters[3]:,}"],
    ]
    assert max(map(len, ran.out.splitlines())) <= 80
    assert plain(ran.out).startswith(f"{folders('deepseek_v3')}: structural, pre-norm, 6 blocks stream: model.layers")


def test_as_json_it_is_the_same_and_alone(folders: Callable[[str], Path], run_cli: Run, tmp_path: Path) -> None:
    folder = folders("llama4_text")
    expected = inspected(folder, (1, 2))
    alone = run_cli("inspect", folder, "--remove", "1,2", "--json", "-")
    assert (alone.status, alone.err) == (0, "")
    assert Inspection.from_json(alone.out) == expected
    both = run_cli("inspect", folder, "--remove", "1,2", "--json", tmp_path / "found.json")
    assert "1-2 can be removed" in both.out
    assert Inspection.from_json((tmp_path / "found.json").read_text()) == expected
    data = json.loads(alone.out)
    assert data["fields"][0] == {"name": "num_hidden_layers", "value": "6", "rule": "count"}
    assert (data["depth"], data["removed"], data["refusal"]) == (6, [1, 2], None)


def test_pins_survive_json(folders: Callable[[str], Path], run_cli: Run) -> None:
    found = Inspection.from_json(run_cli("inspect", folders("modernbert-decoder"), "--json", "-").out)
    assert found == inspected(folders("modernbert-decoder"))
    assert [*found.pinned] == [0]


def test_a_shipped_model_is_inspected_by_name(run_cli: Run) -> None:
    ran = run_cli("inspect", "zoo:llama", "--remove", "11")
    assert ran.status == 0
    assert ran.out.startswith("zoo:llama: llama, pre-norm, 12 blocks")
    assert plain(ran.out).endswith("11 can be removed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere/at/all",), "nowhere/at/all: no such file or folder; name a model folder"),
        (("zoo:llama", "--remove", "some"), "'some' is not a list of blocks; write block numbers and ranges"),
        (("zoo:llama", "--architecture", "lama"), "unknown architecture 'lama'"),
        (("zoo:llama", "--json", "/nowhere/found.json"), "cannot be written (there is no folder /nowhere)"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(run_cli: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run_cli("inspect", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("shortgpt: error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


# -- nothing large is read ------------------------------------------------------------------------------------


def folder_of_a_large_model(folder: Path) -> int:
    """A Phi of 129 GB, of which the file system holds the header only. It gives the parameters of a block."""
    width, inner, vocabulary, blocks = 8192, 32768, 50000, 40
    linear = {f"self_attn.{name}": (width, width) for name in ("q_proj", "k_proj", "v_proj", "dense")}
    linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    block = {f"{name}.weight": shape for name, shape in linear.items()} | {"input_layernorm.weight": (width,)}
    block |= {f"{name}.bias": shape[:1] for name, shape in linear.items()} | {"input_layernorm.bias": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(blocks) for name, shape in block.items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (at, at := at + 4 * math.prod(shape))}
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    config = {
        "model_type": "phi",
        "architectures": ["PhiForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": 64,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return sum(map(math.prod, block.values()))


@contextmanager
def little_memory(room: int) -> Iterator[None]:
    """No more than `room` bytes can be allocated or mapped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_of_a_model_larger_than_the_memory_the_weights_are_not_loaded(tmp_path: Path) -> None:
    count = folder_of_a_large_model(tmp_path / "large")
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 120e9
    begun = time.process_time()
    with little_memory(1 << 30):
        found = inspected(tmp_path / "large", (20, 21))
    assert time.process_time() - begun < 30  # to read 120 GB takes longer
    (tmp_path / "large" / "model.safetensors").unlink()  # or whatever looks at sizes is alarmed
    assert (found.depth, found.parameters, found.refusal) == (40, (count,) * 40, None)
    assert found.norm_placement == "parallel"


def test_weights_that_cannot_be_read_do_not_matter(llama_folder: Path, tmp_path: Path, run_cli: Run) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((llama_folder / name).read_bytes())
    expected = inspected(llama_folder, (1,))
    found = inspected(tmp_path, (1,))
    assert replace(found, model="") == replace(expected, model="")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 99)
    assert inspected(tmp_path) == replace(found, removed=(), refusal=None)
    assert "truncated or damaged" in str(inspected(tmp_path, (1,)).refusal)  # as it would be when it is pruned
    assert run_cli("inspect", tmp_path).status == 0


def test_a_pickled_checkpoint_and_a_sharded_one_are_counted_alike(llama_folder: Path, tmp_path: Path) -> None:
    model = tiny("llama")
    saved(model, tmp_path / "sharded", max_shard_size="40KB")
    pickled = saved(model, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    expected = inspected(llama_folder).parameters
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert inspected(tmp_path / "sharded").parameters == expected
    assert inspected(pickled).parameters == expected


def test_what_was_pruned_is_inspected_as_what_it_is(llama_folder: Path, tmp_path: Path) -> None:
    prune_checkpoint(llama_folder, tmp_path / "out", [1, 4], verify=False)
    found = inspected(tmp_path / "out")
    assert (found.depth, len(found.parameters)) == (4, 4)
    assert len(shortgpt.load(tmp_path / "out", device="cpu")) == 4


@pytest.mark.parametrize("model_type", ["deepseek_v3", "gpt2"])
def test_parameters_are_those_of_the_model_whatever_else_its_files_hold(model_type: str, tmp_path: Path) -> None:
    """Router biases are buffers there; and files of an old GPT-2 hold its causal masks."""
    model = tiny("gpt2") if model_type == "gpt2" else tiny_model(model_type)
    folder = saved(model, tmp_path / "in")
    if model_type == "gpt2":
        masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(6)}
        save_file(load_file(folder / "model.safetensors") | masks, folder / "model.safetensors", {"format": "pt"})
    blocks = model.transformer.h if model_type == "gpt2" else model.model.layers
    assert inspected(folder).parameters == tuple(sum(p.numel() for p in block.parameters()) for block in blocks)
