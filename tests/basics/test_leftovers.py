"""What is half written is locked by who writes it; what is not locked was left by a process that is gone."""

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shortgpt
from shortgpt.basics.leftovers import partial_folder, remove_dead, temporary_folder
from shortgpt.checkpoints.new_folder import new_folder
from shortgpt.errors import OutputError
from shortgpt.reports.files import write
from shortgpt.verification import fresh_process
from tests.support import raising

HOLDS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shortgpt.basics.leftovers import partial_folder
with partial_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_told_and_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holding = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "a"], stdout=subprocess.PIPE, text=True)
    assert holding.stdout is not None
    folder = Path(holding.stdout.readline().strip())
    try:
        with partial_folder(tmp_path / "b"):
            assert folder.is_dir()
    finally:
        holding.kill()
        holding.wait()
    assert folder.is_dir()
    with caplog.at_level(logging.WARNING, "shortgpt"), partial_folder(tmp_path / "b"):
        assert not folder.exists()
    assert f"removed what a run that was killed had left: {folder}" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".out.partial-abcdefgh").symlink_to(tmp_path / "mine")
    with partial_folder(tmp_path / "out"):
        assert (tmp_path / "mine").is_dir()


def test_temporary_folders_are_where_tmpdir_says_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "x" * 200])
def test_names_as_long_as_the_system_takes_them(tmp_path: Path, name: str) -> None:
    with new_folder(tmp_path / name) as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / name / "file").read_text() == "x"
    write("x", tmp_path / name / name)
    assert (tmp_path / name / name).read_text() == "x"


def test_files_are_on_the_disk_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text("x")
    assert {"a", "b", "c", folder.name} == set(done[: done.index("renamed")])
    assert done[-1] == tmp_path.name


def test_an_output_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    full = OSError(errno.EROFS, "Read-only file system")
    with raising(os, "mkdir", full), pytest.raises(OutputError, match=r"Read-only file system"):
        shortgpt.prune("zoo:llama", tmp_path / "out", blocks=1)


def test_a_full_tmpdir_is_told_as_that_and_the_result_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise full

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    plan = shortgpt.prune_checkpoint("zoo:llama", tmp_path / "out", [1], device="cpu")
    assert plan.verification is not None
    assert not plan.verification.verified
    assert "the folder for temporary files" in str(plan.verification)
    assert "have TMPDIR name another one" in str(plan.verification)
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_process_that_verifies_ends_with_the_one_that_asks() -> None:
    waits = (
        fresh_process.START.partition("sys.path[:]")[0] + "import time; print(os.getpid(), flush=True); time.sleep(60)"
    )
    starts = "import json, os, subprocess, sys\nrequest = json.dumps({'parent': os.getpid()})\n"
    starts += f"subprocess.run([sys.executable, '-I', '-c', {waits!r}, request])"
    asks = subprocess.Popen([sys.executable, "-c", starts], stdout=subprocess.PIPE, text=True)
    assert asks.stdout is not None
    child = int(asks.stdout.readline())
    asks.send_signal(signal.SIGKILL)
    asks.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and _state(child) != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists() or _state(child) == "Z"


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_nothing_is_taken_for_left_over_that_has_another_name(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-X").mkdir()
    (tmp_path / "out.partial-abcdefgh").mkdir()
    from shortgpt.basics.leftovers import PARTIAL

    remove_dead(tmp_path, PARTIAL)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_another_process_removes_before_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = tempfile.mkdtemp

    def make_and_lose_the_first(**arguments: Any) -> str:
        made.append(make(**arguments))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose_the_first)
    with partial_folder(tmp_path / "out") as folder:
        assert folder.is_dir()
    assert len(made) == 2


def test_of_many_that_write_one_folder_one_is_complete_and_nothing_else_stays(tmp_path: Path) -> None:
    together, refused = threading.Barrier(20), []

    def write_one(number: int) -> bool:
        try:
            with new_folder(tmp_path / "out") as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(str(number))
                together.wait(60)
        except OutputError as error:
            refused.append(str(error))
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(write_one, range(20))) == 1
    assert all("nothing was left behind" in told for told in refused)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert len({(tmp_path / "out" / name).read_text() for name in ("a", "b")}) == 1
