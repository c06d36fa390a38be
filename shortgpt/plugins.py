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
from dataclasses import replace
from typing import Any, TypeVar

import pluggy

from shortgpt import hookspecs
from shortgpt.basics.registry import HOOKS, Extension, PluginRecord, Registry
from shortgpt.basics.registry import Architecture as Architecture  # what plugins are written with
from shortgpt.errors import PluginError, ShortGPTError, UnknownNameError, kind_and_reason

GROUP = "shortgpt"
STRICT_VARIABLE = "SHORTGPT_STRICT_PLUGINS"


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
    provided: dict[str, list[Extension]] = {kind: [] for kind in HOOKS}
    records = []
    for entry_point in sorted(entry_points, key=lambda e: (e.name, e.value)):
        record = _describe(entry_point)
        try:
            answers = _answers(manager, entry_point)
        except Exception as error:  # whatever a stranger's module does at import, the others still load
            if os.environ.get(STRICT_VARIABLE) == "1":
                raise PluginError(
                    f"plugin {record.name} ({record.value}) failed to load: {kind_and_reason(error)}"
                ) from error
            records.append(replace(record, error=kind_and_reason(error)))
            continue
        for kind, entries in answers.items():
            provided[kind].extend(entries)
        provides = tuple(f"{kind}: {', '.join(e.name for e in entries)}" for kind, entries in answers.items())
        records.append(replace(record, provides=provides))
    tables: dict[str, Any] = {kind: tuple(entries) for kind, entries in provided.items()}
    return Registry(records=tuple(records), **tables)


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
        raise PluginError(f"{kind} {entry.name!r} (plugin {entry.plugin}) failed: {kind_and_reason(error)}") from error


E = TypeVar("E", bound=Extension)


def lookup(kind: str, entries: Iterable[E], name: str) -> E:
    """The entry called `name`.

    Raises:
        UnknownNameError: there is none; the message suggests what may have been meant and lists what is installed.
        PluginError: two plugins provide it.
    """
    entries = tuple(entries)
    matching = [entry for entry in entries if entry.name == name]
    if len(matching) > 1:
        plugins = " and ".join(entry.plugin for entry in matching)
        raise PluginError(f"{kind} {name!r} is provided by the plugins {plugins}; uninstall one of them")
    if not matching:
        names = sorted({entry.name for entry in entries})
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(
            f"unknown {kind} {name!r}.{hint} Installed: {', '.join(names) or 'none'}.{registry().failures_note()}"
        )
    return matching[0]


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
            for kind, (hook, expected) in HOOKS.items()
            if hook in implemented
        }
    except Exception:
        manager.unregister(plugin)
        raise


def _checked(item: Any, expected: type[Extension], plugin: str) -> Extension:
    if not isinstance(item, expected):
        raise PluginError(f"expected {expected.__name__} values, found {item!r}")
    return replace(item, plugin=plugin)
