"""The residual stream itself, for whoever measures something of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from shortgpt.basics.inputs import MeasuringOptions, apart
from shortgpt.measuring.calibration import calibrate
from shortgpt.models.loading import opened

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import TokenBatch


class Boundary(NamedTuple):
    """The stream at one boundary of one batch.

    Attributes:
        number: of the batch, from 0.
        boundary: 0 is before the first block, L behind the last one.
        hidden: [batch, tokens, width], as the model computes it. The residual is in it once, the final norm is not.
        batch: the tokens; `attention_mask`, where there is one, is 1 for those that are real.
    """

    number: int
    boundary: int
    hidden: Tensor
    batch: TokenBatch


def trace(model: Any, calibration: Any = "stdlib", **options: Unpack[MeasuringOptions]) -> Iterator[Boundary]:
    """The residual stream of a model at every boundary, batch after batch, from one pass over each batch.

    All boundaries of a batch are in memory together; smaller batches (`batch_size`) take less.

    Args:
        model, calibration, options: as `shortgpt.score` takes them.

    Raises:
        ModelError, CalibrationError: as `shortgpt.score`.
    """
    texts, opening = apart(options)
    blocks = opened(model, opening)
    for number, batch in enumerate(calibrate(calibration, blocks, **texts).batches):
        stream: list[Tensor] = []
        blocks.trace(batch, lambda boundary, hidden, kept=stream: kept.append(hidden))
        for boundary, hidden in enumerate(stream):
            yield Boundary(number, boundary, hidden, batch)
