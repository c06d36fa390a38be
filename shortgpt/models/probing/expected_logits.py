"""What a shorter model's logits have to be: the original's, with its blocks skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import NearDistance
from shortgpt.basics.stages import stage
from shortgpt.errors import reason_of
from shortgpt.models.probing.logit_comparison import EXACT, compare_logits
from shortgpt.models.probing.probes import PROBE, Probe, probe_of, some_of
from shortgpt.models.probing.probes import probe as probe
from shortgpt.models.probing.reach import near_distances

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
        near, near_logits: distances that are set small, and the logits on the short probe then; see `with_near`.
        continued: how many tokens are generated behind the long probe.
        origin: where the original's files are; None where that is not known.
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
    near: tuple[NearDistance, ...] = ()
    near_logits: tuple[Tensor, ...] = ()
    continued: int = 0
    origin: Path | None = None

    @property
    def probe(self) -> Probe:
        """What the shorter model is to be run on."""
        return Probe(self.input_ids, self.long_ids, self.side, self.near, self.continued)


@stage("running the original")
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
            chosen = replace(chosen, long_ids=None, continued=0)
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
            continued=chosen.continued,
            origin=None if model.source is None else model.source.path,
        )


def with_near(
    expected: Expectation,
    config: Mapping[str, Any],
    blocks: Iterable[int],
    opened: Callable[[NearDistance], BlockSequence],
) -> Expectation:
    """An expectation that covers distances of the config which no probe reaches, by logits with them set small.

    Args:
        config: the original's, resolved.
        opened: opens the original with a distance set small.
    """
    from shortgpt.models.precision import unrounded_products

    logits: dict[NearDistance, Tensor] = {}
    for near in near_distances(config, expected.beyond):
        try:
            model = opened(near)
            gone = block_numbers(blocks, len(model))
            with model.skipping(gone), unrounded_products():
                found = logits_on(model, expected.probe)
        except Exception:  # the library need not take such a number; then the distance stays among those not proven
            continue
        if not compare_logits(found, expected.logits, EXACT).equal:  # or the probe would say nothing of the field
            logits[near] = found
    beyond = tuple(told for told in expected.beyond if told not in set(map(str, logits)))
    return replace(expected, beyond=beyond, near=tuple(logits), near_logits=tuple(logits.values()))


def logits_on(model: BlockSequence, probe: Probe) -> Tensor:
    """A model's logits on the short probe, in float32 on the CPU."""
    side = model.side_inputs(len(probe.input_ids)) if probe.side else {}
    return model.logits({"input_ids": probe.input_ids, **side}).float().cpu()


def long_logits_on(model: BlockSequence, probe: Probe) -> Tensor | None:
    """What is compared of a model's logits on the long probe; None where there is none."""
    ids = probe.long_ids
    return None if ids is None else some_of(model.logits({"input_ids": ids}), ids.shape[1])
