"""Inspections: blocks, stream, and the config fields that depend on the blocks."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Table
from shortgpt.reports.grid import Grid
from shortgpt.values.inspection import Inspection


def inspection_table(found: Inspection) -> RenderableType:
    """What removal would do to a model: blocks, stream, the config fields that depend on the blocks, what is pinned."""
    blocks = Grid()
    blocks.add_column("blocks", justify="right")
    blocks.add_column("class")
    blocks.add_column("params each", justify="right")
    blocks.add_column("")
    for run in _alike(found):
        first = run[0]
        blocks.add_row(
            Text(format_blocks(run)),
            Text(found.classes[first] if found.classes else "-"),
            f"{found.parameters[first]:,}" if found.parameters else "-",
            Text(f"pinned: {found.pinned[first]}" if first in found.pinned else ""),
        )
    fields = Grid()
    for title in ("config field", "value", "rule"):
        fields.add_column(title, overflow="fold")
    for item in found.fields:
        fields.add_row(*(Text(text) for text in (item.name, item.value, item.rule)))
    parts: list[RenderableType] = [
        Text(f"{found.model}: {found.architecture}, {found.norm_placement}-norm, {found.depth} blocks", style="bold"),
        *([Text(f"stream: {found.stream}")] if found.stream else []),
        Text(),
        blocks,
        Text(),
        fields,
    ]
    if found.removed:
        verdict = f"cannot be removed: {found.refusal}" if found.refusal else "can be removed"
        parts += [Text(), Text(f"{format_blocks(found.removed)} {verdict}")]
    return Group(*parts)


def tables(found: Inspection) -> tuple[Table, ...]:
    """A row a block; then the config fields that depend on the blocks, and whether those asked about can go."""
    rows = tuple(
        (
            block,
            found.classes[block] if found.classes else None,
            found.parameters[block] if found.parameters else None,
            found.pinned.get(block),
        )
        for block in range(found.depth)
    )
    fields = tuple((item.name, item.value, item.rule) for item in found.fields)
    verdict = (format_blocks(found.removed), found.refusal or "can be removed")
    title = f"{found.model}: {found.architecture}, {found.norm_placement}-norm"
    return (
        Table(title, ("block", "class", "parameters", "pinned"), rows),
        Table("Config", ("field", "value", "rule"), fields),
        *([Table("Removal", ("blocks", "verdict"), (verdict,))] if found.removed else []),
    )


def _alike(found: Inspection) -> list[list[int]]:
    """Runs of neighbouring blocks that look the same."""
    runs: list[list[int]] = []
    last: list[object] = []
    for block in range(found.depth):
        look: list[object] = [table[block] for table in (found.classes, found.parameters) if table]
        look.append(found.pinned.get(block))
        if runs and look == last:
            runs[-1].append(block)
        else:
            runs.append([block])
        last = look
    return runs
