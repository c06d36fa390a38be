"""What each block of a model costs: weights, cache, operations, and time on the device that it is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch

from shortgpt.basics.inputs import LoadOptions, Progress
from shortgpt.basics.progress import shown
from shortgpt.errors import CalibrationError
from shortgpt.measuring.costs.passes import decoding_seconds, operations, prefill_seconds
from shortgpt.models.loading import opened
from shortgpt.values.cost import CACHE, DECODING, FLOPS, PREFILL, CacheSize, Cost, PartCost

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence, TokenBatch

TOKENS, SEQUENCES, ROUNDS = 512, 1, 9
STEPS = 3
"""So many decoding steps are timed for each round."""


def cost(
    model: Any,
    *,
    tokens: int | None = None,
    sequences: int = SEQUENCES,
    rounds: int = ROUNDS,
    timed: bool = True,
    progress: Progress | bool | None = None,
    **options: Unpack[LoadOptions],
) -> Cost:
    """Measure what each block of a model costs.

    Parameters, bytes, caches and operations are counted, times are measured on the device that the model is on; take
    them where nothing else runs. What a model without some blocks costs is the sum of what is left: `Cost.parameters`,
    `Cost.memory`, `Cost.prefill` and so on take the blocks that go.

    Args:
        model: a block sequence; a name or path, which is loaded; or a model of a library in memory, which is wrapped.
        tokens: of each sequence in a pass; random ones. Default: 512, or the model's window.
        sequences: in a pass.
        rounds: passes that are timed; fewer, but three, where they take longer than a minute.
        timed: whether time is measured at all.
        progress: True for bars; or it is called with "passes" after each round.
        options: how the model is opened, as `shortgpt.load` takes them.

    Raises:
        CalibrationError: a number is less than one, or the tokens do not fit into the model's window.
        ModelError: the model cannot be opened.
    """
    for name, number in (("tokens", tokens), ("sequences", sequences), ("rounds", rounds)):
        if number is not None and number < 1:
            raise CalibrationError(f"{name} is {number}; it must be 1 or more")
    model = opened(model, options)
    length = _length(model, tokens)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocab_size, (sequences, length), generator=draw)
    measured = _Measured(model, {"input_ids": ids.to(model.device)})
    measured.count()
    if timed:
        measured.time(rounds, shown(progress) or (lambda what, done, total: None))
    return measured.cost()


def _length(model: BlockSequence, tokens: int | None) -> int:
    longest = model.max_tokens
    if tokens is None:
        return min(TOKENS, longest or TOKENS)
    if longest is not None and tokens > longest:
        raise CalibrationError(f"{model.name}: its window is {longest} tokens, {tokens} were asked for; take fewer")
    return tokens


class _Measured:
    """The columns of a cost, each a number a block and last one for what is outside; None where it is not known."""

    def __init__(self, model: BlockSequence, batch: TokenBatch) -> None:
        self.model, self.batch = model, batch
        self.columns: dict[str, Sequence[Any]] = {}
        self.missing: dict[str, str] = {}
        self.rounds, self.context = 0, 0
        if model.streamed:
            reason = "the weights are still in their files (stream)"
            self.missing = dict.fromkeys((CACHE, FLOPS, PREFILL, DECODING), reason)

    def count(self) -> None:
        """Caches and operations."""
        if self.model.streamed:
            return
        caches = self.model.cache_sizes()
        if isinstance(caches, str):
            self.missing[CACHE] = caches
        else:
            self.columns[CACHE] = (*caches, CacheSize())
        self.columns[FLOPS] = operations(self.model, self.batch)

    def time(self, rounds: int, progress: Progress) -> None:
        """A pass, and a decoding step."""
        if self.model.streamed:
            return
        self.columns[PREFILL], self.rounds = prefill_seconds(
            self.model, self.batch, rounds, lambda done: progress("passes", done, rounds)
        )
        steps, ids = STEPS * rounds, self.batch["input_ids"]
        longest = self.model.max_tokens
        context = ids.shape[1] if longest is None else min(ids.shape[1], longest - steps - 2)
        reason = self.model.refuse_decoding()
        if reason is None and context < 1:
            reason = f"the window of {longest} tokens has no room for {steps} steps"
        if reason is not None:
            self.missing[DECODING] = reason
            return
        self.columns[DECODING], _ = decoding_seconds(self.model, ids[:, :context].tolist(), steps)
        self.context = context

    def cost(self) -> Cost:
        model, (sequences, tokens) = self.model, self.batch["input_ids"].shape
        asked = ((PREFILL, "no time was measured"), (DECODING, "no time was measured"))
        missing = {name: reason for name, reason in asked if name not in self.columns} | self.missing
        parts = [
            PartCost(size.parameters, size.bytes, **{name: column[at] for name, column in self.columns.items()})
            for at, size in enumerate(model.weight_sizes())
        ]
        return Cost(
            model=model.name,
            architecture=model.architecture,
            block_names=tuple(model.block_names),
            pinned=dict(model.pinned),
            blocks=tuple(parts[:-1]),
            outside=parts[-1],
            sequences=sequences,
            tokens=tokens,
            context=self.context,
            rounds=self.rounds,
            device=str(model.device),
            bytes_per_number=model.bytes_per_number,
            threads=torch.get_num_threads(),
            not_measured=missing,
        )
