"""What was measured so far, in a folder, so that a second run of the same command goes on where the first one stopped.

::

    FOLDER/journal.jsonl    {"run": ...}                        text, seed, tasks with version and settings
                            {"model": 0, "identity": ...}       each model when it is opened, with some of its logits
                            {"task": ..., "model": 0, ...}      the outcomes of some tens of items

A line is written when what it says is done; a last one that is cut off is left out. Every line is flushed, so that
whatever ends a run costs at most the items that were being measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shortgpt.errors import OutputError, ResumeError
from shortgpt.values.evaluation.outcomes import Outcome

FILE = "journal.jsonl"
CLOSE = 1e-3
"""Logits of the same model, relative to the largest: of other numbers of threads and other batches."""

Chunk = tuple[list[Outcome], int]
"""Outcomes, and how many contexts of them were cut."""


class Journal:
    """The journal of a run.

    Args:
        folder: where it lies; made with the first line.
        run: what tells this run from others, as JSON types.

    Raises:
        ResumeError: there is a journal of another run, or one that cannot be read.
        OutputError: the folder is a file.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any]) -> None:
        self.file = Path(folder).expanduser() / FILE
        self.run = json.loads(json.dumps(run, default=str))
        self.models: dict[int, dict[str, Any]] = {}
        self.chunks: dict[tuple[str, int, int], dict[str, Any]] = {}
        self.size = 0  # bytes of whole lines
        if self.file.parent.exists() and not self.file.parent.is_dir():
            raise OutputError(f"{folder}: a run is resumed from a folder, and this is a file")
        if self.file.exists():
            self._read()

    def known(self, task: str, model: int, first: int, items: Sequence[int]) -> Chunk | None:
        """What was measured of these items before, the first of them the `first` that the task asked of the model."""
        found = self.chunks.get((task, model, first))
        if found is None or found["items"] != list(items):
            return None
        outcomes = [Outcome(s, w, tuple(answers), tuple(right)) for s, w, answers, right in found["outcomes"]]
        return outcomes, found["truncated"]

    def add(self, task: str, model: int, first: int, items: Sequence[int], chunk: Chunk) -> None:
        """Write down what was measured."""
        outcomes, truncated = chunk
        line = {
            "task": task,
            "model": model,
            "first": first,
            "items": list(items),
            "outcomes": [list(outcome) for outcome in outcomes],
            "truncated": truncated,
        }
        self._write(line)

    def opened(self, model: int, identity: dict[str, Any], logits: Sequence[float]) -> None:
        """Note a model when it is opened.

        Raises:
            ResumeError: another one stood in its place.
        """
        identity = json.loads(json.dumps(identity))
        before = self.models.get(model)
        if before is None:
            self.models[model] = {"model": model, "identity": identity, "logits": list(logits)}
            self._write(self.models[model])
            return
        largest = max(map(abs, before["logits"]), default=0.0)
        same = len(before["logits"]) == len(logits) and all(
            abs(a - b) <= CLOSE * largest for a, b in zip(before["logits"], logits, strict=True)
        )
        other = _first_other(before["identity"], identity) or (None if same else "its logits")
        if other is not None:
            raise self._refused(f"of another model {identity.get('model', model)!r}: {other}")

    def _read(self) -> None:
        try:
            data = self.file.read_bytes()
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be read ({error.strerror})") from None
        self.size = data.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in data[: self.size].decode("utf-8").splitlines()]
            for line in lines[1:]:
                if "task" in line:
                    self.chunks[line["task"], line["model"], line["first"]] = line
                else:
                    self.models[line["model"]] = line
            before = lines[0]["run"] if lines else self.run
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ResumeError(f"{self.file}: no journal of shortgpt evaluate ({error}); name another folder") from None
        other = _first_other(before, self.run)
        if other is not None:
            raise self._refused(f"of another run: {other}")

    def _refused(self, why: str) -> ResumeError:
        return ResumeError(f"{self.file} is {why}; give the same command as before, or another folder")

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line, behind the last whole one."""
        lines = [line] if self.size else [{"run": self.run}, line]
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
        data = text.encode("utf-8", "surrogatepass")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "r+b" if self.file.exists() else "wb") as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(data)
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror})") from None
        self.size += len(data)


def _first_other(before: Any, now: Any, where: str = "") -> str | None:
    """The first thing that is another, in words; None where nothing is."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in (*before, *(key for key in now if key not in before)):
            if found := _first_other(before.get(key), now.get(key), f"{where} {key}".strip()):
                return found
        return None
    return None if before == now else f"{where} was {_brief(before)}, now it is {_brief(now)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
