"""Score, remove, save and verify, again and again in one process: what it holds in the end is what it held.

::

    load ─▶ score ─▶ remove ─▶ save ─▶ verify        each time, and then: resident memory, open files, threads, hooks,
      ▲                          └ prune, verified    children, temporary files
      └──────────────────────────────┘

`python -m tests.cycles 200` (`make cycles`) goes so many times round; the test run goes round some times.
"""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import shortgpt
from tests import support

WARM = 4
"""Rounds until every cache of Python, torch and transformers holds what it will."""
GROWTH = 0.02


@dataclass(frozen=True)
class Held:
    """What this process holds."""

    memory: int
    descriptors: int
    threads: int
    children: int
    hooks: int
    files: int

    @classmethod
    def now(cls, model: torch.nn.Module, temporary: Path) -> Held:
        """With `temporary` as the folder for temporary files, and the hooks that are on a model that stays."""
        gc.collect()
        process = psutil.Process()
        return cls(
            memory=process.memory_info().rss,
            descriptors=process.num_fds(),
            threads=threading.active_count(),
            children=len(process.children(recursive=True)),
            hooks=sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
            files=sum(1 for _ in temporary.rglob("*")),
        )

    def others(self) -> tuple[int, ...]:
        """All but the memory."""
        return self.descriptors, self.threads, self.children, self.hooks, self.files


def rounds(number: int, source: Path, place: Path) -> list[Held]:
    """Go round so many times; what is held after each."""
    temporary = place / "temporary"
    temporary.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    stays = support.tiny("llama")
    held = []
    gc.collect()
    gc.freeze()  # what is there by now is no garbage of a round's, and is not looked through each time
    try:
        for _ in range(number):
            one(source, stays, place)
            held.append(Held.now(stays, temporary))
    finally:
        tempfile.tempdir = before
        gc.unfreeze()
    return held


def one(source: Path, stays: torch.nn.Module, place: Path) -> None:
    """One round, of a model from its files and of one that stays in memory."""
    out, pruned = place / "out", place / "pruned"
    batches = [{"input_ids": support.ids_of(2, 16)}]
    model = shortgpt.load(source, device="cpu")
    scores = shortgpt.score(model, batches)
    shortgpt.score(shortgpt.wrap(stays), batches)
    shorter = shortgpt.remove(model, scores.plan(1))
    shorter.save(out)
    assert shortgpt.verify(model, out, scores.least_influential(1)).verified
    done = shortgpt.prune(
        source, pruned, blocks=1, calibration=["some text " * 20] * 2, effect=False, sequences=2, tokens=16
    )
    assert done is not None
    assert done.verification is not None
    assert done.verification.verified
    for folder in (out, pruned):
        shutil.rmtree(folder)


def grown(held: list[Held]) -> list[str]:
    """What there is more of in the end than there was when all was warm."""
    first, last = held[WARM - 1], held[-1]
    told = []
    memory = sorted(one.memory for one in held[-3:])[1] / first.memory - 1
    if memory > GROWTH:
        told.append(f"resident memory grew by {memory:.1%}")
    if last.others() != first.others():
        told.append(f"{first} became {last}")
    return told


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = support.saved(support.tiny("llama"), place / "model")
        with support.in_this_process():
            held = rounds(number, source, place)
    first, last = held[WARM - 1], held[-1]
    print(f"{number} rounds in {time.monotonic() - begin:.0f} s")
    print(f"after {WARM}: {first}")
    print(f"after {number}: {last}, memory {last.memory / first.memory - 1:+.2%}")
    told = grown(held)
    sys.exit("; ".join(told) if told else 0)


if __name__ == "__main__":
    main()
