"""An evaluation: tasks as rows, models as columns; then each shorter model beside the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.value import Cell, Table
from shortgpt.reports.cells import number
from shortgpt.reports.grid import Grid
from shortgpt.values.evaluation.estimates import Estimate
from shortgpt.values.evaluation.evaluation import EvaluatedModel, Evaluation
from shortgpt.values.evaluation.outcomes import TaskRow

BESIDE = 3
"""How many models fit into 80 columns."""
AT_CHANCE, AVERAGE = "at chance", "average"


def evaluation_tables(evaluation: Evaluation) -> RenderableType:
    """The models, their scores, what each keeps of the original's, and what is to be known of them."""
    parts: list[RenderableType] = [_models(evaluation)]
    measured = [at for at, one in enumerate(evaluation.models) if one.error is None]
    chance = {row.task for row in evaluation.tasks if evaluation.is_at_chance(row)}
    for first in range(0, len(measured), BESIDE):
        parts += [Text(), _grid(_score_table(evaluation, measured[first : first + BESIDE]), chance)]
    for model in measured:
        if model and (kept := _kept_table(evaluation, model)).rows:
            parts += [Text(), Text(f"({model + 1}) beside (1)", style="bold"), _grid(kept, chance)]
    if evaluation.verdicts:
        parts += [Text(), *(Text(line, style="bold") for line in verdict_lines(evaluation))]
    notes = evaluation_notes(evaluation)
    if notes:
        parts += [Text(), *(Text(line, style="dim") for line in notes)]
    parts += [Text.assemble((f"{what}: ", "bold red"), why) for what, why in evaluation.failures()]
    return Group(*parts)


