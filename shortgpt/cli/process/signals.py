"""INT, TERM and HUP end a command by unwinding it, so that what was half written is removed.

A library that is being imported, or that catches everything, can swallow what a handler raises. So it is raised again
every second until it has arrived, but not while what it set off is being cleaned up.

So does a mapped file that is cut short while it is read, where that can be had; see `mapped_files`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shortgpt.cli.process import mapped_files

AGAIN = 1.0  # seconds
SOON = 0.05
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(SystemExit):
    """What TERM and HUP raise; exit status 128 and the signal's number."""


class CutShort(SystemExit):
    """What is raised where a mapped file was cut short; what it says names the file."""

    def __init__(self, file: str) -> None:
        super().__init__(2)
        self.file = file

    def __str__(self) -> str:
        return (
            f"{self.file}: was cut short while it was read, or its disk does not answer: what was read is not one "
            "model; do it again when nothing writes there"
        )


@contextmanager
def unwinding() -> Iterator[None]:
    """Inside it these signals unwind. Signals that are ignored, as HUP is under `nohup`, stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers are the main thread's
        return
    arrived: list[BaseException] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not arrived:
            arrived.append(KeyboardInterrupt() if number == signal.SIGINT else Ended(128 + number))
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        if not mapped_files.is_inside(frame):
            raise arrived[0]

    def cut_short(file: str) -> None:
        if not arrived:
            arrived.append(CutShort(file))
            signal.setitimer(signal.ITIMER_REAL, SOON, AGAIN)  # what is raised in here is lost

    def again(number: int, frame: FrameType | None) -> None:
        if arrived and not mapped_files.is_inside(frame) and not _is_unwinding(sys.exc_info()[1], arrived[0]):
            raise arrived[0]

    before = {one: signal.getsignal(one) for one in SIGNALS}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(one, end)
    if hasattr(signal, "setitimer"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, again)
    try:
        with mapped_files.watched(cut_short):
            yield
        if arrived:  # it was swallowed, and the work was done before it was raised again
            raise arrived[0]
    except Exception as error:
        if arrived:  # which is why
            raise arrived[0] from error
        raise
    finally:
        if arrived and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)


def _is_unwinding(handled: BaseException | None, raised: BaseException) -> bool:
    """Whether what is being handled is what was raised, or came of it."""
    seen: set[int] = set()
    while handled is not None and id(handled) not in seen:
        if handled is raised:
            return True
        seen.add(id(handled))
        handled = handled.__cause__ or handled.__context__
    return False
