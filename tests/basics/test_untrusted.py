"""A model's folder is believed no further than it has to be."""

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shortgpt
from shortgpt.basics.untrusted import MAX_HEADER, check_folder, local_path
from shortgpt.errors import CheckpointError, ModelError, ShortGPTError, printable
from shortgpt.measuring.texts import texts_of
from shortgpt.reports.files import write
from tests.support import Ran, run_cli, saved, tiny

ROADS: dict[str, Callable[[Path], object]] = {
    "load": lambda folder: shortgpt.load(folder, device="cpu"),
    "stream": lambda folder: shortgpt.load(folder, device="cpu", stream=True),
    "prune": lambda folder: shortgpt.prune_checkpoint(folder, folder.parent / "out", [1], verify=False),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama"), tmp_path_factory.mktemp("sharded") / "model", max_shard_size="60KB")


@pytest.fixture
def folder(tmp_path: Path, shards: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "model"))


def a_link_out(folder: Path, name: str) -> None:
    file = folder / name
    file.rename(folder.parent / "elsewhere")
    file.symlink_to("../elsewhere")


def an_index_out(folder: Path, shard: str) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], shard)
    file.write_text(json.dumps(index))


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00001-of-00003.safetensors"])
def test_no_link_leads_out_of_the_folder_by_any_road(folder: Path, road: str, name: str) -> None:
    a_link_out(folder, name if (folder / name).exists() else sorted(f.name for f in folder.glob("*.safetensors"))[0])
    with pytest.raises(CheckpointError, match="which is outside of the model's folder"):
        ROADS[road](folder)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("shard", ["/etc/passwd", "../elsewhere.safetensors", "a/../../b.safetensors"])
def test_an_index_names_files_in_the_folder(folder: Path, road: str, shard: str) -> None:
    an_index_out(folder, shard)
    with pytest.raises(CheckpointError, match="files beside the index, by their names alone"):
        ROADS[road](folder)


def test_a_folder_inside_that_is_a_link_out_is_refused_and_hidden_ones_are_not_looked_at(folder: Path) -> None:
    (folder / ".git").symlink_to("/etc")
    check_folder("m", folder)
    (folder / "code").symlink_to("/etc")
    with pytest.raises(CheckpointError, match="'code' is a link to '/etc', which is outside"):
        check_folder("m", folder)


def test_the_links_of_the_hubs_cache_lead_to_its_blobs_and_nowhere_else(tmp_path: Path, shards: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/rev", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in shards.iterdir():
        shutil.copyfile(file, blobs / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert len(shortgpt.load(snapshot, device="cpu")) == 6
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(shards / "config.json")
    with pytest.raises(CheckpointError, match="outside of the model's folder"):
        shortgpt.load(snapshot, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json", "extra.bin"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="a pipe, a socket or a device, which is not waited for"):
        shortgpt.load(folder, device="cpu")


def test_a_device_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="a pipe, a socket or a device"):
        shortgpt.load("/dev/zero", device="cpu")


@pytest.mark.parametrize("name", ["~nosuchuser/model", "a\0b", "x" * 300, "x/" * 3000, "loop"])
def test_a_name_that_no_path_can_have_is_an_error_of_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for road in (shortgpt.load, shortgpt.Plan.read, texts_of):
        with pytest.raises(ShortGPTError):
            road(Path(name))


def test_a_file_that_is_read_whole_is_not_too_large(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(4 * 2**30)
    with pytest.raises(CheckpointError, match=f"4,294,967,296 bytes.*up to {MAX_HEADER:,}"):
        shortgpt.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 8000),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**30),
        ("num_labels", 10**8),
        ("layer_types", ["full_attention"] * 10**6),
        ("model_type", []),
        ("extra", json.loads("[" * 100 + "]" * 100)),
        ("extra", 10**4000),
    ],
)
def test_one_number_buys_no_unbounded_work(folder: Path, field: str, value: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        shortgpt.load(folder, device="cpu")


@pytest.mark.parametrize("value", [[[0], [[]], []], [{}], {"a": [1]}, [None, 2], "x", 1e308])
@pytest.mark.parametrize("field", ["mlp_only_layers", "attention_types", "per_layer_config", "moe_layer_freq"])
def test_a_value_of_another_kind_than_its_field_has_is_an_error_of_ours_or_carried_over(field: str, value: Any) -> None:
    from shortgpt.models.configs.rules import decide

    config = {"num_hidden_layers": 6, field: value}
    assert [decision.field for decision in decide(config, [0, 2, 3], 6)][:1] == ["num_hidden_layers"]


def test_a_packed_archive_of_torch_is_refused(tmp_path: Path) -> None:
    original = tiny("llama")
    saved(original, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(dict(original.state_dict()), tmp_path / "plain.bin")
    packed = tmp_path / "model" / "pytorch_model.bin"
    with zipfile.ZipFile(tmp_path / "plain.bin") as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in plain.namelist():
            other.writestr(name, plain.read(name))
    for road in (ROADS["load"], ROADS["prune"]):
        with pytest.raises(CheckpointError, match="packed parts"):
            road(tmp_path / "model")


def test_a_tensor_is_plain_and_no_larger_than_its_file(tmp_path: Path) -> None:
    from shortgpt.checkpoints.torch_files import load

    for value in (torch.ones(2, 2).to_sparse(), torch.ones(1).expand(10**9)):
        torch.save({"a": value}, tmp_path / "a.bin")
        with pytest.raises(CheckpointError, match=r"supported are plain tensors|and the file"):
            load(tmp_path / "a.bin")


def test_blocks_of_a_pth_file_are_counted_by_its_tensors(tmp_path: Path) -> None:
    names = ("emb.weight", "blocks.0.att.key.weight", f"blocks.{10**9}.att.key.weight")
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"block 1 of 1000000001 is missing"):
        shortgpt.load(tmp_path / "m.pth", device="cpu")


def test_a_tokenizer_does_not_grow_a_text_without_end(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    content["normalizer"] = {"type": "Sequence", "normalizers": [step] * 9}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="makes up to 1,000,000,000 signs of one"):
        shortgpt.load(folder, device="cpu")


def test_local_paths_are_homes_too() -> None:
    assert local_path("~") == Path.home()


# -- what is written and printed ------------------------------------------------------------------------------------


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_those_of_the_process(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        write("after", old)
        write("after", new)
        shortgpt.prune_checkpoint("zoo:llama", tmp_path / "out", [1], verify=False)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (old, new)] == [0o640, 0o640]
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes
    assert sorted(tmp_path.iterdir()) == [new, old, tmp_path / "out"]


def test_a_link_that_lies_in_wait_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".result.{os.getpid()}.partial").symlink_to(victim)
    write("result", tmp_path / "result")
    assert victim.read_text() == "mine"


