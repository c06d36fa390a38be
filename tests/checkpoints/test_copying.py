"""Ranges of bytes from file to file: the same bytes, however the system copies them."""

import errno
import os
import random
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from shortgpt.checkpoints import copying
from shortgpt.checkpoints.copying import copy_range
from shortgpt.errors import CheckpointError

BYTES = random.Random(0).randbytes(3_000_000)
RANGES = [(0, 0), (0, 1), (5, 4096), (4096, 8192), (4095, 4097), (1000, 2_500_001), (0, len(BYTES))]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(BYTES)
    return file


def copied(source: Path, target: Path, begin: int, end: int, before: bytes = b"") -> list[int]:
    """Copy a range behind `before`; where the copying came by."""
    with FileIO(source) as reader, FileIO(target, "w") as writer:
        writer.write(before)
        return list(copy_range(reader, begin, end, writer))


@pytest.mark.parametrize(("begin", "end"), RANGES)
def test_the_bytes_of_the_range_follow_what_was_written_before(
    source: Path, tmp_path: Path, begin: int, end: int
) -> None:
    places = copied(source, tmp_path / "target", begin, end, b"before")
    assert (tmp_path / "target").read_bytes() == b"before" + BYTES[begin:end]
    assert (places[0], places[-1]) == (begin, end)
    assert places == sorted(places)


@pytest.mark.parametrize(
    "answer", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM", "no such call", "nothing copied"]
)
@pytest.mark.parametrize(("begin", "end"), RANGES)
def test_where_the_system_cannot_copy_the_bytes_are_read_and_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, begin: int, end: int
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        if answer == "nothing copied":
            return 0
        raise OSError(getattr(errno, answer), "cannot")

    if answer == "no such call":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    copied(source, tmp_path / "target", begin, end, b"before")
    assert (tmp_path / "target").read_bytes() == b"before" + BYTES[begin:end]


def test_a_system_that_gives_up_half_way_is_taken_over_from(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = os.copy_file_range, []

    def at_times(src: int, dst: int, count: int, **options: Any) -> int:
        calls.append(count)
        if len(calls) % 2:
            return original(src, dst, min(count, 1000), **options)
        raise OSError(errno.EXDEV, "cannot")

    monkeypatch.setattr(os, "copy_file_range", at_times)
    copied(source, tmp_path / "target", 3, len(BYTES))
    assert (tmp_path / "target").read_bytes() == BYTES[3:]
    assert len(calls) > 2


def test_another_file_system_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system, /dev/shm")
    target = memory / f"shortgpt-test-{os.getpid()}"
    try:
        copied(source, target, 5, len(BYTES))
        assert target.read_bytes() == BYTES[5:]
    finally:
        target.unlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
def test_what_reading_and_writing_would_meet_too_is_not_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with pytest.raises(OSError, match="no") as raised:
        copied(source, tmp_path / "target", 0, 100)
    assert raised.value.errno == number
    assert (tmp_path / "target").read_bytes() == b""


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_that_ends_before_the_range_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    if by_hand:
        monkeypatch.delattr(os, "copy_file_range")
    with pytest.raises(CheckpointError, match="source: ended in the middle of a tensor; fetch the model again"):
        copied(source, tmp_path / "target", 100, len(BYTES) + 1)


def test_a_piece_is_all_that_an_interruption_waits_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PIECE", 100_000)
    monkeypatch.setattr(copying, "BLOCK", 1000)
    with FileIO(source) as reader, FileIO(tmp_path / "target", "w") as writer:
        places = copy_range(reader, 1500, len(BYTES), writer)
        assert [next(places) for _ in range(4)] == [1500, 2000, 102_000, 202_000]
        assert writer.tell() == 200_500
