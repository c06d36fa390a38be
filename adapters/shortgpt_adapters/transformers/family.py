"""What the causal language models of transformers have in common; their adapters are declarations on top of it."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.basics.untrusted import check_counts
from shortgpt.checkpoints.companions import copy_companions
from shortgpt.checkpoints.headers import tensors_at_most
from shortgpt.checkpoints.torch_files import check_archive
from shortgpt.errors import (
    AdapterError,
    CheckpointError,
    ConfigRewriteError,
    ModelError,
    ShortGPTError,
    StreamingError,
    is_panic,
    reason_of,
)
from shortgpt.models.configs import spelling
from shortgpt.models.configs.spelling import Removal
from shortgpt.models.generation import Stop
from shortgpt.models.probing.probes import drawn
from shortgpt.models.removal import split_block_name, starred
from shortgpt.models.sequence import BlockSequence
from shortgpt.torch_models.prefill import skipping_prefill
from shortgpt.torch_models.sequence import TorchBlockSequence, TorchFamily
from shortgpt.values.cost import CacheSize
from shortgpt_adapters.own_code import Code
from shortgpt_adapters.transformers import config_files, mlps, quantised
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.caches import cache_sizes, tensors_in
from shortgpt_adapters.transformers.config_reads import ConfigReads, reads_of
from shortgpt_adapters.transformers.generation import cache_is_right, cached
from shortgpt_adapters.transformers.loader import (
    arguments,
    leaving_blocks_in_files,
    logits_of,
    placement,
    unfit,
    with_near,
)
from shortgpt_adapters.transformers.structure import find_structure
from shortgpt_adapters.transformers.tokenizer_growth import check_growth
from shortgpt_adapters.transformers.verbosity import quiet as quiet

_READS: dict[tuple[Any, ...], ConfigReads] = {}
"""What can be read of a config, by class and content."""


FEW_BLOCKS = 512
"""So many blocks a config may name whatever its files hold: blocks can share their weights."""

KNOWN_CODE = ("transformers.", "shortgpt_adapters.")
"""Modules whose classes read configs of known fields."""


class TransformersBlocks(TorchBlockSequence):
    """The blocks of a `PreTrainedModel`."""

    model: PreTrainedModel
    mlps: mlps.Mlps | None = None  # in the places of removed blocks

    def __init__(self, family: TorchFamily, model: nn.Module, **details: Any) -> None:
        super().__init__(family, model, **details)
        self.vocab_size = self._vocabulary()
        self.max_tokens = self._window()
        self.own_code = not type(self.model).__module__.startswith(KNOWN_CODE)
        self._caches: dict[frozenset[int], bool] = {}  # whether the library's cache is right, by the blocks skipped

    def _vocabulary(self) -> int:
        try:
            return int(self.model.get_input_embeddings().num_embeddings)
        except (AttributeError, NotImplementedError, TypeError) as error:  # code that came with the model
            size = getattr(self.model.config.get_text_config(), "vocab_size", None)
            if isinstance(size, int):
                return size
            raise AdapterError(
                f"{type(self.model).__name__} does not say how many tokens it knows: it has no get_input_embeddings "
                f"and its config no vocab_size ({reason_of(error)})"
            ) from None

    def _window(self) -> int | None:
        bounds = [getattr(self.model.config, "max_position_embeddings", None)]
        length = getattr(self.tokenizer, "model_max_length", None)
        if isinstance(length, int) and length < 1_000_000:  # transformers writes 1e30 for "no bound"
            bounds.append(length)
        return min((bound for bound in bounds if bound), default=None)

    def drawn(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Random inputs of these shapes, the same every time, in the model's floating-point type."""
        return {name: tensor.to(self.model.dtype) for name, tensor in drawn(shapes).items()}

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        with quiet():
            return logits_of(self.model(**arguments(self.model, batch)))

    @property
    def end_tokens(self) -> frozenset[int]:
        named = self.model.generation_config.eos_token_id if self.model.can_generate() else None
        several = named if isinstance(named, (list, tuple)) else [] if named is None else [named]
        return super().end_tokens | frozenset(map(int, several))

    def greedy(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Stop = lambda row, made: False
    ) -> list[list[int]]:
        if new_tokens < 1 or self.streamed or not self._cache_is_right():
            return super().greedy(prompts, new_tokens, stop)
        return cached(self.model, prompts, new_tokens, stop)

    def put_mlps(self, in_front_of: Sequence[int], width: int | None, scratch: Path | None = None) -> list[nn.Module]:
        self.mlps = mlps.planned(self, in_front_of, width)
        modules = mlps.put(self, self.mlps, scratch)
        self.load_example, self.notes = mlps.LOAD, (*self.notes, mlps.NOTE)
        return modules

    def write(self, directory: Path) -> None:
        super().write(directory)
        if self.mlps is not None:
            mlps.write(self.model, self.mlps, directory)

    @contextmanager
    def prefill_skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        gone = block_numbers(blocks, len(self))
        self._refuse_streamed("be run with a cache")
        if not self._cache_is_right():  # tried now, for it runs the model without one
            raise ModelError(
                f"{self.name}: a {type(self.model).__name__} has no cache, or one that is wrong, so that blocks that "
                "are skipped while a prompt is read cannot run afterwards; remove them instead (`shortgpt prune`)"
            )
        ids = torch.arange(1, 9, device=self.device).reshape(2, 4) % self.vocab_size

        def read(during: AbstractContextManager[Any]) -> list[Tensor]:
            with quiet(), torch.no_grad():
                with during:
                    prompt = self.model(input_ids=ids[:, :-1], use_cache=True)
                cache = prompt.get("past_key_values")
                if cache is None:  # no block wrote to one
                    return [logits_of(prompt)]
                step = self.model(input_ids=ids[:, -1:], use_cache=True, past_key_values=cache)
                return [logits_of(prompt), logits_of(step), *tensors_in(cache)]

        with skipping_prefill(self, gone, read):
            yield

    def cache_sizes(self) -> tuple[CacheSize, ...] | str:
        if self.streamed:
            return "the weights are still in their files (stream)"
        return cache_sizes(self.model, len(self), self.max_tokens)

    def refuse_decoding(self) -> str | None:
        if self.streamed:
            return "the weights are still in their files (stream)"
        return None if self._cache_is_right() else f"a {type(self.model).__name__} has no cache, or one that is wrong"

    def _cache_is_right(self) -> bool:
        """A skipped block still reads its input and fills its cache, so that the cache serves inside `skipping` too."""
        if self.skipped not in self._caches:
            self._caches[self.skipped] = cache_is_right(self.model, self.logits)
        return self._caches[self.skipped]