def _models(evaluation: Evaluation) -> Grid:
    grid = Grid(show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for at, one in enumerate(evaluation.models, start=1):
        grid.add_row(f"({at})", Text(one.model), Text(_described(one)))
    return grid


def _described(one: EvaluatedModel) -> str:
    if one.error is not None:
        return "not measured"
    blocks = f"{one.blocks - len(one.removed)} of {one.blocks} blocks" if one.removed else f"{one.blocks} blocks"
    way = ", skipped" if one.skipped else ""
    return f"{one.architecture}, {blocks}{way}, {one.parameters:,} parameters, {one.dtype} on {one.device}"


def _grid(table: Table, dim: set[str]) -> Grid:
    """A table as a terminal shows it; the rows of some tasks are dim, that of the average is bold."""
    grid = Grid()
    for title in table.columns:
        grid.add_column(title, justify="left" if title in ("task", "metric") else "right")
    for row in table.rows:
        style = "bold" if row[0] == AVERAGE else "dim" if row[0] in dim else None
        grid.add_row(*("" if cell is None else str(cell) for cell in row), style=style)
    return grid


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """Sentences on what the numbers are of, and what has to be known to read them."""
    lines = []
    if any(row.lower_is_better for row in evaluation.tasks):
        lines.append("↓ lower is better; ± is a standard error, of kept and difference paired by item")
    else:
        lines.append("± is a standard error, of kept and difference paired by item")
    texts = {str(row.settings["text"]) for row in evaluation.tasks if "text" in row.settings}
    on = f" of {', '.join(sorted(texts))}" if texts else ""
    lines.append(f"items{on} drawn by seed {evaluation.seed}")
    if left_out := max((int(row.settings.get("passages_scored", 0)) for row in evaluation.tasks), default=0):
        lines.append(f"up to {left_out} passages of a task were left out, for blocks were chosen on them")
    chance = [row.task for row in evaluation.tasks if evaluation.is_at_chance(row)]
    if chance:
        lines.append(f"at chance, so left out of the average: {', '.join(chance)} (the original does no better)")
    if len({one.tokenizer_hash for one in evaluation.models if one.error is None}) > 1:
        lines.append("the models have different tokenizers: perplexity and next-token do not compare, bits per byte do")
    lines += [
        f"{row.task}: {column.truncated} contexts were longer than the window of {one.model} ({one.window} tokens) and "
        "lost their left end"
        for row in evaluation.tasks
        for one, column in zip(evaluation.models, row.columns, strict=False)
        if column.truncated
    ]
    return lines


def verdict_lines(evaluation: Evaluation) -> list[str]:
    """What became of each requirement, a line each."""
    return [
        f"{one.requirement}: {one.state} for {one.model}: {number(one.value)}, {_interval(one.low, one.high)} "
        f"({one.items} items)"
        for one in evaluation.verdicts
    ]


def _interval(low: float, high: float) -> str:
    least = "" if math.isnan(low) else f"at least {number(low)}"
    most = "" if math.isnan(high) else f"at most {number(high)}"
    if not least and not most:
        return "which nothing bounds yet"
    return f"{' and '.join(filter(None, (least, most)))} with 95% confidence each"


def tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """The models; scores, a column a model; what each shorter one keeps; what failed."""
    models = Table(
        "Models",
        ("", "model", "architecture", "blocks", "removed", "parameters", "dtype", "window"),
        tuple(
            (
                f"({at})",
                one.model,
                one.architecture,
                one.blocks,
                format_blocks(one.removed) if one.removed else None,
                one.parameters,
                one.dtype,
                one.window,
            )
            for at, one in enumerate(evaluation.models, start=1)
            if one.error is None
        ),
    )
    measured = [at for at, one in enumerate(evaluation.models) if one.error is None]
    made = [models, _score_table(evaluation, measured)]
    for model, one in enumerate(evaluation.models):
        if model and one.error is None and (kept := _kept_table(evaluation, model)).rows:
            made.append(kept)
    if evaluation.verdicts:
        columns = ("requirement", "model", "state", "value", "at least (95%)", "at most (95%)", "items")
        told = tuple((v.requirement, v.model, v.state, v.value, v.low, v.high, v.items) for v in evaluation.verdicts)
        made.append(Table("Requirements", columns, told))
    if evaluation.failures():
        made.append(Table("Not measured", ("what", "reason"), evaluation.failures()))
    return tuple(made)


def _score_table(evaluation: Evaluation, models: Sequence[int]) -> Table:
    columns = ("task", "metric", "items", *(f"({model + 1})" for model in models))
    rows: list[tuple[Cell, ...]] = [
        (
            row.task,
            f"{row.metric}{' ↓' if row.lower_is_better else ''}",
            len(row.items),
            *(_told(evaluation.score(row, model)) for model in models),
        )
        for row in evaluation.tasks
        if row.error is None
    ]
    if evaluation.averaged():
        averages = [_told(evaluation.average(model)) for model in models]
        rows.append((AVERAGE, f"of {len(evaluation.averaged())} skills", None, *averages))
    return Table("Scores ± standard error", columns, tuple(rows))


def _kept_table(evaluation: Evaluation, model: int) -> Table:
    columns = ("task", "kept", "difference", "changed", "right→wrong", "wrong→right")
    rows: list[tuple[Cell, ...]] = []
    for row in evaluation.tasks:
        kept, apart = evaluation.kept(row, model), evaluation.difference(row, model)
        if kept is None or apart is None:
            continue
        flips = evaluation.flips(row, model)
        shares: tuple[Cell, ...] = (None, None, None)
        if flips is not None and flips.answers:
            shares = tuple(f"{n / flips.answers:.1%}" for n in (flips.changed, flips.lost, flips.gained))
        told = AT_CHANCE if evaluation.is_at_chance(row) else _share(kept)
        rows.append((row.task, told, _told(apart, signed=True), *shares))
    if (average := evaluation.average_kept(model)) is not None:
        rows.append((AVERAGE, _share(average), None, None, None, None))
    return Table(f"({model + 1}) beside (1): {evaluation.models[model].model}", columns, tuple(rows))


TIDY = (
    *("task", "version", "metric", "lower is better", "model", "removed", "items", "score", "stderr"),
    *("kept", "kept stderr", "difference", "difference stderr"),
    *("answers", "changed", "right to wrong", "wrong to right", "at chance", "averaged", "truncated", "error"),
)


def tidy(evaluation: Evaluation) -> Table:
    """A row a task and model."""
    averaged = {row.task for row in evaluation.averaged()}

    def rows() -> Iterator[tuple[Cell, ...]]:
        for row in evaluation.tasks:
            if row.error is not None:
                yield (row.task, *[None] * (len(TIDY) - 2), row.error)
                continue
            for model, one in enumerate(evaluation.models):
                yield (*_head(row, one), *_numbers(evaluation, row, model), *_state(evaluation, row, model, averaged))

    return Table("", TIDY, tuple(rows()))


def _head(row: TaskRow, one: EvaluatedModel) -> tuple[Cell, ...]:
    removed = " ".join(map(str, one.removed)) or None
    return row.task, row.version, row.metric, str(row.lower_is_better).lower(), one.model, removed


def _numbers(evaluation: Evaluation, row: TaskRow, model: int) -> tuple[Cell, ...]:
    score = evaluation.score(row, model)
    kept, apart = (evaluation.kept(row, model), evaluation.difference(row, model)) if model else (None, None)
    flips = evaluation.flips(row, model) if model else None
    pairs = [cell for one in (score, kept, apart) for cell in ((None, None) if one is None else one)]
    return (len(row.items), *pairs, *((None,) * 4 if flips is None else flips))


def _state(evaluation: Evaluation, row: TaskRow, model: int, averaged: set[str]) -> tuple[Cell, ...]:
    one, column = evaluation.models[model], row.columns[model]
    chance = str(evaluation.is_at_chance(row)).lower()
    return chance, str(row.task in averaged).lower(), column.truncated, one.error or column.error


def _told(found: Estimate | None, signed: bool = False) -> str:
    if found is None:
        return "-"
    sign = "+" if signed and found.value > 0 else ""
    error = "" if math.isnan(found.stderr) else f" ±{_digits(found.stderr)}"
    return f"{sign}{number(found.value)}{error}"


def _digits(error: float) -> str:
    """A standard error to two digits."""
    return f"{error:.2g}" if error < 100 else f"{error:.0f}"


def _share(found: Estimate) -> str:
    if math.isnan(found.value):
        return "-"
    error = "" if math.isnan(found.stderr) else f" ±{found.stderr:.1%}"
    return f"{found.value:.1%}{error}"
