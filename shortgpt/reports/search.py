"""Searches: the best of the sets that were measured, what was predicted of them, and how sure the choice is."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Table
from shortgpt.reports.cells import number
from shortgpt.reports.effect import choice_texts
from shortgpt.reports.grid import Grid
from shortgpt.values.choosing.search import BEAM, PERPLEXITY, Candidate, Search

ROWS = 8
"""As many sets are shown."""


def search_lines(search: Search) -> RenderableType:
    """A row a set, the chosen one first; below it what the search took, and how sure it is."""
    head = Text.assemble((search.model, "bold"), f"  {search.architecture}, {search.depth} blocks")
    return Group(head, _grid(search), *(Text(line) for line in search_texts(search)))


def search_texts(search: Search) -> list[str]:
    """What the search took, and how sure its choice is."""
    info = search.calibration
    more = search.measured - min(ROWS, len(search.candidates))
    lines = [f"and {more:,} more sets of {len(search.blocks)} blocks, none better"] if more > 0 else []
    if search.optimal is False:
        lines.append("a program was not solved to its end: other sets may look better than those that were measured")
    finalists = sum(one.compensated is not None for one in search.candidates)
    if finalists:
        lines.append(f"the best {finalists} were compensated too, and measured on the last quarter of the sequences")
    lines.append(
        f"{_method(search)}: {search.evaluations:,} sets measured in {search.passes:.1f} passes of the whole model, on "
        f"{info.sequences} sequences of {info.tokens} tokens of {info.source}; look at other text for what it is worth"
    )
    return [*lines, *choice_texts(search.choice)]


def tables(search: Search) -> tuple[Table, ...]:
    """The best sets; then what the search took."""
    columns = ("blocks", *_columns(search))
    rows = tuple((format_blocks(one.blocks), *_values(search, one)) for one in search.candidates)
    title = f"{search.model}: the best sets of {len(search.blocks)} of {search.depth} blocks"
    info = search.calibration
    spent = (
        ("method", _method(search)),
        ("sets of that size measured", search.measured),
        ("sets measured", search.evaluations),
        ("passes of the whole model", round(search.passes, 1)),
        ("the whole model's value", search.whole),
        ("text", f"{info.sequences} sequences of {info.tokens} tokens, {info.source}"),
        ("chosen again in resamples", search.choice.stability),
    )
    return Table(title, columns, rows), Table("The search", ("what", "value"), spent)


def _grid(search: Search) -> Grid:
    grid = Grid()
    grid.add_column("without blocks", overflow="fold")
    for column in _columns(search):
        grid.add_column(column, justify="right")
    shown = search.candidates[:ROWS]
    for one in shown:
        cells = ("-" if value is None else number(value) for value in _values(search, one))
        grid.add_row(format_blocks(one.blocks), *cells, style="bold" if one.blocks == search.blocks else "")
    return grid


def _columns(search: Search) -> list[str]:
    value = ["log-perplexity", "perplexity"] if search.objective == PERPLEXITY else ["KL, nats a token"]
    predicted = any(one.predicted is not None for one in search.candidates)
    compensated = any(one.compensated is not None for one in search.candidates)
    return [*value, *(["predicted"] if predicted else []), *(["compensated"] if compensated else [])]


def _values(search: Search, one: Candidate) -> list[float | None]:
    perplexity = math.exp(one.value) if one.value < 700 else math.inf
    cells: dict[str, float | None] = {
        "log-perplexity": one.value,
        "KL, nats a token": one.value,
        "perplexity": perplexity,
        "predicted": one.predicted,
        "compensated": one.compensated,
    }
    return [cells[column] for column in _columns(search)]


def _method(search: Search) -> str:
    width = f" of width {search.width}" if search.method == BEAM else ""
    return f"{search.method}{width}{', neighbours only' if search.contiguous else ''}"
