"""How much memory a process and its children take at the peak: what several benchmarks share."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

MIB = 1 << 20
FIELDS = {"own": ("RssAnon", "RssShmem"), "mapped": ("RssFile",)}


def memory(process: int | str = "self") -> dict[str, float]:
    """MiB of a process's memory: its own, and what it has mapped from files and is resident; zeros once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return dict.fromkeys(FIELDS, 0.0)
    held = dict(line.split(":", 1) for line in lines)
    return {
        kind: sum(int(held.get(field, "0").split()[0]) for field in fields) / 1024 for kind, fields in FIELDS.items()
    }


class Peak:
    """Watches this process while a block of code runs, and its children, each by itself.

    Attributes:
        own, mapped, resident: the most that one of them held at a time, MiB: its own, mapped from files, and together.
    """

    def __init__(self, every: float = 0.003) -> None:
        self.every = every
        self.own = self.mapped = self.resident = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.every):
            for process in ("self", *_children()):
                here = memory(process)
                self.own, self.mapped = max(self.own, here["own"]), max(self.mapped, here["mapped"])
                self.resident = max(self.resident, sum(here.values()))


def _children() -> list[str]:
    try:
        return [
            child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # a thread that has ended
        return []
