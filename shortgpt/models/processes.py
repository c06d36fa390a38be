"""One pass shared by several processes: what `torchrun`, or a program that has set up `torch.distributed`, started.

Every process has the whole model and takes its share of the calibration. In a process alone all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from shortgpt import errors
from shortgpt.errors import ShortGPTError
from shortgpt.models.devices import started
from shortgpt.models.peers import Peers

T = TypeVar("T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_PEERS: ContextVar[Peers | None] = ContextVar("peers", default=None)


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are, of what `torchrun` started (`group`) or in torch's process group:
    (0, 1) where there is neither."""
    if _ALONE.get():
        return 0, 1
    if (peers := _PEERS.get()) is not None:
        return peers.rank, peers.size
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """Inside the context this process takes nothing from the others of its group and gives them nothing."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def group(device: str | None) -> Iterator[str]:
    """What `torchrun` started works together inside; gives the device that this process takes. A process alone takes
    the device only.

    Where one fails, the others raise as soon as they wait for it, if torchrun has not ended them before; see
    `shortgpt.models.peers`.

    Raises:
        ModelError: there is no such device. PeerError: another process failed, or stands still.
    """
    from shortgpt.models.devices import default_device

    if started()[1] == 1:
        yield default_device(device)
        return
    with Peers.of_torchrun() as peers:
        token = _PEERS.set(peers)
        try:
            device = default_device(device)
            if device.startswith("cuda"):
                import torch

                torch.cuda.set_device(device)
            yield device
        finally:
            _PEERS.reset(token)


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of ranks. Values are pickled; they go by way of the host."""
    _, size = rank_and_size()
    if size == 1:
        return [value]
    if (peers := _PEERS.get()) is not None:
        return peers.gathered(value)
    from torch import distributed

    values: list[T] = [value] * size
    distributed.all_gather_object(values, value)
    return values


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives here. Where it raises in one process it raises in all, so that none waits for another."""
    if rank_and_size()[1] == 1 or _PEERS.get() is not None:  # whose other processes see that it failed
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    told = gathered(None if failure is None else (type(failure).__name__, str(failure)))
    if failure is not None:
        raise failure
    for rank, failed in enumerate(told):
        if failed is not None:
            kind, text = failed
            ours = getattr(errors, kind, None)
            raise ours(text) if ours else ShortGPTError(f"process {rank} failed: {kind}: {text}")
    return result
