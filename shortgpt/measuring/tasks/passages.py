"""Passages of a text source: something that is read, and what follows it.

::

    document  ─────────────────────────────────────────────────────────────
              │ context │    continuation    │ context │  continuation │ ...

Cuts lie at white space where there is some nearby. Passages do not overlap.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shortgpt.errors import CalibrationError
from shortgpt.measuring.calibration import places_taken
from shortgpt.measuring.tasks.task import TaskOptions
from shortgpt.measuring.texts import is_local, texts_of

STREAMED_CHARACTERS = 4_000_000
"""As much is read of a source that has no end of its own."""
NEARBY = 24
"""Characters that a cut is moved by to lie at white space."""
LEAST = 0.25
"""A document that is too short for a passage still gives one, if it has this share of its characters."""


class Passage(NamedTuple):
    """A piece of a document.

    Attributes:
        document: its number in the source.
        start, middle, end: in characters: the context ends, and the continuation begins, at `middle`.
    """

    document: int
    start: int
    middle: int
    end: int


class Passages(Sequence[Passage]):
    """All passages of a source.

    Args:
        context: characters of the context, about.
        continuation: characters of what follows it, about.

    Raises:
        CalibrationError: the source gives none.
    """

    def __init__(self, options: TaskOptions, context: int, continuation: int) -> None:
        self.documents = documents_of(options)
        self.source = options.text if isinstance(options.text, (str, Path)) else "texts"
        every = [
            passage
            for number, text in enumerate(self.documents)
            for passage in _cut(number, text, context, continuation)
        ]
        if not every:
            raise CalibrationError(
                f"{self.source}: too short: no document has the {round(LEAST * (context + continuation))} characters "
                "that a passage takes; give more text (--text)"
            )
        self._all = _held_out(every, _scored(options, self.documents))
        self.left_out = len(every) - len(self._all)
        if not self._all:
            raise CalibrationError(
                f"{self.source}: blocks were chosen on all of it, so none is held out; give other text (--text)"
            )

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, at: Any) -> Any:
        return self._all[at]

    def context(self, at: int) -> str:
        """What is read."""
        passage = self._all[at]
        return self.documents[passage.document][passage.start : passage.middle]

    def continuation(self, at: int) -> str:
        """What follows it."""
        passage = self._all[at]
        return self.documents[passage.document][passage.middle : passage.end]

    def settings(self) -> dict[str, Any]:
        """What is recorded of the source."""
        return {
            "text": str(self.source),
            "text_hash": text_hash(self.documents),
            "documents": len(self.documents),
            "passages_scored": self.left_out,
        }


@functools.lru_cache(maxsize=2)
def _read(text: str | Path | tuple[str, ...], field: str | None, seed: int) -> tuple[str, ...]:
    if isinstance(text, tuple):
        return text
    documents, characters = [], 0
    limit = None if is_local(text) else STREAMED_CHARACTERS
    for document in texts_of(text, field=field, seed=seed):
        documents.append(document)
        characters += len(document)
        if limit is not None and characters >= limit:
            break
    return tuple(documents)


def documents_of(options: TaskOptions) -> tuple[str, ...]:
    """The documents of the run's text, read once.

    Raises:
        CalibrationError: see `texts_of`; or what was handed in are no texts.
    """
    text = options.text if isinstance(options.text, (str, Path)) else tuple(options.text)
    if isinstance(text, tuple) and not all(isinstance(one, str) for one in text):
        raise CalibrationError("tasks are made from texts: a named source, a path, or an iterable of str")
    return _read(text, options.field, options.seed)


@functools.lru_cache(maxsize=2)
def text_hash(documents: tuple[str, ...]) -> str:
    """SHA-256 of all documents."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _scored(options: TaskOptions, documents: tuple[str, ...]) -> dict[int, list[tuple[int, int]]]:
    """The characters of each document on which blocks were chosen, from and to."""
    found: dict[int, list[tuple[int, int]]] = {}
    for info in options.scored:
        local = is_local(options.text)
        if local or info.seed == options.seed:  # a stream comes in another order by another seed
            for number, start, end in places_taken(documents, info, shuffle=local):
                found.setdefault(number, []).append((start, end))
    return found


def _held_out(passages: list[Passage], scored: dict[int, list[tuple[int, int]]]) -> list[Passage]:
    """The passages that nothing was scored on."""
    return [
        one
        for one in passages
        if not any(one.start < end and start < one.end for start, end in scored.get(one.document, ()))
    ]


def _cut(number: int, text: str, context: int, continuation: int) -> Iterator[Passage]:
    """The passages of a document; what is left at its end gives a shorter one."""
    whole = context + continuation
    at = 0
    while len(text) - at >= LEAST * whole:
        left = min(whole, len(text) - at)
        middle = _at_space(text, at + left * context // whole)
        end = len(text) if left < whole else _at_space(text, at + left)
        if text[at:middle].strip() and text[middle:end].strip():
            yield Passage(number, at, middle, end)
        at = max(end, at + 1)


def _at_space(text: str, at: int) -> int:
    """The nearest place at or before `at` where white space begins; `at` where there is none nearby."""
    for place in range(min(at, len(text)), max(at - NEARBY, 0), -1):
        if text[place : place + 1].isspace() and not text[place - 1].isspace():
            return place
    return min(at, len(text))
