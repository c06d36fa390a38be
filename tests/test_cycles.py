"""What `make cycles` holds over 200 rounds is held over some."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests import cycles
from tests.cycles import WARM, Held

ROUNDS = WARM + 3


@pytest.mark.usefixtures("one_process")
def test_rounds_leave_no_descriptor_thread_hook_process_or_temporary_file(llama_folder: Path, tmp_path: Path) -> None:
    held = cycles.rounds(ROUNDS, llama_folder, tmp_path)
    assert len({one.others() for one in held[WARM - 1 :]}) == 1, held
    assert (held[-1].hooks, held[-1].files) == (0, 0)


def test_what_grew_is_told() -> None:
    held = Held(memory=1000, descriptors=5, threads=1, children=0, hooks=0, files=0)
    warm = [replace(held, memory=500)] * (WARM - 1) + [held]
    assert cycles.grown([*warm, *[replace(held, memory=1019)] * 3]) == []
    assert cycles.grown([*warm, *[replace(held, memory=1021)] * 3]) == ["resident memory grew by 2.1%"]
    (told,) = cycles.grown([*warm, held, held, replace(held, files=1)])
    assert "files=1" in told
