"""How results look in a terminal: rich tables that survive 80 columns, no colour, and a pipe."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence

from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from shortgpt.blocks import format_blocks
from shortgpt.comparison import THRESHOLDS, Comparison, Summary
from shortgpt.inspection import Inspection
from shortgpt.scores import Scores

BAR = 20
STRIP = 24
SHADES = "▁▂▃▄▅▆▇█"
LEAST, MOST = 1e-3, 1.0
"""Scores are shown on a logarithmic scale between these."""


def as_text(result: object) -> str:
    """A result as plain text, 80 columns wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=80, color_system=None, force_terminal=False, markup=False, emoji=False).print(result)
    return buffer.getvalue().rstrip("\n")


def scores_table(scores: Scores, marked: Collection[int] = ()) -> RenderableType:
    """A row a block: score ± standard error as number and bar, parameters, rank; `marked` blocks would go."""
    place = {block: rank for rank, block in enumerate(scores.ranking(), start=1)}
    other = scores.criteria[1:]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("block", justify="right")
    table.add_column(Text(_short_name(scores.criteria[0])), justify="right")
    table.add_column("± s.e.", justify="right", no_wrap=True, min_width=7)
    if not other:
        table.add_column("", width=BAR)
    for name in other:
        table.add_column(Text(_short_name(name)), justify="right")
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
            _number(values[block]),
            _number(errors[block]),
            *(() if other else (_bar(values[block], largest, gone),)),
            *(_number(column[block]) for column in others),
            _count(scores.parameters[block]),
            str(place[block]),
            mark,
        )
    info = scores.calibration
    head = Text.assemble(
        (scores.model, "bold"),
        f"  {scores.architecture}, {scores.norm_placement}-norm, {len(scores)} blocks, "
        f"{_count(scores.total_parameters)} parameters, {scores.dtype}",
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


def comparison_tables(comparison: Comparison) -> RenderableType:
    """A heat strip over relative depth for each model, then its numbers, then what failed."""
    measured = [(row.model, row.scores) for row in comparison.rows if row.scores is not None]
    parts: list[RenderableType] = []
    if measured:
        odd = set(comparison.mismatched())
        strips = Table(box=None, pad_edge=False, header_style="bold")
        strips.add_column("model", overflow="fold")
        strips.add_column("norm")
        strips.add_column("blocks", justify="right")
        strips.add_column("first" + "last".rjust(STRIP - 5), width=STRIP, no_wrap=True)
        numbers = Table(box=None, pad_edge=False, header_style="bold")
        numbers.add_column("model", overflow="fold")
        for name in ("mean", "min", "max", *(f"<{t:g}" for t in THRESHOLDS), "most redundant span"):
            numbers.add_column(name, justify="right")
        for model, scores in measured:
            summary = Summary.of(scores)
            label = Text(model + (" *" if model in odd else ""))
            strips.add_row(label, scores.norm_placement, str(len(scores)), _strip(scores.values))
            first, last = summary.span
            numbers.add_row(
                label,
                *(_number(v) for v in (summary.mean, summary.least, summary.most)),
                *(f"{share:.0%}" for share in summary.shares),
                f"{first}-{last} ({_number(summary.span_mean)})",
            )
        criterion = measured[0][1].criteria[0]
        scale = Text.assemble(f"{criterion}: redundant ", _scale(), f" ({LEAST:g} to {MOST:g}, logarithmic)")
        parts += [strips, scale, Text(), numbers]
        if odd:
            parts.append(Text("* measured on other text than the first model: compare with care", style="yellow"))
    failed = [row for row in comparison.rows if row.error is not None]
    if failed:
        parts.append(Text())
        parts += [
            Text.assemble((f"{row.model}: ", "bold red"), (row.error or "").removeprefix(f"{row.model}: "))
            for row in failed
        ]
    return Group(*parts)


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value == 0 or value >= 5e-4 else f"{value:.1e}"


def _count(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def _short_name(criterion: str) -> str:
    return "BI" if criterion == "block-influence" else criterion


def _bar(value: float, largest: float, marked: bool) -> Text:
    eighths = round(8 * BAR * value / largest) if largest > 0 else 0
    full, rest = divmod(eighths, 8)
    return Text("█" * full + " ▏▎▍▌▋▊▉"[rest].strip(), style="red" if marked else "blue")


def _heat(value: float) -> float:
    """A score's place on the scale, 0 to 1."""
    clamped = min(max(value, LEAST), MOST)
    return math.log(clamped / LEAST) / math.log(MOST / LEAST)


def _cell(heat: float) -> tuple[str, Style]:
    """A shade that reads without colour, and a colour from blue (redundant) to red."""
    red, blue = round(40 + 200 * heat), round(240 - 200 * heat)
    return SHADES[min(int(heat * len(SHADES)), len(SHADES) - 1)], Style(color=f"rgb({red},90,{blue})")


def _strip(values: Sequence[float]) -> Text:
    """The scores over relative depth: each of the strip's cells shows the block that lies under its middle."""
    text = Text()
    for cell in range(STRIP):
        block = int((cell + 0.5) / STRIP * len(values))
        text.append(*_cell(_heat(values[block])))
    return text


def _scale() -> Text:
    text = Text("|")
    for step in range(len(SHADES)):
        text.append(*_cell((step + 0.5) / len(SHADES)))
    return text.append("| influential")


def inspection_table(found: Inspection) -> RenderableType:
    """What removal would do to a model: blocks, stream, the config fields that depend on the blocks, what is pinned."""
    blocks = Table(box=None, pad_edge=False, header_style="bold")
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
    fields = Table(box=None, pad_edge=False, header_style="bold")
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
