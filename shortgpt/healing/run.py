"""The folder of a training that is under way, beside the one that it will write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortgpt.basics.kept import note_kept
from shortgpt.checkpoints.new_folder import check_output
from shortgpt.errors import OutputError

SETTINGS = "run.json"


@dataclass(frozen=True)
class Run:
    """A training for an output folder.

    Attributes:
        folder: what it needs to be taken up again; gone when it is done.
        begun: whether it is one that was cut off.
    """

    folder: Path
    begun: bool

    @classmethod
    def of(cls, output: str | Path, resume: bool) -> Run:
        """The run for that output.

        Raises:
            OutputError: that cannot be written; a run was begun for it, and is not to be taken up; or none, and it is.
        """
        target = check_output(output)
        folder = target.with_name(f"{target.name}.checkpoints")
        begun = folder.is_dir() and any(folder.glob("checkpoint-*"))
        if begun and not resume:
            raise OutputError(f"{folder}: holds a run that was not finished; go on with it (--resume), or remove it")
        if resume and not begun:
            raise OutputError(f"{folder}: holds no run to go on with; begin one without --resume")
        note_kept(folder, "the same command with --resume")
        return cls(folder, begun)

    @property
    def scratch(self) -> Path:
        """The folder nearest to it that is there: what will hold the output has room for a model."""
        return next(folder for folder in self.folder.parents if folder.exists())

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise an `OutputError` where it was begun with other settings than these."""
        file = self.folder / SETTINGS
        if not (self.begun and file.is_file()):
            return
        old, new = json.loads(file.read_text(encoding="utf-8")), _plain(settings)
        changed = [name for name in new if new[name] != old.get(name)]
        if changed:
            told = ", ".join(f"{name} {old.get(name)!r}, now {new[name]!r}" for name in changed)
            raise OutputError(f"{self.folder}: holds a run of other settings ({told}); give it those, or remove it")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, and note its settings there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / SETTINGS).write_text(json.dumps(_plain(settings)), encoding="utf-8")

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain
