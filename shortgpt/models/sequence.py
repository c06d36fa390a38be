"""The picture the whole engine works on: a language model is a sequence of blocks along a residual stream.

::

    tokens ─ embed ─●─ block 0 ─●─ block 1 ─●─ ... ─●─ block L-1 ─●─ final norm ─ head ─ logits
                    0           1           2                     L
                    └─ boundaries: the residual stream, [batch, tokens, width]

`BlockSequence` is all that the engine knows of a model; an adapter implements it. For models made of torch modules
`shortgpt.torch_models.sequence.TorchBlockSequence` implements most of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from shortgpt.basics.block_lists import NormPlacement, kept_blocks
from shortgpt.basics.targets import load_target
from shortgpt.errors import ModelError, SelectionError
from shortgpt.models.generation import Stop, uncached
from shortgpt.models.required import check_attributes, check_written

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shortgpt.basics.inputs import Source
    from shortgpt.models.projections import Addition, Change, Projection
    from shortgpt.values.cost import CacheSize
    from shortgpt.values.plan import Plan


TokenBatch = Mapping[str, Any]
"""`input_ids` (LongTensor [batch, tokens]), optionally `attention_mask` (same shape, 1 = real token), and whatever
else the model's forward takes."""


class Cut(NamedTuple):
    """What is left out of a model for a while: a block, or one part of it, as `BlockSequence.parts` names it."""

    block: int
    part: str | None = None


class WeightSize(NamedTuple):
    """How many parameters, and how many bytes they and the buffers of a checkpoint take in memory."""

    parameters: int
    bytes: int


class Tap(Protocol):
    """Called once for each boundary 0..L, in order, with the residual stream there: [batch, tokens, width]."""

    def __call__(self, boundary: int, hidden: Tensor) -> None: ...


