"""Many models side by side: where along their depth each one is redundant."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.blocks import BlockSequence
from shortgpt.calibration import Calibration
from shortgpt.errors import ShortGPTError
from shortgpt.scores import DEFAULT_CRITERION, Progress, Scores
from shortgpt.scoring import score
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType

THRESHOLDS = (0.01, 0.05, 0.1)
SPAN_SHARE = 0.25
"""The most redundant span is this share of a model's blocks: what ShortGPT removes of Llama 2 and keeps 90% by."""


@dataclass(frozen=True)
class Row(Value):
    """One model of a comparison: its scores, or why there are none."""

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
    """Models as rows. `print()` shows them over relative depth; models of different depth compare at a glance."""

    rows: tuple[Row, ...]

    def mismatched(self) -> tuple[str, ...]:
        """The models that were not measured on the same text as the first one that could be measured."""
        measured = [row for row in self.rows if row.scores is not None]
        return tuple(
            row.model
            for row in measured
            if row.scores
            and measured[0].scores
            and row.scores.calibration.text_hash != measured[0].scores.calibration.text_hash
        )

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
    criterion: str = DEFAULT_CRITERION,
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
            values or as the path of the JSON file they were written to.
        tokenizer: for those models that bring none.
        calibration and the rest: as for `shortgpt.score` and `shortgpt.load`.
        progress: also called with "models" before each one.

    Returns:
        A row a model. One that fails is a row that says why, and the others still run.

    Raises:
        UnknownNameError: no criterion of that name is installed.
    """
    from shortgpt import plugins
    from shortgpt.loading import load, named_tokenizer

    plugins.lookup("criterion", plugins.registry().criteria, criterion)
    asked: Sequence[Any] = list(models)
    if not isinstance(calibration, (str, Path, Calibration)):
        calibration = list(calibration)  # each model reads it
    rows = []
    for number, model in enumerate(asked):
        if progress is not None:
            progress("models", number, len(asked))
        name = _name(model)
        try:
            measured = _measured(model)
            if measured is not None:
                rows.append(Row(measured.model, measured.of(criterion)))
                continue
            opened = model
            if not isinstance(model, BlockSequence):
                opened = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
            if opened.tokenizer is None and tokenizer is not None:
                opened.tokenizer = named_tokenizer(tokenizer)
            scores = score(
                opened,
                calibration,
                criteria=(criterion,),
                sequences=sequences,
                tokens=tokens,
                seed=seed,
                field=field,
                batch_size=batch_size,
                progress=progress,
            )
            rows.append(Row(name, scores))
        except ShortGPTError as error:
            rows.append(Row(name, error=str(error)))
        except Exception as error:  # a model's own code, or a device's memory: the others still run
            rows.append(Row(name, error=f"{type(error).__name__}: {error}"))
        opened = None
        gc.collect()  # before the next model is loaded
    return Comparison(tuple(rows))


def _name(model: Any) -> str:
    if isinstance(model, BlockSequence):
        return model.name
    return model.model if isinstance(model, Scores) else str(model)


def _measured(model: Any) -> Scores | None:
    """The scores that are at hand already, in memory or in a JSON file."""
    if isinstance(model, Scores):
        return model
    if isinstance(model, (str, Path)) and Path(model).suffix == ".json" and Path(model).is_file():
        try:
            return Scores.from_json(Path(model).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ShortGPTError(f"{model}: no scores can be read from it ({error})") from None
    return None
