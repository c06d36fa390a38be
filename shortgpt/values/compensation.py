"""What was done about removed runs: the maps that were fitted, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Value

WAYS = {"map": "a linear map in", "scale": "the rows of", "gain": "the gain of"}


@dataclass(frozen=True)
class RunFit(Value):
    """One removed run, and the change of the block in front of it.

    Attributes:
        run: the neighbouring blocks that go.
        block: the block in front of them, whose weights change; None where the run begins at block 0.
        form: how they change: "map", their output is multiplied by a matrix; "scale", number by number; "gain", numbers
            are added to the gain of the norm behind the block's last projection. None where nothing can be changed.
        tensors: which tensors change, as their names stand inside the block.
        kept: whether the change is made.
        reason: why it is not made, or why only numbers are fitted and no matrix; None where a matrix is.
        ridge: the ridge, relative to the mean of the normal equations' diagonal.
        scale: the change made is identity + scale · (fitted − identity).
        error_before, error_after: how far the stream behind the run's place is from the whole model's, over the fitted
            tokens, without and with the change: the root mean square of ‖difference‖ / ‖stream of the whole model‖.
        before, after: log-perplexity of the shorter model on the text that chose, without and with the change.
        gain_stderr: the standard error of `before − after`, paired by sequence or document.
        hash: SHA-256 of the change, its numbers as float64 in little-endian order.
    """

    run: tuple[int, ...]
    block: int | None = None
    form: str | None = None
    tensors: tuple[str, ...] = ()
    kept: bool = False
    reason: str | None = None
    ridge: float | None = None
    scale: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    before: float | None = None
    after: float | None = None
    gain_stderr: float | None = None
    hash: str | None = None

    def __str__(self) -> str:
        gone = f"{'blocks' if len(self.run) > 1 else 'block'} {format_blocks(self.run)}"
        if self.form is None or not self.kept:
            return f"{gone}: not compensated, {self.reason}"
        worth = ""
        if self.before is not None and self.after is not None:
            worth = f", log-perplexity {self.before:.4g} → {self.after:.4g} on the text that chose"
        why = f" ({self.reason})" if self.reason else ""
        return f"{gone}: {WAYS[self.form]} {', '.join(self.tensors)} of block {self.block}{worth}{why}"


@dataclass(frozen=True)
class Compensation(Value):
    """What was done about all runs of a removal.

    Attributes:
        runs: in order of depth, each fitted on the stream as the earlier ones left it.
        fitted_on, chosen_on: the text that the maps were fitted on, and that their ridge and scale were chosen on.
    """

    runs: tuple[RunFit, ...]
    fitted_on: CalibrationInfo | None = None
    chosen_on: CalibrationInfo | None = None

    @property
    def kept(self) -> tuple[RunFit, ...]:
        """The runs that are made up for."""
        return tuple(run for run in self.runs if run.kept)

    def __str__(self) -> str:
        return "\n".join(f"compensation of {run}" for run in self.runs)