class BlockSequence(ABC):
    """A language model as blocks along a residual stream.

    One model serves one thread at a time: what is left out of it, is left out for all that run it.

    Attributes:
        name: what a report calls this model.
        architecture: the adapter's name.
        norm_placement: where the blocks normalise the stream.
        block_names: the blocks' names in the model, in order; its length is L.
        pinned: blocks that cannot be removed, each with its reason.
        tokenizer: the model's own tokenizer (a callable like those of transformers), or None.
        max_tokens: the longest sequence the model takes, or None where there is no such bound.
        vocab_size: token ids are below it.
        source: where the model was opened from; None for a model that was handed over in memory.
        plan: how this model was made shorter; None for an original.
        load_example: the lines of Python that load what `save` writes, for the model card.
        config: the resolved config; empty where there is none.
        left_over: the tensors of its files that the library has no place for and passes over, `*` for a block's number.
        own_code: whether code that came with the model builds it, which may call a field of its config anything.
    """

    name: str
    architecture: str
    norm_placement: NormPlacement
    block_names: tuple[str, ...]
    pinned: Mapping[int, str] = {}
    tokenizer: Any = None
    max_tokens: int | None = None
    vocab_size: int
    source: Source | None = None
    plan: Plan | None = None
    load_example: str = ""
    config: dict[str, Any] = {}
    left_over: frozenset[str] = frozenset()
    own_code: bool = False

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        check_written(cls, ())
        return super().__new__(cls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.architecture}, {len(self)} blocks, {self.device}>"

    def __len__(self) -> int:
        """The number of blocks, L."""
        return len(self.block_names)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where token batches go."""

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a removal leaves behind that a user of the result should know; sentences for the model card."""
        return ()

    def notes_without(self, blocks: Iterable[int]) -> tuple[str, ...]:
        """The same, of a removal of these blocks."""
        return self.notes

    @property
    def bytes_per_number(self) -> int:
        """Of the floating-point type that it computes in."""
        return 4

    @abstractmethod
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        """One forward pass up to the last block, without gradients; `tap(i, hidden)` for every boundary 0..L.

        The stream must hold the residual exactly once, and boundary L must not be normalised by the final norm.
        """

    @property
    def streamed(self) -> bool:
        """Whether the blocks' weights stay in their files: `trace_all` reads them once, and `trace` at every call."""
        return False

    def trace_all(self, batches: Sequence[TokenBatch], taps: Sequence[Tap]) -> None:
        """Trace every batch with its own tap, which sees the boundaries of its batch in order.

        Which batch comes when is the model's choice: here one batch after another; a model whose weights are read block
        by block takes all of them through a block.
        """
        for batch, tap in zip(batches, taps, strict=True):
            self.trace(batch, tap)

    @abstractmethod
    def logits(self, batch: TokenBatch) -> Tensor:
        """The whole model, without gradients and without a cache: [batch, tokens, vocabulary]."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens behind which a text has ended; empty where none is known."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        return frozenset() if end is None else frozenset({int(end)})

    @abstractmethod
    def skipping(self, blocks: Iterable[int]) -> AbstractContextManager[None]:
        """Inside the context these blocks act as the identity on the stream. Afterwards no trace of it is left."""

    def prefill_skipping(self, blocks: Iterable[int]) -> AbstractContextManager[None]:
        """See `shortgpt.prefill_skipping`.

        Raises:
            ModelError: what these blocks keep of a text cannot be had without running them.
        """
        raise ModelError(
            f"{self.name}: models of the adapter {self.architecture!r} keep no keys and values that could be had of a "
            "block without running it; remove blocks instead (shortgpt.remove, `shortgpt prune`)"
        )

    @contextmanager
    def noting_reads(self) -> Iterator[Callable[[Collection[int]], tuple[str, ...]]]:
        """Inside the context it is noted which weights of the blocks are read.

        What is yielded tells, without the blocks that it is given, the parts of which nothing was: `reads.Reads.idle`.
        Here nothing is known of parts, and none is told.
        """
        yield lambda gone: ()

    def side_inputs(self, rows: int) -> Mapping[str, Tensor]:
        """What `logits` can be given beside token ids [rows, tokens], so that parts run which a text alone leaves idle:
        as `probes.drawn` draws them, in the model's floating-point type."""
        return {}

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """For each block, what it adds to the stream part by part: "mixer" (attention or what stands for it) and "mlp".
        Nothing at all where `refuse_parts` says why."""
        return ()

    def refuse_parts(self) -> str | None:
        """Why no block's parts are known, None where they are."""
        return f"models of the adapter {self.architecture!r} do not tell the parts of their blocks apart"

    def skipping_part(self, block: int, part: str) -> AbstractContextManager[None]:
        """Inside the context one part of a block adds nothing to the stream.

        Raises:
            ModelError: `refuse_parts` says why, or that block has no such part.
        """
        raise ModelError(f"{self.name}: {self.refuse_parts()}")

    @contextmanager
    def cutting(self, cut: Cut) -> Iterator[None]:
        """Inside the context a block, or a part of one, is left out."""
        left_out = self.skipping((cut.block,)) if cut.part is None else self.skipping_part(cut.block, cut.part)
        with left_out:
            yield

    def ablated(self, batch: TokenBatch, cuts: Iterable[Cut], removed: Iterable[int] = ()) -> Iterator[Tensor]:
        """The logits without each of the cuts in turn, and without the blocks `removed`: [batch, tokens, vocabulary].

        What comes before a cut is the same for all of them; a family may compute it once.
        """
        gone = tuple(removed)
        for cut in cuts:
            with self.skipping(gone), self.cutting(cut):
                logits = self.logits(batch)
            yield logits

    def logits_without(self, batch: TokenBatch, sets: Iterable[Collection[int]]) -> Iterator[Tensor]:
        """The logits without each of these sets of blocks in turn, [batch, tokens, vocabulary].

        What comes before the first block of a set is the same as in the whole model, and what comes before the first
        block in which two sets differ is the same for both; a family may compute it once where they follow each other.
        """
        for blocks in sets:
            with self.skipping(blocks):
                logits = self.logits(batch)
            yield logits

    def blocks_run(self, sets: Sequence[Collection[int]]) -> int:
        """How many blocks `logits_without` computes for these sets; the whole model is `len(self)`."""
        return len(self) * len(sets)

    def greedy(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Stop = lambda row, made: False
    ) -> list[list[int]]:
        """The likeliest tokens after each prompt, one after another. A family with a cache uses it, where that is seen
        to give what it gives without.

        Args:
            prompts: token ids, [rows][tokens], of any lengths but 0; generated together.
            new_tokens: a row's new tokens at most. The model's window has room for them behind each prompt.
            stop: (row, its new tokens so far) → whether that row is done. The token that made it so is kept.

        Returns:
            The new tokens, [rows][at most new_tokens].
        """
        return uncached(self.logits, self.device, prompts, new_tokens, stop)

    def projection(self, block: int, batch: TokenBatch | None = None) -> Projection | str:
        """What a block adds to the stream last, so that a change of it reaches the stream by addition alone; or why
        there is none. See `shortgpt.models.projections`.

        Args:
            batch: text to find it out on; without it, random tokens, which may leave parts of a trained block idle.
        """
        return f"models of the adapter {self.architecture!r} do not tell what their blocks add to the stream last"

    def addition(self, batch: TokenBatch, projection: Projection, removed: Iterable[int] = ()) -> Addition:
        """What a block does to the stream without the blocks `removed`; the pass ends behind that block.

        Raises:
            ModelError: the model has no such projection.
        """
        raise ModelError(f"{self.name}: {self.projection(projection.block)}")

    @contextmanager
    def holding(self, boundaries: Collection[int]) -> Iterator[Mapping[int, Tensor]]:
        """Inside the context passes keep what `resuming` can go on from at these boundaries, below L; where a family
        has no such thing, nothing."""
        yield {}

    @contextmanager
    def resuming(self, boundary: int, held: Tensor | None) -> Iterator[None]:
        """Inside the context passes over a batch may go on at a boundary, and compute no block before it.

        What they give is what whole passes would; a family that cannot go on there makes whole passes.

        Args:
            held: what `holding` kept of that batch at the boundary; None for whole passes.
        """
        yield

    @contextmanager
    def changing(self, changes: Sequence[Change]) -> Iterator[None]:
        """Inside the context projections are changed. Afterwards no trace of it is left.

        Raises:
            ModelError: there is no such projection, or its weights are not in memory.
        """
        self.change(changes)
        yield

    def change(self, changes: Sequence[Change]) -> None:
        """Change projections for good. Models that share tensors with this one keep them as they were.

        Raises:
            ModelError: as `changing`.
        """
        for change in changes:
            raise ModelError(f"{self.name}: {self.projection(change.projection.block)}")

    def refuse_readouts(self) -> str | None:
        """Why the model's final norm and head cannot be applied at every boundary, None where they can."""
        return f"models of the adapter {self.architecture!r} cannot be read out at inner boundaries"

    def readouts(self, batch: TokenBatch) -> Iterator[Tensor]:
        """What the model's final norm and head make of each boundary 0..L: logits, [batch, tokens, vocabulary].

        Raises:
            ModelError: `refuse_readouts` says why.
        """
        raise ModelError(f"{self.name}: {self.refuse_readouts()}")

    def refuse_removal(self, blocks: Iterable[int]) -> str | None:
        """Why these blocks cannot be removed together, None where they can; what `without` would raise."""
        try:
            kept_blocks(len(self), blocks, self.pinned)
        except SelectionError as error:
            return str(error)
        return None

    @abstractmethod
    def without(self, blocks: Iterable[int]) -> BlockSequence:
        """A shorter model that shares its tensors with this one; this one is untouched. Train a deep copy of it.

        Raises:
            SelectionError: those blocks cannot be removed.
        """

    @abstractmethod
    def write(self, directory: Path) -> None:
        """Write the checkpoint that the family's own loader reads back into an existing, empty folder."""

    @abstractmethod
    def parameter_counts(self) -> tuple[int, ...]:
        """The number of parameters of each block."""

    @abstractmethod
    def total_parameters(self) -> int:
        """The number of parameters of the model; tied ones count once."""

    def weight_sizes(self) -> tuple[WeightSize, ...]:
        """For each block what the model's weights are less without it, and last what is in no block."""
        counts = self.parameter_counts()
        outside = self.total_parameters() - sum(counts)
        return tuple(WeightSize(count, count * self.bytes_per_number) for count in (*counts, outside))

    def cache_sizes(self) -> tuple[CacheSize, ...] | str:
        """What is kept of one sequence by each block; or why that is not known."""
        return f"models of the adapter {self.architecture!r} do not tell what their blocks keep of a sequence"

    def refuse_decoding(self) -> str | None:
        """Why the steps of a cached generation cannot be watched block by block, None where they can."""
        return f"the decoding steps of models of the adapter {self.architecture!r} are not told block by block"

    def decode(self, prompts: Sequence[Sequence[int]], new_tokens: int, tap: Tap) -> None:
        """As `greedy`, with the cache; `tap` is called at every boundary 0..L of the pass over the prompts, and then
        of the pass for each new token but the last.

        Args:
            prompts: token ids, [rows][tokens], of one length.

        Raises:
            ModelError: `refuse_decoding` says why.
        """
        raise ModelError(f"{self.name}: {self.refuse_decoding()}")

    def save(self, directory: str | Path) -> None:
        """Write a checkpoint into a new folder, all or nothing; with the model card and `shortgpt.json` of its plan.

        Raises:
            OutputError: the folder exists and is not empty, or cannot be written.
            CheckpointError: the source, whose hashes are recorded, was changed since the model was opened.
        """
        load_target("shortgpt.checkpoints.saving:save")(self, directory)  # checkpoints are above models: found by name


def check_complete(model: BlockSequence) -> BlockSequence:
    """The model that an adapter made, after a look at whether it says all that is asked of it.

    Raises:
        AdapterError: it lists the attributes that it lacks.
    """
    check_attributes(model, ("name", "architecture", "norm_placement", "block_names", "vocab_size"))
    return model


def check_opened(model: object) -> None:
    """Raise a `ModelError` for a name, or a model of a library, where a `BlockSequence` belongs."""
    if not isinstance(model, BlockSequence):
        found = repr(model) if isinstance(model, (str, Path)) else f"a {type(model).__name__}"
        raise ModelError(
            f"found {found} in place of a shortgpt.BlockSequence; open it with shortgpt.load(NAME), or wrap a model in "
            "memory with shortgpt.wrap(MODEL)"
        )
