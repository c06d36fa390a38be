"""Whether there is memory for a model, and whether an error says that there was not."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from functools import cache
from pathlib import Path
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

        free += min((psutil.virtual_memory().available, *room_in_containers()))
    need = int(size * 1.2) + (256 << 20)  # weights, activations of the probe, the libraries
    if free >= need:
        return None
    return f"it needs about {need / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB are free"


CGROUPS = Path("/sys/fs/cgroup")


def room_in_containers(places: str | None = None, mounted: Path = CGROUPS) -> list[int]:
    """Bytes that the control groups of this process still let it have, one number for each that sets a limit: version 1
    and 2, and the groups around a group, whose limits hold too.

    Args:
        places: what /proc/self/cgroup holds; None reads it.
    """
    if places is None:
        own = Path("/proc/self/cgroup")
        places = own.read_text(encoding="utf-8") if own.is_file() else ""
    room = []
    for line in places.splitlines():
        _, controllers, group = ([*line.split(":", 2), "", ""])[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        root = mounted / "memory"
        if not controllers:
            files, root = ("memory.max", "memory.current", "inactive_file"), mounted
        # Inside a container its group can be mounted as the root, and the path be that of outside.
        inner = Path(group.lstrip("/"))
        for folder in dict.fromkeys((root / inner, *(root / part for part in inner.parents), root)):
            free = _room_in(folder, *files)
            if free is not None:
                room.append(free)
    return room


def _room_in(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """What a control group still lets its processes have; None where it sets no limit."""
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
        held = re.search(rf"^{cached} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # there is no such group here, or its limit is "max"
        return None
    return max(0, most - used + (int(held[1]) if held else 0)) if most < NO_LIMIT else None


NO_LIMIT = 2**60
"""Version 1 writes a number of this size where there is none."""


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
