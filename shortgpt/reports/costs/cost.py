"""Costs: a row a block, what is outside the blocks, and the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Cell, Table
from shortgpt.reports.cells import Bar, count
from shortgpt.reports.costs.units import duration, operations, size
from shortgpt.reports.grid import Grid
from shortgpt.values.cost import CACHE, DECODING, FLOPS, PREFILL, Cost, PartCost

OUTSIDE, WHOLE = "outside", "whole"

Shown = tuple[str, Callable[[PartCost], Any], Callable[[Any], str]]
"""A column's title, its number of a part, and how that is written."""


def cost_table(cost: Cost) -> RenderableType:
    """A bar is the block's share of the dearest block's time in a pass, or of its bytes where no time was measured."""
    head = f"{cost.model}: {cost.architecture}, {len(cost)} blocks"
    table = Grid(collapse_padding=True)
    columns = _columns(cost)
    for title in ("block", *(title for title, _, _ in columns)):
        table.add_column(Text(title), justify="right", vertical="bottom", no_wrap=True)
    table.add_column("", overflow="crop")
    lengths = [_length(part) for part in cost.blocks]
    for block, part in enumerate(cost.blocks):
        table.add_row(str(block), *_cells(part, columns), Bar(lengths[block], max(lengths), marked=False))
    table.add_row(OUTSIDE, *_cells(cost.outside, columns), "", style="dim")
    table.add_row(WHOLE, *(show(_sum(cost, value)) for _, value, show in columns), "", style="bold")
    return Group(Text(head, style="bold"), table, *(Text(line, style="dim") for line in _notes(cost)))


def _columns(cost: Cost) -> list[Shown]:
    """Those of which something is known and not all is nothing."""
    every: list[Shown] = [
        ("para-\nmeters", lambda part: part.parameters, count),
        ("weights", lambda part: part.bytes, size),
        ("cache a\ntoken", lambda part: part.cache and part.cache.per_token, size),
        ("state", lambda part: part.cache and part.cache.fixed, size),
        ("FLOPs", lambda part: part.flops, operations),
        ("pass", lambda part: part.prefill, duration),
        ("step", lambda part: part.decoding, duration),
    ]
    return [column for column in every if any(column[1](part) for part in (*cost.blocks, cost.outside))]


def _cells(part: PartCost, columns: list[Shown]) -> list[str]:
    values = [(value(part), show) for _, value, show in columns]
    return ["-" if value is None else show(value) for value, show in values]


def _sum(cost: Cost, value: Callable[[PartCost], Any]) -> Any:
    return sum(value(part) or 0 for part in (*cost.blocks, cost.outside))


def _length(part: PartCost) -> float:
    return float(part.bytes) if part.prefill is None else part.prefill


def _notes(cost: Cost) -> list[str]:
    threads = f" ({cost.threads} thread{'' if cost.threads == 1 else 's'})" if cost.device == "cpu" else ""
    lines = [
        f"a pass: {cost.sequences} × {cost.tokens} tokens; weights and caches of {cost.bytes_per_number} bytes a number"
    ]
    if cost.rounds:
        steps = f", steps behind {cost.context} tokens" if cost.context else ""
        lines.append(f"times are medians of {cost.rounds} passes on {cost.device}{threads}{steps}")
    if cost.pinned:
        lines.append(f"cannot be removed: {format_blocks(cost.pinned)}")
    windows = {part.cache.window for part in cost.blocks if part.cache and part.cache.window is not None}
    if windows:
        kept = ", ".join(str(part.cache.window if part.cache and part.cache.window else "all") for part in cost.blocks)
        told = f"{min(windows)} tokens" if len(windows) == 1 and kept.count("all") == 0 else kept
        lines.append(f"kept at most by block: {told}")
    return lines + [f"{name} not measured: {reason}" for name, reason in cost.not_measured.items()]


def tables(cost: Cost) -> tuple[Table, ...]:
    """A row a block; the last but one is what is outside the blocks, the last the whole."""
    columns = (
        *("block", "name", "parameters", "bytes", "cache_bytes_per_token", "state_bytes", "window"),
        *("flops", "prefill_seconds", "decoding_seconds"),
    )
    rows: list[tuple[Cell, ...]] = [
        (block, name, *_numbers(part))
        for block, (name, part) in enumerate(zip(cost.block_names, cost.blocks, strict=True))
    ]
    rows.append((None, OUTSIDE, *_numbers(cost.outside)))
    missing = {name: name in cost.not_measured for name in (CACHE, FLOPS, PREFILL, DECODING)}
    every = (*cost.blocks, cost.outside)
    caches = [part.cache for part in every if part.cache is not None]
    whole: tuple[Cell, ...] = (
        cost.parameters(),
        cost.bytes(),
        None if missing[CACHE] else sum(one.per_token for one in caches),
        None if missing[CACHE] else sum(one.fixed for one in caches),
        None,
        None if missing[FLOPS] else cost.flops(),
        None if missing[PREFILL] else cost.prefill(),
        None if missing[DECODING] else cost.decoding(),
    )
    title = f"{cost.model}: {'; '.join(_notes(cost))}"
    return (Table(title, columns, (*rows, (None, WHOLE, *whole))),)


def _numbers(part: PartCost) -> tuple[Cell, ...]:
    cache = part.cache
    held = (None, None, None) if cache is None else (cache.per_token, cache.fixed, cache.window)
    return (part.parameters, part.bytes, *held, part.flops, part.prefill, part.decoding)
