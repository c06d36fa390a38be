"""Processes that torchrun started, here as threads with a store: what ends one of them ends all, with its message."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed import HashStore

from shortgpt.errors import CalibrationError, ModelError, PeerError
from shortgpt.models import peers
from shortgpt.models.peers import Peers, is_shared


def together(*works: Callable[[Peers], Any]) -> list[Any]:
    """What each process returns or raises, all begun at once."""
    store, results = HashStore(), [None] * len(works)

    def run(rank: int) -> None:
        try:
            with Peers(store, rank, len(works), patience=20) as here:
                results[rank] = works[rank](here)
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return results


def failing(error: Exception) -> Callable[[Peers], Any]:
    def work(here: Peers) -> Any:
        raise error

    return work


def test_all_have_the_values_of_all_in_the_order_of_ranks_each_time() -> None:
    def work(here: Peers) -> Any:
        return [here.gathered((here.rank, turn)) for turn in range(3)]

    assert together(work, work, work) == [[[(rank, turn) for rank in range(3)] for turn in range(3)]] * 3


def test_one_that_fails_alone_ends_the_others_with_its_message() -> None:
    begin = time.monotonic()
    first, second, third = together(
        lambda here: here.gathered(0), failing(CalibrationError("too short")), lambda here: here.gathered(2)
    )
    assert time.monotonic() - begin < 5
    assert isinstance(first, CalibrationError)
    assert isinstance(third, CalibrationError)
    assert str(first) == str(third) == "process 1 failed: too short"
    assert is_shared(second), "the first process tells it"


def test_an_error_of_another_library_is_told_by_its_kind() -> None:
    first, _ = together(lambda here: here.gathered(0), failing(KeyError("lost")))
    assert str(first) == "process 1 failed: KeyError: 'lost'"


def test_what_all_fail_of_is_told_once() -> None:
    found = together(failing(ModelError("no such model")), failing(ModelError("no such model")))
    assert [is_shared(error) for error in found] == [False, True]


def test_what_the_first_process_does_not_learn_of_in_time_is_the_others_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "TELLING", 0.1)

    def busy(here: Peers) -> Any:
        time.sleep(0.5)
        return here.gathered(0)

    first, second = together(busy, failing(ModelError("no such device")))
    assert str(first) == "process 1 failed: no such device"
    assert not is_shared(second)


@pytest.mark.parametrize(("begun", "what"), [(True, "stands still"), (False, "has not begun")])
def test_one_that_is_not_heard_of_is_waited_for_no_longer_than_is_set(begun: bool, what: str) -> None:
    store = HashStore()
    if begun:
        store.set("alive/1", "7")
    begin = time.monotonic()
    told = rf"process 1 {what}: nothing was heard of it for 0\.7 seconds \(SHORTGPT_PATIENCE=SECONDS waits longer\)"
    with pytest.raises(PeerError, match=told), Peers(store, 0, 2, patience=0.7) as here:
        here.gathered(0)
    assert 0.7 < time.monotonic() - begin < 5


def test_one_that_works_for_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT", 0.1)
    store, found = HashStore(), []

    def slow() -> None:
        with Peers(store, 1, 2, patience=0.7) as here:
            time.sleep(1.6)
            here.gathered("slow")

    thread = threading.Thread(target=slow)
    thread.start()
    with Peers(store, 0, 2, patience=0.7) as here:
        found = here.gathered("quick")
    thread.join()
    assert found == ["quick", "slow"]


@pytest.mark.parametrize("said", ["soon", "0", "-1", "inf", "nan"])
def test_a_patience_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTGPT_PATIENCE", said)
    with pytest.raises(ModelError, match="a number of seconds above 0"):
        peers.patience_set()
