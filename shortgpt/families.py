"""What is known about a model family without loading a model: recognising one, and rewriting its checkpoints.

::

    "zoo:llama" | folder | file | hub id ──resolve()──▶ Source ──recognise()──▶ Family ──open()──▶ BlockSequence
                                                                         └── rewrite_config(), rename(), folds()

A `Family` is the torch-free side of an adapter; the disk road needs no other. Its `open` and `wrap` give the loaded
side, a `BlockSequence`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shortgpt import config_rules, plugins, removal, unchanged
from shortgpt.blocks import BlockSequence, NormPlacement, kept_blocks
from shortgpt.errors import (
    AmbiguousArchitectureError,
    CheckpointError,
    ModelError,
    PluginError,
    SelectionError,
    UnknownArchitectureError,
    reason_of,
)
from shortgpt.foreign import foreign
from shortgpt.headers import MAX_HEADER

if TYPE_CHECKING:
    from torch import Tensor

Config = dict[str, Any]
Fold = Callable[["Tensor", Mapping[str, "Tensor"]], "Tensor"]
"""(a tensor as it was, all tensors of the source by name) → what becomes of it. It writes into neither, and on the meta
device it gives a tensor of the right shape."""

ANY_MODEL_TYPE = "*"
"""Among an architecture's model types: every one that no other adapter claims with a higher priority."""

FOLDERS = {"additional_chat_templates": "*.jinja", "custom_generate": "*"}
"""The folders in a model's folder that transformers looks into → the files that it takes from there: chat templates
that have names, and a model's own way of generating."""

HUB_FILES = ("*.json", "*.model", "*.txt", "*.py", "*.jinja")
"""What is taken from a hub repository beside its weights."""


@dataclass(frozen=True)
class Source:
    """Where a model's files lie: a folder, or one file.

    Attributes:
        name: what the user called it.
        adapter_base: the base model where this is an adapter that was merged into it; None for others.
        stamps: what tells whether its files are still those that were there when this was made; see `unchanged`.
    """

    name: str
    path: Path
    adapter_base: str | None = None
    stamps: Mapping[Path, unchanged.Stamp] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamps", unchanged.stamps(self.path))

    @cached_property
    def config(self) -> Config:
        """The folder's config.json as it stands; empty for a single file.

        Raises:
            ModelError: there is no config.json, or it is not a JSON object.
        """
        if self.path.is_file():
            return {}
        file = self.path / "config.json"
        if not file.is_file():
            raise ModelError(
                f"{self.name}: the folder holds no config.json, so it is not a model; "
                "name the folder that the model was saved to"
            )
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, too deep or numbers too long
            raise CheckpointError(
                f"{self.name}: config.json is damaged ({error}); fetch or save the model again"
            ) from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.name}: config.json holds a {type(config).__name__}, not an object")
        return config


@dataclass(frozen=True)
class OpenOptions:
    """How to open a model. `device` "auto" spreads it over all devices; `dtype` is a torch dtype's name, or "auto": the
    one it was saved in. With `stream` the blocks' weights stay in their files, read when a block's turn comes."""

    device: str = "cpu"
    dtype: str = "auto"
    trust_remote_code: bool = False
    stream: bool = False


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
            files.
        exports: other architectures that a checkpoint can be written as, exactly; see `export`.
        load_example: the lines of Python that load a checkpoint from "DIR", for the model card.
        tolerance: the largest difference of logits between removing and skipping, relative to the largest logit:
            0.0, no difference at all, unless the family's own arithmetic depends on a block's place. (Folded weights
            are allowed rounding as well.)
        streams: whether `open` can leave the blocks' weights in their files (`OpenOptions.stream`).
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
        """New tensor name → old one, for what stays, in the order of `names`. See `removal.rename_blocks`."""
        return removal.rename_blocks(names, self.block_lists, depth, keep)

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        """New tensor name → the change of that tensor which makes up for a block's new place. Usually none.

        Args:
            names: the new names, as `rename` gives them.
        """
        return {}

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


