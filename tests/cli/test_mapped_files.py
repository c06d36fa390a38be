"""A mapped file that is cut short while it is read ends a command with a message, not the process with SIGBUS."""

import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

import shortgpt.measuring.scoring.score
from tests.fresh_processes import run_python
from tests.support import run_cli

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there the system's answer is another one")

READING = """
import sys, time
from shortgpt.cli.process import signals
from tests.cli.test_mapped_files import summed, copied

try:
    with signals.unwinding():
        {way}(sys.argv[1])
        time.sleep(5)
        print("worked on")
except signals.CutShort as stop:
    print(stop)
"""


def mapped(file: str) -> mmap.mmap:
    """A file of 4 MiB, mapped, of which the first page alone is there still."""
    Path(file).write_bytes(b"\1" * (1 << 22))
    with open(file, "r+b") as opened:
        mapping = mmap.mmap(opened.fileno(), 1 << 22, access=mmap.ACCESS_COPY)
    os.truncate(file, mmap.PAGESIZE)
    return mapping


def summed(file: str) -> None:
    """Torch's threads read it, without Python's lock."""
    torch.set_num_threads(2)
    torch.frombuffer(mapped(file), dtype=torch.float32).double().sum()


def copied(file: str) -> None:
    """Python reads it, with its lock."""
    bytes(mapped(file))


@pytest.mark.parametrize("way", [summed, copied])
def test_who_reads_it_is_ended_and_the_file_is_named(way: object, tmp_path: Path) -> None:
    name = getattr(way, "__name__", "")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    ran = run_python("-c", READING.format(way=name), tmp_path / "weights", env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{tmp_path / 'weights'}: was cut short while it was read")
    assert "worked on" not in ran.stdout


def test_a_command_says_so_with_status_2(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(*arguments: object, **options: object) -> None:
        copied(str(tmp_path / "weights"))
        raise AssertionError("of what was read instead")

    monkeypatch.setattr(shortgpt.measuring.scoring.score, "score", reading)
    ran = run_cli("score", llama_folder, "--device", "cpu", "-q")
    assert ran.status == 2
    assert ran.err.startswith(f"shortgpt: error: {tmp_path / 'weights'}: was cut short")
