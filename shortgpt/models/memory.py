"""Whether there is memory for a model, and whether an error says that there was not."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIGNS = re.compile(
    r"OutOfMemoryError|MemoryError|out of memory|annot allocate memory|DefaultCPUAllocator: |ALLOC_FAILED|"
    r"does not fit into the memory"
)
"""What torch, CUDA's libraries and our adapters say; most of them say it in the message only."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or the host's, did not suffice."""
    return bool(SIGNS.search(f"{type(error).__name__}: {error}"))


def lacking_memory(size: int, device: str) -> str | None:
    """Why a model of `size` bytes cannot be loaded, or None where it can."""
    import torch

    free = 0
    if device.startswith("cuda"):
        free = _free_on(torch.device(device))
    elif device == "auto":
        free = sum(_free_on(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))
    if not device.startswith("cuda"):
        import psutil

        free += psutil.virtual_memory().available
    need = int(size * 1.2) + (256 << 20)  # weights, activations of the probe, the libraries
    if free >= need:
        return None
    return f"it needs about {need / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB are free"


def _free_on(device: torch.device) -> int:
    """Bytes that no one uses, of a CUDA device; what torch has in reserve is among them."""
    import torch

    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + reserve


def release_memory() -> None:
    """Give back what a model held that is gone: another process is about to need it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor, up to 62 MiB.

    glibc begins with handing back to the system all that is larger than 128 KiB, to be mapped and zeroed again, which
    is some 10% of the time that a small model takes on a CPU (docs/performance.md). It learns better from a block that
    comes back, and from none above 32 MiB. This one is never written to, so it takes no memory.
    """
    import torch

    torch.empty(31 << 20, dtype=torch.uint8)


def hand_back_freed_memory() -> None:
    """Let the C library hand what it keeps for the next tensor back to the system, where it is one that can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
