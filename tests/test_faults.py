"""Some commands that are killed; `make faults` kills more."""

import random
from pathlib import Path

import pytest

from tests.faults import kill_once


@pytest.mark.fresh_process
@pytest.mark.parametrize("command", ["prune", "scored prune", "score"])
def test_a_killed_command_leaves_all_or_nothing_and_the_next_run_cleans_up(command: str, tmp_path: Path) -> None:
    kill_once(command, random.Random(3), tmp_path / "run")
