"""Many models side by side: where along their depth each one is redundant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from shortgpt.basics.inputs import MeasuringOptions, Progress, apart
from shortgpt.basics.progress import shown
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import ShortGPTError
from shortgpt.measuring.calibration import Calibration, items_of
from shortgpt.measuring.scoring.resuming import folder_for
from shortgpt.measuring.scoring.score import score
from shortgpt.models.loading import listed, tried
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.comparison import Comparison, Row
from shortgpt.values.scores import DEFAULT_CRITERION, Scores


def compare(
    models: Iterable[BlockSequence | Scores | str | Path],
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] = (DEFAULT_CRITERION,),
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Comparison:
    """Score models one after the other.

    Args:
        models: block sequences; names and paths, each loaded, scored and let go again; or scores already measured, as
            values or as the path of the JSON file they were written to, for which nothing is loaded.
        criteria: what they are compared by. A model that cannot serve all of them is compared by the others.
        calibration, options: as for `shortgpt.score` and `shortgpt.load`; a `tokenizer` serves the models that bring
            none.
        resume: a folder in which the sums of each batch of each model are kept as they are made, and from which they
            are taken; see `shortgpt.score`.
        progress: True for bars; or it is also called with "models" before each one.

    Returns:
        A row a model. One that fails is a row that says why, and the others still run.

    Raises:
        UnknownNameError: no criterion of that name is installed.
    """
    progress = shown(progress)
    from shortgpt import plugins

    given = [models] if isinstance(models, Scores) else listed(models)
    if not all(is_measured(model) for model in given):  # elsewhere other criteria may be installed
        for criterion in criteria:
            plugins.lookup("criterion", plugins.registry().criteria, criterion)
    if not isinstance(calibration, (str, Path, Calibration)):
        calibration = items_of(calibration)  # each model reads it
    texts, loading = apart(options)

    rows = []
    for number, model in enumerate(given):
        if progress is not None:
            progress("models", number, len(given))
        folder = folder_for(resume, number, len(given))

        def measure(model: BlockSequence, folder: Path | None = folder) -> Scores:
            return score(model, calibration, criteria=criteria, resume=folder, progress=progress, **texts)

        rows.append(_recorded(model, criteria) if is_measured(model) else Row(*tried(model, measure, **loading)))
    return Comparison(tuple(rows), tuple(criteria))


def is_measured(model: Any) -> bool:
    """Whether that is scores already, in memory or in a JSON file, so that no model is needed."""
    if isinstance(model, Scores):
        return True
    if not isinstance(model, (str, Path)) or Path(model).suffix != ".json":
        return False
    try:
        return local_path(model).is_file()
    except ShortGPTError:  # told in its row, as of any name that is none
        return False


def _recorded(found: Scores | str | Path, criteria: Sequence[str]) -> Row:
    """The row of scores that are at hand: the first of the criteria that they have comes first."""
    try:
        scores = found if isinstance(found, Scores) else Scores.read(found)
        first = next((criterion for criterion in criteria if criterion in scores.criteria), criteria[0])
        return Row(scores.model, scores.of(first).choosing(()))  # a comparison chooses none
    except ShortGPTError as error:
        return Row(found.model if isinstance(found, Scores) else str(found), error=str(error))
