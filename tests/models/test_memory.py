"""What a pass leaves of the C library's memory, counted by the kernel."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from shortgpt.models.memory import lacking_memory, room_in_containers

THREE_TENSORS = """
import resource, torch, shortgpt

class Unchanged(shortgpt.BlockSequence):
    name, architecture, norm_placement, block_names, vocab_size = "unchanged", "", "unknown", ("block",), 8
    device = torch.device("cpu")
    logits = skipping = without = write = None

    def trace(self, batch, tap):
        for boundary in range(2):
            tap(boundary, torch.ones(1, 8, 4))

    def parameter_counts(self):
        return (1,)

    def total_parameters(self):
        return 1

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(3 << 20) for _ in range(3)]  # 12 MiB each
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

shortgpt.score(Unchanged(), [{"input_ids": torch.arange(8)[None]}])
faults()
print(sum(faults() for _ in range(8)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of other C libraries nothing is said")
def test_tensors_that_come_and_go_in_a_pass_are_not_mapped_and_zeroed_each_time() -> None:
    untuned = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", THREE_TENSORS], cwd=root, env=untuned, check=True, capture_output=True, text=True
    )
    pages = 8 * 3 * (12 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int(ran.stdout) < pages / 4


def test_the_limits_of_control_groups_count(tmp_path: Path) -> None:
    def group(folder: str, files: dict[str, object]) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (tmp_path / folder / name).write_text(f"{value}\n")

    group("a/b", {"memory.max": 1000, "memory.current": 900, "memory.stat": "anon 1\ninactive_file 200"})
    group("a", {"memory.max": "max", "memory.current": 5000, "memory.stat": "inactive_file 0"})
    assert room_in_containers("0::/a/b", tmp_path) == [300]
    group(
        "memory/x",
        {"memory.limit_in_bytes": 700, "memory.usage_in_bytes": 100, "memory.stat": "total_inactive_file 50"},
    )
    group("memory", {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": 1, "memory.stat": ""})
    assert room_in_containers("4:cpu,memory:/x\n1:cpuset:/x\n0::/elsewhere", tmp_path) == [650]
    assert room_in_containers("", tmp_path) == []
    assert "GiB are free" in str(lacking_memory(2**60, "cpu"))


def test_a_model_is_not_loaded_into_a_container_that_is_too_small_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortgpt.models.memory.room_in_containers", lambda: [2**28])
    assert lacking_memory(2**20, "cpu") == "it needs about 0.3 GiB on cpu, 0.2 GiB are free"
