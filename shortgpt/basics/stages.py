"""The parts of a run that take time and have nothing to count, such as loading a model: their names, and how long.

Whoever shows progress watches them; the logger `shortgpt` tells each at its end, at the level INFO.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger("shortgpt")


class Watcher(Protocol):
    """Called in whichever thread a stage runs; `key` tells stages of one name apart."""

    def begin(self, key: object, name: str, shows_itself: bool) -> None: ...

    def end(self, key: object) -> None: ...


_watchers: list[Watcher] = []


@contextmanager
def stage(name: str, *, shows_itself: bool = False) -> Iterator[None]:
    """Inside it, or inside a function that it decorates, something goes on that is called so.

    Args:
        shows_itself: a library draws bars of its own meanwhile.
    """
    key, began = object(), time.perf_counter()
    watchers = tuple(_watchers)
    for watcher in watchers:
        watcher.begin(key, name, shows_itself)
    try:
        yield
        log.info("%s: %.1f s", name, time.perf_counter() - began)
    finally:
        for watcher in watchers:
            watcher.end(key)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Inside it a watcher is told of every stage."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
