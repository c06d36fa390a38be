"""What is known about a model family without loading a model: recognising one, and rewriting its checkpoints.

::

    "zoo:llama" | folder | file | hub id ──resolve()──▶ Source ──recognise()──▶ Family ──open()──▶ BlockSequence
                                                                         └── rewrite_config(), rename(), folds()

A `Family` is the torch-free side of an adapter; the disk road needs no other. Its `open` and `wrap` give the loaded
side, a `BlockSequence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from shortgpt.basics.block_lists import NormPlacement, kept_blocks
from shortgpt.basics.inputs import Config, Fold, OpenOptions, Source
from shortgpt.errors import AdapterError, ModelError, SelectionError, ShortGPTError, is_panic, reason_of
from shortgpt.models.configs import rules as config_rules
from shortgpt.models.folding import folded_twice
from shortgpt.models.memory import is_lack_of_memory
from shortgpt.models.projections import Change, change_folds
from shortgpt.models.removal import split_block_name
from shortgpt.models.renaming import rename_blocks
from shortgpt.models.required import check_written
from shortgpt.models.sequence import BlockSequence

ANY_MODEL_TYPE = "*"
"""Among an architecture's model types: every one that no other adapter claims with a higher priority."""


class Family(ABC):
    """One architecture family: how its checkpoints are read, rewritten and opened.

    A subclass sets the class attributes and implements the abstract methods; the others have defaults that fit a
    family without oddities. `config` is always the *resolved* config: with every per-block field that the family's
    library derives written out.

    Attributes:
        architecture: the adapter's name.
        norm_placement: where the blocks normalise the stream.
        block_lists: dotted paths of the block list as tensors' names may begin with it; the first is the model's own.
        rules: config field → rule, for fields that only this family has.
        loader: `"module:function"`, a function `(directory, *, device, dtype, trust_remote_code) -> Reloaded` that
            opens a checkpoint with the family's own loader and nothing of an adapter. Verification calls it in a fresh
            process. Where `streams` is set, with `stream` too at times: the block list whose weights stay in their
            files. Where `sets_near` is set, with `near` too at times: see `OpenOptions`.
        exports: other architectures that a checkpoint can be written as, exactly; see `export`.
        load_example: the lines of Python that load a checkpoint from "DIR", for the model card.
        tolerance: the largest difference of logits between removing and skipping, relative to the largest logit:
            0.0, no difference at all, unless the family's own arithmetic depends on a block's place. (Folded weights
            are allowed rounding as well.)
        streams: whether `open` can leave the blocks' weights in their files (`OpenOptions.stream`).
        sets_near: whether `open` can open a model with a distance of its config set small (`OpenOptions.near`).
        spreads: whether `open` can spread a model over several devices (the device "auto").
    """

    architecture: ClassVar[str]
    norm_placement: NormPlacement = "unknown"
    block_lists: tuple[str, ...]
    rules: ClassVar[Mapping[str, config_rules.Rule]] = {}
    loader: ClassVar[str]
    exports: ClassVar[tuple[str, ...]] = ()
    load_example: str = ""
    tolerance: ClassVar[float] = 0.0
    streams: ClassVar[bool] = False
    spreads: ClassVar[bool] = False
    sets_near: ClassVar[bool] = False

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        check_written(cls, ("architecture", "block_lists", "loader"))
        return super().__new__(cls)

    def admit(self, source: Source) -> None:
        """Raise an `UnknownArchitectureError` where the family cannot take this source after all.

        A look at its small files: the weights of a hub model are not there yet. The default takes what was recognised.
        """
        return

    # -- config: torch-free wherever the family's own library is ------------------------------------------------

    @abstractmethod
    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        """The resolved config."""

    @abstractmethod
    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        """Write a rewritten config, and copy everything from `source` but the weights (tokenizer, generation ...)."""

    def write_shorter(self, config: Config, keep: Sequence[int], source: Source, directory: Path) -> None:
        """Rewrite the source's `config` for the blocks that stay, and write it, as `write_config` does."""
        self.write_config(self.rewrite_config(config, keep), source, directory)

    def depth(self, config: Config) -> int:
        """The number of blocks."""
        return config_rules.depth_of(config)

    def pinned(self, config: Config) -> Mapping[int, str]:
        """Blocks that cannot be removed, each with its reason."""
        return {}

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        """Why this set of blocks cannot be all that stays, or None."""
        return None

    def rewrite_config(self, config: Config, keep: Sequence[int]) -> Config:
        """The config of the model that has the blocks `keep` only. See `config_rules.rewrite_config`."""
        return config_rules.rewritten(config, self.decisions(config, keep))

    def decisions(self, config: Config, keep: Sequence[int]) -> tuple[config_rules.Decision, ...]:
        """What a removal does with each field that depends on the blocks, or looks so. See `config_rules.decide`."""
        rules = {**config_rules.naming_modules(self.block_lists), **self.rules}
        reads = partial(self.reads, config)
        return tuple(config_rules.decide(self.own(config), keep, self.depth(config), rules, reads))

    def reads(self, config: Config, field: str) -> bool:
        """Whether the family's library can read a field of `own(config)`; where that is not known, it can."""
        return True

    def own(self, config: Config) -> Config:
        """The part of the config that describes the blocks: all of it, but for a model that is one part of a larger."""
        return config

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        """Each block's class, and how the blocks hand the stream on, in words; empty where only its code tells."""
        return (), ""

    def notes(self, config: Config) -> tuple[str, ...]:
        """What a removal leaves behind that a user of the result should know; sentences for the model card."""
        return config_rules.notes(self.own(config), self.decisions(config, range(self.depth(config))))

    def notes_of_removal(self, config: Config, keep: Sequence[int]) -> tuple[str, ...]:
        """The same, where the blocks `keep` stay: a rule may fail for these of a field that the library never reads."""
        notes = self.notes(config)
        here = config_rules.notes({}, self.decisions(config, keep))
        return (*notes, *(note for note in here if note not in notes))

    def refuse_export(self, config: Config, target: str) -> str | None:
        """Why a checkpoint of this config cannot be written as `target`, or None."""
        return None

    def export(self, source: Source, target: str, directory: Path) -> None:
        """Write a checkpoint of this family, `source`, as one of the architecture `target`, one of `exports`.

        Raises:
            ModelError: this one cannot be written so.
        """
        raise ModelError(f"{self.architecture} cannot be written as {target}")

    # -- tensors ------------------------------------------------------------------------------------------------

    def check_tensors(self, config: Config, names: Iterable[str]) -> None:
        """Raise a `CheckpointError` that names a tensor which this config asks for and the checkpoint lacks.

        The default looks at nothing: `rename` and verification come after it.
        """
        return

    def parameters(self, config: Config) -> int | None:
        """The number of parameters of a model of this config, tied ones once; None where only its tensors tell."""
        return None

    def block_parameters(self, config: Config) -> tuple[int, ...] | None:
        """The number of parameters of each block of a model of this config; None where only its tensors tell."""
        return None

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        """New tensor name → old one, for what stays, in the order of `names`. See `rename_blocks`."""
        return rename_blocks(names, self.block_lists, depth, keep)

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        """New tensor name → the change of that tensor which makes up for a block's new place. Usually none.

        Args:
            names: the new names, as `rename` gives them.
        """
        return {}

    def all_folds(
        self,
        config: Config,
        keep: Sequence[int],
        renamed: Mapping[str, str],
        changes: Sequence[Change],
        shape: Callable[[str], tuple[int, ...]],
    ) -> dict[str, Fold]:
        """`folds`, and behind them what makes up for a removed run.

        Args:
            renamed: new tensor name → old one, as `rename` gives it.
            changes: of the blocks by their old numbers.
            shape: of a tensor of the checkpoint, by its old name.

        Raises:
            CheckpointError: a tensor that is to be changed is not there.
        """
        folds = self.folds(config, keep, renamed)
        if not changes:
            return folds
        places = self.places(config, renamed.values())
        return folded_twice(folds, change_folds(changes, places, shape, renamed))

    def refuse_running(self, config: Config, names: Iterable[str], device: str) -> str | None:
        """Why models of this config cannot be run on a device here, though their files can be rewritten: a package or a
        device that their weights' format needs is missing. None where nothing speaks against it.

        Args:
            names: of the tensors in the files.
        """
        return None

    def places(self, config: Config, names: Iterable[str]) -> dict[str, tuple[int, str]]:
        """The blocks' tensors of a checkpoint: name → the block's number, and what the tensor is called in that block
        of a loaded model."""
        found = {name: split_block_name(name, self.block_lists[0]) for name in names}
        return {name: (place[1], place[2]) for name, place in found.items() if place is not None}

    # -- models -------------------------------------------------------------------------------------------------

    @abstractmethod
    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        """Load the model."""

    @abstractmethod
    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        """The block sequence of a model already in memory."""

    def keep(self, config: Config, remove: Iterable[int]) -> tuple[int, ...]:
        """The blocks that stay, after every check.

        Raises:
            SelectionError: they may not go.
        """
        keep = kept_blocks(self.depth(config), remove, self.pinned(config))
        reason = self.refuse(config, keep)
        if reason:
            raise SelectionError(f"{self.architecture}: {reason}")
        return keep


@contextmanager
def at_work(family: Family, name: str) -> Iterator[None]:
    """Inside it a family works on the model `name`: what it raises that is no error of ours says whose it is.

    Raises:
        AdapterError: it raised; lack of memory is passed on, which is nobody's fault.
        ModelError: a file of the model cannot be read.
    """
    try:
        yield
    except (ShortGPTError, MemoryError):
        raise
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({reason_of(error)})") from error
    except BaseException as error:
        if is_lack_of_memory(error) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise AdapterError(
            f"{name}: the adapter {family.architecture!r} failed ({type(error).__name__}: {reason_of(error)}); report "
            "it to those who wrote it"
        ) from error


def refusal(family: Family, config: Config, blocks: Iterable[int]) -> str | None:
    """Why a model of that config cannot lose these blocks, None where it can."""
    try:
        family.rewrite_config(config, family.keep(config, blocks))
    except SelectionError as error:
        return str(error)
    return None
