"""Every model of transformers that has no adapter of its own: blocks found by what runs, a config rewritten by rules,
tensors recognised by the blocks' numbers in their names.

::

    config.json ─▶ an empty model on the meta device ─▶ `structure.find_structure` ─▶ where the blocks are
                   the config of the module that owns them ─▶ which part of config.json is rewritten (text_config, ...)

What is odd about a type lives in a file of its own, as a subclass: folds, refusals, another layout of the stream.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, DynamicCache, PreTrainedConfig, PreTrainedModel

from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.errors import AdapterError, CheckpointError, ConfigRewriteError, StreamingError, reason_of
from shortgpt.models.configs.rules import NAMING_MODULES, Decision, decide, naming_modules, rewritten
from shortgpt.models.recognition import describe, unknown_architecture
from shortgpt.models.renaming import rename_blocks
from shortgpt.models.sequence import BlockSequence
from shortgpt_adapters.transformers import loader
from shortgpt_adapters.transformers.config_files import parts
from shortgpt_adapters.transformers.family import TransformersBlocks, TransformersFamily
from shortgpt_adapters.transformers.structure import FoundBlocks, Structure, find_structure, is_empty
from shortgpt_adapters.transformers.verbosity import quiet

_FOUND: dict[tuple[type, str], Structure] = {}
"""What was found, by class and config."""


ENCODED = 5
"""How many vectors an invented text is encoded as."""


class StructuralBlocks(FoundBlocks, TransformersBlocks):
    """The blocks of a model whose structure was found by looking."""

    def side_inputs(self, rows: int) -> Mapping[str, Tensor]:
        """What an encoder hands to a decoder, where the model takes it."""
        taken = inspect.signature(self.model.forward).parameters
        config = self.model.config
        shape = (rows, ENCODED, getattr(config, "cross_attention_hidden_size", None) or config.hidden_size)
        if "encoder_hidden_states" in taken:
            return self.drawn({"encoder_hidden_states": shape})
        if "encoder_outputs" in taken:  # a tuple, of which the states are the first
            return self.drawn({"encoder_outputs": (1, *shape)})
        return {}


class Structural(TransformersFamily):
    """A model type of transformers, or code that a folder brings along for it.

    `structure` and `block_lists` are known once a config was read or a model was wrapped.
    """

    architecture = "structural"
    sequence = StructuralBlocks
    opener = staticmethod(loader.loading_class)
    structure: Structure
    own_names: frozenset[str]  # the model's tensors
    left_out: re.Pattern[str]  # tensors in files that the library does not load: extra prediction heads

    # -- config -----------------------------------------------------------------------------------------------

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        config = super().read_config(source, trust_remote_code=trust_remote_code)
        self._look(self._empty(config), self.resolved)
        return config

    def admit(self, source: Source) -> None:
        config = source.config
        known = config.get("model_type") in CONFIG_MAPPING or "auto_map" in config
        if not known and loader.named_class(config.get("architectures")) is None:
            found = f"{describe(source)}; transformers {transformers.__version__} has no such type"
            raise unknown_architecture(source.name, found)

    def depth(self, config: Config) -> int:
        return len(self.structure.classes)

    def rewrite_config(self, config: Config, keep: Sequence[int]) -> Config:
        inner, outer = self._decisions(config, keep)
        own = rewritten(self.own(config), inner)
        return _replaced(rewritten(config, outer), self.part, own)

    def decisions(self, config: Config, keep: Sequence[int]) -> tuple[Decision, ...]:
        inner, outer = self._decisions(config, keep)
        return (*inner, *outer)

    def _decisions(self, config: Config, keep: Sequence[int]) -> tuple[tuple[Decision, ...], tuple[Decision, ...]]:
        """Those of the blocks' own config, and those of the whole one around it, which names modules as well."""
        outer = {} if not self.part else {field: config[field] for field in NAMING_MODULES if field in config}
        rules = naming_modules(self.block_lists)
        return super().decisions(config, keep), tuple(decide(outer, keep, self.depth(config), rules))

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        return self.structure.classes, str(self.structure)

    def own(self, config: Config) -> Config:
        for key in self.part:
            config = config[key]
        return config

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        try:
            read = self._read_back(self.rewrite_config(config, keep))
        except ConfigRewriteError as error:
            return str(error)
        if _counts_tokens(self.resolved) and not _counts_tokens(read):
            return "no attention block would be left, which the library's cache asks for the number of cached tokens"
        return None

    def _read_back(self, shorter: Config) -> PreTrainedConfig:
        """What the config class makes of a config: it may complete a list, or set a last entry.

        Raises:
            ConfigRewriteError: it does, or it does not take it.
        """
        try:
            with quiet():
                config = type(self.resolved).from_dict(shorter)
                read = self.own(config.to_dict())
        except Exception as error:  # a config class can refuse in any way
            raise ConfigRewriteError(
                f"transformers does not take the config of what would stay: {reason_of(error)}"
            ) from error
        for field, value in self.own(shorter).items():
            if isinstance(value, (list, tuple)) and field in read and list(read[field] or ()) != list(value):
                raise ConfigRewriteError(
                    f"transformers makes {field} {list(read[field])} of the {list(value)} that would stay"
                )
        return config

    # -- tensors ----------------------------------------------------------------------------------------------

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        loaded = [name for name in names if name in self.own_names or not self.left_out.search(name)]
        return rename_blocks(loaded, (list_in_files(loaded, self.structure.path, depth),), depth, keep)

    def check_tensors(self, config: Config, names: Iterable[str]) -> None:
        """Nothing is asked here: a checkpoint's names are not always the model's.

        What is missing shows when the blocks are renamed, and when the result is opened.
        """

    # -- models -----------------------------------------------------------------------------------------------

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        self.read_config(source, trust_remote_code=options.trust_remote_code)
        if options.stream and not self.structure.complete:
            raise StreamingError(
                f"{source.name}: how the blocks of a {self.resolved.model_type} hand the stream on shows only when it "
                "runs with its weights, so it cannot be streamed; load it whole (without --stream)"
            )
        return super().open(source, options)

    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        own = copy.copy(self)  # what is found holds for this model only
        # A class that is not transformers' own is code that runs already.
        own.resolved, own.trusted = model.config, not type(model).__module__.startswith("transformers.")
        # Where weights are still in their files, what was found without any holds.
        own._look(model, model.config, vars(self).get("structure") if is_empty(model) else None)
        return super(Structural, own).wrap(model, name=name, tokenizer=tokenizer, source=source)

    def _look(self, model: PreTrainedModel, config: PreTrainedConfig, known: Structure | None = None) -> None:
        key = type(model), model.config.to_json_string(use_diff=False)
        structure = known or _FOUND.get(key) or self.find(model)
        if structure.complete and known is None:
            _FOUND[key] = structure
        self.structure = structure
        self.norm_placement = self.structure.norm_placement
        self.block_lists = (self.structure.path,)
        self.own_names = frozenset(model.state_dict())
        self.left_out = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ()) or "(?!)")
        named = copy.copy(config)
        named.architectures = [type(model).__name__]  # as a saved model's config has it
        opener = self.opener(named, self.trusted).__name__
        trust = ", trust_remote_code=True" if type(model).__module__.startswith("transformers_modules.") else ""
        self.load_example = f"""from transformers import {opener}

model = {opener}.from_pretrained("DIR", dtype="auto"{trust})"""
        self.part = _part_of(config, _owner(model, self.structure.path).config)

    def find(self, model: PreTrainedModel) -> Structure:
        """Where the blocks are."""
        with quiet():
            # Without values, experts can be chosen in half precision only.
            return find_structure(model.to(torch.bfloat16) if is_empty(model) else model)