def resolve(name: str | Path, architecture: str | None = None) -> Source:
    """Find a model: a name that a plugin ships (`zoo:llama`), a folder, a file, or a repository of the hub.

    Args:
        architecture: the adapter that will be taken; without it, a model of the hub is recognised before its weights
            are fetched.

    Raises:
        ModelError: there is nothing of that name.
        UnknownNameError: no installed plugin ships it.
    """
    text = str(name)
    path = Path(text).expanduser()
    if not text:
        raise ModelError("the model's name is empty; name a model folder, a checkpoint file, or a hub id")
    if path.exists():
        if found := foreign(path):
            raise ModelError(f"{text}: it is {found}")
        return Source(text, _or_its_file(path))
    shipped = plugins.registry().models
    if any(model.name == text for model in shipped) or re.match(r"zoo:", text):
        return Source(text, Path(plugins.lookup("model", shipped, text).target))
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise ModelError(f"{text}: no such file or folder; name a model folder, a checkpoint file, or a hub id")
    return Source(text, _or_its_file(_fetch(text, architecture)))


def _or_its_file(path: Path) -> Path:
    """A folder without a config that holds one file of a family whose models are files stands for that file."""
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    suffixes = {suffix for entry in plugins.registry().architectures for suffix in entry.suffixes}
    files = [file for file in path.iterdir() if file.suffix in suffixes]
    if len(files) > 1:
        names = ", ".join(sorted(file.name for file in files))
        raise ModelError(
            f"{path}: the folder holds {len(files)} checkpoint files ({names}); name the one that is meant"
        )
    return files[0] if files else path


def recognise(source: Source, architecture: str | None = None) -> Family:
    """The family of a model on disk. No adapter is imported but the one that is chosen.

    Args:
        architecture: take this adapter instead of looking for one.

    Raises:
        UnknownArchitectureError: no adapter recognises it.
        AmbiguousArchitectureError: several of equal priority do.
    """
    if architecture is not None:
        return _admitted(plugins.lookup("architecture", plugins.registry().architectures, architecture), source)
    is_file, suffix = source.path.is_file(), source.path.suffix
    config = source.config
    model_type = config.get("model_type")
    listed = config.get("architectures")
    classes = listed if isinstance(listed, list) else []

    def fits(entry: plugins.Architecture) -> bool:
        if is_file:
            return suffix in entry.suffixes
        if model_type is not None:
            known = model_type in entry.model_types or ANY_MODEL_TYPE in entry.model_types
            return known or any(name in entry.architectures for name in classes)
        named = any(name in entry.architectures for name in classes)
        return named or (bool(entry.config_keys) and all(key in config for key in entry.config_keys))

    return _admitted(_best(source.name, describe(source), fits), source)


def _admitted(entry: plugins.Architecture, source: Source) -> Family:
    family = _family(entry)
    family.admit(source)
    return family


def describe(source: Source) -> str:
    """What a source says of itself, in words."""
    if source.path.is_file():
        return f"a {source.path.suffix} file" if source.path.suffix else "a file without a suffix"
    config = source.config
    model_type, classes = config.get("model_type"), config.get("architectures")
    if not model_type and not classes:
        return f"a config.json without model_type, with the keys {sorted(config)[:12]}"
    found = f"model_type {model_type!r}, architectures {classes if isinstance(classes, list) else []}"
    if "auto_map" in config:
        found += ", and it names code of its own, which runs with --trust-remote-code under an adapter that fits"
    return found


def recognise_model(model: Any, name: str, architecture: str | None = None) -> Family:
    """The family of a model in memory. Raises as `recognise` does."""
    if architecture is not None:
        return _family(plugins.lookup("architecture", plugins.registry().architectures, architecture))
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    modules = tuple(cls.__module__ for cls in type(model).__mro__)

    def fits(entry: plugins.Architecture) -> bool:
        by_module = any(m == prefix or m.startswith(prefix + ".") for m in modules for prefix in entry.modules)
        return by_module or (bool(model_type) and model_type in entry.model_types)

    found = f"a {type(model).__module__}.{type(model).__qualname__}" + (
        f" of type {model_type!r}" if model_type else ""
    )
    return _family(_best(name, found, fits))


def unknown_architecture(name: str, found: str) -> UnknownArchitectureError:
    """The error for a model that no installed adapter can take; `found` says what it is."""
    registry = plugins.registry()
    installed = ", ".join(sorted(entry.name for entry in registry.architectures)) or "none"
    return UnknownArchitectureError(
        f"{name}: no installed adapter knows this architecture ({found}). Installed: {installed}."
        f"{registry.failures_note()} An adapter for it can be added by a plugin (see docs/writing-an-adapter.md)."
    )


