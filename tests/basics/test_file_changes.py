"""A source that changes while it is read: nothing that was made of it is kept, and hashes are of what was copied."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shortgpt
from shortgpt.checkpoints import copying, writing
from shortgpt.checkpoints.hashing import HashOfCopied
from shortgpt.errors import CheckpointError
from tests.support import saved, tiny


def replaced(file: Path) -> None:
    """Another file of the same bytes and times in its place."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    other.replace(file)


def grown(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


def overwritten(file: Path) -> None:
    """A byte changed in place, and the time of modification set back."""
    status = file.stat()
    with file.open("r+b") as writer:
        writer.seek(-1, os.SEEK_END)
        writer.write(b"\x01")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("name", "change", "how"),
    [
        ("model.safetensors", replaced, "another file stands in its place"),
        ("model.safetensors", overwritten, "it was written to"),
        ("config.json", grown, r"it had \d+ bytes and has \d+"),
        ("tokenizer.json", removed, "it is gone"),
    ],
)
def test_a_file_that_changes_between_look_and_copy_is_named_and_nothing_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[Path], None],
    how: str,
) -> None:
    source = saved(tiny("llama", blocks=3), tmp_path / "in")
    write = writing.write

    def changed_before(*given: Any) -> dict[str, str]:
        change(source / name)
        return write(*given)

    monkeypatch.setattr(writing, "write", changed_before)
    with pytest.raises(CheckpointError, match=rf"{name} was changed since the model was first looked at \({how}\)"):
        shortgpt.prune_checkpoint(source, tmp_path / "out", [1], verify=False)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_an_error_that_the_change_brought_about_is_told_as_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tiny("llama", blocks=3), tmp_path / "in")
    copy = copying.copy_piece

    def cut_off(*given: Any) -> int:
        os.truncate(source / "model.safetensors", 2000)
        return copy(*given)

    monkeypatch.setattr(copying, "copy_piece", cut_off)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed .*it had \d+ bytes and has 2000"):
        shortgpt.prune_checkpoint(source, tmp_path / "out", [1], verify=False)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_a_model_in_memory_does_not_record_hashes_of_other_weights_than_its_own(tmp_path: Path) -> None:
    source = saved(tiny("llama", blocks=3), tmp_path / "in")
    shorter = shortgpt.remove(shortgpt.load(source, device="cpu"), [1])
    overwritten(source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed since"):
        shorter.save(tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_what_was_copied_is_hashed_as_it_was_copied_and_the_rest_as_it_stands(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    before = bytes(range(256)) * 9000  # more than is read at a time
    source.write_bytes(before)
    ranges = [(10, 1_500_000), (1_500_000, 1_500_001), (2_000_000, 2_300_000)]
    copy.write_bytes(b"its header" + b"".join(before[begin:end] for begin, end in ranges))
    with HashOfCopied(source, copy, threading.Event()) as digest:
        source.write_bytes(before[:10] + bytes(2_299_990) + before[2_300_000:])  # too late for what was copied
        at = len(b"its header")
        for begin, end in ranges:
            at += end - begin
            digest.copied(begin, end, at)
    left = [before[:10], bytes(500_000 - 1), before[2_300_000:]]
    expected = left[0] + before[10:1_500_001] + left[1] + before[2_000_000:2_300_000] + left[2]
    assert digest.result == hashlib.sha256(expected).hexdigest()


def test_the_recorded_hashes_are_those_of_the_sources_bytes_whatever_is_left_out(tmp_path: Path) -> None:
    source = saved(tiny("llama"), tmp_path / "in")
    for gone in ([0], [2, 4], [1, 2, 3, 4, 5]):
        plan = shortgpt.prune_checkpoint(source, tmp_path / str(gone), gone, verify=False)
        assert plan.source_hashes == {
            name: hashlib.sha256((source / name).read_bytes()).hexdigest()
            for name in ("config.json", "model.safetensors")
        }
