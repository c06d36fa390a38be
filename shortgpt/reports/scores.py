"""Scores: a row a block."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Cell, Table
from shortgpt.reports.cells import Bar, count, number, short_name, too_few_documents
from shortgpt.reports.effect import choice_lines
from shortgpt.reports.grid import Grid
from shortgpt.reports.spans import runs, spans_map
from shortgpt.reports.spans import tables as span_tables
from shortgpt.values.choosing.choice import least
from shortgpt.values.scores import Scores

BESIDE, BELOW = 36, 74
"""The columns of a line of 80 that other criteria may take beside the first one, and below."""

MEASURED_ON = ("calibration", "sequences", "tokens", "seed", "text_hash", "dtype")
TIDY = (
    *("model", "criterion", "block", "last", "name", "score", "stderr", "rank", "chosen", "stability", "parameters"),
    *("stream_norm", "update_norm", "pinned", *MEASURED_ON, "error"),
)
"""The columns of `tidy`. `last` is the last block of a run that begins at `block`: the block itself but for spans."""


def scores_table(scores: Scores, marked: Collection[int] = ()) -> RenderableType:
    """A row a block: score ± standard error as number and bar, parameters, rank; `marked` blocks would go."""
    place = {block: rank for rank, block in enumerate(scores.ranking(), start=1)}
    beside, *below = _groups(scores.criteria[1:])
    table = Grid()
    table.add_column("block", justify="right", no_wrap=True)
    table.add_column(_title(scores.criteria[0]), justify="right", no_wrap=True, min_width=6)
    table.add_column("± s.e.", justify="right", no_wrap=True, min_width=7)
    if not beside:
        table.add_column("")
    for name in beside:
        table.add_column(_title(name), justify="right")
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    values, errors, shown = scores.values, scores.stderr, _shown(scores)
    others = [_shown(scores.of(name)) for name in beside]
    largest = max(values)
    for block in range(len(scores)):
        gone = block in marked
        mark = (
            Text("remove", style="bold red") if gone else Text("pinned" if block in scores.pinned else "", style="dim")
        )
        table.add_row(
            str(block),
            shown[block],
            number(errors[block]),
            *(() if beside else (Bar(values[block], largest, gone),)),
            *(column[block] for column in others),
            count(scores.parameters[block]),
            str(place[block]),
            mark,
        )
    head = Text.assemble((scores.model, "bold"), f"  {_kind(scores)}, {scores.dtype}")
    lines: list[RenderableType] = [head, table]
    for names in below:
        lines += [Text(), _more(scores, names)]
    lines += [Text(_measured_on(scores), style="dim")]
    if doubt := too_few_documents(scores.calibration, scores.unit):
        lines.append(Text(doubt, style="yellow"))
    lines += [Text(f"{name} was not measured: {why}", style="yellow") for name, why in scores.refused.items()]
    if scores.spans is not None:
        lines += [Text(), spans_map(scores.spans, scores.pinned), Text()]
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


def chosen_table(scores: Scores) -> RenderableType:
    """The scores with the blocks that would go, and how sure that is."""
    if scores.search is not None:
        return Group(scores_table(scores, scores.chosen), Text(), scores.search)
    _, choice = least(scores, len(scores.chosen))
    return Group(scores_table(scores, scores.chosen), choice_lines(choice))


def tables(scores: Scores) -> tuple[Table, ...]:
    """A row a block, with every criterion and its standard error; then what was refused, and the best runs."""
    columns: list[str] = ["block", "name"]
    cells: list[Sequence[Cell]] = [range(len(scores)), scores.block_names]
    for name in scores.criteria:
        one = scores.of(name)
        columns += [name, "± s.e."]
        cells += [one.values, one.stderr]
    place = {block: rank for rank, block in enumerate(scores.ranking(), start=1)}
    columns += ["parameters", "rank"]
    cells += [scores.parameters, [place[block] for block in range(len(scores))]]
    if scores.chosen:
        columns += ["goes", "stability"]
        cells += [["yes" if row.chosen else None for row in scores.blocks], [row.stability for row in scores.blocks]]
    if scores.pinned:
        columns.append("pinned")
        cells.append([scores.pinned.get(block) for block in range(len(scores))])
    title = f"{scores.model}: {_kind(scores)}; {_measured_on(scores)}"
    made = [Table(title, tuple(columns), tuple(zip(*cells, strict=True)))]
    if scores.refused:
        made.append(Table("Not measured", ("criterion", "reason"), tuple(scores.refused.items())))
    if scores.search is not None:
        made += scores.search.tables()
    return (*made, *(span_tables(scores.spans, scores.pinned) if scores.spans is not None else ()))


def tidy(scores: Scores) -> Table:
    """A row a block and criterion; one a longer run, where spans were measured; one a criterion that was refused."""
    return Table("", TIDY, tuple(_rows(scores)))


def _rows(scores: Scores) -> Iterator[tuple[Cell, ...]]:
    info = scores.calibration
    measured_on = (info.source, info.sequences, sum(scores.tokens), info.seed, info.text_hash, scores.dtype)
    for name in scores.criteria:
        one = scores.of(name)
        for row in one.blocks:
            norms = scores.stream_norm[row.block], scores.update_norm[row.block]
            choice = (row.rank, int(row.chosen), row.stability) if scores.chosen else (row.rank, None, None)
            rest = (*choice, scores.parameters[row.block], *norms, scores.pinned.get(row.block))
            yield (scores.model, name, row.block, row.block, row.name, row.value, row.stderr, *rest, *measured_on, None)
    if scores.spans is not None:
        for first, last, value in runs(scores.spans):
            if last > first:
                yield (scores.model, scores.spans.criterion, first, last, None, value, *[None] * 8, *measured_on, None)
    for name, why in scores.refused.items():
        yield (scores.model, name, *[None] * 12, *measured_on, why)


def _groups(names: Sequence[str]) -> list[list[str]]:
    """The criteria beside the first one, then those of each table below it."""
    groups: list[list[str]] = [[]]
    room = BESIDE
    for name in names:
        width = max(7, *(len(line) for line in _title(name).plain.split("\n"))) + 2
        if width > room and (groups[-1] or len(groups) == 1):
            groups.append([])
            room = BELOW
        groups[-1].append(name)
        room -= width
    return groups


def _title(criterion: str) -> Text:
    """A name in as many lines as it has parts."""
    return Text(short_name(criterion).replace("-", "-\n"))


def _more(scores: Scores, names: Sequence[str]) -> Grid:
    table = Grid()
    table.add_column("block", justify="right")
    for name in names:
        table.add_column(_title(name), justify="right")
    for block, values in enumerate(zip(*(_shown(scores.of(name)) for name in names), strict=True)):
        table.add_row(str(block), *values)
    return table


def _shown(scores: Scores) -> list[str]:
    """The values of the first criterion; places in an order are whole numbers."""
    if scores.counts[0] == (1,) and all(value.is_integer() for value in scores.values):
        return [f"{value:.0f}" for value in scores.values]
    return [number(value) for value in scores.values]


def _kind(scores: Scores) -> str:
    return (
        f"{scores.architecture}, {scores.norm_placement}-norm, {len(scores)} blocks, "
        f"{count(scores.total_parameters)} parameters"
    )


def _measured_on(scores: Scores) -> str:
    info = scores.calibration
    sampled = "" if info.seed is None else f", seed {info.seed}"
    documents = "" if info.documents is None else f" of {info.documents} document{'s' if info.documents > 1 else ''}"
    field = "" if info.field is None else f", field {info.field}"
    return f"{info.source}{field}: {info.sequences} sequences{documents}, {sum(scores.tokens):,} tokens{sampled}"
