"""What a shorter model's logits have to be: the original's, with its blocks skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shortgpt.basics.block_lists import block_numbers
from shortgpt.errors import reason_of
from shortgpt.models.probing.probes import PROBE, Probe, probe_of, some_of
from shortgpt.models.probing.probes import probe as probe

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import BlockSequence


@dataclass(frozen=True)
class Expectation:
    """What the shorter model's logits have to be.

    Attributes:
        input_ids, side, long_ids: the probe, see `probes.Probe`.
        logits: on the short probe, [2, tokens, vocabulary].
        long_logits: what is compared on the long one, see `probes.some_of`.
        beyond, idle: what the probe does not reach, see `Verification`.
        depth: the blocks that it has.
        left_over: the tensors of the original's files that its library passes over, see `BlockSequence.left_over`.
        streamed: computed with the weights read block by block, as the shorter model's are to be.
    """

    input_ids: Tensor
    logits: Tensor
    streamed: bool = False
    side: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    long_ids: Tensor | None = None
    long_logits: Tensor | None = None
    beyond: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    depth: int = 0
    left_over: frozenset[str] = frozenset()

    @property
    def probe(self) -> Probe:
        """What the shorter model is to be run on."""
        return Probe(self.input_ids, self.long_ids, self.side)


def expected_logits(model: BlockSequence, blocks: Iterable[int]) -> Expectation:
    """The original's logits under `skipping(blocks)`, and what of its blocks they say nothing of.

    Where tokens alone leave parts of blocks idle, and the model knows of inputs that make them run, it is given them.
    """
    from shortgpt.models.precision import unrounded_products

    gone = block_numbers(blocks, len(model))
    chosen, beyond = probe_of(model)
    with model.skipping(gone), model.noting_reads() as idle, unrounded_products():
        logits = logits_on(model, chosen)
        if idle(gone) and (side := model.side_inputs(len(chosen.input_ids))):
            chosen = replace(chosen, side={name: tuple(tensor.shape) for name, tensor in side.items()})
            logits = logits_on(model, chosen)
        long = None
        try:
            long = long_logits_on(model, chosen)
        except Exception as error:  # a model that is right on the short probe need not take a long one, nor the memory
            tokens = chosen.long_ids.shape[1] if chosen.long_ids is not None else 0
            told = reason_of(error)
            beyond = (f"what lies beyond {PROBE[1]} tokens, for the original does not run on {tokens} ({told})",)
            chosen = replace(chosen, long_ids=None)
        return Expectation(
            chosen.input_ids,
            logits,
            model.streamed,
            side=chosen.side,
            long_ids=chosen.long_ids,
            long_logits=long,
            beyond=beyond,
            idle=idle(gone),
            depth=len(model) - len(gone),
            left_over=model.left_over,
        )


def logits_on(model: BlockSequence, probe: Probe) -> Tensor:
    """A model's logits on the short probe, in float32 on the CPU."""
    side = model.side_inputs(len(probe.input_ids)) if probe.side else {}
    return model.logits({"input_ids": probe.input_ids, **side}).float().cpu()


def long_logits_on(model: BlockSequence, probe: Probe) -> Tensor | None:
    """What is compared of a model's logits on the long probe; None where there is none."""
    ids = probe.long_ids
    return None if ids is None else some_of(model.logits({"input_ids": ids}), ids.shape[1])
