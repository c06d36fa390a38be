"""Passes and decoding steps of a model, timed and counted block by block.

::

    trace    ─ 0 ─ block 0 ─ 1 ─ ... ─ L        seconds and operations between two boundaries are a block's
    logits   ─────────────────────────── all    what is left is outside the blocks
    decode   ─ 0 ─ ... ─ L ─ head, next token, embedding ─ 0 ─ ... ─ L ─ ...
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from shortgpt.measuring.costs.counting import Operations
from shortgpt.measuring.costs.timing import Clock, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shortgpt.models.sequence import BlockSequence, TokenBatch

LEAST_ROUNDS, SECONDS = 3, 60.0
"""So many rounds are timed even where that takes longer."""

Timed = tuple[tuple[float, ...], int]
"""Seconds of each block, and last of what is outside the blocks; and how many passes or steps were timed."""


def operations(model: BlockSequence, batch: TokenBatch) -> tuple[int, ...]:
    """Floating-point operations of each block in a pass, and last of what is outside the blocks."""
    with Operations() as counter:
        counts: list[int] = []
        model.trace(batch, lambda boundary, hidden: counts.append(counter.count))
        before = counter.count
        model.logits(batch)
        whole = counter.count - before
    blocks = [after - at for at, after in pairwise(counts)]
    return (*blocks, whole - sum(blocks))


def prefill_seconds(model: BlockSequence, batch: TokenBatch, rounds: int, done: Callable[[int], None]) -> Timed:
    """Of a pass over a batch.

    Args:
        done: called with the number of rounds done.
    """
    clock = Clock(model.device)
    blocks: list[list[float]] = []
    wholes: list[float] = []
    start = time.perf_counter()
    while len(wholes) <= rounds and (len(wholes) <= LEAST_ROUNDS or time.perf_counter() - start < SECONDS):
        moments: list[Any] = []
        model.trace(batch, lambda boundary, hidden, seen=moments: seen.append(clock.now()))
        blocks.append(clock.seconds(moments))
        began = clock.now()
        model.logits(batch)
        wholes += clock.seconds([began, clock.now()])
        done(len(wholes) - 1)
    blocks, wholes = blocks[1:], wholes[1:]  # the first round warms up
    whole = median(wholes)
    outside = median(all_of_it - sum(some) for all_of_it, some in zip(wholes, blocks, strict=True))
    outside = min(max(outside, 0.0), whole)
    return (*shares(whole - outside, blocks), outside), len(wholes)


def decoding_seconds(model: BlockSequence, prompts: Sequence[Sequence[int]], steps: int) -> Timed:
    """Of a step that makes one token more, behind prompts of one length."""
    clock, depth = Clock(model.device), len(model)
    moments: list[Any] = []
    model.decode(prompts, steps + 2, lambda boundary, hidden: moments.append(clock.now()))
    taken = clock.seconds(moments)
    # A step is the way from the last boundary of one pass to that of the next. The first pass reads the prompts, and
    # the first step warms up.
    firsts = range(2 * (depth + 1) - 1, len(taken), depth + 1)
    each = [taken[first : first + depth + 1] for first in firsts]
    outside, *blocks = shares(median(map(sum, each)), each)
    return (*blocks, outside), len(each)
