"""The criteria of a pass: made anew for it, each called and checked under its plugin's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortgpt import plugins
from shortgpt.basics.registry import Extension
from shortgpt.basics.targets import load_target
from shortgpt.errors import PluginError, ShortGPTError
from shortgpt.measuring.criteria import AnyCriterion, BatchCriterion, Criterion, OrderCriterion, StepCriterion
from shortgpt.measuring.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence, TokenBatch


@dataclass(frozen=True)
class RequestedCriterion:
    """A criterion of this pass, and where it comes from."""

    name: str
    entry: Extension
    criterion: AnyCriterion

    def refuse(self, model: BlockSequence) -> str | None:
        if model.streamed and self.criterion.runs_model:
            return "it runs the model itself, whose blocks are still in their files (stream)"
        with plugins.running("criterion", self.entry):
            return self.criterion.refuse(model)

    def values(self, before: Tensor, after: Tensor) -> Tensor:
        """Of a `Criterion`: [tokens], as its `values` gives them."""
        assert isinstance(self.criterion, Criterion)
        with plugins.running("criterion", self.entry):
            return _for_each(before[..., 0], self.criterion.values(before, after))

    def of_step(self, step: Step) -> Tensor:
        """Of a `StepCriterion`: [tokens], as its `of_step` gives them."""
        assert isinstance(self.criterion, StepCriterion)
        with plugins.running("criterion", self.entry):
            return _for_each(step.before, self.criterion.of_step(step))

    def measure(self, model: BlockSequence, batch: TokenBatch) -> tuple[Tensor, list[int]]:
        """Of a `BatchCriterion`: the sums of a batch, [sequences, blocks], and the tokens of each."""
        import torch

        assert isinstance(self.criterion, BatchCriterion)
        with plugins.running("criterion", self.entry):
            sums, counts = self.criterion.measure(model, batch)
            sums, counts = torch.as_tensor(sums), [int(count) for count in counts]
            shape = (len(batch["input_ids"]), len(model))
            if sums.shape != shape or sums.dtype != torch.float64 or len(counts) != shape[0]:
                raise ValueError(
                    f"it gave sums {tuple(sums.shape)} {sums.dtype} for {shape[0]} sequences, {shape[1]} blocks"
                )
        return sums, counts

    def places(self, model: BlockSequence, data: Calibration, progress: Progress) -> list[int]:
        """Of an `OrderCriterion`: each block's place in its order."""
        assert isinstance(self.criterion, OrderCriterion)
        with plugins.running("criterion", self.entry):
            order = list(self.criterion.order(model, data, progress))
            if sorted(order) != list(range(len(model))):
                raise ValueError(f"it gave the order {order} of {len(model)} blocks")
        return [order.index(block) for block in range(len(model))]


def open_criteria(names: Sequence[str]) -> list[RequestedCriterion]:
    """New instances of criteria.

    Raises:
        UnknownNameError: one is not installed.
        ShortGPTError: one was named twice.
        PluginError: one cannot be made, or is none.
    """
    if len(set(names)) < len(names):
        raise ShortGPTError(f"a criterion was named twice ({', '.join(names)}); name each once")
    opened = []
    for name in names:
        entry = plugins.lookup("criterion", plugins.registry().criteria, name)
        criterion = load_target(entry.target)
        with plugins.running("criterion", entry):
            made = criterion()
        if not isinstance(made, AnyCriterion):
            raise PluginError(
                f"criterion {name!r} (plugin {entry.plugin}) is a {type(made).__name__}, not a shortgpt.Criterion, "
                "BatchCriterion or OrderCriterion"
            )
        opened.append(RequestedCriterion(name, entry, made))
    return opened


def _for_each(tokens: Tensor, values: Tensor) -> Tensor:
    if values.shape != tokens.shape:
        raise ValueError(f"it gave values of shape {tuple(values.shape)} for {len(tokens)} tokens")
    return values
