"""The rewrite on disk: what is written, to the byte; that plain transformers loads it; and that a run that dies leaves
nothing. Files are read with safetensors' and torch's own readers."""

import errno
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import shortgpt
from shortgpt import Plan, prune_checkpoint
from shortgpt.checkpoints import copying, hashing, weights, writing
from shortgpt.errors import CheckpointError, ModelError, OutputError, SelectionError
from tests.support import ids_of, raising, removal_refused, saved, skipped_by_hand, tiny

LAYOUTS = ("safetensors", "sharded safetensors", "torch", "sharded torch")
GONE = (1, 4)
PATHS = {"llama": "model.layers", "gpt2": "transformer.h"}


def write(model: PreTrainedModel, folder: Path, layout: str) -> Path:
    """A model's folder with its weights in that layout."""
    if layout == "safetensors":
        return saved(model, folder)
    if layout == "sharded safetensors":
        return saved(model, folder, max_shard_size="40KB")
    saved(model, folder)
    (folder / "model.safetensors").unlink()
    tensors = model.state_dict()
    if layout == "torch":
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[0::3], names[1::3], names[2::3]), start=1):
        file = f"pytorch_model-{number:05d}-of-00003.bin"
        torch.save({name: tensors[name].clone() for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every weight file of a folder."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".bin":
            part = torch.load(file, weights_only=True)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as reader:
                part = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        else:
            continue
        assert not set(part) & set(found), "a tensor stands in two files"
        found |= part
    return found


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def kept_by_hand(tensors: dict[str, Tensor], path: str, gone: tuple[int, ...], depth: int = 6) -> dict[str, Tensor]:
    """The tensors that should stay, under their new names."""
    place = {old: new for new, old in enumerate(i for i in range(depth) if i not in gone)}
    kept = {}
    for name, tensor in tensors.items():
        if not name.startswith(f"{path}."):
            kept[name] = tensor
        elif (index := int(name.removeprefix(f"{path}.").split(".")[0])) in place:
            kept[name.replace(f"{path}.{index}.", f"{path}.{place[index]}.")] = tensor
    return kept


def loaded(folder: Path) -> PreTrainedModel:
    """By plain transformers, which must miss nothing and find nothing left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


# -- what is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_shorter_checkpoint_loads_with_plain_transformers_and_equals_skipping_exactly(
    tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    source, ids = write(tiny("llama").to(dtype), tmp_path / "in", layout), ids_of()
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    shorter = loaded(tmp_path / "out")
    assert shorter.dtype == dtype
    assert shorter.config.num_hidden_layers == 4
    assert torch.equal(logits_of(shorter, ids), skipped_by_hand(loaded(source), "model.layers", GONE, ids))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATHS)
def test_tied_weights_stay_tied(tmp_path: Path, name: str, layout: str) -> None:
    model, ids = tiny(name, tie_word_embeddings=True), ids_of()
    model.tie_weights()
    prune_checkpoint(write(model, tmp_path / "in", layout), tmp_path / "out", GONE, verify=False)
    shorter = loaded(tmp_path / "out")
    assert shorter.get_output_embeddings().weight is shorter.get_input_embeddings().weight
    assert torch.equal(logits_of(shorter, ids), skipped_by_hand(model, PATHS[name], GONE, ids))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_the_kept_tensors_are_written_and_not_a_byte_of_them_changes(tmp_path: Path, layout: str) -> None:
    source = write(tiny("llama").bfloat16(), tmp_path / "in", layout)
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    expected = kept_by_hand(tensors_in(source), "model.layers", GONE)
    found = tensors_in(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(found[name]) == bytes_of(tensor)


@pytest.mark.parametrize("layout", ["safetensors", "sharded safetensors"])
def test_a_safetensors_file_holds_its_tensors_and_nothing_else(tmp_path: Path, layout: str) -> None:
    prune_checkpoint(write(tiny("llama"), tmp_path / "in", layout), tmp_path / "out", GONE, verify=False)
    for file in (tmp_path / "out").glob("*.safetensors"):
        raw = file.read_bytes()
        header = 8 + int.from_bytes(raw[:8], "little")
        with safe_open(file, framework="pt") as reader:
            size = sum(reader.get_tensor(name).nbytes for name in reader.keys())  # noqa: SIM118
            assert reader.metadata() == {"format": "pt"}
        assert len(raw) == header + size
        assert header % 8 == 0


def test_the_files_own_metadata_are_kept(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = saved(tiny("llama"), tmp_path / "in")
    save_file(tensors_in(source), source / "model.safetensors", metadata={"format": "pt", "made": "by hand, ü"})
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as reader:
        assert reader.metadata() == {"format": "pt", "made": "by hand, ü"}


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded torch"])
@pytest.mark.parametrize("gone", [(1, 4), (0, 1, 2, 3, 4), (5,)])
def test_the_index_says_where_every_tensor_is_and_how_large_all_are(
    tmp_path: Path, layout: str, gone: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    prune_checkpoint(write(tiny("llama"), tmp_path / "in", layout), out, gone, verify=False)
    (index_file,) = out.glob("*.index.json")
    index = json.loads(index_file.read_text())
    tensors = tensors_in(out)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(f.name for f in out.iterdir() if f.suffix in (".safetensors", ".bin"))
    assert [f.split("-", 1)[1].split(".")[0] for f in files] == [
        f"{i:05d}-of-{len(files):05d}" for i in range(1, len(files) + 1)
    ]
    for name, file in index["weight_map"].items():
        alone = tmp_path / "alone"
        alone.mkdir(exist_ok=True)
        target = alone / file
        if not target.exists():
            target.hardlink_to(out / file)
        assert name in tensors_in(alone)


def test_a_shard_that_holds_removed_blocks_only_is_left_out(tmp_path: Path) -> None:
    source = write(tiny("llama"), tmp_path / "in", "sharded safetensors")
    prune_checkpoint(source, tmp_path / "out", (1, 2, 3, 4), verify=False)
    before, after = (len(list(folder.glob("*.safetensors"))) for folder in (source, tmp_path / "out"))
    assert after < before
    loaded(tmp_path / "out")


def test_tokenizer_generation_config_and_what_else_lies_beside_are_kept(tmp_path: Path) -> None:
    model = tiny("llama")
    model.generation_config = GenerationConfig(do_sample=True, top_k=7, eos_token_id=256)
    source = saved(model, tmp_path / "in")
    (source / "LICENSE").write_text("free")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("the original's card")
    (source / "model.gguf").write_text("other weights, of all blocks")
    (source / ".cache").write_text("hidden")
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    same = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE", "chat_template.jinja"}
    for name in same:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == same | {"model.safetensors", "config.json", "README.md", "shortgpt.json"}
    assert "the original's card" not in (tmp_path / "out" / "README.md").read_text()
    assert GenerationConfig.from_pretrained(tmp_path / "out").top_k == 7
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("hé")["input_ids"] == list("hé".encode())


def test_the_config_changes_in_nothing_but_the_number_of_blocks(tmp_path: Path, llama_folder: Path) -> None:
    prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False)
    before, after = (json.loads((f / "config.json").read_text()) for f in (llama_folder, tmp_path / "out"))
    assert after == before | {"num_hidden_layers": 4}


def test_a_base_models_checkpoint_without_prefix_is_pruned_too(tmp_path: Path) -> None:
    model, ids = tiny("gpt2"), ids_of()
    source = saved(model, tmp_path / "in")
    model.transformer.save_pretrained(source)  # as the first GPT-2 on the hub
    assert all(not name.startswith("transformer.") for name in tensors_in(source))
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    assert tensors_in(tmp_path / "out").keys() == kept_by_hand(tensors_in(source), "h", GONE).keys()
    shorter = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits_of(shorter, ids), skipped_by_hand(model, "transformer.h", GONE, ids))


# -- the records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_in_the_folder_has_the_hashes_of_the_source(tmp_path: Path, layout: str) -> None:
    source = write(tiny("llama"), tmp_path / "in", layout)
    plan = prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    assert Plan.read(tmp_path / "out") == plan
    weights = [f for f in source.iterdir() if f.suffix in (".safetensors", ".bin")]
    assert plan.source_hashes == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (source / "config.json", *weights)
    }
    assert (plan.blocks, plan.depth, plan.architecture) == (GONE, 6, "llama")
    assert plan.verification is not None
    assert not plan.verification.verified


def test_parameters_are_counted_before_and_after(tmp_path: Path, llama_folder: Path) -> None:
    plan = prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False)
    assert plan.parameters_before == sum(p.numel() for p in tiny("llama").parameters())
    assert plan.parameters_after == sum(p.numel() for p in loaded(tmp_path / "out").parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_doing_it_again_from_the_plan_gives_the_same_weights(tmp_path: Path, layout: str) -> None:
    source = write(tiny("llama"), tmp_path / "in", layout)
    prune_checkpoint(source, tmp_path / "once", GONE, verify=False)
    prune_checkpoint(source, tmp_path / "again", Plan.read(tmp_path / "once" / "shortgpt.json"), verify=False)
    weights = [f.name for f in (tmp_path / "once").iterdir() if f.suffix in (".safetensors", ".bin")]
    assert weights
    for name in weights:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_of_a_model_that_was_shortened_before_both_removals_are_recorded(tmp_path: Path, llama_folder: Path) -> None:
    first = prune_checkpoint(llama_folder, tmp_path / "a", [1], verify=False)
    second = prune_checkpoint(tmp_path / "a", tmp_path / "b", [2], verify=False)
    assert second.base == first
    assert "(6 blocks) without 1" in (tmp_path / "b" / "README.md").read_text()


def test_what_a_plan_says_of_its_base_is_said_of_those_weights_only(tmp_path: Path, llama_folder: Path) -> None:
    first = prune_checkpoint(llama_folder, tmp_path / "a", [1], verify=False)
    second = prune_checkpoint(tmp_path / "a", tmp_path / "b", [2], verify=False)
    bare = shutil.copytree(tmp_path / "a", tmp_path / "bare")
    (bare / "shortgpt.json").unlink()
    assert prune_checkpoint(bare, tmp_path / "c", second, verify=False).base == first
    other = saved(tiny("llama", blocks=5), tmp_path / "other")
    assert prune_checkpoint(other, tmp_path / "d", second, verify=False).base is None
    assert "The base model" not in (tmp_path / "d" / "README.md").read_text()


def test_a_plan_for_a_model_of_another_depth_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    prune_checkpoint(llama_folder, tmp_path / "a", [1], verify=False)
    with pytest.raises(ModelError, match=r"the plan is for a model of 6 blocks, .* has 5"):
        prune_checkpoint(tmp_path / "a", tmp_path / "b", Plan.read(tmp_path / "a"), verify=False)
    assert not (tmp_path / "b").exists()


def test_progress_counts_tensors(tmp_path: Path, llama_folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False, progress=lambda *now: seen.append(now))
    count = len(tensors_in(tmp_path / "out"))
    assert seen == [("tensors", i, count) for i in range(1, count + 1)]


def test_of_several_files_too_progress_is_told_in_the_thread_that_asked(tmp_path: Path) -> None:
    source = write(tiny("llama"), tmp_path / "in", "sharded safetensors")
    seen: list[tuple[int, int]] = []
    threads: set[threading.Thread] = set()

    def progress(what: str, done: int, count: int) -> None:
        seen.append((done, count))
        threads.add(threading.current_thread())

    prune_checkpoint(source, tmp_path / "out", GONE, verify=False, progress=progress)
    count = len(tensors_in(tmp_path / "out"))
    assert seen == [(i, count) for i in range(1, count + 1)]
    assert threads == {threading.current_thread()}


def test_what_lies_side_by_side_is_copied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[int, int]] = []

    def noted(reader: FileIO, begin: int, end: int, writer: FileIO) -> Iterator[int]:
        ranges.append((begin, end))
        return copying.copy_range(reader, begin, end, writer)

    monkeypatch.setattr(writing, "copy_range", noted)
    source = saved(tiny("llama"), tmp_path / "in")
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    assert len(ranges) == 3, "head to block 0, blocks 2 and 3, block 5 to norm"
    kept = sum(tensor.nbytes for tensor in tensors_in(tmp_path / "out").values())
    assert sum(end - begin for begin, end in ranges) == kept


def test_data_keep_their_place_in_a_block_of_the_disk_so_that_a_file_system_can_share_it(tmp_path: Path) -> None:
    # Of this width every tensor takes whole blocks.
    source = saved(tiny("llama", hidden_size=1024, intermediate_size=64, vocab_size=1024).float(), tmp_path / "in")
    prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (source, tmp_path / "out"))
    begins = [8 + int.from_bytes(raw[:8], "little") for raw in (before, after)]
    assert begins[0] % 4096 == begins[1] % 4096
    assert before[begins[0] :][: 1 << 22] == after[begins[1] :][: 1 << 22], "lm_head, the first tensor"


# -- saving a shorter model that is in memory -----------------------------------------------------------------


def test_a_shorter_model_in_memory_is_saved_with_all_that_lay_beside_the_original(
    tmp_path: Path, llama_folder: Path
) -> None:
    ids = ids_of()
    original = shortgpt.load(llama_folder, device="cpu")
    shortgpt.remove(original, GONE).save(tmp_path / "out")
    assert torch.equal(
        logits_of(loaded(tmp_path / "out"), ids), skipped_by_hand(tiny("llama"), "model.layers", GONE, ids)
    )
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == names | {"README.md", "shortgpt.json"}
    plan = Plan.read(tmp_path / "out")
    assert plan.blocks == GONE
    assert shortgpt.load(tmp_path / "out", device="cpu").plan == plan


def test_without_a_plan_no_card_is_saved_neither_ours_nor_the_originals(tmp_path: Path, llama_folder: Path) -> None:
    prune_checkpoint(llama_folder, tmp_path / "in", [1], verify=False)
    shortgpt.load(tmp_path / "in", device="cpu").without([1]).save(tmp_path / "out")
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert "tokenizer.json" in written
    assert not {"README.md", "shortgpt.json"} & written


def test_memory_and_disk_give_the_same_tensors(tmp_path: Path, llama_folder: Path) -> None:
    shortgpt.remove(shortgpt.load(llama_folder, device="cpu"), GONE).save(tmp_path / "memory")
    prune_checkpoint(llama_folder, tmp_path / "disk", GONE, verify=False)
    memory, disk = tensors_in(tmp_path / "memory"), tensors_in(tmp_path / "disk")
    assert memory.keys() == disk.keys()
    assert all(bytes_of(memory[name]) == bytes_of(disk[name]) for name in disk)


# -- nothing is overwritten, and nothing half written is left -------------------------------------------------


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow beyond `room` bytes: the operating system refuses the write, as for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("room", [100, 30_000])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, layout: str, room: int) -> None:
    source = write(tiny("llama"), tmp_path / "in", layout)
    before = everything_in(tmp_path)
    with pytest.raises(OutputError, match=r"cannot be written .*; nothing was left behind"), full_disk(room):
        prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    assert everything_in(tmp_path) == before


def test_a_full_disk_while_a_model_in_memory_is_saved_is_the_same_error(tmp_path: Path) -> None:
    shorter = shortgpt.remove(shortgpt.wrap(tiny("llama")), GONE)
    with pytest.raises(OutputError, match=r"cannot be written .*; nothing was left behind"), full_disk(30_000):
        shorter.save(tmp_path / "out")
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("after", [0, 2, 5])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_dies_in_the_middle_leaves_nothing(
    tmp_path: Path, llama_folder: Path, error: BaseException, after: int
) -> None:
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), raising(copying, "copy_piece", error, after=after):
        prune_checkpoint(llama_folder, tmp_path / "deep" / "out", GONE, verify=False)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("interrupt", [True, False])
def test_what_ends_one_file_ends_all_that_are_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruptible: None, interrupt: bool
) -> None:
    source = write(tiny("llama"), tmp_path / "in", "sharded safetensors")
    before = everything_in(tmp_path)
    pieces, told = itertools.count(), []
    original_copy, original_write = copying.copy_piece, writing._write_safetensors
    stops: set[threading.Event] = set()

    def watching(*arguments: Any) -> None:
        stops.add(arguments[-1])
        original_write(*arguments)

    def a_byte_at_a_time(reader: FileIO, at: int, count: int, writer: FileIO) -> int:
        number = next(pieces)
        if number == 100:
            if not interrupt:
                raise OSError(errno.ENOSPC, "No space left on device")
            # A signal that comes just before the main thread begins to wait does not wake it; a second one does.
            os.kill(os.getpid(), signal.SIGINT)
            if not all(stop.wait(5) for stop in stops):
                os.kill(os.getpid(), signal.SIGINT)
        if number >= 100:  # the others stand still until they are told to stop
            told.append(all(stop.wait(60) for stop in stops))
            if not told[-1]:
                raise TimeoutError("it was not told to stop")
        return original_copy(reader, at, 1, writer)

    monkeypatch.setattr(writing, "_write_safetensors", watching)
    monkeypatch.setattr(copying, "copy_piece", a_byte_at_a_time)
    with pytest.raises(KeyboardInterrupt if interrupt else OutputError):
        prune_checkpoint(source, tmp_path / "out", GONE, verify=False)
    assert everything_in(tmp_path) == before
    assert all(told)
    assert len(told) <= writing.AT_A_TIME, "they went on though they were told"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_so_does_one_that_dies_while_the_records_are_written(
    tmp_path: Path, llama_folder: Path, error: BaseException
) -> None:
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), raising(Path, "write_text", error, after=0):
        prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False)
    assert everything_in(tmp_path) == []


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False)
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        shortgpt.remove(shortgpt.wrap(tiny("llama")), GONE).save(tmp_path / "out")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        prune_checkpoint(llama_folder, tmp_path / "out" / "mine.txt", GONE, verify=False)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert everything_in(tmp_path) == ["out", "out/mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False)
    loaded(tmp_path / "out")
    assert everything_in(tmp_path)[0] == "out"


def test_a_link_to_an_empty_folder_leads_there(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    prune_checkpoint(llama_folder, tmp_path / "link", GONE, verify=False)
    loaded(tmp_path / "there")
    assert (tmp_path / "link").is_symlink()


def test_a_place_where_no_folder_can_be_made_is_an_output_error(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        prune_checkpoint(llama_folder, tmp_path / "file" / "out", GONE, verify=False)
    assert everything_in(tmp_path) == ["file"]


def test_the_output_can_be_read_by_whom_the_umask_allows(tmp_path: Path, llama_folder: Path) -> None:
    prune_checkpoint(llama_folder, tmp_path / "out", GONE, verify=False)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


# -- what is no checkpoint ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [[], [0, 1, 2, 3, 4, 5], [6], [-1]])
def test_no_blocks_all_blocks_and_blocks_that_do_not_exist_are_refused(
    tmp_path: Path, llama_folder: Path, blocks: list[int]
) -> None:
    with pytest.raises(SelectionError):
        prune_checkpoint(llama_folder, tmp_path / "out", blocks, verify=False)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -8])
def test_a_truncated_safetensors_file_is_told(tmp_path: Path, size: int) -> None:
    source = saved(tiny("llama"), tmp_path / "in")
    raw = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(raw[:size])
    removal_refused(source, CheckpointError, r"model\.safetensors: truncated or damaged.*fetch the model again")


@pytest.mark.parametrize(
    "header",
    [
        b"rubbish ",
        b"[1, 2]  ",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}',
        b"\xff\xfe    ",
    ],
)
def test_a_safetensors_file_with_a_damaged_header_is_told(tmp_path: Path, header: bytes) -> None:
    source = saved(tiny("llama"), tmp_path / "in")
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    removal_refused(source, CheckpointError, r"model\.safetensors: truncated or damaged")


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half a zip"])
def test_a_damaged_torch_file_is_told(tmp_path: Path, content: bytes) -> None:
    source = write(tiny("llama"), tmp_path / "in", "torch")
    (source / "pytorch_model.bin").write_bytes(content)
    removal_refused(source, CheckpointError, r"pytorch_model\.bin: cannot be read as a torch checkpoint")


def test_a_torch_file_is_never_unpickled_into_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return print, ("harm",)

    source = write(tiny("llama"), tmp_path / "in", "torch")
    torch.save({"a": Harm()}, source / "pytorch_model.bin")
    removal_refused(source, CheckpointError, "cannot be read as a torch checkpoint")


def test_a_torch_file_of_something_else_is_told(tmp_path: Path) -> None:
    source = write(tiny("llama"), tmp_path / "in", "torch")
    torch.save({"step": 3}, source / "pytorch_model.bin")
    removal_refused(source, CheckpointError, "holds no plain mapping of names to tensors")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_told(tmp_path: Path, index: str) -> None:
    source = write(tiny("llama"), tmp_path / "in", "sharded safetensors")
    (source / "model.safetensors.index.json").write_text(index)
    removal_refused(source, CheckpointError, r"model\.safetensors\.index\.json is damaged")


def test_a_missing_shard_is_told_by_name(tmp_path: Path) -> None:
    source = write(tiny("llama"), tmp_path / "in", "sharded safetensors")
    first = sorted(source.glob("*.safetensors"))[1]
    first.unlink()
    removal_refused(source, CheckpointError, f"names 1 files that are missing .{first.name}.*fetch the model again")


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    source = saved(tiny("llama"), tmp_path / "in")
    (source / "model.safetensors").unlink()
    removal_refused(source, CheckpointError, "the folder holds no weights")


@pytest.mark.parametrize("lacking", ["model.layers.3.", "model.layers.3.mlp.up_proj.weight", "model.norm.weight"])
def test_missing_tensors_are_told_by_name_also_of_blocks_that_go(tmp_path: Path, lacking: str) -> None:
    from safetensors.torch import save_file

    source = saved(tiny("llama"), tmp_path / "in")
    left = {name: tensor for name, tensor in tensors_in(source).items() if not name.startswith(lacking)}
    save_file(left, source / "model.safetensors")
    removal_refused(source, CheckpointError, f"lacks .* tensors .*{lacking}")


def test_tensors_of_blocks_that_the_config_does_not_count_are_told(tmp_path: Path) -> None:
    source = saved(tiny("llama"), tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    removal_refused(source, CheckpointError, r"counts 5 blocks, but there are tensors of model\.layers\.5")


def test_a_plan_for_another_architecture_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    model = shortgpt.load(llama_folder, device="cpu")
    plan = shortgpt.Plan("mine", "mamba", len(model), (1,))
    with pytest.raises(shortgpt.ShortGPTError, match="the plan is for the architecture mamba"):
        prune_checkpoint(llama_folder, tmp_path / "out", plan, verify=False)
    with pytest.raises(shortgpt.ShortGPTError, match="the plan is for the architecture mamba"):
        shortgpt.remove(model, plan)


def test_parameters_are_counted_as_the_library_counts_them(tmp_path: Path) -> None:
    model = tiny("gpt2")
    model.save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    for block in range(6):  # as old checkpoints have it: the causal mask, and the tied head once more
        tensors[f"transformer.h.{block}.attn.bias"] = torch.ones(1, 1, 64, 64)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    plan = prune_checkpoint(tmp_path / "in", tmp_path / "out", [1], verify=False)
    assert plan.parameters_before == sum(p.numel() for p in model.parameters())
    assert plan.parameters_after == plan.parameters_before - sum(p.numel() for p in model.transformer.h[1].parameters())


def test_what_is_saved_from_memory_records_the_hashes_of_its_source(tmp_path: Path, llama_folder: Path) -> None:
    shortgpt.remove(shortgpt.load(llama_folder, device="cpu"), [1]).save(tmp_path / "out")
    assert Plan.read(tmp_path / "out").source_hashes == {
        name: hashlib.sha256((llama_folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }


def test_an_interruption_does_not_wait_for_the_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tiny("llama"), tmp_path / "in", "sharded safetensors")
    begun, stopped = threading.Event(), []

    def endless(file: Path, stop: threading.Event) -> str:
        begun.set()
        stopped.append(stop.wait(60))
        return ""

    def interrupted(future: Future[str], timeout: float | None = None) -> str:
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(hashing, "file_hash", endless)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.Weights(shortgpt.models.recognition.resolve(source)).hashes()
    assert stopped
    assert all(stopped)
