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

BESIDE, TOGETHER = 3, 6
"""As many criteria fit into 80 columns: beside the rest of a block's row, and in a table of their own."""


def scores_table(scores: Scores, marked: Collection[int] = ()) -> RenderableType:
    """A row a block: score ± standard error as number and bar, parameters, rank; `marked` blocks would go."""
    place = {block: rank for rank, block in enumerate(scores.ranking(), start=1)}
    other = scores.criteria[1:] if len(scores.criteria) <= BESIDE else ()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("block", justify="right")
    table.add_column(_head(scores.criteria[0], broken=len(other) > 1), justify="right")
    table.add_column("± s.e.", justify="right", no_wrap=True, min_width=7)
    if not other:
        table.add_column("", width=BAR)
    for name in other:
        table.add_column(_head(name, broken=len(other) > 1), justify="right")
    table.add_column("params", justify="right")
    table.add_column("rank", justify="right")
    table.add_column("")
    values, errors = scores.values, scores.stderr
    first, *others = [_cells(scores.of(name)) for name in (scores.criteria[0], *other)]
    largest = max(values)
    for block in range(len(scores)):
        gone = block in marked
        mark = (
            Text("remove", style="bold red") if gone else Text("pinned" if block in scores.pinned else "", style="dim")
        )
        table.add_row(
            str(block),
            first[block],
            number(errors[block]),
            *(() if other else (bar(values[block], largest, gone),)),
            *(column[block] for column in others),
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
    lines: list[RenderableType] = [head, table, *([] if other else _others(scores)), foot]
    lines += [Text(f"{name} refused: {reason}", style="yellow") for name, reason in scores.refused.items()]
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


def _others(scores: Scores) -> list[Table]:
    """Tables of the other criteria, where there are too many for one with the first."""
    tables = []
    for at in range(1, len(scores.criteria), TOGETHER):
        names = scores.criteria[at : at + TOGETHER]
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("block", justify="right")
        for name in names:
            table.add_column(_head(name, broken=True), justify="right", no_wrap=True)
        for block, cells in enumerate(zip(*(_cells(scores.of(name)) for name in names), strict=True)):
            table.add_row(str(block), *cells)
        tables.append(table)
    return tables


def _cells(scores: Scores) -> list[str]:
    """The values of the first criterion; of an order the places, which are no measurements."""
    places = sorted(scores.values) == list(range(len(scores)))
    return [str(int(value)) if places else number(value) for value in scores.values]


def _head(criterion: str, *, broken: bool) -> Text:
    """A criterion's name; broken at its hyphens where columns are many."""
    return Text(short_name(criterion).replace("-", "-\n" if broken else "-"))