class TransformersFamily(TorchFamily):
    """A model type of transformers. A subclass names it, its norm placement and its block list."""

    sequence = TransformersBlocks
    loader = "shortgpt_adapters.transformers.loader:reload"
    streams = True
    spreads = True
    sets_near = True
    model_class: type[PreTrainedModel] | None = None  # of the model that was wrapped
    load_example = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("DIR", dtype="auto")"""

    part: tuple[str, ...] = ()  # where the blocks' own config is in the whole: (), ("text_config",), ...
    trusted = False  # whether code that comes with a model may run
    kept: tuple[int, ...] | None = None  # the blocks that stay, while a shorter checkpoint is being written

    @staticmethod
    def opener(config: PreTrainedConfig, trust_remote_code: bool = False) -> Any:
        """The class whose `from_pretrained` opens a model of this config."""
        return AutoModelForCausalLM

    # -- config -----------------------------------------------------------------------------------------------

    def read_config(self, source: Source, *, trust_remote_code: bool = False) -> Config:
        self.resolved, self.trusted = _config(source, trust_remote_code), trust_remote_code
        return dict(self.resolved.to_dict())

    def write_shorter(self, config: Config, keep: Sequence[int], source: Source, directory: Path) -> None:
        self.kept = tuple(keep)
        super().write_shorter(config, keep, source, directory)

    def reads(self, config: Config, field: str) -> bool:
        text = json.dumps(config, sort_keys=True, default=str)
        key = type(self.resolved), self.model_class, self.block_lists[0], text
        if key not in _READS:
            _READS[key] = reads_of(lambda: self._empty(config), self.block_lists[0])
        return field in _READS[key]

    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        copy_companions(source, directory)
        removal = self._removal(self.resolved, config, self.kept)
        self._write_text(removal, source, directory)

    def _removal(self, original: PreTrainedConfig, rewritten: Config, keep: Sequence[int] | None) -> Removal:
        resolved = dict(original.to_dict())
        depth = self.depth(resolved)
        names = config_files.aliases(original, self.part)
        return Removal(resolved, rewritten, keep or range(depth), depth, self.part, names, self.rules)

    def _write_text(self, removal: Removal, source: Source, directory: Path) -> None:
        """Write the config that stays of a removal, in the words of the source's config.json."""
        text = (source.path / "config.json").read_bytes().decode("utf-8")
        written = Source(source.name, directory)
        spelling.write(text, removal, directory / "config.json", lambda: dict(_config(written, self.trusted).to_dict()))

    def config_of(self, model: Any) -> Config:
        return dict(model.config.to_dict())

    def parameters(self, config: Config) -> int:
        return sum(parameter.numel() for parameter in self._empty(config).parameters())

    def block_parameters(self, config: Config) -> tuple[int, ...] | None:
        blocks = self._empty(config).get_submodule(self.block_lists[0]).children()
        return tuple(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)

    def _empty(self, config: Config) -> PreTrainedModel:
        """A model of a config that was read, without memory for its tensors."""
        try:
            with quiet(), torch.device("meta"):
                return self._from_config(type(self.resolved).from_dict(config))
        except Exception as error:  # a config's values can break a model in any way
            raise CheckpointError(
                f"transformers cannot build a model of this config.json ({reason_of(error)})"
            ) from error

    def _from_config(self, config: PreTrainedConfig) -> PreTrainedModel:
        if self.model_class is not None:
            return self.model_class._from_config(config)
        opener = self.opener(config, self.trusted)
        if hasattr(opener, "from_config"):
            return opener.from_config(config, trust_remote_code=self.trusted)
        return opener._from_config(config)

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        structure = find_structure(self._empty(config))
        return structure.classes, str(structure)

    def check_tensors(self, config: Config, names: Iterable[str]) -> None:
        present = set(names)
        lacking = self._lacking(config, present)
        if lacking and config.get(quantised.SECTION):
            prefix = f"{self._empty(config).base_model_prefix}."
            plain = set(self._empty(config).state_dict())
            whole = present if any(name.startswith(prefix) for name in present) else {prefix + name for name in present}
            held = quantised.held_otherwise(lacking, plain, whole)
            lacking = [name for name in lacking if name not in held]
        if lacking:
            raise CheckpointError(
                f"the checkpoint lacks {len(lacking)} tensors that its config asks for ({lacking[0]}, ...); "
                "fetch or save it again"
            )

    def _lacking(self, config: Config, present: Collection[str]) -> list[str]:
        """The model's tensors that are not among these names."""
        model = self._empty(config)
        prefix = f"{model.base_model_prefix}."
        tied = set(model.all_tied_weights_keys)
        return [
            name
            for name in model.state_dict()
            if name not in present and name.removeprefix(prefix) not in present and name not in tied
        ]

    def refuse_running(self, config: Config, names: Iterable[str], device: str) -> str | None:
        section = config.get(quantised.SECTION)
        if not isinstance(section, Mapping):
            return None
        if not quantised.is_known(section) and not self._lacking(config, set(names)):
            return None  # the library passes the section over, and the weights have their plain names
        return quantised.refuse_running(section, device)

    def places(self, config: Config, names: Iterable[str]) -> dict[str, tuple[int, str]]:
        # It needs names of transformers that may change in any version, see `loader.leaving_blocks_in_files`.
        from shortgpt_adapters.transformers.streaming import names_in_model

        model = self._empty(config)
        in_model = names_in_model(names, model, get_model_conversion_mapping(model))
        places = {name: split_block_name(place, self.block_lists[0]) for name, place in in_model.items()}
        return {name: (place[1], place[2]) for name, place in places.items() if place is not None}

    # -- models -----------------------------------------------------------------------------------------------

    def wrap(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) -> BlockSequence:
        own = copy.copy(self)  # what follows holds for this model only
        own.resolved, own.model_class = model.config, type(model)
        return super(TransformersFamily, own).wrap(model, name=name, tokenizer=tokenizer, source=source)

    def open(self, source: Source, options: OpenOptions) -> BlockSequence:
        config = _config(source, options.trust_remote_code)  # one clear message before anything large is read
        for file in source.path.glob("*.bin"):
            check_archive(file)
        settings: dict[str, Any] = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
        settings |= placement(options.device) | with_near(config, options.near)
        if options.stream and self.sequence.trace is not TorchBlockSequence.trace:
            raise StreamingError(
                f"{source.name}: models of the adapter {self.architecture!r} do more than hand one stream from block "
                "to block, and cannot be streamed; load it whole (without --stream)"
            )
        with ExitStack() as stack:
            weights = None
            if options.stream:
                weights = stack.enter_context(leaving_blocks_in_files(source.name, self.block_lists[0]))
            stack.enter_context(quiet())
            try:
                opener = self.opener(config, options.trust_remote_code)
                model, info = opener.from_pretrained(source.path, output_loading_info=True, **settings)
            except torch.cuda.OutOfMemoryError:
                raise ModelError(f"{source.name} does not fit into the memory of {options.device}") from None
            except ShortGPTError:
                raise
            except Exception as error:  # safetensors, torch, pickle and transformers each have their own
                raise CheckpointError(f"{source.name}: transformers cannot load it ({reason_of(error)})") from error
        faults = unfit(info)
        left_over = faults.pop("unexpected_keys", [])
        if strange := out_of_place(model, self.block_lists[0], left_over):
            faults["unexpected_keys"] = strange
        if faults:
            kind, names = next(iter(faults.items()))
            raise CheckpointError(
                f"{source.name}: the weights do not fit the config: {len(names)} {kind.replace('_', ' ')} ({names[0]}, "
                "...); the checkpoint is incomplete, or its config.json was changed"
            )
        blocks = self.wrap(model, name=source.name, tokenizer=open_tokenizer(source, options), source=source)
        assert isinstance(blocks, TransformersBlocks)
        blocks.weights = weights
        blocks.left_over = starred(left_over, self.block_lists[0], len(blocks))
        return blocks

    def build(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> nn.Module:
        # The library builds the model from the config with tensors of the right shapes that hold no memory, and
        # computes its ties and buffers; then it is given the real ones. Handed over directly they would be copied
        # to the CPU first.
        empty = {
            name: torch.empty((1,) * tensor.dim(), dtype=tensor.dtype).expand(tensor.shape)
            for name, tensor in tensors.items()
        }
        with quiet():
            model, info = type(like).from_pretrained(
                None,
                config=type(like.config).from_dict(config),
                state_dict=empty,
                dtype=like.dtype,
                attn_implementation=_attention(like.config),
                output_loading_info=True,
            )
        if faults := unfit(info):
            raise CheckpointError(f"{type(like).__name__}: the shorter model does not take these tensors: {faults}")
        model.load_state_dict(dict(tensors), assign=True)
        model.tie_weights()
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(like.device)
        if hasattr(like, "_weight_conversions"):  # under which names its tensors are saved
            model._weight_conversions = like._weight_conversions
        model.generation_config = copy.deepcopy(like.generation_config)
        return model.eval()

    def write_model(self, blocks: TransformersBlocks, directory: Path) -> None:
        if blocks.source is not None:
            copy_companions(blocks.source, directory)
        elif blocks.tokenizer is not None and hasattr(blocks.tokenizer, "save_pretrained"):
            blocks.tokenizer.save_pretrained(directory)
        model = blocks.model
        generation = model.generation_config
        model.generation_config = GenerationConfig()  # the library refuses to save one that it finds inconsistent,
        try:
            with quiet():
                # Code that lies in a folder is not given the library's renaming of its own types' tensors.
                model.save_pretrained(directory, state_dict=blocks.tensors(), save_original_format=blocks.mlps is None)
        finally:
            model.generation_config = generation
        self._respell(blocks, directory)
        generation.to_json_file(directory / "generation_config.json")  # which is the user's all the same

    def _respell(self, blocks: TransformersBlocks, directory: Path) -> None:
        """Give a saved config the words of the source's, where it still is that, or else the older names too."""
        own = copy.copy(self)
        own.trusted = type(blocks.model).__module__.startswith("transformers_modules.")  # then its code runs already
        read = functools.partial(_config, Source(str(directory), directory), own.trusted)
        saved = dict(read().to_dict())
        removal = own._removal_from(blocks)
        if removal is None or blocks.source is None or removal.differences(saved):
            config_files.add_old_names(directory / "config.json", read)
            return
        own._write_text(removal, blocks.source, directory)
        file = directory / "config.json"
        file.write_text(config_files.with_dtypes(file.read_text(encoding="utf-8"), saved), encoding="utf-8")

    def _removal_from(self, blocks: TransformersBlocks) -> Removal | None:
        """How the config of a source folder became that of a model in memory; None where there is no such folder."""
        if blocks.source is None or not (blocks.source.path / "config.json").is_file():
            return None
        original = _config(blocks.source, self.trusted)
        whole = blocks.whole
        assert isinstance(whole, TransformersFamily)
        try:
            rewritten = whole.rewrite_config(dict(original.to_dict()), blocks.kept)
        except ConfigRewriteError:  # the folder's config is another one by now
            return None
        return whole._removal(original, rewritten, blocks.kept)


def out_of_place(model: nn.Module, path: str, left_over: Iterable[str]) -> list[str]:
    """Of the tensors that the library passed over, those that say that files and config do not belong together.

    They are a block's. What the library passes over in every block alike is none of the model: masks, frequencies and
    scales that old or quantised checkpoints hold, and that it computes itself. A block that is not in the model, or a
    tensor that is left over in some of the blocks that have its place, is lost.
    """
    modules = {
        int(number): {name for name, _ in block.named_modules()}
        for number, block in model.get_submodule(path).named_children()
    }
    places = {name: place for name in left_over if (place := split_block_name(name, path)) is not None}
    holders: dict[str, set[int]] = {}
    for _, number, rest in places.values():
        holders.setdefault(rest, set()).add(number)

    def is_lost(rest: str, numbers: set[int]) -> bool:
        if not numbers <= modules.keys():
            return True
        owners = {_owner(rest, modules[number]) for number in numbers}
        return numbers != {number for number, names in modules.items() if owners & names}

    lost = {rest for rest, numbers in holders.items() if is_lost(rest, numbers)}
    return [name for name, (_, _, rest) in places.items() if rest in lost]


def _owner(name: str, modules: Collection[str]) -> str:
    """The innermost of a block's modules that is around a tensor of that name; "" is the block itself."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return name


class CarryingCode(TransformersFamily):
    """A type that transformers does not have: what is written carries the code that opens it; see `own_code`."""

    code: ClassVar[Code]
    loader = "shortgpt_adapters.own_code:reload"
    load_example = TransformersFamily.load_example.replace(")", ", trust_remote_code=True)")

    def write_config(self, config: Config, source: Source, directory: Path) -> None:
        super().write_config(config, source, directory)
        self.code.carry(directory)

    def write_model(self, blocks: TransformersBlocks, directory: Path) -> None:
        super().write_model(blocks, directory)
        self.code.carry(directory)

    def notes(self, config: Config) -> tuple[str, ...]:
        return (*super().notes(config), self.code.note(config))


def _attention(config: PreTrainedConfig) -> str | dict[str, Any]:
    """How a model attends, and each part of a composite one, which need not be alike."""
    parts = {key: getattr(config, key, None) for key in config.sub_configs}
    inner = {key: _attention(part) for key, part in parts.items() if isinstance(part, PreTrainedConfig)}
    own: str = config._attn_implementation
    return {"": own, **inner} if inner else own


def _config(source: Source, trust_remote_code: bool) -> Any:
    known = source.config  # a missing or damaged file is told here, in our words
    tensors = tensors_at_most(source.path) if source.path.is_dir() else None
    if tensors is not None:
        check_counts(source.name, known, max(FEW_BLOCKS, tensors))
    try:
        with quiet():
            return transformers_loader.read_config(source.path, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "auto_map" in known and known.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
            raise ModelError(
                f"{source.name}: its config names code of its own ({json.dumps(known.get('auto_map'))}), which runs "
                "only when you trust it: read it, then pass --trust-remote-code (trust_remote_code=True)"
            ) from None
        raise CheckpointError(
            f"{source.name}: transformers cannot read its config.json ({reason_of(error)})"
        ) from error


def open_tokenizer(source: Source, options: OpenOptions) -> Any:
    """The folder's tokenizer; None where it has none."""
    files = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
    if not any((source.path / name).is_file() for name in files):
        return None
    check_growth(source.name, source.path)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(source.path, trust_remote_code=options.trust_remote_code)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(f"{source.name}: its tokenizer cannot be loaded ({reason_of(error)})") from error
