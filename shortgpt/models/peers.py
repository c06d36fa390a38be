"""The processes that `torchrun` started, as one of them sees them: values go through torchrun's store.

::

    alive/1      counts up every second for as long as process 1 runs: where it stands still, nobody waits for ever
    failed/1     what ended process 1
    7/1          what process 1 gives to the seventh exchange

No collective of torch's is used: one that waits for a process that is gone cannot be left. Nothing here waits in the
store either, so that a signal arrives, and what ends one process ends all, with its message.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from datetime import timedelta
from typing import Any, TypeVar

from shortgpt import errors
from shortgpt.errors import ModelError, PeerError

E = TypeVar("E", bound=Exception)

PATIENCE = "SHORTGPT_PATIENCE"
"""The variable that says how long a process may stand still, in seconds."""
DEFAULT_PATIENCE = 120.0
BEAT = 1.0  # seconds
POLL = 0.02  # seconds between looks at what the others gave
LOOK = 0.5  # seconds between looks at whether they are alive
TELLING = 3.0
"""Seconds that a process that fails waits to learn whether all fail alike, or the first has told it."""


class Peers:
    """All processes of a run, and which of them this is.

    As a context: it begins to be seen by the others, and ends.

    Args:
        store: of `torch.distributed`, the same for all.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float | None = None) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.patience = patience_set() if patience is None else patience
        self._exchange = 0
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="shortgpt-alive", daemon=True)
        self._seen: dict[int, tuple[bytes, float]] = {}

    @classmethod
    def of_torchrun(cls) -> Peers:
        """Those that the environment tells of.

        Raises:
            PeerError: torchrun's store cannot be reached within the time that a process may stand still.
        """
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=patience_set())))
        except (RuntimeError, ValueError, OSError) as error:
            raise PeerError(f"torchrun's store cannot be reached ({errors.reason_of(error)})") from None
        return cls(store, rank, size)

    def __enter__(self) -> Peers:
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        try:
            if isinstance(error, Exception) and not is_shared(error):
                self._fail(error)
            elif error is None:
                self._set(f"left/{self.rank}", b"")
                if self.rank == 0:  # where one of them holds the store it is this one, and it ends last
                    self._awaited("left")
        finally:
            self._ended.set()
            self._beats.join()

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process, in the order of ranks.

        Raises:
            PeerError: one of them failed, or stood still for longer than it may.
        """
        self._exchange += 1
        self._set(f"{self._exchange}/{self.rank}", pickle.dumps(value))
        others = self._awaited(str(self._exchange))
        if self._exchange > 1:  # all have given to this exchange, so they have taken what was given to the one before
            self._asked(self.store.delete_key, f"{self._exchange - 1}/{self.rank}")
        return [value if rank == self.rank else pickle.loads(others[rank]) for rank in range(self.size)]

    def _awaited(self, what: str) -> dict[int, bytes]:
        """What each of the others puts down under that name, when all have."""
        taken: dict[int, bytes] = {}
        looked = time.monotonic()
        while len(taken) < self.size - 1:
            missing = [rank for rank in range(self.size) if rank != self.rank and rank not in taken]
            there = [rank for rank in missing if self._has(f"{what}/{rank}")]
            taken.update((rank, self._get(f"{what}/{rank}")) for rank in there)
            if not there:
                if time.monotonic() - looked > LOOK:
                    self._check(missing)
                    looked = time.monotonic()
                time.sleep(POLL)
        return taken

    def _check(self, missing: list[int]) -> None:
        """Raise where a process that is waited for has failed, or stands still."""
        for rank in missing:
            if self._has(f"failed/{rank}"):
                kind, text = pickle.loads(self._get(f"failed/{rank}"))
                if self.rank == 0:
                    self._set(f"told/{rank}", b"")
                ours = getattr(errors, kind, None)
                told = text if ours else f"{kind}: {text}"
                raise shared((ours or PeerError)(f"process {rank} failed: {told}"))
            beat = self._get(f"alive/{rank}") if self._has(f"alive/{rank}") else b""
            now = time.monotonic()
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = beat, now
            if now - self._seen[rank][1] > self.patience:
                what = "stands still" if beat else "has not begun"
                raise PeerError(
                    f"process {rank} {what}: nothing was heard of it for {self.patience:g} seconds ({PATIENCE}=SECONDS "
                    "waits longer)"
                )

    def _fail(self, error: Exception) -> None:
        """Have the others learn of an error. Where all fail alike, or the first process tells it, it is shared."""
        text = pickle.dumps((type(error).__name__, str(error)))
        self._set(f"failed/{self.rank}", text)
        if self.rank == 0:
            return  # it tells it
        until = time.monotonic() + TELLING
        while time.monotonic() < until:
            is_first = self._has("failed/0") and self._get("failed/0") == text
            if is_first or self._has(f"told/{self.rank}"):
                shared(error)
                return
            time.sleep(POLL)

    def _beat(self) -> None:
        number = 0
        while True:
            try:
                self.store.set(f"alive/{self.rank}", str(number))
            except RuntimeError:  # who holds the store is gone, which those that wait are told
                return
            if self._ended.wait(BEAT):
                return
            number += 1

    def _has(self, key: str) -> bool:
        return bool(self._asked(self.store.check, [key]))

    def _get(self, key: str) -> bytes:
        return bytes(self._asked(self.store.get, key))

    def _set(self, key: str, value: bytes) -> None:
        self._asked(self.store.set, key, value)

    def _asked(self, what: Any, *arguments: Any) -> Any:
        try:
            return what(*arguments)
        except RuntimeError as error:
            raise PeerError(f"another process of the run is gone ({errors.reason_of(error)})") from None


def patience_set() -> float:
    """How long a process may stand still, in seconds.

    Raises:
        ModelError: the environment says something else than a number above 0.
    """
    said = os.environ.get(PATIENCE, str(DEFAULT_PATIENCE))
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ModelError(f"{PATIENCE} is {said!r}; it takes a number of seconds above 0")
    return seconds


def shared(error: E) -> E:
    """The same error, marked as one that all processes raise, so that the first alone tells it."""
    error.__dict__["shared"] = True
    return error


def is_shared(error: BaseException) -> bool:
    """Whether the first process tells it."""
    return bool(error.__dict__.get("shared"))