def _counts_tokens(config: PreTrainedConfig) -> bool:
    """Whether the library's cache of a model of this config can tell how many tokens it holds."""
    try:
        DynamicCache(config=config).get_seq_length()
    except Exception:  # a config that has no such cache fails in ways of its own
        return False
    return True


def list_in_files(names: Iterable[str], path: str, depth: int) -> str:
    """The block list as a checkpoint names it: of the outermost numbered lists of that many entries, the one that is
    named most like the model's own.

    Raises:
        CheckpointError: there is none, or several that are equally like it.
    """
    blocks_by_list: dict[str, set[int]] = {}
    for name in names:
        if match := re.match(r"(.+?)\.(\d+)\.", name):
            blocks_by_list.setdefault(match[1], set()).add(int(match[2]))
    if path in blocks_by_list:
        return path
    own = path.split(".")
    # Where none is called like the model's, the library renames the list itself when it saves and loads.
    alike = [prefix for prefix in blocks_by_list if prefix.split(".")[-1] == own[-1]] or blocks_by_list
    shared = {
        prefix: len(set(prefix.split(".")) & set(own))
        for prefix in alike
        if blocks_by_list[prefix] == set(range(depth))
    }
    best = [prefix for prefix, words in shared.items() if words == max(shared.values()) > 0]
    if len(best) != 1:
        told = ", ".join(f"{prefix} ({len(numbers)})" for prefix, numbers in sorted(blocks_by_list.items())) or "none"
        raise CheckpointError(f"no list of tensors is the model's {depth} blocks {path!r}; numbered lists: {told}")
    return best[0]


def _owner(model: nn.Module, path: str) -> PreTrainedModel:
    """The nearest module around the block list that has a config."""
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            return module
    raise AdapterError(f"{type(model).__name__} has no config")


def _part_of(whole: PreTrainedConfig, part: PreTrainedConfig) -> tuple[str, ...]:
    """Where a config is inside a composite one: that very object, or the only one of its type."""
    parts_by_name = dict(parts(whole))
    for keys, config in parts_by_name.items():
        if config is part:
            return keys
    of_type = [keys for keys, config in parts_by_name.items() if type(config) is type(part)]
    if len(of_type) == 1:
        return of_type[0]
    raise AdapterError(f"a {type(whole).__name__} holds {len(of_type)} configs of the type {type(part).__name__}")


def _replaced(config: Config, keys: tuple[str, ...], part: Config) -> Config:
    if not keys:
        return part
    return {**config, keys[0]: _replaced(config[keys[0]], keys[1:], part)}
