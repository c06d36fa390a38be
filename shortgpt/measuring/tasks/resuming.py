"""What an evaluation has measured, in a journal (`shortgpt.basics.journal`): a second run of the same command goes on
where the first one stopped.

::

    FOLDER/journal.jsonl    {..., "identity": ...}                      text, seed, tasks with version and settings
                            {"key": "model 0", ...}                     each model when it is opened, with some logits
                            {"key": "["perplexity", 0, 64]", ...}       the outcomes of some tens of items
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortgpt.basics.journal import Journal, first_other, resumed_folder
from shortgpt.errors import ResumeError
from shortgpt.values.evaluation.outcomes import Outcome

FILE = "journal.jsonl"
CLOSE = 1e-3
"""Logits of the same model, relative to the largest: of other numbers of threads and other batches."""

Chunk = tuple[list[Outcome], int]
"""Outcomes, and how many contexts of them were cut."""


@contextmanager
def kept_in(folder: str | Path | None, run: Mapping[str, Any]) -> Iterator[Kept | None]:
    """What is kept of a run in a folder, which is made where it is not there; None where no folder is named.

    Args:
        run: what tells this run from others, as values of JSON.

    Raises:
        ResumeError: there is a journal of another run, or one that is damaged.
        OutputError: the folder is a file, or cannot be written.
    """
    if folder is None:
        yield None
        return
    with Journal(resumed_folder(folder) / FILE, run) as journal:
        yield Kept(journal)


@dataclass(frozen=True)
class Kept:
    """What stands in the journal of an evaluation."""

    journal: Journal

    def known(self, task: str, model: int, first: int, items: Sequence[int]) -> Chunk | None:
        """What was measured of these items before, the first of them the `first` that the task asked of the model."""
        kept = self.journal.get(json.dumps([task, model, first]))
        if kept is None or kept["items"] != list(items):
            return None
        outcomes = [Outcome(s, w, tuple(answers), tuple(right)) for s, w, answers, right in kept["outcomes"]]
        return outcomes, kept["truncated"]

    def add(self, task: str, model: int, first: int, items: Sequence[int], chunk: Chunk) -> None:
        """Keep what was measured."""
        outcomes, truncated = chunk
        value = {
            "items": list(items),
            "outcomes": [list(outcome) for outcome in outcomes],
            "truncated": truncated,
        }
        self.journal.add(json.dumps([task, model, first]), value)

    def opened(self, model: int, identity: dict[str, Any], logits: Sequence[float]) -> None:
        """Note a model when it is opened.

        Raises:
            ResumeError: another one stood in its place.
        """
        identity = json.loads(json.dumps(identity))
        before = self.journal.get(f"model {model}")
        if before is None:
            self.journal.add(f"model {model}", {"identity": identity, "logits": list(logits)})
            return
        largest = max(map(abs, before["logits"]), default=0.0)
        same = len(before["logits"]) == len(logits) and all(
            abs(a - b) <= CLOSE * largest for a, b in zip(before["logits"], logits, strict=True)
        )
        other = first_other(before["identity"], identity) or (None if same else "its logits")
        if other is not None:
            raise ResumeError(
                f"{self.journal.file}: not the run that is asked for: another model "
                f"{identity.get('model', model)!r}: {other}. Name another folder (--resume), or ask as before"
            )
