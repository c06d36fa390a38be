"""What each block of a model costs: weights, cache, arithmetic, and time on one device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.value import Value
from shortgpt.errors import ModelError, ShortGPTError

CACHE, FLOPS, PREFILL, DECODING = "cache", "flops", "prefill", "decoding"
"""What can be missing of a cost; the keys of `Cost.not_measured`."""


@dataclass(frozen=True)
class CacheSize(Value):
    """What is kept of one sequence for the tokens to come.

    Attributes:
        fixed: bytes that do not grow with the sequence: the state of a recurrence or of a convolution.
        per_token: bytes for each token that is kept: keys and values.
        window: how many tokens are kept at most; None where all are.
    """

    fixed: int = 0
    per_token: int = 0
    window: int | None = None

    def at(self, tokens: int) -> int:
        """Bytes behind so many tokens."""
        kept = tokens if self.window is None else min(tokens, self.window)
        return self.fixed + self.per_token * kept


@dataclass(frozen=True)
class PartCost(Value):
    """What one block costs, or all that is outside the blocks: embeddings, the final norm and the head.

    Attributes:
        parameters: how many fewer the model has without it. Tensors that another part uses too are not among them.
        bytes: of the same tensors, and of buffers that a checkpoint holds, as they are in memory.
        cache: of one sequence; None where it is not known.
        flops: floating-point operations of a pass, a multiplication and an addition counted as two: those of matrix
            products, convolutions and attention, which is counted as if it were not causal. None where not counted.
        prefill: seconds of a pass over `Cost.sequences` × `Cost.tokens` tokens; None where it was not measured.
        decoding: seconds of a step that makes one token more of each sequence, behind `Cost.context` tokens, with the
            cache; None where it was not measured.
    """

    parameters: int
    bytes: int
    cache: CacheSize | None = None
    flops: int | None = None
    prefill: float | None = None
    decoding: float | None = None


@dataclass(frozen=True)
class Cost(Value):
    """The cost of a model, block by block. What a model without some blocks costs is the sum of what is left.

    Attributes:
        model, architecture: its name, and its adapter's.
        block_names: the blocks' names, in order.
        pinned: blocks that cannot be removed, each with its reason.
        blocks: by block.
        outside: what is in no block.
        sequences, tokens: of the pass that was measured.
        context: the tokens of each sequence behind which decoding steps were measured; 0 where none were.
        rounds: passes that were timed. Their median is divided among the parts as the fastest times of each are to
            one another, and so is that of the steps. 0 where none were.
        device: on which they were.
        bytes_per_number: of the floating-point type that the model computes in.
        threads: of torch on the CPU.
        not_measured: what is missing ("cache", "flops", "prefill", "decoding"), and why.
    """

    model: str
    architecture: str
    block_names: tuple[str, ...]
    pinned: dict[int, str]
    blocks: tuple[PartCost, ...]
    outside: PartCost
    sequences: int
    tokens: int
    context: int
    rounds: int
    device: str
    bytes_per_number: int
    threads: int
    not_measured: dict[str, str]

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def check(self) -> None:
        """Raise a `ShortGPTError` where the parts do not fit the blocks."""
        if len(self.blocks) != len(self.block_names):
            raise ShortGPTError(f"Cost: {len(self.blocks)} costs do not fit {len(self.block_names)} blocks")

    def parameters(self, without: Iterable[int] = ()) -> int:
        """Of the model without these blocks."""
        return sum(part.parameters for part in self._left(without))

    def bytes(self, without: Iterable[int] = ()) -> int:
        """Of the weights in memory without these blocks."""
        return sum(part.bytes for part in self._left(without))

    def cache(self, tokens: int, sequences: int = 1, without: Iterable[int] = ()) -> int:
        """Bytes of keys, values and states behind so many tokens of each sequence, without these blocks.

        Raises:
            ModelError: it is not known.
        """
        sizes = (self.known(CACHE, part.cache) for part in self._left(without))
        return sequences * sum(size.at(tokens) for size in sizes)

    def memory(self, tokens: int, sequences: int = 1, without: Iterable[int] = ()) -> int:
        """Bytes of weights and cache together. What a pass holds for a moment beside them is not among them.

        Raises:
            ModelError: the cache is not known.
        """
        gone = tuple(without)
        return self.bytes(gone) + self.cache(tokens, sequences, gone)

    def flops(self, without: Iterable[int] = ()) -> int:
        """Of a pass without these blocks.

        Raises:
            ModelError: they were not counted.
        """
        return sum(self.known(FLOPS, part.flops) for part in self._left(without))

    def prefill(self, without: Iterable[int] = ()) -> float:
        """Seconds of a pass without these blocks.

        Raises:
            ModelError: it was not measured.
        """
        return sum(self.known(PREFILL, part.prefill) for part in self._left(without))

    def decoding(self, without: Iterable[int] = ()) -> float:
        """Seconds of a decoding step without these blocks.

        Raises:
            ModelError: it was not measured.
        """
        return sum(self.known(DECODING, part.decoding) for part in self._left(without))

    def _left(self, without: Iterable[int]) -> Iterator[PartCost]:
        gone = set(block_numbers(without, len(self)))
        yield self.outside
        yield from (part for block, part in enumerate(self.blocks) if block not in gone)

    def known(self, what: str, value: Any) -> Any:
        """A number of a part, unless it is missing.

        Raises:
            ModelError: it is; with the reason.
        """
        if value is None:
            raise ModelError(
                f"{self.model}: its {what} cost is not known: {self.not_measured.get(what, 'not asked for')}"
            )
        return value
