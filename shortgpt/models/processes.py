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

T = TypeVar("T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def rank_and_size() -> tuple[int, int]:
    """This process's rank in torch's process group and the group's size: (0, 1) where there is none."""
    from torch import distributed

    if _ALONE.get():
        return 0, 1
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
    """The process group of what `torchrun` started, gloo on the CPU and nccl between CUDA devices; and the device that
    this process takes. In a process alone, the device only.

    Raises:
        ModelError: there is no such device; in all processes where it is so in one.
    """
    from shortgpt.models.devices import default_device

    if started()[1] == 1:
        yield default_device(device)
        return
    # Its functions take for their default the group that there is when they are imported. Imported later, as by
    # transformers, they would keep this one beyond its end, and its threads would run while the interpreter ends.
    import torch.distributed.nn

    on_cuda = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    with_nccl = on_cuda and torch.distributed.is_nccl_available()
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if with_nccl else "gloo")
    try:
        device = agreed(lambda: default_device(device))
        if on_cuda:
            torch.cuda.set_device(device)
        yield device
    finally:
        torch.distributed.destroy_process_group()


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of ranks. Values are pickled; they go by way of the host."""
    _, size = rank_and_size()
    if size == 1:
        return [value]
    from torch import distributed

    values: list[T] = [value] * size
    distributed.all_gather_object(values, value)
    return values


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives here. Where it raises in one process it raises in all, so that none waits for another."""
    if rank_and_size()[1] == 1:
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
