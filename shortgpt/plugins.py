"""Finds, loads, names and reports plugins: the only user of pluggy's manager.

::

    entry points of group "shortgpt" ──▶ PluginRecord (loaded | failed, and why)
                                    └──▶ hooks ──▶ one list a kind: name and "module:object", imported on use

Nothing here imports torch: a plugin's answers are plain data, and a broken plugin is a line of `shortgpt plugins`,
not a broken command line. `SHORTGPT_STRICT_PLUGINS=1` raises instead.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from shortgpt import hookspecs
from shortgpt.errors import PluginError, ShortGPTError, UnknownNameError
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shortgpt.tables import Table

GROUP = "shortgpt"
STRICT_VARIABLE = "SHORTGPT_STRICT_PLUGINS"


@dataclass(frozen=True)
class Extension(Value):
    """A named thing that a plugin provides.

    Attributes:
        name: what users call it.
        target: `"module:object"`, imported on first use.
        description: in a few words.
        plugin: filled in by the loader.
    """

    name: str
    target: str
    description: str = ""
    plugin: str = ""


@dataclass(frozen=True)
class Architecture(Extension):
    """A model family, as plain data: how to recognise it, and where its `shortgpt.Family` lives.

    A source is recognised by any of: its config's `model_type` or `architectures`; for a config without a
    `model_type`, the presence of all `config_keys`; a file's suffix. A model in memory is recognised by its config's
    `model_type`, or by its class's module being one of `modules` (or inside one).
    Of several that recognise a model, the highest `priority` wins; equal ones are an error, never a guess. The model
    type `"*"` stands for every one, and belongs to a priority below 0.

    Attributes:
        model_types, architectures, config_keys: of a config, by which a folder is recognised.
        suffixes: of a file, by which it is recognised.
        modules: of classes, by which a model in memory is recognised.
        priority: of several that recognise a model, the highest wins.
    """

    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    config_keys: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True)
class PluginRecord(Value):
    """One entry point: what it is, where it came from, and what became of it.

    Attributes:
        name, value: of the entry point.
        distribution, version: of the installed package that it came with.
        error: why it failed to load; None when it loaded.
        provides: a line a kind of thing, with their names.
    """

    name: str
    value: str
    distribution: str
    version: str
    error: str | None = None
    provides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registry(Value):
    """Everything the installed plugins provide, by kind. Two plugins may claim one name: using it is then an error.

    Attributes:
        records: the plugins themselves.
        architectures: the families of models that are recognised.
        criteria, calibrations, evaluators, reporters: what `--criterion`, `--calibration`, `--evaluator` and `--format`
            take.
        models: small models that ship with a plugin.
    """

    records: tuple[PluginRecord, ...]
    architectures: tuple[Architecture, ...] = ()
    criteria: tuple[Extension, ...] = ()
    calibrations: tuple[Extension, ...] = ()
    evaluators: tuple[Extension, ...] = ()
    reporters: tuple[Extension, ...] = ()
    models: tuple[Extension, ...] = ()

    @property
    def failed(self) -> tuple[PluginRecord, ...]:
        return tuple(record for record in self.records if record.error)

    def failures_note(self) -> str:
        """A sentence for error messages, empty when every plugin loaded."""
        if not self.failed:
            return ""
        reasons = "; ".join(f"{record.name} ({record.value}): {record.error}" for record in self.failed)
        return f" Plugins that failed to load: {reasons}."

    def tables(self) -> tuple[Table, ...]:
        from shortgpt.reports.plugins import tables

        return tables(self)

    def __rich__(self) -> RenderableType:
        from shortgpt.reports.plugins import registry_tables

        return registry_tables(self)


@functools.cache
def registry() -> Registry:
    """The installed plugins, loaded once a process. `registry.cache_clear()` makes the next call look again."""
    return load(importlib.metadata.entry_points(group=GROUP))


def load(entry_points: Iterable[importlib.metadata.EntryPoint]) -> Registry:
    """Load plugins from entry points.

    Raises:
        PluginError: with `SHORTGPT_STRICT_PLUGINS=1`, for the first plugin that fails.
    """
    manager = pluggy.PluginManager("shortgpt")
    manager.add_hookspecs(hookspecs)
    provided: dict[str, list[Extension]] = {kind: [] for kind in _HOOKS}
    records = []
    for entry_point in sorted(entry_points, key=lambda e: (e.name, e.value)):
        record = _describe(entry_point)
        try:
            answers = _answers(manager, entry_point)
        except Exception as error:  # whatever a stranger's module does at import, the others still load
            if os.environ.get(STRICT_VARIABLE) == "1":
                raise PluginError(f"plugin {record.name} ({record.value}) failed to load: {_reason(error)}") from error
            records.append(replace(record, error=_reason(error)))
            continue
        for kind, entries in answers.items():
            provided[kind].extend(entries)
        provides = tuple(f"{kind}: {', '.join(e.name for e in entries)}" for kind, entries in answers.items())
        records.append(replace(record, provides=provides))
    tables: dict[str, Any] = {kind: tuple(entries) for kind, entries in provided.items()}
    return Registry(records=tuple(records), **tables)


def load_target(target: str) -> Any:
    """Import `"module:object"`.

    Raises:
        PluginError: the target is malformed, its module cannot be imported, or it has no such object.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not attribute:
        raise PluginError(f"target {target!r} is malformed; it must read 'module:object'")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ShortGPTError:
        raise
    except Exception as error:  # whatever a stranger's module does at import
        raise PluginError(f"target {target!r} cannot be imported: {_reason(error)}") from error


