"""What a pass leaves of the C library's memory, counted by the kernel."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

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
