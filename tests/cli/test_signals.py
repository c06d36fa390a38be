"""INT, TERM and HUP unwind, also where a library swallows what they raise."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from shortgpt.cli.process import signals


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Signals as a program finds them that a user starts: a suite that runs in the background ignores some."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def killed(number: int) -> None:
    with signals.unwinding():
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_term_and_hup_end_with_their_number(number: int, status: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(signals.Ended) as ended:
        killed(number)
    assert ended.value.code == status
    assert signal.getsignal(number) == before


def swallow(*, works_on: bool) -> None:
    """A command in which a library swallows an interrupt."""
    with signals.unwinding():
        with contextlib.suppress(BaseException):  # as some library does
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        try:
            time.sleep(5 if works_on else 0)
        finally:
            time.sleep(0.2)  # what cleans up is not interrupted again
            CLEANED.append(works_on)


CLEANED: list[bool] = []


@pytest.mark.parametrize("works_on", [True, False])
def test_an_interrupt_that_was_swallowed_is_raised_again(works_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN", 0.05 if works_on else 5.0)
    CLEANED.clear()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        swallow(works_on=works_on)
    assert [works_on] == CLEANED
    assert time.monotonic() - begin < 3
    time.sleep(0.1)  # and nothing comes afterwards


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.unwinding():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
