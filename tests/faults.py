"""Commands that are killed at any moment: what they leave is all of a result or nothing, and the next run removes it.

::

    a good model ─▶ fork ─▶ shortgpt prune ... ─ SIGKILL at the nth file operation, or after a while
                                └ the process that verifies: gone within 2 s
    shortgpt prune ... again ─▶ one complete result, nothing else, the source as it was

`python -m tests.faults 300` (`make faults`) kills so many; the test run kills some.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from shortgpt.basics.leftovers import PARTIAL, TEMPORARY
from tests import support

EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "os.chmod"})
LONGEST = 6.0  # seconds until a command is killed that had no nth file operation
ORPHANS = 2.0  # seconds that a process may outlive the one that started it

COMMANDS: dict[str, tuple[str, ...]] = {
    "prune": ("prune", "MODEL", "-o", "OUT", "--remove", "1", "--device", "cpu", "-q"),
    "scored prune": (
        "prune",
        "MODEL",
        "-o",
        "OUT",
        "--blocks",
        "1",
        "--sequences",
        "2",
        "--tokens",
        "16",
        "-q",
        "--no-verify",
    ),
    "score": ("score", "MODEL", "--sequences", "2", "--tokens", "16", "--json", "OUT.json", "--device", "cpu", "-q"),
}


@cache
def source() -> Path:
    """A tiny Llama of six blocks in shards, with a tokenizer."""
    folder = Path(tempfile.mkdtemp(prefix="faults-")) / "model"
    return support.saved(support.tiny("llama"), folder, max_shard_size="60KB")


def in_a_fork(work: Callable[[], object], folder: Path) -> int:
    """Do it in another process, which has imported all that this one has; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        tempfile.tempdir = str(folder / "tmp")
        os.environ["TMPDIR"] = tempfile.tempdir
        out = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        work()
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except BaseException:
        os._exit(99)
    os._exit(0)


def kill_at(number: int) -> None:
    """Have this process killed at its nth file operation."""
    left = number

    def hook(event: str, arguments: object) -> None:
        nonlocal left
        if event in EVENTS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(command: str, folder: Path, killed_at: int | None = None, after: float | None = None) -> int:
    """One command; its exit status, negative for the signal that ended it."""
    from shortgpt.cli import main

    names = {"MODEL": str(source()), "OUT": str(folder / "out"), "OUT.json": str(folder / "out.json")}
    arguments = [names.get(word, word) for word in COMMANDS[command]]

    def work() -> None:
        if killed_at is not None:
            kill_at(killed_at)
        main(arguments)

    pid = in_a_fork(work, folder)
    begin = time.monotonic()
    children: set[psutil.Process] = set()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        try:
            children |= {*psutil.Process(pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
        if time.monotonic() - begin > (after if after is not None else 10 * LONGEST):
            os.kill(pid, signal.SIGKILL)
            after = 10 * LONGEST
        time.sleep(0.005)
    ended = time.monotonic()
    alive = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    while alive and time.monotonic() - ended < ORPHANS:
        time.sleep(0.02)
        alive = [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"{command}: {alive} outlived it"
    return os.waitstatus_to_exitcode(status)


def leftovers(folder: Path) -> list[str]:
    """What was left in a folder and in that of temporary files."""
    found = [entry.name for place in (folder, folder / "tmp") for entry in place.iterdir()]
    return [name for name in found if PARTIAL.fullmatch(name) or TEMPORARY.fullmatch(name)]


def is_complete(folder: Path) -> bool:
    """Whether what stands at the target is all there, judged by its files alone."""
    out, scores = folder / "out", folder / "out.json"
    if scores.exists():
        json.loads(scores.read_text())
    if out.exists():
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert {name for file in set(index.values()) for name in load_file(out / file)} == set(index)
        assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 5
        assert (out / "README.md").is_file()
        json.loads((out / "shortgpt.json").read_text())
    return out.exists() or scores.exists()


def hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def kill_once(command: str, chance: random.Random, folder: Path) -> str:
    """Kill a command once, run it again, and look at what there is.

    Returns:
        What became of the first one: "before", "after" (it had ended), or "left" (files were left over).

    Raises:
        AssertionError: something is broken, or left.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    whole = hash_of(source())
    by_time = chance.random() < 0.3
    status = run(
        command,
        folder,
        None if by_time else chance.randint(1, 400),
        chance.random() * LONGEST if by_time else LONGEST,
    )
    assert status in (0, -signal.SIGKILL), (status, (folder / "log").read_text())
    done = is_complete(folder)
    left = leftovers(folder)
    if done and command != "score":
        shutil.rmtree(folder / "out")
    (folder / "log").unlink(missing_ok=True)
    again = "scored prune" if command == "prune" and left != [] else command
    assert run(again, folder) == 0, (folder / "log").read_text()
    log = (folder / "log").read_text()
    assert is_complete(folder)
    told = [name for name in left if name in log]
    beside = [name for name in left if PARTIAL.fullmatch(name)]
    assert set(beside) <= set(told), (left, log)
    if again == "prune":
        assert leftovers(folder) == [], leftovers(folder)
    else:
        assert [name for name in leftovers(folder) if PARTIAL.fullmatch(name)] == []
    assert hash_of(source()) == whole
    return "after" if done else "left" if left else "before"


def main(total: int) -> None:
    chance = random.Random(0)
    folder = Path(tempfile.mkdtemp(prefix="faults-run-"))
    counts: dict[str, int] = {}
    for number in range(total):
        command = chance.choice(list(COMMANDS))
        outcome = kill_once(command, chance, folder)
        counts[outcome] = counts.get(outcome, 0) + 1
        print(f"\r{number + 1} of {total} killed: {counts}", end="", flush=True)
    print(f"\n{total} kills: 0 broken, 0 orphans, 0 leftovers; {counts}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
