"""Budgets held against the cost of a model: what they ask of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from shortgpt.errors import ModelError, SelectionError
from shortgpt.measuring.costs.cost import ROUNDS, cost
from shortgpt.values.choosing.budget import BYTES, KV, MEMORY, NEW_RATE, PARAMETERS, RATES, Bound, Budget

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.values.cost import Cost, PartCost

ROUNDS_FOR_RATES = 2 * ROUNDS


def bounds_of(
    budgets: Sequence[Budget],
    known: Mapping[str, Sequence[int]],
    load: Callable[[], BlockSequence],
    progress: Progress | None = None,
) -> tuple[Bound, ...]:
    """What each budget asks of a model's blocks.

    Args:
        known: for "parameters" and "bytes" those of each block, and last of what is outside the blocks; those that are
            missing are taken of the model in memory.
        load: gives that model; not called where all that is asked for is known.
        progress: called with "passes" after each pass that is timed.

    Raises:
        SelectionError: a budget is met already, or what it speaks of cannot be measured.
    """
    costs: dict[tuple[int, int], Cost] = {}

    def cost_at(sequences: int, tokens: int) -> Cost:
        shape = (sequences, tokens)
        if shape not in costs:
            if sequences:
                rounds = ROUNDS_FOR_RATES
                costs[shape] = cost(load(), tokens=tokens, sequences=sequences, rounds=rounds, progress=progress)
            else:
                costs[shape] = cost(load(), tokens=1, timed=False)
        return costs[shape]

    bounds = []
    for budget in budgets:
        amounts: Sequence[float]
        if budget.what in known:
            amounts = known[budget.what]
        else:
            shape = (budget.sequences, budget.tokens) if budget.what in RATES else (0, 0)
            measured = cost_at(*shape)
            try:
                amounts = [_amount(budget, measured, part) for part in (*measured.blocks, measured.outside)]
            except ModelError as error:
                raise SelectionError(f"{budget.text}: {error}") from None
        bounds.append(budget.bound(amounts))
    return tuple(bounds)


def _amount(budget: Budget, cost: Cost, part: PartCost) -> float:
    if budget.what == PARAMETERS:
        return part.parameters
    if budget.what == BYTES:
        return part.bytes
    if budget.what in (MEMORY, KV):
        weights = part.bytes if budget.what == MEMORY else 0
        return weights + budget.sequences * cost.known("cache", part.cache).at(budget.tokens)
    return cost.known("decoding", part.decoding) if budget.what == NEW_RATE else cost.known("prefill", part.prefill)
