"""A model before and after a removal."""

from __future__ import annotations

from dataclasses import dataclass, field

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Value

PERPLEXITY, CONTINUATION, SPEED = "perplexity", "continuation", "tokens per second"


@dataclass(frozen=True)
class Measured(Value):
    """One model. None for what was not measured.

    Attributes:
        perplexity: on the held-out text.
        continuation: the tokens that it takes for the likeliest after the prompt, decoded.
        tokens_per_second: of a forward pass, the median.
    """

    perplexity: float | None = None
    continuation: str | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Effect(Value):
    """A model before and after a removal.

    Attributes:
        before, after: what was measured.
        ratio: the perplexity after over that before; None where they were not measured.
        ratio_stderr: its standard error, paired by `ratio_unit`; NaN for a single sequence.
        ratio_unit: what that takes for independent, "document" or "sequence" (`shortgpt.basics.statistics.unit`);
            None where there is no ratio.
        text: what the perplexity was measured on.
        prompt: what was continued, decoded.
        timed: the shape of the batch that was timed, [sequences, tokens].
        device, dtype: where and in what it was measured; `dtype` is that of the residual stream.
        not_measured: what was not measured ("perplexity", "continuation", "tokens per second"), each with the reason.
    """

    before: Measured
    after: Measured
    ratio: float | None = None
    ratio_stderr: float | None = None
    text: CalibrationInfo | None = None
    prompt: str | None = None
    timed: tuple[int, ...] = ()
    device: str = ""
    dtype: str = ""
    not_measured: dict[str, str] = field(default_factory=dict)
    ratio_unit: str | None = None
