"""Block Influence while a model is trained, step after step."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Value
from shortgpt.errors import ShortGPTError


@dataclass(frozen=True)
class Moment(Value):
    """What was measured after one step of training.

    Attributes:
        step: of the training, from 1; 0 is before it.
        tokens: the training tokens seen until then; None where that was not said.
        influence: Block Influence, [blocks].
        stderr: its standard errors.
        stream_norm: mean ‖x_i‖ over the probe's tokens, before each block.
        update_norm: mean ‖x_{i+1} − x_i‖.
        seconds: what measuring took.
    """

    step: int
    tokens: int | None
    influence: tuple[float, ...]
    stderr: tuple[float, ...]
    stream_norm: tuple[float, ...]
    update_norm: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Training(Value):
    """A training as its probe saw it.

    Attributes:
        model, architecture, norm_placement: of the model that is trained.
        block_names: [blocks].
        probe: the text that every moment is measured on.
        moments: in the order of their steps.
    """

    model: str
    architecture: str
    norm_placement: str
    block_names: tuple[str, ...]
    probe: CalibrationInfo
    moments: tuple[Moment, ...] = ()

    def check(self) -> None:
        """Raise a `ShortGPTError` where moments do not fit the blocks, or come in no order."""
        steps = [moment.step for moment in self.moments]
        blocks = len(self.block_names)
        if steps != sorted(set(steps)) or any(len(moment.influence) != blocks for moment in self.moments):
            raise ShortGPTError(f"Training: the moments do not fit {blocks} blocks, or their steps come in no order")
