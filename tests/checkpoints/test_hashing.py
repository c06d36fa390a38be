"""Hashes of the source that are recorded: read, or told by the hub's cache."""

import hashlib
import os
from pathlib import Path

import pytest

import shortgpt
from shortgpt.errors import CheckpointError

FALSE = "0" * 64  # a name as the cache gives them, of bytes that have another hash


@pytest.fixture
def cache(tmp_path: Path, llama_folder: Path) -> Path:
    """A snapshot in a cache like the hub's: the weights are a link to a blob that is called as by their SHA-256, though
    it is not theirs, the config to one that is called as by git's SHA-1."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, blob in (("config.json", "1" * 40), ("model.safetensors", FALSE)):
        (blobs / blob).write_bytes((llama_folder / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def read_hashes(folder: Path) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("config.json", "model.safetensors")}


def test_a_file_of_the_hubs_cache_is_taken_at_its_name_and_that_is_noted(tmp_path: Path, cache: Path) -> None:
    plan = shortgpt.prune_checkpoint(cache, tmp_path / "out", [1], verify=False)
    assert plan.source_hashes == {**read_hashes(cache), "model.safetensors": FALSE}
    assert [note for note in plan.notes if "SHA-256 of 1 of the source's files" in note]


def test_rehash_reads_it(tmp_path: Path, cache: Path) -> None:
    plan = shortgpt.prune(cache, tmp_path / "out", remove=[1], verify=False, rehash=True)
    assert plan is not None
    assert plan.source_hashes == read_hashes(cache)
    assert not [note for note in plan.notes if "SHA-256" in note]


def test_what_is_saved_from_memory_tells_the_same(tmp_path: Path, cache: Path) -> None:
    shortgpt.remove(shortgpt.load(cache, device="cpu"), [1]).save(tmp_path / "out")
    assert shortgpt.Plan.read(tmp_path / "out").source_hashes["model.safetensors"] == FALSE


def test_the_same_bytes_are_written_whether_they_are_read_for_the_hash_or_not(tmp_path: Path, cache: Path) -> None:
    for name in ("known", "read"):
        shortgpt.prune_checkpoint(cache, tmp_path / name, [1], verify=False, rehash=name == "read")
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("known", "read")}) == 1


def test_a_blob_that_was_cut_off_is_refused(tmp_path: Path, cache: Path) -> None:
    blob = cache.parents[1] / "blobs" / FALSE
    os.truncate(blob, blob.stat().st_size - 1)
    with pytest.raises(CheckpointError):
        shortgpt.prune_checkpoint(cache, tmp_path / "out", [1], verify=False)


def test_elsewhere_a_files_name_proves_nothing(tmp_path: Path, llama_folder: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    (folder / FALSE).write_bytes((llama_folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").symlink_to(FALSE)
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "out", [1], verify=False)
    assert plan.source_hashes == read_hashes(folder)
