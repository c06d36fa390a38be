"""Finding a model by its name, and the family that it is of."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from shortgpt import plugins
from shortgpt.basics.inputs import MAX_HEADER, Source
from shortgpt.basics.registry import Architecture
from shortgpt.basics.stages import stage
from shortgpt.basics.targets import load_target
from shortgpt.basics.untrusted import check_folder, local_path
from shortgpt.errors import AmbiguousArchitectureError, ModelError, PluginError, UnknownArchitectureError, reason_of
from shortgpt.models.family import ANY_MODEL_TYPE, Family
from shortgpt.models.foreign_formats import foreign

FOLDERS = {"additional_chat_templates": "*.jinja", "custom_generate": "*"}
"""The folders in a model's folder that transformers looks into → the files that it takes from there: chat templates
that have names, and a model's own way of generating."""


HUB_FILES = ("*.json", "*.model", "*.txt", "*.py", "*.jinja")
"""What is taken from a hub repository beside its weights."""


def resolve(name: str | Path, architecture: str | None = None, revision: str | None = None) -> Source:
    """Find a model: a name that a plugin ships (`zoo:llama`), a folder, a file, or a repository of the hub.

    Args:
        architecture: the adapter that will be taken; without it, a model of the hub is recognised before its weights
            are fetched.
        revision: of a model of the hub: a branch, a tag or a commit.

    Raises:
        ModelError: there is nothing of that name; or it is none of the hub, and a revision was named.
        UnknownNameError: no installed plugin ships it.
    """
    text = str(name)
    if not text:
        raise ModelError("the model's name is empty; name a model folder, a checkpoint file, or a hub id")
    path = local_path(text)
    shipped = plugins.registry().models
    is_shipped = any(model.name == text for model in shipped) or re.match(r"zoo:", text) is not None
    if revision is not None and (path.exists() or is_shipped):
        raise ModelError(f"{text}: only models of the hub have revisions, found --revision {revision}; leave it out")
    if path.exists():
        check_folder(text, path)
        if found := foreign(path):
            raise ModelError(f"{text}: it is {found}")
        return Source(text, _or_its_file(path))
    if is_shipped:
        return Source(text, Path(plugins.lookup("model", shipped, text).target))
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise ModelError(f"{text}: no such file or folder; name a model folder, a checkpoint file, or a hub id")
    named = text if revision is None else f"{text}@{revision}"
    fetched = _fetch(text, architecture, revision)
    check_folder(text, fetched)
    return Source(named, _or_its_file(fetched))


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

    def fits(entry: Architecture) -> bool:
        if is_file:
            return suffix in entry.suffixes
        if model_type is not None:
            known = model_type in entry.model_types or ANY_MODEL_TYPE in entry.model_types
            return known or any(name in entry.architectures for name in classes)
        named = any(name in entry.architectures for name in classes)
        return named or (bool(entry.config_keys) and all(key in config for key in entry.config_keys))

    return _admitted(_best(source.name, describe(source), fits), source)


def _admitted(entry: Architecture, source: Source) -> Family:
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

    def fits(entry: Architecture) -> bool:
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


def _best(name: str, found: str, fits: Callable[[Architecture], bool]) -> Architecture:
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


def _family(entry: Architecture) -> Family:
    cls = load_target(entry.target)
    if not (isinstance(cls, type) and issubclass(cls, Family)):
        raise PluginError(f"architecture {entry.name!r} (plugin {entry.plugin}): {entry.target} is no Family")
    return cls()


def code_folders(path: Path) -> set[str]:
    """The folders in a model's folder from which its own code is loaded, there or not: those that an `auto_map` names
    (`code/modeling.Model`), and those from which its modules import (`from .code.layers import Layer`)."""
    folders: set[str] = set()
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.suffix not in (".json", ".py") or not file.is_file() or file.stat().st_size > MAX_HEADER:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".py":
            folders |= set(re.findall(r"^\s*(?:from|import)\s+\.(\w+)", text, re.MULTILINE))
        elif '"auto_map"' in text:
            folders |= set(re.findall(r'"([\w-]+)/[\w/-]+\.\w+"', text[text.index('"auto_map"') :]))
    return {name for name in folders if not (path / f"{name}.py").is_file()}


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


@stage("fetching from the hub", shows_itself=True)
def _fetch(repository: str, architecture: str | None, revision: str | None) -> Path:
    """The local folder of a hub repository, in one weight format: safetensors where it has them.

    Its small files come first: a model that no adapter knows is told of before its weights are fetched.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    elsewhere = [*_folders_but(FOLDERS), "consolidated*"]  # subfolders and second copies of the weights
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*HUB_FILES], ignore_patterns=elsewhere, **at))
        if (folder / "config.json").is_file():
            check_folder(repository, folder)
            recognise(Source(repository, folder), architecture)
            if code := [f"{name}/*.py" for name in sorted(code_folders(folder))]:
                snapshot_download(repository, allow_patterns=code, ignore_patterns=[], **at)
            snapshot_download(repository, allow_patterns=[*HUB_FILES, "*.safetensors"], ignore_patterns=elsewhere, **at)
            if any(folder.glob("*.safetensors")):
                return folder
            weights = ["*.bin"]
        elif found := foreign(folder):
            raise ModelError(f"{repository}: it is {found}")
        else:
            weights = [name for name in HfApi().list_repo_files(repository, **at) if re.fullmatch(r"[^/]+\.pth", name)]
            if len(weights) != 1:
                found = ", ".join(sorted(weights)) or "none"
                raise ModelError(
                    f"{repository}: it has no config.json, and one .pth file was looked for (found: {found}); "
                    "fetch the one that is meant and name the file"
                )
        snapshot_download(repository, allow_patterns=[*HUB_FILES, *weights], ignore_patterns=elsewhere, **at)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{repository}: neither a file or folder here nor a model that the hub gives us ({reason_of(error)}); "
            "check the name, the network and, for a gated model, that you are logged in"
        ) from None
    return folder
