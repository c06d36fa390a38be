"""RWKV 4, 5.0, 5.1, 5.2, 6 and 7 as `.pth` files, run by the `rwkv` package.

::

    embedding ─ ln0 ─●─ ln1 ─ att ─(+)─┬─ ln2 ─ ffn ─(+)─●─▶ next block         every sequence by itself,
           block 0   └──────────────┘  └──────────────┘                         each from a zero state

The package has no modules: a model is tensors by name and one function that runs them all. So a pass goes block by
block here, every sequence through one block before the next, and each block is run by the package's own code: that of
RWKV 4 to 6 by its `forward`, told that the model has this one block and that the stream is the embedding; that of
RWKV 7, whose `forward` is compiled as a whole, by the two functions that it calls. Nothing on the model is changed.

Oddities. `ln0` stands with block 0 and belongs to the embedding: boundary 0 is behind it, and it stays when block 0
goes. In fp16 the package halves the stream after every 6 blocks, which the tap undoes. The values of RWKV 7's block 0
are mixed into those of all others, so that block is pinned. And what is saved are the tensors of the file that the
model came from: the loaded ones are transposed, rounded, and the embedding has been through `ln0`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.checkpoints import torch_files
from shortgpt.errors import CheckpointError, ModelError, ShortGPTError
from shortgpt.models.family import Family
from shortgpt.models.generation import Stop
from shortgpt.models.projections import Addition, Change, Projection
from shortgpt.models.renaming import rename_blocks
from shortgpt.models.sequence import BlockSequence, Cut, Tap, TokenBatch
from shortgpt.values.cost import CacheSize
from shortgpt_adapters.rwkv_package import checkpoint, projections
from shortgpt_adapters.rwkv_package.runtime import Row, open_file, shortened, steps_of, weights_of

LOAD = (
    'import os\n\nos.environ["RWKV_V7_ON"] = "{seven:d}"\nfrom rwkv.model import RWKV\n\n'
    'model = RWKV(model="DIR/{name}", strategy="cpu fp32")'
)


class RwkvPackageBlocks(BlockSequence):
    """The blocks of a model of the `rwkv` package.

    Attributes:
        model: the package's `RWKV` object.
        config: version, numbers of blocks, width and vocabulary.
        file: where the model came from; None where that is not known or does not hold this model.
        names: for every tensor that `write` writes, the name it has in `file`.
        sizes: the number of elements by name in `file`.
        changes: those that were made to what is in `file`.
    """

    changes: tuple[Change, ...] = ()

    def __init__(
        self,
        family: RwkvPackage,
        model: Any,
        *,
        name: str,
        config: Config,
        file: Path | None,
        names: Mapping[str, str],
        sizes: Mapping[str, int],
    ) -> None:
        self.family = family
        self.model = model
        self.name = name
        self.config = config
        self.file = file
        self.stamp = checkpoint.stamp(file) if file else None
        self.names = names
        self.sizes = sizes
        self.architecture = family.architecture
        self.norm_placement = family.norm_placement
        self.block_names = tuple(f"blocks.{i}" for i in range(config["n_layer"]))
        self.pinned = family.pinned(config)
        self.vocab_size = config["vocab_size"]
        self.steps = steps_of(model)
        self.skipped: frozenset[int] = frozenset()
        self.load_example = LOAD.format(seven=config["version"] == "7", name=file.stem if file else "NAME")

    @property
    def device(self) -> torch.device:
        return self.steps.device

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        real = _real(batch)
        with torch.no_grad():
            for boundary, rows in enumerate(self._boundaries(batch, real)):
                seen = [self.steps.observed(boundary, hidden).to(self.device) for hidden, _ in rows]
                tap(boundary, _batched(seen, real))

    def logits(self, batch: TokenBatch) -> Tensor:
        real = _real(batch)
        with torch.no_grad():
            *_, rows = self._boundaries(batch, real)
            return self._read(rows, real)

    def ablated(self, batch: TokenBatch, cuts: Iterable[Cut], removed: Iterable[int] = ()) -> Iterator[Tensor]:
        real, gone = _real(batch), tuple(removed)
        with torch.no_grad(), self.skipping(gone):
            before = list(self._boundaries(batch, real))
        for cut in cuts:
            with torch.no_grad(), self.skipping(gone), self.cutting(cut):
                *_, rows = self._onwards(cut.block, before[cut.block])
                logits = self._read(rows, real)
            yield logits

    def greedy(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Stop = lambda row, made: False
    ) -> list[list[int]]:
        if self.skipped or new_tokens < 1:  # the package's state is of all blocks
            return super().greedy(prompts, new_tokens, stop)
        return [self._continued(row, prompt, new_tokens, stop) for row, prompt in enumerate(prompts)]

    def _continued(self, row: int, prompt: Sequence[int], new_tokens: int, stop: Stop) -> list[int]:
        """The new tokens of one row, by the package's own `forward` and its state."""
        made: list[int] = []
        fed, state = list(prompt), None
        with torch.no_grad():
            while len(made) < new_tokens and not (made and stop(row, made)):
                logits, state = self.model.forward(fed, state)
                made.append(int(logits.argmax()))
                fed = made[-1:]
        return made

    def cache_sizes(self) -> tuple[CacheSize, ...]:
        """The package's state is a list with as many tensors for each block."""
        with torch.no_grad():
            _, state = self.model.forward([1], None)
        each = len(state) // len(self)
        parts = (state[at : at + each] for at in range(0, len(state), each))
        return tuple(CacheSize(sum(tensor.nbytes for tensor in part)) for part in parts)

    def refuse_decoding(self) -> str:
        return "the rwkv package runs a decoding step as one function, which does not tell its blocks apart"

    def refuse_readouts(self) -> str | None:
        return None

    def readouts(self, batch: TokenBatch) -> Iterator[Tensor]:
        real = _real(batch)
        with torch.no_grad():
            boundaries = list(self._boundaries(batch, real))
        for rows in boundaries:
            with torch.no_grad():
                logits = self._read(rows, real)
            yield logits

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        before = self.skipped
        self.skipped = before | set(block_numbers(blocks, len(self)))
        try:
            yield
        finally:
            self.skipped = before

    def projection(self, block: int, batch: TokenBatch | None = None) -> Projection | str:
        return projections.projection_of(self.model, block, self.config["version"])

    def addition(self, batch: TokenBatch, projection: Projection, removed: Iterable[int] = ()) -> Addition:
        real, block = _real(batch), projection.block
        with torch.no_grad(), self.skipping(removed):
            rows = next(islice(self._boundaries(batch, real), block, None))
            behind = next(islice(self._onwards(block, rows), 1, None))
            with self._running(projections.silenced(self.model, block)):
                rest = next(islice(self._onwards(block, rows), 1, None))
        streams = [
            _batched([self.steps.observed(block + 1, hidden).to(self.device) for hidden, _ in some], real)
            for some in (behind, rest)
        ]
        return Addition(streams[0], streams[0] - streams[1])

    @contextmanager
    def changing(self, changes: Sequence[Change]) -> Iterator[None]:
        with self._running(projections.changed(self.model, changes)):
            yield

    def change(self, changes: Sequence[Change]) -> None:
        self.model = projections.changed(self.model, changes)
        self.steps = steps_of(self.model)
        self.changes = (*self.changes, *changes)

    @contextmanager
    def _running(self, model: Any) -> Iterator[None]:
        """Inside it another model of the package is run."""
        before = self.model, self.steps
        self.model, self.steps = model, steps_of(model)
        try:
            yield
        finally:
            self.model, self.steps = before

    def without(self, blocks: Iterable[int]) -> BlockSequence:
        keep = self.family.keep(self.config, blocks)
        renamed = self.family.rename(self.names, len(self), keep)
        shorter = RwkvPackageBlocks(
            self.family,
            shortened(self.model, keep),
            name=f"{self.name} - {len(self) - len(keep)}",
            config=self.family.rewrite_config(self.config, keep),
            file=self.file,
            names={new: self.names[old] for new, old in renamed.items()},
            sizes=self.sizes,
        )
        shorter.tokenizer, shorter.source, shorter.stamp = self.tokenizer, self.source, self.stamp
        stay = [change for change in self.changes if change.projection.block in keep]
        shorter.changes = tuple(change.at(keep.index(change.projection.block)) for change in stay)
        return shorter

    def write(self, directory: Path) -> None:
        if self.file is None:
            raise ModelError(
                f"{self.name}: the file that it was loaded from is gone, converted, or holds another model, and only "
                "its tensors can be written: those in memory were changed by the rwkv package for running"
            )
        if not self.file.is_file() or checkpoint.stamp(self.file) != self.stamp:
            raise CheckpointError(f"{self.file}: has been changed since it was opened; open it again")
        tensors = checkpoint.read(self.file)
        written = {new: projections.written(new, tensors[old], self.changes) for new, old in self.names.items()}
        torch_files.save(written, directory / self.file.name)
        checkpoint.copy_tokenizer(self.file.parent, directory)

    def parameter_counts(self) -> tuple[int, ...]:
        counts = dict.fromkeys(self.block_names, 0)
        for new, old in self.names.items():
            block = ".".join(new.split(".")[:2])
            if block in counts and ".ln0." not in new:
                counts[block] += self.sizes[old]
        return tuple(counts.values())

    def total_parameters(self) -> int:
        return sum(self.sizes[old] for old in self.names.values())

    def _boundaries(self, batch: TokenBatch, real: Tensor) -> Iterator[list[Row]]:
        """The rows of the batch at the boundaries 0..L, one boundary held at a time."""
        ids = batch["input_ids"]
        return self._onwards(
            0, [self.steps.embed(row[mask]) for row, mask in zip(ids, real.to(ids.device), strict=True)]
        )

    def _onwards(self, boundary: int, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows at a boundary, and at all that come after it."""
        skipped = self.skipped
        yield rows
        for index in range(boundary, len(self)):
            rows = [self.steps.block(index, row, skipped=index in skipped) for row in rows]
            yield rows

    def _read(self, rows: Sequence[Row], real: Tensor) -> Tensor:
        """What final norm and head make of the rows at a boundary, [batch, tokens, vocabulary]."""
        return _batched([self.steps.head(hidden).to(self.device) for hidden, _ in rows], real)


class RwkvPackage(Family):
    architecture = "rwkv-package"
    norm_placement = "pre"
    block_lists = ("blocks",)
    loader = "shortgpt_adapters.rwkv_package.blocks:reload"
    load_example = f"{LOAD.format(seven=0, name='NAME')}  # NAME.pth is the file; for RWKV 7 the variable must be 1"

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        file = checkpoint.find_file(source.path)
        return checkpoint.config_of(file, checkpoint.read(file))

    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        checkpoint.copy_tokenizer(checkpoint.find_file(source.path).parent, directory)

    def pinned(self, config: Config) -> Mapping[int, str]:
        return {0: "its values are mixed into those of every other block"} if config["version"] == "7" else {}

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        names = list(names)
        ln0 = {name: name for name in names if name.startswith("blocks.0.ln0.")}
        renamed = rename_blocks(names, self.block_lists, depth, keep) | ln0
        # The package tells RWKV 5 by a time_decay that comes after an ln_x; of a single block it might come before.
        order = sorted(renamed, key=lambda name: not name.startswith("blocks.0.att.ln_x."))
        return {name: renamed[name] for name in order}

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        file = checkpoint.find_file(source.path)
        tensors = checkpoint.read(file)
        config = checkpoint.config_of(file, tensors)
        model = open_file(file, seven=config["version"] == "7", device=options.device, dtype=options.dtype)
        if (found := _config_of(model)) != config:
            raise CheckpointError(f"{file}: its tensors make it {config}, but the rwkv package takes it for {found}")
        blocks = self._blocks(model, source.name, config, file, tensors)
        blocks.tokenizer = checkpoint.tokenizer_for(config["vocab_size"], file.parent)
        blocks.source = source
        return blocks

    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        if not hasattr(model, "z") and not hasattr(model, "w"):
            raise ModelError(f"{name}: a {type(model).__name__} is no model of the rwkv package")
        if "blocks.0.ffn.s_emb.weight" in weights_of(model):
            raise ModelError(f"{name}: RWKV 7 with DeepEmbed (RWKV_DE_VERSION) is not supported")
        config = _config_of(model)
        file = Path(f"{str(model.args.MODEL_NAME).removesuffix('.pth')}.pth")
        try:
            tensors = checkpoint.read(file)
            same = checkpoint.config_of(file, tensors) == config
        except ShortGPTError:
            same = False
        blocks = self._blocks(model, name, config, *((file, tensors) if same else (None, weights_of(model))))
        blocks.tokenizer, blocks.source = tokenizer, source
        return blocks

    def _blocks(
        self, model: Any, name: str, config: Config, file: Path | None, tensors: Mapping[str, Tensor]
    ) -> RwkvPackageBlocks:
        return RwkvPackageBlocks(
            self,
            model,
            name=name,
            config=config,
            file=file,
            names={key: key for key in tensors},
            sizes={key: tensor.numel() for key, tensor in tensors.items()},
        )


def _config_of(model: Any) -> Config:
    """What the package made of a file; as `rwkv_package_checkpoint.config_of`."""
    return {
        "version": "7" if hasattr(model, "z") else {5: "5.0"}.get(model.version, f"{model.version:.3g}"),
        "n_layer": model.args.n_layer,
        "n_embd": model.args.n_embd,
        "vocab_size": len(weights_of(model)["emb.weight"]),
    }


# -- verification's view --------------------------------------------------------------------------------------


class ReloadedRwkv:
    """A `shortgpt.verification.verify.Reloaded`: the package's model, run by its own `forward`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.dtype = weights_of(model)["emb.weight"].dtype

    def logits(self, input_ids: Tensor) -> Tensor:
        return torch.stack([self._forward(row.tolist())[0] for row in input_ids])

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        ids = input_ids[0].tolist()
        made: list[Tensor] = []
        logits, state = self._forward(ids)
        while True:
            made.append(logits[-1])
            if len(made) == new_tokens:
                return torch.stack(made)
            ids.append(int(logits[-1].argmax()))
            logits, state = self._forward(ids[-1:], state) if cached else self._forward(ids)

    def _forward(self, ids: list[int], state: Any = None) -> tuple[Tensor, Any]:
        """Logits, [tokens, vocabulary], in the dtype that the model computes in, and the state after the last one."""
        logits, state = self.model.forward(ids, state, full_output=True)
        return logits.reshape(len(ids), -1).to(self.dtype), state


def reload(directory: Path, *, device: str, dtype: str, trust_remote_code: bool = False) -> ReloadedRwkv:
    """Open the `.pth` of a folder with the rwkv package."""
    file = checkpoint.find_file(directory)
    seven = checkpoint.config_of(file, checkpoint.read(file))["version"] == "7"
    return ReloadedRwkv(open_file(file, seven=seven, device=device, dtype=dtype))


def _real(batch: TokenBatch) -> Tensor:
    """Which tokens are real, bool [batch, tokens]. A sequence starts at its first real token, from a zero state."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def _batched(rows: Sequence[Tensor], real: Tensor) -> Tensor:
    """Rows of real tokens as one tensor, [batch, tokens, ...], with zeros for the others."""
    if all(len(row) == real.shape[1] for row in rows):
        return torch.stack(list(rows))
    batched = rows[0].new_zeros(*real.shape, rows[0].shape[-1])
    batched[real.to(batched.device)] = torch.cat(list(rows))
    return batched
