"""Scores: a row a block."""

from __future__ import annotations

import math
from collections.abc import Collection

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shortgpt.blocks import format_blocks
from shortgpt.reports.cells import BAR, bar, count, number, short_name
from shortgpt.scores import Scores


def scores_table(scores: Scores, marked: Collection[int] = ()) -> RenderableType:
    """A row a block: score ± standard error as number and bar, parameters, rank; `marked` blocks would go."""
    place = {block: rank for rank, block in enumerate(scores.ranking(), start=1)}
    other = scores.criteria[1:]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("block", justify="right")
    table.add_column(Text(short_name(scores.criteria[0])), justify="right")
    table.add_column("± s.e.", justify="right", no_wrap=True, min_width=7)
    if not other:
        table.add_column("", width=BAR)
    for name in other:
        table.add_column(Text(short_name(name)), justify="right")
    table.add_column("params", justify="right")
    table.add_column("rank", justify="right")
    table.add_column("")
    values, errors = scores.values, scores.stderr
    others = [scores.of(name).values for name in other]
    largest = max(values)
    for block in range(len(scores)):
        gone = block in marked
        mark = (
            Text("remove", style="bold red") if gone else Text("pinned" if block in scores.pinned else "", style="dim")
        )
        table.add_row(
            str(block),
            number(values[block]),
            number(errors[block]),
            *(() if other else (bar(values[block], largest, gone),)),
            *(number(column[block]) for column in others),
            count(scores.parameters[block]),
            str(place[block]),
            mark,
        )
    info = scores.calibration
    head = Text.assemble(
        (scores.model, "bold"),
        f"  {scores.architecture}, {scores.norm_placement}-norm, {len(scores)} blocks, "
        f"{count(scores.total_parameters)} parameters, {scores.dtype}",
    )
    sampled = "" if info.seed is None else f", seed {info.seed}"
    foot = Text(f"{info.source}: {info.sequences} sequences, {sum(scores.tokens):,} tokens{sampled}", style="dim")
    lines: list[RenderableType] = [head, table, foot]
    if marked:
        share = sum(scores.parameters[i] for i in marked) / scores.total_parameters
        text = (
            f"to remove: {format_blocks(marked)} ({len(marked)} of {len(scores)} blocks, {share:.1%} of the parameters)"
        )
        if tuple(sorted(marked)) == scores.least_influential(len(marked)):
            sure = scores.stability(len(marked))
            text += "" if math.isnan(sure) else f"; the same set in {sure:.0%} of bootstrap resamples"
        lines.append(Text(text))
    return Group(*lines)
