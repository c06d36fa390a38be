"""Many models side by side: where along their depth each one is redundant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.blocks import BlockSequence
from shortgpt.calibration import Calibration, items_of
from shortgpt.errors import ShortGPTError
from shortgpt.loading import tried
from shortgpt.scores import DEFAULT_CRITERION, Progress, Scores
from shortgpt.scoring import score
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shortgpt.tables import Table

THRESHOLDS = (0.01, 0.05, 0.1)
SPAN_SHARE = 0.25
"""The most redundant span is this share of a model's blocks: what ShortGPT removes of Llama 2 and keeps 90% by."""


@dataclass(frozen=True)
class Row(Value):
    """One model of a comparison.

    Attributes:
        model: as it was named, or as the file of its scores names it.
        scores: None where it could not be measured.
        error: why it could not be; None where it was.
    """

    model: str
    scores: Scores | None = None
    error: str | None = None


@dataclass(frozen=True)
class Summary(Value):
    """A model's scores in a few numbers.

    Attributes:
        mean, least, most: over blocks.
        shares: the share of blocks whose score is below each of `THRESHOLDS`.
        span: first and last block of the quarter of consecutive blocks with the least mean score.
        span_mean: that mean.
    """

    mean: float
    least: float
    most: float
    shares: tuple[float, ...]
    span: tuple[int, ...]
    span_mean: float

    @classmethod
    def of(cls, scores: Scores) -> Summary:
        values = scores.values
        depth = len(values)
        length = max(1, round(SPAN_SHARE * depth))
        means = [sum(values[i : i + length]) / length for i in range(depth - length + 1)]
        first = min(range(len(means)), key=lambda i: (means[i], -i))
        return cls(
            mean=sum(values) / depth,
            least=min(values),
            most=max(values),
            shares=tuple(sum(v < t for v in values) / depth for t in THRESHOLDS),
            span=(first, first + length - 1),
            span_mean=means[first],
        )


@dataclass(frozen=True)
class Comparison(Value):
    """Models as rows. `print()` shows them over relative depth; models of different depth compare at a glance.

    Attributes:
        rows: a model each.
        criteria: what they are compared by; where there are none, by the first criterion of the first one measured.
    """

    rows: tuple[Row, ...]
    criteria: tuple[str, ...] = ()

    def measured(self) -> dict[str, tuple[tuple[str, Scores], ...]]:
        """For each criterion, the models that have it: name, and scores with that criterion first."""
        rows = [(row.model, row.scores) for row in self.rows if row.scores is not None]
        criteria = self.criteria or tuple(scores.criteria[0] for _, scores in rows[:1])
        return {
            criterion: tuple((model, scores.of(criterion)) for model, scores in rows if criterion in scores.criteria)
            for criterion in criteria
        }

    def failures(self) -> tuple[tuple[str, str], ...]:
        """What could not be measured: the model, and the reason without its name."""
        failed: list[tuple[str, str]] = []
        for row in self.rows:
            if row.scores is None:
                failed.append((row.model, (row.error or "no reason is known").removeprefix(f"{row.model}: ")))
                continue
            for criterion in self.criteria:
                if criterion not in row.scores.criteria:
                    why = row.scores.refused.get(criterion, f"only {', '.join(row.scores.criteria)} were measured")
                    failed.append((row.model, f"{criterion}: {why}"))
        return tuple(failed)

    def mismatched(self) -> tuple[str, ...]:
        """The models that were not measured on the same text as the first one that could be measured."""
        rows = [(row.model, row.scores) for row in self.rows if row.scores is not None]
        return tuple(model for model, scores in rows if self.on_other_text(scores))

    def on_other_text(self, scores: Scores) -> bool:
        """Whether scores were not measured on the same text as the first ones of the comparison."""
        first = next((row.scores for row in self.rows if row.scores is not None), scores)
        return scores.calibration.text_hash != first.calibration.text_hash

    def tables(self) -> tuple[Table, ...]:
        from shortgpt.reports.comparison import tables

        return tables(self)

    def tidy(self) -> Table:
        from shortgpt.reports.comparison import tidy

        return tidy(self)

    def __rich__(self) -> RenderableType:
        from shortgpt.reports.comparison import comparison_tables

        return comparison_tables(self)

    def __str__(self) -> str:
        from shortgpt.reports import as_text

        return as_text(self)


def compare(
    models: Iterable[BlockSequence | Scores | str | Path],
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] = (DEFAULT_CRITERION,),
    sequences: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    field: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Score models one after the other.

    Args:
        models: block sequences; names and paths, each loaded, scored and let go again; or scores already measured, as
            values or as the path of the JSON file they were written to, for which nothing is loaded.
        criteria: what they are compared by. A model that cannot serve all of them is compared by the others.
        tokenizer: for those models that bring none.
        calibration and the rest: as for `shortgpt.score` and `shortgpt.load`.
        progress: also called with "models" before each one.

    Returns:
        A row a model. One that fails is a row that says why, and the others still run.

    Raises:
        UnknownNameError: no criterion of that name is installed.
    """
    from shortgpt import plugins

    asked: Sequence[Any] = [models] if isinstance(models, (BlockSequence, Scores, str, Path)) else list(models)
    if not all(is_measured(model) for model in asked):  # elsewhere other criteria may be installed
        for criterion in criteria:
            plugins.lookup("criterion", plugins.registry().criteria, criterion)
    if not isinstance(calibration, (str, Path, Calibration)):
        calibration = items_of(calibration)  # each model reads it
    loading: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "tokenizer": tokenizer,
    }
    texts: dict[str, Any] = {
        "sequences": sequences,
        "tokens": tokens,
        "seed": seed,
        "field": field,
        "batch_size": batch_size,
    }

    def measure(model: BlockSequence) -> Scores:
        return score(model, calibration, criteria=criteria, progress=progress, **texts)

    rows = []
    for number, model in enumerate(asked):
        if progress is not None:
            progress("models", number, len(asked))
        rows.append(_recorded(model, criteria) if is_measured(model) else Row(*tried(model, measure, **loading)))
    return Comparison(tuple(rows), tuple(criteria))


def is_measured(model: Any) -> bool:
    """Whether that is scores already, in memory or in a JSON file, so that no model is needed."""
    if isinstance(model, Scores):
        return True
    return isinstance(model, (str, Path)) and Path(model).suffix == ".json" and Path(model).is_file()


def _recorded(found: Scores | str | Path, criteria: Sequence[str]) -> Row:
    """The row of scores that are at hand: the first of the criteria that they have comes first."""
    try:
        scores = found if isinstance(found, Scores) else _read(found)
        first = next((criterion for criterion in criteria if criterion in scores.criteria), criteria[0])
        return Row(scores.model, scores.of(first))
    except ShortGPTError as error:
        return Row(found.model if isinstance(found, Scores) else str(found), error=str(error))


def _read(file: str | Path) -> Scores:
    try:
        return Scores.from_json(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ShortGPTError) as error:
        raise ShortGPTError(f"{file}: no scores can be read from it ({error})") from None
