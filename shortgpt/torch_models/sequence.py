"""Models made of torch modules: one base for both sides of an adapter.

A `TorchFamily` needs three facts: where the block list is, how a model is built from a config and tensors
(`build`), and, where it is odd, how a block's call carries the stream (`TorchBlockSequence.stream`, `observed`).

::

    model(...) ─▶ embed ─▶ block 0 ─▶ block 1 ─▶ ... ─▶ block L-1 ─╳  the pass of `trace` ends here
                         ▲          ▲                 ▲           ▲
    hooks               pre 0      pre 1    ...     pre L-1     post L-1     = boundaries 0, 1, ..., L-1, L
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shortgpt.basics.block_lists import block_numbers, kept_blocks
from shortgpt.basics.inputs import Config, Fold, Source
from shortgpt.errors import AdapterError, ModelError, SelectionError
from shortgpt.models.family import Family
from shortgpt.models.folding import rounded
from shortgpt.models.projections import Addition, Change, Projection
from shortgpt.models.sequence import BlockSequence, Cut, Tap, TokenBatch, WeightSize
from shortgpt.torch_models.boundaries import watching
from shortgpt.torch_models.in_memory import prove
from shortgpt.torch_models.interface import TorchModel
from shortgpt.torch_models.projections import addition, change_for_good, changed, find_projection
from shortgpt.torch_models.reads import noting_reads
from shortgpt.torch_models.replay import PassEnded, Replay, blocks_run, can_read_out, can_replay
from shortgpt.torch_models.resuming import Resumable, holding
from shortgpt.torch_models.streaming import BlockWeights, logits_by_block, trace_by_block
from shortgpt.torch_models.sublayers import PartsOrRefusal, find_parts, silent
from shortgpt.torch_models.weight_sizes import weight_sizes


class TorchBlockSequence(TorchModel):
    """The blocks of a torch module, seen through hooks that are there only while a call runs.

    Args:
        family: the adapter's other side.
        model: the whole model; put into eval mode. Its parameters are never written to.
        name: what a report calls it.

    Attributes:
        weights: where the blocks' weights come from when they are not in memory; None where they are.
        skipped: the blocks inside whose `skipping` we are.
        whole, kept: the family of the model that this one was made from by removal, or is, and which of its blocks.
    """

    weights: BlockWeights | None = None
    skipped: frozenset[int] = frozenset()

    def __init__(
        self,
        family: TorchFamily,
        model: nn.Module,
        *,
        name: str,
        tokenizer: Any = None,
        source: Source | None = None,
    ) -> None:
        self.family = family
        self.model = model.eval()
        self.name = name
        self.tokenizer = tokenizer
        self.source = source
        self.architecture = family.architecture
        self.norm_placement = family.norm_placement
        self.load_example = family.load_example
        path = family.block_lists[0]
        try:
            blocks = model.get_submodule(path)
        except AttributeError:
            raise ModelError(f"{name}: a {type(model).__name__} has no block list {path!r}") from None
        self.blocks: list[nn.Module] = list(blocks.children())
        self.whole, self.kept = family, tuple(range(len(self.blocks)))
        self.block_names = tuple(f"{path}.{i}" for i in range(len(self.blocks)))
        self.config = family.config_of(model)
        if family.depth(self.config) != len(self.blocks):
            raise ModelError(
                f"{name}: the config counts {family.depth(self.config)} blocks, the model has {len(self.blocks)}; "
                "it was changed by hand, and its checkpoint would not load"
            )
        self.pinned = family.pinned(self.config)

    # -- what an odd family overrides -------------------------------------------------------------------------

    def stream(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The residual stream that a block's call brings in; here, the first argument.

        Of a streamed model it is asked for before the block's weights are there, but for block 0.
        """
        value = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(value, Tensor):
            raise AdapterError(f"{self.block_names[block]}: its call brings no tensor first; override `stream`")
        return value

    def stream_out(self, block: int, output: Any) -> Tensor:
        """The residual stream that a block's output holds; here, the output or its first item."""
        value = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(value, Tensor):
            raise AdapterError(f"{self.block_names[block]}: its output is no tensor; override `stream_out`")
        return value

    def with_stream(self, block: int, output: Any, hidden: Tensor) -> Any:
        """A block's output with `hidden` in the stream's place and everything else as it is."""
        if isinstance(output, Tensor):
            return hidden
        if hasattr(output, "_replace"):
            return output._replace(**{output._fields[0]: hidden})
        return type(output)([hidden, *output[1:]])

    def bypassed(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """The output of a block that is skipped: the stream as it came in, and all else as it went out."""
        return self.with_stream(block, output, self.stream(block, args, kwargs))

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        """The true stream at a boundary, where the model carries it in another form (scaled, say)."""
        return hidden

    def forward(self, batch: TokenBatch) -> Tensor:
        """The model's logits, without a cache."""
        output = self.model(**batch)
        return output if isinstance(output, Tensor) else output.logits

    def tensors(self) -> dict[str, Tensor]:
        """The model's persistent tensors by name, as a checkpoint should hold them."""
        return self.model.state_dict()

    # -- BlockSequence ----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        if self.weights is not None:
            return self.weights.device
        first = next(self.model.parameters()).device
        return _where_it_runs(self.model) or first if first.type == "meta" else first

    @property
    def streamed(self) -> bool:
        return self.weights is not None

    @property
    def bytes_per_number(self) -> int:
        return next((p.element_size() for p in self.model.parameters() if p.is_floating_point()), 4)

    def trace_all(self, batches: Sequence[TokenBatch], taps: Sequence[Tap]) -> None:
        if self.weights is None:
            super().trace_all(batches, taps)
        else:
            trace_by_block(self, self.weights, [self._placed(batch) for batch in batches], taps)

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        if self.weights is not None:
            trace_by_block(self, self.weights, [self._placed(batch)], [tap])
            return
        last = len(self) - 1
        seen: list[int] = []

        def see(boundary: int, hidden: Tensor) -> None:
            seen.append(boundary)
            tap(boundary, self.observed(boundary, hidden))

        with torch.no_grad(), watching(self, see, ends=True), suppress(PassEnded):
            self.forward(self._placed(batch))
        if seen != list(range(last + 2)):
            raise AdapterError(
                f"{self.name}: a pass must cross the boundaries 0 to {last + 1} once each and in order, but crossed "
                f"{seen}; the blocks of {self.family.block_lists[0]!r} do not run one after another"
            )

    def logits(self, batch: TokenBatch) -> Tensor:
        if self.weights is not None:
            return logits_by_block(self, self.weights, self._placed(batch))
        with torch.no_grad():
            return self.forward(self._placed(batch))

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        def bypass(index: int) -> Any:
            return lambda module, args, kwargs, output: self.bypassed(index, args, kwargs, output)

        gone, before = frozenset(block_numbers(blocks, len(self))), self.skipped
        with ExitStack() as hooks:
            for index in sorted(gone):
                hook = self.blocks[index].register_forward_hook(bypass(index), with_kwargs=True)
                hooks.callback(hook.remove)
            hooks.callback(setattr, self, "skipped", before)
            self.skipped = before | gone
            yield

    @contextmanager
    def noting_reads(self) -> Iterator[Callable[[Collection[int]], tuple[str, ...]]]:
        with noting_reads(self.blocks) as reads:
            yield reads.idle

    @cached_property
    def _parts(self) -> PartsOrRefusal:
        return (
            PartsOrRefusal((), "the blocks of a streamed model are not in memory")
            if self.streamed
            else find_parts(self)
        )

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(parts) for parts in self._parts.parts)

    def refuse_parts(self) -> str | None:
        return self._parts.refusal

    @contextmanager
    def skipping_part(self, block: int, part: str) -> Iterator[None]:
        if reason := self.refuse_parts():
            raise ModelError(f"{self.name}: {reason}")
        if part not in self.parts[block]:
            raise ModelError(
                f"{self.block_names[block]} has no part {part!r} that is known, only {', '.join(self.parts[block])}"
            )
        with silent(self._parts.parts[block][part]):
            yield

    @cached_property
    def _replays(self) -> bool:
        return can_replay(self)

    def ablated(self, batch: TokenBatch, cuts: Iterable[Cut], removed: Iterable[int] = ()) -> Iterator[Tensor]:
        self._refuse_streamed("be run without some of its blocks")
        if not self._replays:
            yield from super().ablated(batch, cuts, removed)
            return
        replay = Replay(self, self._placed(batch), tuple(removed))
        for cut in cuts:
            yield replay.without(cut)

    def logits_without(self, batch: TokenBatch, sets: Iterable[Collection[int]]) -> Iterator[Tensor]:
        self._refuse_streamed("be run without some of its blocks")
        if not self._replays:
            yield from super().logits_without(batch, sets)
            return
        replay = Replay(self, self._placed(batch))
        for blocks in sets:
            yield replay.without_blocks(blocks)

    def blocks_run(self, sets: Sequence[Collection[int]]) -> int:
        return blocks_run(sets, len(self)) if self._replays else super().blocks_run(sets)

    def projection(self, block: int, batch: TokenBatch | None = None) -> Projection | str:
        if self.streamed:
            return "the weights of a streamed model are not in memory"
        found = self._projections.get(block) or find_projection(self, block, batch and self._placed(batch))
        if isinstance(found, Projection):
            self._projections[block] = found
        return found

    @cached_property
    def _projections(self) -> dict[int, Projection]:
        return {}

    def addition(self, batch: TokenBatch, projection: Projection, removed: Iterable[int] = ()) -> Addition:
        self._refuse_streamed("tell what a block adds")
        return addition(self, self._placed(batch), projection, tuple(removed))

    @contextmanager
    def holding(self, boundaries: Collection[int]) -> Iterator[Mapping[int, Tensor]]:
        with holding(self, boundaries if self._resumable.templates else ()) as held:
            yield held

    @contextmanager
    def resuming(self, boundary: int, held: Tensor | None) -> Iterator[None]:
        if held is None or not self._resumable.at(boundary):
            yield
            return
        with self._resumable.resuming(boundary, held):
            yield

    @cached_property
    def _resumable(self) -> Resumable:
        return Resumable(self, self.streamed or type(self).trace is not TorchBlockSequence.trace)

    @contextmanager
    def changing(self, changes: Sequence[Change]) -> Iterator[None]:
        if changes:
            self._refuse_streamed("be changed")
        with changed(self, changes):
            yield

    def change(self, changes: Sequence[Change]) -> None:
        if changes:
            self._refuse_streamed("be changed")
        change_for_good(self, changes)
        self._projections.clear()

    def put_mlps(self, in_front_of: Sequence[int], width: int | None, scratch: Path | None = None) -> list[nn.Module]:
        """Put a small MLP in front of blocks, where others were removed. Its output is zero, and `write` writes it.

        Args:
            in_front_of: the blocks' numbers; the number of blocks for the place behind the last one.
            width: of the MLPs; None for the stream's own.
            scratch: a folder in which there is room for the model, for a while; None for the system's.

        Returns:
            The MLPs.

        Raises:
            ModelError: the model cannot hold them.
        """
        raise ModelError(
            f"{self.name}: what models of the adapter {self.architecture!r} are saved as holds no MLP in the place of "
            "removed blocks; train LoRA or all weights (--method lora, full)"
        )

    @cached_property
    def notes(self) -> tuple[str, ...]:
        return self.family.notes(self.config)

    def notes_without(self, blocks: Iterable[int]) -> tuple[str, ...]:
        of_removal = self.family.notes_of_removal(self.config, kept_blocks(len(self), blocks, self.pinned))
        return (*self.notes, *(note for note in of_removal if note not in self.notes))

    @cached_property
    def _reads_out(self) -> bool:
        return can_read_out(self)

    def refuse_readouts(self) -> str | None:
        if self.streamed:
            return "the head of a streamed model is not in memory"
        return (
            None if self._reads_out else f"what a {type(self.model).__name__} does behind its blocks needs all of them"
        )

    def readouts(self, batch: TokenBatch) -> Iterator[Tensor]:
        if reason := self.refuse_readouts():
            raise ModelError(f"{self.name}: {reason}")
        replay = Replay(self, self._placed(batch))
        for boundary in range(len(self) + 1):
            yield replay.readout(boundary)

    def refuse_removal(self, blocks: Iterable[int]) -> str | None:
        try:
            self.family.rewrite_config(self.config, self.family.keep(self.config, blocks))
        except SelectionError as error:
            return str(error)
        return None

    def without(self, blocks: Iterable[int]) -> BlockSequence:
        gone = block_numbers(blocks, len(self))
        shorter = self.shorter(gone)
        if self.folds_without(gone):
            prove(self, shorter, gone, folded=True)
        return shorter

    def folds_without(self, blocks: Iterable[int]) -> bool:
        """Whether weights change when these blocks go."""
        keep = self.family.keep(self.config, blocks)
        return bool(self.family.folds(self.config, keep, self.family.rename(self.tensors(), len(self), keep)))

    def shorter(self, blocks: tuple[int, ...]) -> BlockSequence:
        """The model without these blocks, before it is proven."""
        family = self.family
        self._refuse_streamed("be made shorter in memory")
        self._refuse_unusual()
        keep = family.keep(self.config, blocks)
        tensors = self.tensors()
        names = family.rename(tensors, len(self), keep)
        folds = family.folds(self.config, keep, names)
        kept = {
            new: rounded(folds[new], tensors[old], tensors) if new in folds else tensors[old]
            for new, old in names.items()
        }
        shorter = family.build(family.rewrite_config(self.config, keep), kept, like=self.model)
        self._share_buffers(shorter, keep)
        self._let_learn(shorter)
        wrapped = family.wrap(shorter, name=f"{self.name} - {len(self) - len(keep)}", tokenizer=self.tokenizer)
        wrapped.source = self.source
        if isinstance(wrapped, TorchBlockSequence):
            wrapped.whole, wrapped.kept = self.whole, tuple(self.kept[block] for block in keep)
        return wrapped

    def write(self, directory: Path) -> None:
        self._refuse_streamed("be saved")
        self.family.write_model(self, directory)

    def parameter_counts(self) -> tuple[int, ...]:
        return tuple(sum(p.numel() for p in block.parameters()) for block in self.blocks)

    def total_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def weight_sizes(self) -> tuple[WeightSize, ...]:
        tensors, family, depth = self.tensors(), self.family, len(self)

        def renamed(keep: Sequence[int]) -> tuple[dict[str, str], dict[str, Fold]]:
            names = family.rename(tensors, depth, keep)
            return names, family.folds(self.config, keep, names)

        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return weight_sizes(tensors, parameters, depth, renamed)

    def decode(self, prompts: Sequence[Sequence[int]], new_tokens: int, tap: Tap) -> None:
        if reason := self.refuse_decoding():
            raise ModelError(f"{self.name}: {reason}")
        with watching(self, lambda boundary, hidden: tap(boundary, self.observed(boundary, hidden)), ends=False):
            self.greedy(prompts, new_tokens)

    # -- helpers ----------------------------------------------------------------------------------------------

    def _placed(self, batch: TokenBatch) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _refuse_streamed(self, what: str) -> None:
        if self.weights is not None:
            raise ModelError(
                f"{self.name}: its blocks' weights are still in their files (stream), so it can be traced and scored "
                f"and cannot {what}; load it whole, or prune it on disk (`shortgpt prune`, shortgpt.prune_checkpoint)"
            )

    def _refuse_unusual(self) -> None:
        """Models whose tensors are not where they seem to be cannot be rebuilt in memory."""
        found = None
        if hasattr(self.model, "_orig_mod"):
            found = "compiled by torch.compile"
        elif hasattr(self.model, "peft_config"):
            found = "wrapped by PEFT"
        elif len({p.device for p in self.model.parameters()}) > 1 or any(p.is_meta for p in self.model.parameters()):
            found = "offloaded or spread over several devices"
        if found:
            raise ModelError(
                f"{self.name}: the model is {found}, so no shorter one can share its tensors; "
                "remove blocks from its checkpoint instead: `shortgpt prune`, or shortgpt.prune_checkpoint(...)"
            )

    def _let_learn(self, shorter: nn.Module) -> None:
        """Let the shorter model's parameters have gradients where this one's have.

        Not for training alone: torch chooses by it how it multiplies, and so how it rounds.
        """
        learning = {p.untyped_storage().data_ptr(): p.requires_grad for p in self.model.parameters()}
        for parameter in shorter.parameters():
            flag = learning.get(parameter.untyped_storage().data_ptr(), any(learning.values()))
            parameter.requires_grad_(flag and parameter.is_floating_point())

    def _share_buffers(self, shorter: nn.Module, keep: Sequence[int]) -> None:
        """Give the shorter model the buffers that are in no checkpoint (rotary frequencies, masks) as they are here.

        They were cast with the model when it was, and a freshly built one would have them in full precision.
        """
        mine = {name: (module, leaf) for name, module, leaf in _unsaved_buffers(self.model)}
        theirs = [name for name, _, _ in _unsaved_buffers(shorter)]
        path = self.family.block_lists[0]
        for new in theirs:
            old = new
            if new.startswith(path + "."):
                index, _, rest = new[len(path) + 1 :].partition(".")
                old = f"{path}.{keep[int(index)]}.{rest}"
            if old not in mine:
                continue
            module, leaf = mine[old]
            owner, _, target = new.rpartition(".")
            if getattr(module, leaf).shape == shorter.get_buffer(new).shape:
                setattr(shorter.get_submodule(owner), target, getattr(module, leaf))


def _where_it_runs(model: nn.Module) -> torch.device | None:
    """The device on which accelerate runs a model whose weights it keeps elsewhere; None where it keeps none."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in (hook, *getattr(hook, "hooks", ())):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None


def _unsaved_buffers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for prefix, module in model.named_modules():
        for leaf in module._non_persistent_buffers_set:
            if module._buffers.get(leaf) is not None:
                yield (f"{prefix}.{leaf}" if prefix else leaf), module, leaf


class TorchFamily(Family):
    """A family whose models are torch modules. See the module's docstring for what a subclass must say."""

    sequence: ClassVar[type[TorchBlockSequence]] = TorchBlockSequence

    @abstractmethod
    def config_of(self, model: Any) -> Config:
        """The resolved config of a model in memory."""

    @abstractmethod
    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> nn.Module:
        """A model of that config that uses those very tensors, of the class, dtype and settings of `like`.

        Raises:
            CheckpointError: a tensor is missing or left over.
        """

    @abstractmethod
    def write_model(self, blocks: Any, directory: Path) -> None:
        """Write config, tensors (`blocks.tensors()`), tokenizer and the rest for the family's own loader."""

    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        return self.sequence(self, model, name=name, tokenizer=tokenizer, source=source)