@contextmanager
def running(kind: str, entry: Extension) -> Iterator[None]:
    """Run a plugin's code: whatever it raises that is no error of ours says whose it is.

    Raises:
        PluginError: it raised; lack of memory is passed on, which is nobody's fault.
    """
    try:
        yield
    except (ShortGPTError, OSError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise PluginError(f"{kind} {entry.name!r} (plugin {entry.plugin}) failed: {_reason(error)}") from error


E = TypeVar("E", bound=Extension)


def lookup(kind: str, entries: Iterable[E], name: str) -> E:
    """The entry called `name`.

    Raises:
        UnknownNameError: there is none; the message suggests what may have been meant and lists what is installed.
        PluginError: two plugins provide it.
    """
    entries = tuple(entries)
    found = [entry for entry in entries if entry.name == name]
    if len(found) > 1:
        plugins = " and ".join(entry.plugin for entry in found)
        raise PluginError(f"{kind} {name!r} is provided by the plugins {plugins}; uninstall one of them")
    if not found:
        names = sorted({entry.name for entry in entries})
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(
            f"unknown {kind} {name!r}.{hint} Installed: {', '.join(names) or 'none'}.{registry().failures_note()}"
        )
    return found[0]


def _describe(entry_point: importlib.metadata.EntryPoint) -> PluginRecord:
    distribution = entry_point.dist
    return PluginRecord(
        name=entry_point.name,
        value=entry_point.value,
        distribution=distribution.name if distribution else "unknown",
        version=distribution.version if distribution else "unknown",
    )


def _answers(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> dict[str, list[Extension]]:
    """What one plugin provides, by kind; on any failure nothing of it stays registered."""
    plugin = entry_point.load()
    if manager.has_plugin(entry_point.name):
        raise PluginError(f"another plugin is already called {entry_point.name!r}")
    if manager.is_registered(plugin):
        raise PluginError(f"{entry_point.value} is already loaded under another name")
    manager.register(plugin, name=entry_point.name)
    try:
        manager.check_pending()  # a misspelt hook is silent otherwise
        implemented = {caller.name for caller in manager.get_hookcallers(plugin) or ()}
        if not implemented:
            raise PluginError("it implements no hook of shortgpt (is @hookimpl missing?)")
        others = [other for other in manager.get_plugins() if other is not plugin]
        return {
            kind: [
                _checked(item, expected, entry_point.name)
                for answer in manager.subset_hook_caller(hook, others)()
                for item in answer
            ]
            for kind, (hook, expected) in _HOOKS.items()
            if hook in implemented
        }
    except Exception:
        manager.unregister(plugin)
        raise


def _checked(item: Any, expected: type[Extension], plugin: str) -> Extension:
    if not isinstance(item, expected):
        raise PluginError(f"expected {expected.__name__} values, found {item!r}")
    return replace(item, plugin=plugin)


_HOOKS: dict[str, tuple[str, type[Extension]]] = {
    "architectures": ("shortgpt_architectures", Architecture),
    "criteria": ("shortgpt_criteria", Extension),
    "calibrations": ("shortgpt_calibrations", Extension),
    "evaluators": ("shortgpt_evaluators", Extension),
    "reporters": ("shortgpt_reporters", Extension),
    "models": ("shortgpt_models", Extension),
}


KINDS = tuple(_HOOKS)
"""What plugins provide: the names of the registry's tables."""


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
