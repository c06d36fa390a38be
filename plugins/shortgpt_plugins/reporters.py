"""Results as text in other formats."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from shortgpt.comparison import Comparison, Summary
from shortgpt.scores import Scores


def as_json(result: Scores | Comparison) -> str:
    """All there is, to be read back by `from_json`."""
    return result.to_json()


def as_csv(result: Scores | Comparison) -> str:
    """A row a block, of every model."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("model", "criterion", "block", "name", "score", "stderr", "parameters", "rank"))
    for scores in _all_scores(result):
        rank = {block: place for place, block in enumerate(scores.ranking(), start=1)}
        for block, name in enumerate(scores.block_names):
            numbers = (repr(scores.values[block]), repr(scores.stderr[block]), scores.parameters[block], rank[block])
            writer.writerow((scores.model, scores.criteria[0], block, name, *numbers))
    return buffer.getvalue()


def as_markdown(result: Scores | Comparison) -> str:
    """A row a block for scores; a row a model for a comparison."""
    if isinstance(result, Scores):
        rank = {block: place for place, block in enumerate(result.ranking(), start=1)}
        rows = [
            (name, f"{result.values[i]:.6f}", f"{result.stderr[i]:.6f}", result.parameters[i], rank[i])
            for i, name in enumerate(result.block_names)
        ]
        return _table(("block", result.criteria[0], "s.e.", "parameters", "rank"), rows)
    lines: list[tuple[object, ...]] = []
    for row in result.rows:
        if row.scores is None:
            lines.append((row.model, "", "", f"failed: {row.error}", "", "", ""))
            continue
        summary = Summary.of(row.scores)
        numbers = (f"{value:.6f}" for value in (summary.mean, summary.least, summary.most))
        span = f"{summary.span[0]}-{summary.span[1]}"
        lines.append((row.model, row.scores.norm_placement, len(row.scores), *numbers, span))
    return _table(("model", "norm", "blocks", "mean", "min", "max", "most redundant span"), lines)


def _all_scores(result: Scores | Comparison) -> list[Scores]:
    if isinstance(result, Scores):
        return [result]
    return [row.scores for row in result.rows if row.scores is not None]


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
