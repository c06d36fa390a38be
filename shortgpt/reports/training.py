"""A training's Block Influence: a row a moment."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.value import Table
from shortgpt.reports.cells import number
from shortgpt.reports.grid import Grid
from shortgpt.values.training import Training


def training_table(training: Training) -> RenderableType:
    """Of each moment the influence over depth, its mean, and the least influential block."""
    table = Grid()
    for title in ("step", "tokens", "mean", "least", "block"):
        table.add_column(title, justify="right", no_wrap=True)
    for moment in training.moments:
        least = min(range(len(moment.influence)), key=lambda block: (moment.influence[block], -block))
        mean = sum(moment.influence) / len(moment.influence)
        tokens = "" if moment.tokens is None else f"{moment.tokens:,}"
        table.add_row(str(moment.step), tokens, number(mean), number(moment.influence[least]), str(least))
    head = (
        f"{training.model}: {training.architecture}, {training.norm_placement}-norm, {len(training.block_names)} blocks"
    )
    seconds = sum(moment.seconds for moment in training.moments)
    told = f"block influence on {training.probe.sequences} sequences of {training.probe.source}; {seconds:.1f} s in all"
    return Group(Text(head, style="bold"), table, Text(told, style="dim"))


def tables(training: Training) -> tuple[Table, ...]:
    """A row a moment and block."""
    columns = ("step", "tokens", "block", "name", "influence", "± s.e.", "stream_norm", "update_norm")
    rows = tuple(
        (moment.step, moment.tokens, block, name, *numbers)
        for moment in training.moments
        for block, (name, *numbers) in enumerate(
            zip(
                training.block_names,
                moment.influence,
                moment.stderr,
                moment.stream_norm,
                moment.update_norm,
                strict=True,
            )
        )
    )
    return (Table(f"{training.model} in training", columns, rows),)
