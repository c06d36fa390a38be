"""Where, and in which floats, a model is run."""

from __future__ import annotations

import os

from shortgpt.errors import ModelError, reason_of


def default_device(device: str | None) -> str:
    """The device asked for, or the accelerator where there is one; under `torchrun`, the CUDA device of this process.
    "auto" stands for all of them.

    Raises:
        ModelError: there is no such device.
    """
    import torch

    if device == "auto":
        if started()[1] > 1:
            raise ModelError("device auto is for one process, torchrun started several; leave one of them out")
        return device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and started()[1] > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used ({reason_of(error)}); cpu always can") from None
    if device == "cuda" and torch.cuda.current_device() > 0:  # which other threads and processes do not know of
        return f"cuda:{torch.cuda.current_device()}"
    return device


def checked_dtype(dtype: str) -> str:
    """`dtype` where it is one that models are run in.

    Raises:
        ModelError: it is not.
    """
    supported = ("auto", "float32", "bfloat16", "float16")
    if dtype not in supported:
        raise ModelError(f"dtype {dtype!r} is not supported; take one of {', '.join(supported)}")
    return dtype


def started() -> tuple[int, int]:
    """This process's rank and the number of processes, as `torchrun` tells them: (0, 1) without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
