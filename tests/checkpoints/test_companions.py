"""What lies beside the weights goes along, says the right thing of the blocks that stay, or is left out with a note."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import shortgpt
from shortgpt import Plan
from shortgpt.errors import CheckpointError
from tests.support import Ran, removal_refused

GONE = (1, 2)  # of 6


@pytest.fixture
def source(tmp_path: Path, llama_folder: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "in"))


def pruned(source: Path, gone: tuple[int, ...] = GONE) -> tuple[Path, Plan]:
    out = source.with_name("out")
    return out, shortgpt.prune_checkpoint(source, out, gone, verify=False)


def noted(plan: Plan, name: str) -> str:
    """The one note that names a file."""
    (note,) = [note for note in plan.notes if f"`{name}`" in note]
    return note


def test_named_chat_templates_go_along(source: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "tool_use": "TOOLS"}
    tokenizer.save_pretrained(source)
    out, plan = pruned(source)
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert plan.notes == ()
    shortgpt.remove(shortgpt.load(source, device="cpu"), GONE).save(source.with_name("memory"))
    assert AutoTokenizer.from_pretrained(source.with_name("memory")).chat_template == tokenizer.chat_template


def test_folders_of_anything_else_stay_behind_and_are_named(source: Path) -> None:
    for name in ("onnx", "runs", ".git"):
        (source / name).mkdir()
        (source / name / "x.py").write_text("")
    out, plan = pruned(source)
    assert not [folder for folder in out.iterdir() if folder.is_dir()]
    assert plan.notes == ("Folders beside the weights were left out: `onnx`, `runs`.",)


def test_code_in_folders_goes_along_where_it_is_loaded_from_there(source: Path) -> None:
    for name in ("asked_for", "imported", "neither"):
        (source / name / "deeper").mkdir(parents=True)
        (source / name / "layers.py").write_text("")
        (source / name / "deeper" / "more.py").write_text("")
        (source / name / "data.txt").write_text("")
    (source / "modeling_x.py").write_text("from .imported.layers import Layer\nfrom .other_x import y\n")
    (source / "other_x.py").write_text("")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoProcessor": "asked_for/layers.Processor"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    out, plan = pruned(source)
    code = {str(file.relative_to(out)) for file in out.rglob("*.py")}
    folders = {f"{name}/{file}" for name in ("asked_for", "imported") for file in ("layers.py", "deeper/more.py")}
    assert code == {"modeling_x.py", "other_x.py"} | folders
    assert not list(out.rglob("data.txt"))
    assert plan.notes == ("Folders beside the weights were left out: `neither`.",)


# -- what speaks of the whole model -------------------------------------------------------------------------------


def test_what_speaks_of_the_whole_model_is_left_out_with_a_note(source: Path) -> None:
    contents = {
        "consolidated.safetensors.index.json": {"weight_map": {"layers.5.wq": "consolidated-00001.safetensors"}},
        "model.fp16.json": {"metadata": {}, "weight_map": {"model.norm.weight": "model.fp16-00001.safetensors"}},
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "x"},
        "trainer_state.json": {"epoch": 1},
        "eval_results.json": {"accuracy": 1},
        "mergekit_config.yml": "slices:\n- sources:\n  - layer_range: [0, 6]\n",
        "model.imatrix": "...",
        "recipe.yaml": "ignore: ['model.layers.5.mlp.up_proj']",
        "genai_config.json": {"model": {"decoder": {"num_hidden_layers": 6}}},  # counted in a part
        "params.json": {"n_layers": 6, "moe": {"first_k_dense_replace": 3}},
        "args.json": {"n_layers": 6, "layer_budget": 3},  # no rule says what it is
        "quant.json": {"exclude": ["something.layers.5.mlp"]},  # of which list is not certain
        "damaged.json": '{"model.layers.5.mlp": ',
    }
    for name, content in contents.items():
        (source / name).write_text(content if isinstance(content, str) else json.dumps(content))
    out, plan = pruned(source)
    assert not [name for name in contents if (out / name).exists()]
    assert len(plan.notes) == len(contents)
    assert all("was left out: " in noted(plan, name) for name in contents)


def test_what_counts_or_names_blocks_is_rewritten_for_those_that_stay(source: Path) -> None:
    excluded = ["lm_head", "model.layers.2.mlp", "model.layers.5.mlp.up_proj"]
    by_name = {"model.layers.0.mlp": {"bits": 8}, "model.layers.1.mlp": {"bits": 4}, "model.layers.4.mlp": {"bits": 2}}
    before_and_after = {
        "params.json": ({"dim": 64, "n_layers": 6, "norm_eps": 1e-5}, {"dim": 64, "n_layers": 4, "norm_eps": 1e-5}),
        "hf_quant_config.json": (
            {"quantization": {"exclude_modules": excluded}},
            {"quantization": {"exclude_modules": ["lm_head", "model.layers.3.mlp.up_proj"]}},
        ),
        "quant_config.json": (
            {"by_name": by_name, "version": "0.12.2"},
            {"by_name": {"model.layers.0.mlp": {"bits": 8}, "model.layers.2.mlp": {"bits": 2}}, "version": "0.12.2"},
        ),
    }
    for name, (before, _) in before_and_after.items():
        (source / name).write_text(json.dumps(before))
    out, plan = pruned(source)
    memory = source.with_name("memory")
    shortgpt.remove(shortgpt.load(source, device="cpu"), GONE).save(memory)
    for name, (_, after) in before_and_after.items():
        for folder, told in ((out, plan), (memory, Plan.read(memory))):
            assert json.loads((folder / name).read_text()) == after
            assert noted(told, name) == f"`{name}` was rewritten for the blocks that stay."


def test_after_two_removals_in_memory_it_is_rewritten_for_what_stays_of_the_source(source: Path) -> None:
    (source / "params.json").write_text('{"n_layers": 6}')
    (source / "quant.json").write_text(json.dumps([f"model.layers.{block}.mlp" for block in range(6)] + ["lm_head"]))
    once = shortgpt.remove(shortgpt.load(source, device="cpu"), [1, 2])  # 0 3 4 5
    out = source.with_name("out")
    shortgpt.remove(once, [1]).save(out)  # 0 4 5
    assert json.loads((out / "params.json").read_text()) == {"n_layers": 3}
    assert json.loads((out / "quant.json").read_text()) == [f"model.layers.{block}.mlp" for block in range(3)] + [
        "lm_head"
    ]


def test_what_does_not_speak_of_these_blocks_is_kept_to_the_byte(source: Path) -> None:
    contents = {
        "tokenizer_config.json": '{"chat_template": "{{ h.1 }} model.layers.5.mlp", "model_max_length": 9}',
        "notes.json": '{"version":   "0.12.2", "n_layers": 24, "of": "another model"}',
        "recipe.yaml": "targets: ['re:.*layers.[0-9]+.mlp']",
        "LICENSE": "model.layers.5.mlp",
    }
    for name, content in contents.items():
        (source / name).write_text(content)
    out, plan = pruned(source)
    assert {name: (out / name).read_text() for name in contents} == contents
    assert plan.notes == ()


def test_the_notes_are_printed_and_stand_in_the_card(source: Path, run_cli: Callable[..., Ran]) -> None:
    (source / "trainer_state.json").write_text("{}")
    out = source.with_name("out")
    ran = run_cli("prune", source, "--output", out, "--remove", "1", "--no-verify")
    note = "`trainer_state.json` was left out: of the whole model's training."
    assert f"note: {note}" in ran.out
    assert note in (out / "README.md").read_text()


# -- links, and what is no file -----------------------------------------------------------------------------------


def test_a_link_out_of_the_folder_is_refused(source: Path) -> None:
    (source.parent / "secret").write_text("not yours")
    (source / "notes.txt").symlink_to(source.parent / "secret")
    told = r"'notes\.txt' is a link to '.*secret', which is outside of the model's folder"
    removal_refused(source, CheckpointError, told)


def test_a_folder_that_is_a_link_out_of_the_folder_is_refused(source: Path) -> None:
    (source.parent / "elsewhere").mkdir()
    (source.parent / "elsewhere" / "x.jinja").write_text("not yours")
    (source / "additional_chat_templates").symlink_to(source.parent / "elsewhere")
    removal_refused(source, CheckpointError, "outside of the model's folder")


@pytest.mark.parametrize("target", ["nowhere", "notes.txt"])
def test_a_link_that_leads_nowhere_is_refused(source: Path, target: str) -> None:
    (source / "notes.txt").symlink_to(target)
    removal_refused(source, CheckpointError, r"'notes\.txt' is a link that leads nowhere")


def test_a_pipe_is_refused_and_not_waited_for(source: Path) -> None:
    os.mkfifo(source / "notes.txt")
    removal_refused(source, CheckpointError, r"'notes\.txt' is no file, but a pipe")


def test_links_within_the_folder_and_into_the_hubs_cache_are_followed(tmp_path: Path, llama_folder: Path) -> None:
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(llama_folder.iterdir()):
        shutil.copy(file, blobs / str(number))
        (folder / file.name).symlink_to(f"../../blobs/{number}")
    (folder / "LICENSE").write_text("free")
    (folder / "COPYING").symlink_to("LICENSE")
    shortgpt.prune_checkpoint(folder, tmp_path / "out", GONE, verify=False)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (llama_folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "COPYING").read_text() == "free"
    assert not [file for file in (tmp_path / "out").iterdir() if file.is_symlink()]
