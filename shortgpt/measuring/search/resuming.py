"""What a search has measured, in a journal (`shortgpt.basics.journal`): a line for each set and part of the text.

::

    {"key": "[[3, 4], "", 0]", "value": {"sums": [...], "counts": [...]}, ...}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt._version import __version__
from shortgpt.basics.journal import Journal
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import OutputError
from shortgpt.measuring.scoring.resuming import MEANINGS as OF_SCORING
from shortgpt.measuring.scoring.resuming import fingerprint

if TYPE_CHECKING:
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.measuring.search.space import Blocks
    from shortgpt.models.sequence import BlockSequence

FILE = "search.jsonl"
MEANINGS = {
    **{name: OF_SCORING[name] for name in ("model", "device", "version", "torch")},
    "text": "it was measured on another text",
    "objective": "it was measured by another objective",
}
"""For each name of a journal's identity, what it means that it differs."""

Rows = tuple[list[float], list[int]]
"""A sum and a count of tokens for each of some sequences."""


def journal_of(place: str | Path, model: BlockSequence, data: Calibration, objective: str, name: str = FILE) -> Journal:
    """The journal of a search.

    Args:
        place: a file that is there or is called `.jsonl`, or else a folder that holds it or will; made where it is not.
        name: of the file, where a folder is named.

    Raises:
        ResumeError: the file is of another model, text, objective or version, or it is damaged.
        OutputError: it cannot be written.
    """
    import torch

    path = local_path(place, OutputError)
    identity = {
        "model": fingerprint(model),
        "text": data.info.token_hash,
        "objective": objective,
        "device": model.device.type,
        "version": __version__,
        "torch": torch.__version__,
    }
    return Journal(path if path.is_file() or path.suffix == ".jsonl" else path / name, identity, MEANINGS)


@dataclass(frozen=True)
class Kept:
    """What stands in a journal, if there is one, of sets of blocks.

    Attributes:
        variant: what was done beside leaving them out; "" for nothing.
    """

    journal: Journal | None
    variant: str = ""

    def rows(self) -> Iterator[tuple[Blocks, int, Rows]]:
        """Each set, the number of the first sequence that it was measured on, and what was measured."""
        for key, value in self.journal.items() if self.journal is not None else ():
            blocks, variant, first = json.loads(key)
            if variant == self.variant:
                sums = [math.inf if one is None else one for one in value["sums"]]
                yield tuple(blocks), first, (sums, value["counts"])

    def add(self, blocks: Blocks, first: int, sums: Sequence[float], counts: Sequence[int]) -> None:
        """Keep what was measured of the sequences from `first` on."""
        if self.journal is not None:
            finite = [one if math.isfinite(one) else None for one in sums]
            value = {"sums": finite, "counts": list(counts)}
            self.journal.add(json.dumps([list(blocks), self.variant, first]), value)
