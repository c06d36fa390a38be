"""How results look in a terminal: rich tables that survive 80 columns, no colour, and a pipe.

A kind of result has a file of its own here; what their tables share is in `cells`.
"""

from __future__ import annotations

import io

from rich.console import Console

RENDERED = {
    "Ablation": "shortgpt.reports.ablation:ablation_table",
    "Comparison": "shortgpt.reports.comparison:comparison_tables",
    "Cost": "shortgpt.reports.costs.cost:cost_table",
    "Curves": "shortgpt.reports.curve:curve_tables",
    "Effect": "shortgpt.reports.effect:effect_lines",
    "Evaluation": "shortgpt.reports.evaluation:evaluation_tables",
    "Inspection": "shortgpt.reports.inspection:inspection_table",
    "PublishedComparison": "shortgpt.reports.published:published_lines",
    "Registry": "shortgpt.reports.registry:registry_tables",
    "Scores": "shortgpt.reports.scores:scores_table",
    "Search": "shortgpt.reports.search:search_lines",
    "Spans": "shortgpt.reports.spans:spans_map",
    "Training": "shortgpt.reports.training:training_table",
}
"""For each kind of value, what a terminal shows."""

TABLES = {
    "Ablation": "shortgpt.reports.ablation:tables",
    "Comparison": "shortgpt.reports.comparison:tables",
    "Cost": "shortgpt.reports.costs.cost:tables",
    "Curves": "shortgpt.reports.curve:tables",
    "Evaluation": "shortgpt.reports.evaluation:tables",
    "Inspection": "shortgpt.reports.inspection:tables",
    "PublishedComparison": "shortgpt.reports.published:tables",
    "Registry": "shortgpt.reports.registry:tables",
    "Scores": "shortgpt.reports.scores:tables",
    "Search": "shortgpt.reports.search:tables",
    "Spans": "shortgpt.reports.spans:tables",
    "Training": "shortgpt.reports.training:tables",
}
"""For each kind of value, its tables for reading."""

TIDY = {
    "Ablation": "shortgpt.reports.ablation:tidy",
    "Comparison": "shortgpt.reports.comparison:tidy",
    "Curves": "shortgpt.reports.curve:tidy",
    "Evaluation": "shortgpt.reports.evaluation:tidy",
    "Scores": "shortgpt.reports.scores:tidy",
    "Spans": "shortgpt.reports.spans:tidy",
}
"""For each kind of value whose CSV is not its first table, every number in one table."""


def as_text(result: object) -> str:
    """A result as plain text, 80 columns wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=80, color_system=None, force_terminal=False, markup=False, emoji=False).print(result)
    return buffer.getvalue().rstrip("\n")
