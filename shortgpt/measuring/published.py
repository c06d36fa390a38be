"""Runs beside publications: which blocks went there and would go here, in which order, and the numbers of its tables.

Numbers of different test suites do not compare; what a shorter model keeps of its whole one, within a suite, comes
nearer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from shortgpt import plugins
from shortgpt.basics.statistics import spearman
from shortgpt.basics.targets import load_target
from shortgpt.errors import PluginError, SelectionError
from shortgpt.values.evaluation.evaluation import Evaluation
from shortgpt.values.published import Beside, Published, PublishedComparison
from shortgpt.values.scores import Scores

NAN = float("nan")


def open_published(name: str) -> Published:
    """What was published of a model.

    Raises:
        UnknownNameError: nothing is known of that name.
    """
    entry = plugins.lookup("published model", plugins.registry().published, name)
    give = load_target(entry.target)
    with plugins.running("published model", entry):
        found = give()
    if not isinstance(found, Published):
        raise PluginError(f"published model {name!r} (plugin {entry.plugin}) is no shortgpt.values.published.Published")
    return found


def scores_beside(scores: Scores, published: Published) -> PublishedComparison:
    """The blocks that these scores remove beside those that were removed.

    Raises:
        SelectionError: the publication lists no blocks of that model, or of a model of another depth.
    """
    listed = published.removed
    if not listed:
        raise SelectionError(f"{published.source} lists no removed blocks of {published.model}")
    if published.blocks != len(scores):
        raise SelectionError(
            f"{published.model} has {published.blocks} blocks, and {scores.model} has {len(scores)}: block numbers "
            "compare only between models of one depth"
        )
    order = spearman([float(place) for place in range(len(listed))], [scores.values[block] for block in listed])
    return PublishedComparison(
        model=scores.model,
        published=published.model,
        source=published.source,
        removed=listed,
        removed_here=tuple(scores.ranking()[: len(listed)]),
        rank_correlation=order,
        notes=published.notes,
    )


def evaluation_beside(evaluation: Evaluation, published: Published) -> PublishedComparison:
    """What was measured on tasks beside the numbers of the tables; the first shorter model beside the shortened one."""
    shorter = next((model for model in evaluation.models[1:] if model.error is None), None)
    gone = shorter.removed if shorter is not None else ()
    comparable = published.blocks is None or evaluation.models[0].blocks == published.blocks
    return PublishedComparison(
        model=evaluation.models[0].model,
        published=published.model,
        source=published.source,
        removed=published.removed if comparable else (),
        removed_here=gone if comparable else (),
        numbers=tuple(_numbers(evaluation, published)),
        notes=published.notes,
    )


def _numbers(evaluation: Evaluation, published: Published) -> Iterator[Beside]:
    ways = {(number.table, number.column): number for number in published.numbers if number.dense}
    shorter = {(number.table, number.column): number for number in published.numbers if number.shortened}
    for place in dict.fromkeys((*ways, *shorter)):
        table, column = place
        task, here = _measured(evaluation, (published.tasks or {}).get(column, ()))
        yield Beside(
            column=column,
            table=table,
            published=ways[place].value if place in ways else NAN,
            published_shorter=shorter[place].value if place in shorter else NAN,
            here=here[0],
            here_shorter=here[1],
            task=task,
        )


def _measured(evaluation: Evaluation, names: tuple[str, ...]) -> tuple[str, tuple[float, float]]:
    """The task that was run of those named, and the scores of the original and of the first shorter model."""
    for row in evaluation.tasks:
        if row.task.partition(":")[0] not in names or row.error is not None:
            continue
        scores = [evaluation.score(row, model) for model in range(min(2, len(evaluation.models)))]
        percent = 1.0 if row.scale == "exp" else 100.0
        values = [NAN if score is None or math.isnan(score.value) else percent * score.value for score in scores]
        return row.task, (values[0], values[1] if len(values) > 1 else NAN)
    return "", (NAN, NAN)
