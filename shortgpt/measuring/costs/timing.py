"""When a pass crosses each boundary, on the clock of the device that runs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Moments on a device. An accelerator works behind the program, so there they are events in its own queue, and
    taking them makes nothing wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_host = device.type == "cpu"

    def now(self) -> Any:
        if self.on_host:
            return time.perf_counter()
        moment = torch.Event(self.device, enable_timing=True)
        moment.record()
        return moment

    def seconds(self, moments: Sequence[Any]) -> list[float]:
        """Between each of the moments and the next, after the device has come to the last one."""
        if self.on_host:
            return [after - before for before, after in pairwise(moments)]
        moments[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(moments)]


def shares(whole: float, rounds: Sequence[Sequence[float]]) -> list[float]:
    """A time divided among the columns, as the fastest time of each is to that of the others.

    What else a machine does falls upon whole runs, and now upon this column, now upon that: so the whole is best told
    by a median, and what a column has of it by the run in which it was left alone.
    """
    fastest = [min(column) for column in zip(*rounds, strict=True)]
    return [whole * one / sum(fastest) for one in fastest]
