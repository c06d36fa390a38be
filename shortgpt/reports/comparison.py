"""Comparisons: a strip and a row a model."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shortgpt.comparison import THRESHOLDS, Comparison, Summary
from shortgpt.reports.cells import LEAST, MOST, STRIP, number, scale, strip


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
            strips.add_row(label, scores.norm_placement, str(len(scores)), strip(scores.values))
            first, last = summary.span
            numbers.add_row(
                label,
                *(number(v) for v in (summary.mean, summary.least, summary.most)),
                *(f"{share:.0%}" for share in summary.shares),
                f"{first}-{last} ({number(summary.span_mean)})",
            )
        criterion = measured[0][1].criteria[0]
        legend = Text.assemble(f"{criterion}: redundant ", scale(), f" ({LEAST:g} to {MOST:g}, logarithmic)")
        parts += [strips, legend, Text(), numbers]
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
