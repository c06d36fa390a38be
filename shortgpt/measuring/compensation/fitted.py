"""What was fitted for a removal: changes, and the record of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortgpt.models.projections import Change
from shortgpt.values.compensation import Compensation

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence


@dataclass(frozen=True)
class Fitted:
    """Changes that make up for a removal.

    Attributes:
        blocks: what is removed.
        changes: those that are kept, in order of depth; the blocks' numbers are those of the whole model.
        record: what was done about each run.
    """

    blocks: tuple[int, ...]
    changes: tuple[Change, ...]
    record: Compensation

    @contextmanager
    def on(self, model: BlockSequence) -> Iterator[None]:
        """Inside it the whole model is changed so that, with the blocks skipped, it is the compensated one."""
        with model.changing(self.changes):
            yield