def test_no_control_character_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # where a line ends, a sign that is written as four would be cut
    assert printable("a\x1b[2Jb\u202ec\x9bd\ne\tf") == "a\\x1b[2Jb\\u202ec\\x9bd\ne\tf"
    evil = tmp_path / "a\x1b[2Jb"
    shutil.copytree(shortgpt.plugins.registry().models[0].target, evil)
    ran: Ran = run_cli("score", evil, "--sequences", "2", "--tokens", "16")
    assert ran.status == 0
    assert "\x1b" not in ran.out + ran.err
    assert "a\\x1b[2Jb" in ran.out
    failed = run_cli("score", tmp_path / "no\x1bsuch")
    assert failed.status == 2
    assert "\x1b" not in failed.err


# -- errors of ours, and of others ----------------------------------------------------------------------------------


class PanicException(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("error", [PanicException("gave up"), SystemExit(0), RecursionError("deep"), KeyError("x")])
def test_one_bad_model_never_ends_the_others(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    from shortgpt_adapters.transformers.family import TransformersFamily

    whole = TransformersFamily.open

    def opened(self: Any, source: Any, options: Any) -> Any:
        if "mistral" in source.name:
            raise error
        return whole(self, source, options)

    monkeypatch.setattr(TransformersFamily, "open", opened)
    found = shortgpt.compare(["zoo:mistral", "zoo:llama"], "stdlib", sequences=2, tokens=16, device="cpu")
    assert found.rows[0].scores is None
    assert found.rows[1].scores is not None


def test_an_error_of_an_adapter_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    from shortgpt_adapters.transformers.family import TransformersFamily

    def opened(self: Any, source: Any, options: Any) -> Any:
        raise KeyError("field")

    monkeypatch.setattr(TransformersFamily, "open", opened)
    with pytest.raises(ShortGPTError, match="the adapter 'llama' failed"):
        shortgpt.load("zoo:llama", device="cpu")


def test_a_model_reads_no_other_files_of_the_machine(folder: Path) -> None:
    from tests.hostile import watching

    (folder.parent / "other").mkdir()
    with watching(folder) as watch:
        shortgpt.load(folder, device="cpu").logits({"input_ids": torch.ones(1, 2, dtype=torch.long)})
    assert watch.outside == []
    with watching(folder.parent / "other") as watch:
        load_file(sorted(folder.glob("*.safetensors"))[0])
        (folder / "config.json").read_text()
    assert watch.outside  # it sees what is outside
