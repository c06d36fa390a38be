"""Ablations: a row a block, with the quality without it and without its parts, beside each criterion's score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.value import Cell, Table
from shortgpt.reports.cells import number, short_name
from shortgpt.reports.grid import Grid
from shortgpt.values.ablation import Ablation, Correlation

BESIDE, BELOW = 4, 6
"""How many criteria fit into 80 columns beside the qualities, and in a table of their own."""


def ablation_table(found: Ablation) -> RenderableType:
    """A row a block; below it how each criterion's ranks agree with the damage."""
    scores = found.scores
    kind = f"  {scores.architecture}, {scores.norm_placement}-norm, {len(scores)} blocks"
    lines: list[RenderableType] = [Text.assemble((scores.model, "bold"), kind), _table(found, scores.criteria[:BESIDE])]
    for at in range(BESIDE, len(scores.criteria), BELOW):
        lines += [Text(), _table(found, scores.criteria[at : at + BELOW], with_qualities=False)]
    lines.append(Text(_measured(found), style="dim"))
    if found.parts_refused:
        lines.append(Text(f"no parts of the blocks: {found.parts_refused}", style="yellow"))
    lines += [Text(f"{name} was not measured: {why}", style="yellow") for name, why in scores.refused.items()]
    lines += [Text(), Text("rank correlation with the damage (Spearman, 95% confidence):")]
    return Group(*lines, *(Text(f"  {told}") for told in map(correlation, found.correlations)))


def _table(found: Ablation, criteria: Sequence[str], *, with_qualities: bool = True) -> Grid:
    scores = found.scores
    table = Grid()
    table.add_column(Text("block"), justify="right", vertical="bottom")
    qualities = found.without if with_qualities else {}
    for title in (*(f"without\n{part}" for part in qualities), *map(heading, criteria)):
        table.add_column(Text(title), justify="right", vertical="bottom")
    table.add_column("")
    values = [scores.of(name).values for name in criteria]
    for block in range(len(scores)):
        table.add_row(
            str(block),
            *(_cell(column[block]) for column in qualities.values()),
            *(number(column[block]) for column in values),
            Text("pinned" if block in scores.pinned else "", style="dim"),
        )
    return table


def heading(criterion: str) -> str:
    """A name in as many lines as it has parts."""
    return short_name(criterion).replace("-", "-\n")


def correlation(one: Correlation) -> str:
    """`BI 0.83 [0.47, 0.95]`."""
    sure = "" if math.isnan(one.low) else f" [{one.low:.2f}, {one.high:.2f}]"
    return f"{short_name(one.criterion)} " + ("not defined" if math.isnan(one.rho) else f"{one.rho:.2f}{sure}")


def tables(found: Ablation) -> tuple[Table, ...]:
    """A row a block; then the rank correlations."""
    scores = found.scores
    columns = ("block", "name", *(f"without {part}" for part in found.without), *scores.criteria)
    cells: list[list[Cell]] = [list(range(len(scores))), list(scores.block_names)]
    cells += [list(column) for column in found.without.values()]
    cells += [list(scores.of(name).values) for name in scores.criteria]
    blocks = Table(f"{scores.model}: {_measured(found)}", columns, tuple(zip(*cells, strict=True)))
    rows = tuple((one.criterion, one.rho, one.low, one.high) for one in found.correlations)
    title = "Rank correlation with the damage of leaving a block out"
    made = [blocks, Table(title, ("criterion", "Spearman", "95% from", "to"), rows)]
    reasons = tuple(scores.refused.items()) + ((("parts", found.parts_refused),) if found.parts_refused else ())
    return (*made, Table("Not measured", ("what", "reason"), reasons)) if reasons else tuple(made)


def tidy(found: Ablation) -> Table:
    """A row a block and thing left out, with every criterion's score of that block."""
    scores = found.scores
    columns = ("model", "block", "name", "left_out", "evaluator", "quality", "quality_whole", *scores.criteria)
    values = [scores.of(name).values for name in scores.criteria]

    def rows() -> Iterator[tuple[Cell, ...]]:
        for block, name in enumerate(scores.block_names):
            for part, column in found.without.items():
                if column[block] is not None:
                    measured = (part, found.evaluator, column[block], found.whole)
                    yield (scores.model, block, name, *measured, *(value[block] for value in values))

    return Table("", columns, tuple(rows()))


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def _measured(found: Ablation) -> str:
    info, other = found.held_out, found.scores.calibration
    seed = "" if other.seed is None else f", seed {other.seed}"
    return (
        f"{found.evaluator} on {info.sequences} held-out sequences of {info.source}; {number(found.whole)} for the "
        f"whole model; scores on {other.sequences} others{seed}"
    )