def _best(name: str, found: str, fits: Callable[[plugins.Architecture], bool]) -> plugins.Architecture:
    registry = plugins.registry()
    fitting = [entry for entry in registry.architectures if fits(entry)]
    if not fitting:
        raise unknown_architecture(name, found)
    top = max(entry.priority for entry in fitting)
    best = [entry for entry in fitting if entry.priority == top]
    if len(best) > 1:
        claims = " and ".join(f"{entry.name!r} (plugin {entry.plugin})" for entry in best)
        raise AmbiguousArchitectureError(
            f"{name}: {found} is claimed by {claims} with priority {top}; uninstall one, or give one a higher priority"
        )
    return best[0]


def _family(entry: plugins.Architecture) -> Family:
    cls = plugins.load_target(entry.target)
    if not (isinstance(cls, type) and issubclass(cls, Family)):
        raise PluginError(f"architecture {entry.name!r} (plugin {entry.plugin}): {entry.target} is no Family")
    return cls()


def code_folders(path: Path) -> set[str]:
    """The folders in a model's folder from which its own code is loaded, there or not: those that an `auto_map` names
    (`code/modeling.Model`), and those from which its modules import (`from .code.layers import Layer`)."""
    found: set[str] = set()
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.suffix not in (".json", ".py") or not file.is_file() or file.stat().st_size > MAX_HEADER:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".py":
            found |= set(re.findall(r"^\s*(?:from|import)\s+\.(\w+)", text, re.MULTILINE))
        elif '"auto_map"' in text:
            found |= set(re.findall(r'"([\w-]+)/[\w/-]+\.\w+"', text[text.index('"auto_map"') :]))
    return {name for name in found if not (path / f"{name}.py").is_file()}


def _folders_but(folders: Collection[str]) -> list[str]:
    """Patterns, as the hub's library takes them, for what lies in any folder but these."""
    patterns = [f"{folder}/*/*" for folder in folders]
    for begin in sorted({folder[:length] for folder in folders for length in range(len(folder) + 1)}):
        onwards = "".join(
            sorted({folder[len(begin)] for folder in folders if folder.startswith(begin) and folder != begin})
        )
        patterns.append(f"{begin}[!{onwards}/]*/*" if onwards else f"{begin}[!/]*/*")
        if begin and begin not in folders:
            patterns.append(f"{begin}/*")
    return patterns


def _fetch(repository: str, architecture: str | None) -> Path:
    """The local folder of a hub repository, in one weight format: safetensors where it has them.

    Its small files come first: a model that no adapter knows is told of before its weights are fetched.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    elsewhere = [*_folders_but(FOLDERS), "consolidated*"]  # subfolders and second copies of the weights
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*HUB_FILES], ignore_patterns=elsewhere))
        if (folder / "config.json").is_file():
            recognise(Source(repository, folder), architecture)
            if code := [f"{name}/*.py" for name in sorted(code_folders(folder))]:
                snapshot_download(repository, allow_patterns=code, ignore_patterns=[])
            snapshot_download(repository, allow_patterns=[*HUB_FILES, "*.safetensors"], ignore_patterns=elsewhere)
            if any(folder.glob("*.safetensors")):
                return folder
            weights = ["*.bin"]
        elif found := foreign(folder):
            raise ModelError(f"{repository}: it is {found}")
        else:
            weights = [name for name in HfApi().list_repo_files(repository) if re.fullmatch(r"[^/]+\.pth", name)]
            if len(weights) != 1:
                found = ", ".join(sorted(weights)) or "none"
                raise ModelError(
                    f"{repository}: it has no config.json, and one .pth file was looked for (found: {found}); "
                    "fetch the one that is meant and name the file"
                )
        snapshot_download(repository, allow_patterns=[*HUB_FILES, *weights], ignore_patterns=elsewhere)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{repository}: neither a file or folder here nor a model that the hub gives us ({reason_of(error)}); "
            "check the name, the network and, for a gated model, that you are logged in"
        ) from None
    return folder
