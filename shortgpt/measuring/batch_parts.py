"""Token batches taken in parts: some sequences at a time, and half as many where they do not fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from shortgpt.models.memory import is_lack_of_memory, keep_freed_memory, release_memory

if TYPE_CHECKING:
    from shortgpt.models.sequence import TokenBatch

T = TypeVar("T")


def parts_of(batch: TokenBatch, rows: int) -> Iterator[TokenBatch]:
    """The batch, so many sequences at a time."""
    total = len(batch["input_ids"])
    return (rows_of(batch, first, min(rows, total - first)) for first in range(0, total, rows))


def rows_of(batch: TokenBatch, first: int, count: int) -> TokenBatch:
    """Some sequences of a batch: of every tensor that has a row a sequence, these rows."""
    import torch

    total = len(batch["input_ids"])
    if count == total:
        return batch
    return {
        name: value[first : first + count] if isinstance(value, torch.Tensor) and value.shape[:1] == (total,) else value
        for name, value in batch.items()
    }


class BatchParts:
    """Work on batches, in parts that fit into memory.

    Attributes:
        rows: how many sequences fit, as far as is known: where they don't any more, half as many are taken.
    """

    def __init__(self) -> None:
        self.rows = sys.maxsize
        keep_freed_memory()

    def each(self, batch: TokenBatch, work: Callable[[TokenBatch], T], most: int = sys.maxsize) -> list[T]:
        """What the work gives of each part of a batch, of `most` sequences.

        Raises:
            torch.OutOfMemoryError: not even one sequence fits.
        """
        total, done = len(batch["input_ids"]), 0
        results: list[T] = []
        while done < total:
            now = min(self.rows, most, total - done)
            try:
                results.append(work(rows_of(batch, done, now)))
            except RuntimeError as error:  # torch's OutOfMemoryError is one
                if now == 1 or not is_lack_of_memory(error):
                    raise
                self.rows = (now + 1) // 2
            else:
                done += now
                continue
            release_memory()  # outside the `except`, whose error holds what the work held
        return results

    def together(
        self,
        batches: Sequence[TokenBatch],
        work: Callable[[list[list[TokenBatch]]], T],
        most: Callable[[TokenBatch], int],
    ) -> T:
        """What the work gives of all batches at once, each as its parts. Where they do not fit it is begun anew with
        parts half as large.

        Args:
            most: how many sequences of a batch to take at a time at most.

        Raises:
            torch.OutOfMemoryError: not even parts of one sequence fit.
        """
        while True:
            parts = [list(parts_of(batch, min(self.rows, most(batch)))) for batch in batches]
            largest = max((len(part["input_ids"]) for of_batch in parts for part in of_batch), default=1)
            try:
                return work(parts)
            except RuntimeError as error:
                if largest == 1 or not is_lack_of_memory(error):
                    raise
                self.rows = (largest + 1) // 2
            release_memory()  # as above
