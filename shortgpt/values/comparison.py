"""Models side by side."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.value import Rows, Value
from shortgpt.values.scores import Scores

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

    rows: tuple[Row, ...]  # type: ignore[assignment]  # called, as any value's `rows`
    criteria: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", Rows(self.rows).of(self))

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
