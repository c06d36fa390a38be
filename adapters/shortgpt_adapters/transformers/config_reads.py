"""Which fields of a config the library can read: what building and running a model reads, and what its code mentions.

::

    config ─▶ config class ─▶ an empty model on the meta device ─▶ a pass without a cache, one that fills it, one step
                  │ reads                    │ reads                                       │ reads
    the modules of these classes, and the general ones that read a config: every field that their code names

Both, since neither suffices. A pass without values takes one branch of each, or breaks off, so a field that is read in
another one shows only in the code. Code can read a field by a name that it puts together, or in a module that nobody
thought of, and that shows only when it runs. A field found by neither cannot change what the library computes.

Machinery that touches every field alike (copies, comparisons, validation, writing) does not count. Of code that is not
the library's own nothing is concluded: it may hand the config to whatever it likes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, StaticCache

from shortgpt_adapters.transformers.loader import arguments
from shortgpt_adapters.transformers.structure import Blank

_LIBRARY = frozenset({"transformers", "torch", __name__.partition(".")[0]})
"""Packages whose code is known."""

_MODELS = Path(transformers.__file__).parent / "models"
_GENERAL = tuple(
    _MODELS.parent / file
    for file in (
        "configuration_utils.py",
        "masking_utils.py",
        "cache_utils.py",
        "modeling_rope_utils.py",
        "modeling_utils.py",
        "generation/configuration_utils.py",
        "generation/utils.py",
    )
)
"""Files of the library that read the configs of all types."""

_FOR_EVERY_FIELD = (
    "transformers/configuration_utils.py",
    "transformers/integrations/heterogeneity/configuration_utils.py",
    "huggingface_hub/dataclasses.py",
    "/copy.py",
    "<string>",  # what dataclasses generates
)
"""Code that reads all fields of a config alike; what it reads of one alone is mentioned in it by name."""

_WHOLESALE = frozenset({"to_dict", "to_diff_dict", "__dict__", "asdict"})
"""What a model's code takes a config apart with: then it may read any field."""

_CACHES = ("past_key_values", "cache_params", "state")
"""What a model's output, and its argument, for the state behind the last token is called."""


@dataclass(frozen=True)
class ConfigReads:
    """What can be read of the configs of one model.

    Attributes:
        read: the names that were read.
        aliases: other names of fields.
        own: the files of the model's own classes and of its config's.
        general: other files of the library that read configs.
        foreign: whether a class is not the library's.
    """

    read: frozenset[str]
    aliases: tuple[tuple[str, str], ...]
    own: frozenset[Path]
    general: frozenset[Path]
    foreign: bool

    def __contains__(self, field: str) -> bool:
        """Whether the library can read a field."""
        names = {field, *(alias for alias, meant in self.aliases if meant == field)}
        return (
            self.foreign
            or bool(names & self.read)
            or any(_mentions(file, name, of_a_model=True) for file in self.own for name in names)
            or any(_mentions(file, name, of_a_model=False) for file in self.general for name in names)
            or any(_takes_apart(file) for file in self.own)
        )


def reads_of(build: Callable[[], PreTrainedModel], block_list: str) -> ConfigReads:
    """Build an empty model, run it, and see what it reads of its config.

    Args:
        build: makes the model, and its config, on the meta device.
        block_list: where its blocks are; one of each kind runs.
    """
    with _recording() as (names, files):
        model = build()
        _run(model, block_list)
    configs = {type(module.config) for module in model.modules() if isinstance(module, PreTrainedModel)}
    classes = configs | {type(module) for module in model.modules()}
    modules = {base.__module__ for cls in classes for base in cls.__mro__}
    files = {file for file in files if _MODELS.parent in file.parents}
    of_types = {file for file in files if _MODELS in file.parents and file.parent.name != "auto"} | {
        Path(str(sys.modules[name].__file__)) for name in modules if _is_of_a_type(name)
    }
    return ConfigReads(
        read=frozenset(names),
        aliases=tuple({alias for one in configs for alias in one.attribute_map.items()}),
        own=frozenset(of_types),
        general=frozenset({*_GENERAL, *files} - of_types),
        foreign=any(cls.__module__.partition(".")[0] not in _LIBRARY for cls in classes),
    )


