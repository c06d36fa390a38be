"""The folder of a training that is under way, beside the one that it will write."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from shortgpt.basics.kept import note_kept
from shortgpt.checkpoints.new_folder import check_output
from shortgpt.errors import OutputError


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

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