def _is_of_a_type(module: str) -> bool:
    package = module.partition(".")[0]
    return module.startswith("transformers.models.") or package in _LIBRARY - {"transformers", "torch"}


# -- what is read ---------------------------------------------------------------------------------------------


@contextmanager
def _recording() -> Iterator[tuple[set[str], set[Path]]]:
    """The names that are read of any config meanwhile, and the files whose code reads them."""
    names: set[str] = set()
    files: set[str] = set()
    get = PreTrainedConfig.__getattribute__

    def read(config: PreTrainedConfig, name: str) -> Any:
        file = sys._getframe(1).f_code.co_filename
        if not file.endswith(_FOR_EVERY_FIELD):
            names.add(name)
            files.add(file)
        return get(config, name)

    paths: set[Path] = set()
    with mock.patch.object(PreTrainedConfig, "__getattribute__", read):
        yield names, paths
    paths |= {Path(file) for file in files}


def _run(model: PreTrainedModel, block_list: str) -> None:
    """A pass without a cache, one that fills it, and one with a full one."""
    path, _, leaf = block_list.rpartition(".")
    kinds = {_kind(block): block for block in model.get_submodule(block_list).children()}
    setattr(model.get_submodule(path), leaf, nn.ModuleList(kinds.values()))
    model = model.to(torch.bfloat16).eval()  # without values, experts can be chosen in half precision only
    given = arguments(model, {"input_ids": torch.zeros((1, 2), dtype=torch.long, device="meta")})
    with torch.no_grad(), Blank():
        # Any of these can break off: in a type without that cache, or asked for a value that is not there. What was
        # read until then counts, and what follows stands in the code.
        with suppress(Exception):
            model(**given)
        with suppress(Exception):
            DynamicCache(config=model.config)
        with suppress(Exception):
            StaticCache(config=model.config, max_cache_len=8)
        with suppress(Exception):
            output = model(**given | {"use_cache": True})
            model(**given | {"use_cache": True} | {name: output[name] for name in _CACHES if name in output})


def _kind(block: nn.Module) -> Any:
    """Equal for blocks that differ in nothing but their place."""
    flags = [
        (name, key, value)
        for name, module in block.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (str, bool))
    ]
    return repr(block), tuple(flags)


# -- what is mentioned ----------------------------------------------------------------------------------------


def _mentions(file: Path, name: str, *, of_a_model: bool) -> bool:
    return name in _text(file) and name in _mentioned(file, of_a_model=of_a_model)


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _mentioned(file: Path, *, of_a_model: bool) -> frozenset[str]:
    """The names of fields that code reads: `config.name`, `"name"`, and in a config's own methods, arguments.

    A declaration (`name: int = 3`), a plain store of an argument (`self.name = name`) and a docstring read nothing.

    Args:
        of_a_model: whether any `x.name` counts, but for `self.name` of a class that is no config; otherwise those of
            what is called a config.
    """
    return frozenset(_names(ast.parse(_text(file)), in_config=False, any_owner=of_a_model))


def _names(node: ast.AST, *, in_config: bool, any_owner: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inside = in_config
        if isinstance(child, ast.ClassDef):
            inside = "Config" in child.name
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if isinstance(child, ast.Assign) and _stores_an_argument(child):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            owner = ast.unparse(child.value).lower()
            if in_config if owner == "self" else any_owner or "config" in owner or "cfg" in owner:
                yield child.attr
        elif isinstance(child, ast.Name) and in_config and isinstance(child.ctx, ast.Load):
            yield child.id
        yield from _names(child, in_config=inside, any_owner=any_owner)


def _stores_an_argument(node: ast.Assign) -> bool:
    target = node.targets[0]
    return isinstance(node.value, ast.Name) and isinstance(target, ast.Attribute) and target.attr == node.value.id


@cache
def _takes_apart(file: Path) -> bool:
    """Whether a model's code handles a config as a whole, so that it may read any field."""
    if file.name.startswith("configuration_"):
        return False
    return "vars(" in _text(file) or any(_mentions(file, name, of_a_model=True) for name in _WHOLESALE)
