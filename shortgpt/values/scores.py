"""`Scores`: what scoring gives, and the choices that can be made by it.

A score is a mean over tokens. Neither tokens of one text nor windows of one document are independent, so its
uncertainty is taken with the document as the unit (`shortgpt.basics.statistics`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shortgpt.basics.block_lists import block_numbers, format_blocks
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.statistics import RESAMPLES, Unit, observed, ratio, resampled_means, unit
from shortgpt.basics.targets import load_target
from shortgpt.basics.untrusted import local_path, read_text
from shortgpt.basics.value import Value
from shortgpt.errors import (
    SelectionError,
    ShortGPTError,
)
from shortgpt.values.choosing.choice import Exchange, exchanges, least, run
from shortgpt.values.choosing.search import Search
from shortgpt.values.choosing.spans import Spans

DEFAULT_CRITERION = "block-influence"
KEPT = "it was asked to stay"


@dataclass(frozen=True)
class BlockScore(Value):
    """One block's row of scores.

    Attributes:
        block: its number, from 0.
        name: its name in the model.
        value: of the first criterion; the lower, the earlier it goes.
        stderr: its standard error; NaN for a single sequence.
        rank: from 1, the least influential.
        chosen: whether it is among the blocks that would go.
        stability: in what share of bootstrap resamples it would be among as many blocks of least score as are chosen;
            NaN where none are, or for a single sequence.
    """

    block: int
    name: str
    value: float
    stderr: float
    rank: int
    chosen: bool
    stability: float


@dataclass(frozen=True)
class Scores(Value):
    """The scores of a model's blocks on a calibration set. Lower means: remove first.

    Attributes:
        model, architecture, norm_placement: of the model that was scored.
        block_names: [blocks].
        criteria: what was measured; `values`, `stderr` and `ranking` speak of the first.
        sums: for each criterion, the float64 sums of the tokens' values, [sequences][blocks]. For one that is no mean
            over tokens there is a single row, its values.
        counts: for each criterion, the tokens that are in each of its rows.
        tokens: the real tokens of each sequence, [sequences].
        documents: the document that each sequence is of, numbered from 0, [sequences]; empty where that is not known.
        stream_norm: mean ‖x_i‖ over tokens, before each block: the paper's mechanism is that it grows with depth.
        update_norm: mean ‖x_{i+1} − x_i‖ over tokens.
        parameters: of each block.
        total_parameters: of the whole model.
        pinned: blocks that cannot be removed, each with its reason.
        calibration: what it was measured on.
        dtype: of the residual stream.
        refused: criteria that were asked for and that this model cannot serve, each with the reason.
        spans: the first criterion between all pairs of boundaries, where that was asked for.
        chosen: the blocks that would go by them, or by the search; empty where none were chosen.
        search: the search for the best set of blocks, where that was asked for.
    """

    derived = ("blocks",)

    model: str
    architecture: str
    norm_placement: str
    block_names: tuple[str, ...]
    criteria: tuple[str, ...]
    sums: tuple[tuple[tuple[float, ...], ...], ...]
    counts: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    stream_norm: tuple[float, ...]
    update_norm: tuple[float, ...]
    parameters: tuple[int, ...]
    total_parameters: int
    pinned: dict[int, str]
    calibration: CalibrationInfo
    dtype: str
    refused: dict[str, str] = field(default_factory=dict)
    spans: Spans | None = None
    documents: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()
    search: Search | None = None

    @classmethod
    def read(cls, file: str | Path) -> Scores:
        """The scores in a JSON file, such as `shortgpt score --json` writes.

        Raises:
            ShortGPTError: there are none in it.
        """
        try:
            return cls.from_json(read_text(local_path(file)))
        except (OSError, UnicodeDecodeError, ShortGPTError) as error:
            raise ShortGPTError(f"{file}: no scores can be read from it ({error})") from None

    def __len__(self) -> int:
        return len(self.block_names)

    def of(self, criterion: str) -> Scores:
        """The same scores with another of the measured criteria first.

        Raises:
            ShortGPTError: it was not measured.
        """
        if criterion not in self.criteria:
            why = self.refused.get(criterion)
            told = f": {why}" if why else f", only {', '.join(self.criteria)}"
            raise ShortGPTError(f"criterion {criterion!r} was not measured here{told}")
        order = sorted(range(len(self.criteria)), key=lambda k: self.criteria[k] != criterion)
        return replace(
            self,
            criteria=tuple(self.criteria[k] for k in order),
            sums=tuple(self.sums[k] for k in order),
            counts=tuple(self.counts[k] for k in order),
        )

    @property
    def values(self) -> tuple[float, ...]:
        """The mean over all tokens, [blocks]."""
        total = sum(self.counts[0])
        return tuple(sum(column) / total for column in zip(*self.sums[0], strict=True))

    @property
    def stderr(self) -> tuple[float, ...]:
        """The standard error of `values`, [blocks]: of a ratio of sums over documents, or over sequences (`unit`). NaN
        for a single sequence."""
        return tuple(ratio(column, self.counts[0], self.grouping)[1] for column in zip(*self.sums[0], strict=True))

    @property
    def grouping(self) -> tuple[int, ...]:
        """The document of each row of the first criterion's sums; empty where that is not known."""
        return self.documents if len(self.documents) == len(self.counts[0]) else ()

    @property
    def unit(self) -> Unit:
        """What the first criterion's errors and resamples take for independent: the "document"; the "sequence" where it
        is not known of which document each is, or there are too few documents."""
        return unit(self.counts[0], self.grouping)

    def ranking(self) -> tuple[int, ...]:
        """The blocks, least influential first. Of equal ones the deeper goes first. Pinned ones are not left out."""
        values = self.values
        return tuple(sorted(range(len(self)), key=lambda i: (values[i], -i)))

    @property
    def blocks(self) -> tuple[BlockScore, ...]:
        """A row a block, of the first criterion."""
        rank = {block: place for place, block in enumerate(self.ranking(), start=1)}
        stability = self.inclusion(len(self.chosen)) if self.chosen else (float("nan"),) * len(self)
        columns = zip(self.block_names, self.values, self.stderr, stability, strict=True)
        return tuple(
            BlockScore(block, name, value, stderr, rank[block], block in self.chosen, share)
            for block, (name, value, stderr, share) in enumerate(columns)
        )

    def least_influential(self, n: int) -> tuple[int, ...]:
        """The n blocks of least score that may be removed, in the order of the model.

        Raises:
            SelectionError: n is not between 1 and the number of blocks that may go (and at least one stays).
        """
        return _lowest(self.values, self.pinned, n)

    def stability(self, n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
        """How sure the set of the n least influential is: in what share of bootstrap resamples of the documents,
        or of the sequences (`unit`), the same set comes out. 1.0 is certain; NaN for a single sequence."""
        lowest = self._resampled(n, resamples, seed)
        return float("nan") if lowest is None else float((lowest == self.least_influential(n)).all(1).mean())

    def inclusion(self, n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, ...]:
        """How sure each block's place is, [blocks]: in what share of bootstrap resamples it is among the n least
        influential. NaN for a single sequence."""
        lowest = self._resampled(n, resamples, seed)
        if lowest is None:
            return (float("nan"),) * len(self)
        return tuple(float((lowest == block).any(1).mean()) for block in range(len(self)))

    def _resampled(self, n: int, resamples: int, seed: int) -> Any:
        """The n blocks of least score in each resample, in order, [resamples, n]; None for a single sequence."""
        import numpy

        check_number(n, len(self), self.pinned)
        if observed(self.counts[0]) < 2:
            return None
        deeper_first = numpy.array([i for i in reversed(range(len(self))) if i not in self.pinned])
        means = resampled_means(self.sums[0], self.counts[0], resamples, seed, self.grouping)[:, deeper_first]
        return numpy.sort(deeper_first[means.argsort(1, kind="stable")[:, :n]], 1)

    def toss_ups(self, n: int) -> tuple[Exchange, ...]:
        """Which blocks at the cut are a toss-up: the pairs of one of the n least influential blocks and another one
        whose means differ by no more than the standard error of their difference, paired by document or sequence
        (`unit`). The most even one first; none for a single sequence, where that error is not known."""
        return tuple(one for one in exchanges(self, self.least_influential(n)) if one.toss_up)

    def keeping(self, blocks: Iterable[int]) -> Scores:
        """The same scores with these blocks pinned, so that no choice takes them.

        Raises:
            SelectionError: there is no such block, or none would be left to choose from.
        """
        kept = dict.fromkeys(blocks, KEPT)
        check_kept(kept, len(self), self.pinned)
        return replace(self, pinned=dict(sorted((kept | self.pinned).items()))) if kept else self

    def choosing(self, blocks: Iterable[int]) -> Scores:
        """The same scores with the blocks that would go by them."""
        return replace(self, chosen=block_numbers(blocks, len(self)))

    def with_search(self, search: Search) -> Scores:
        """The same scores beside the search that says which blocks would go."""
        return replace(self, chosen=search.blocks, search=search)

    def plan(self, n: int, *, contiguous: bool = False) -> Any:
        """The plan that removes the n least influential blocks.

        Args:
            contiguous: remove the n neighbouring blocks that have the least influence as one; for scores with `spans`.

        Raises:
            SelectionError: there are no such blocks.
        """
        chosen = run(self, n) if contiguous else least(self, n)
        plan = load_target("shortgpt.values.plan:Plan").chosen(self, chosen)  # a plan holds scores: it is found by name
        return plan

    def check(self) -> None:
        """Raise a `ShortGPTError` where blocks, criteria and sums do not fit together."""
        blocks = len(self)
        fits = blocks > 0 and 0 < len(self.criteria) == len(self.sums) == len(self.counts)
        fits &= {len(self.parameters), len(self.stream_norm), len(self.update_norm)} == {blocks}
        fits &= all(0 <= block < blocks for block in self.pinned)
        fits &= len(self.documents) in (0, len(self.tokens))
        fits &= all(0 <= block < blocks for block in self.chosen)
        for rows, counts in zip(self.sums, self.counts, strict=False):
            fits &= len(rows) == len(counts) and all(n >= 0 for n in counts) and any(counts)
            fits &= all(len(row) == blocks for row in rows)
        if not fits or (self.spans is not None and self.spans.depth != blocks):
            raise ShortGPTError(f"Scores: the numbers do not fit {blocks} blocks and {len(self.criteria)} criteria")


def _lowest(values: Sequence[float], pinned: dict[int, str], n: int) -> tuple[int, ...]:
    check_number(n, len(values), pinned)
    free = [i for i in range(len(values)) if i not in pinned]
    return tuple(sorted(sorted(free, key=lambda i: (values[i], -i))[:n]))


def check_number(n: int, depth: int, pinned: Mapping[int, str]) -> None:
    """Raise a `SelectionError` where n blocks of a model cannot be removed: pinned ones stay, and at least one."""
    most = min(depth - len(pinned), depth - 1)
    if not 1 <= n <= most:
        stay = f" ({format_blocks(pinned)} must stay)" if pinned else ""
        raise SelectionError(
            f"{n} blocks cannot be chosen: from 1 to {most} of the {depth} blocks may be removed{stay}"
        )


def check_kept(kept: Collection[int], depth: int, pinned: Mapping[int, str]) -> None:
    """Raise a `SelectionError` for blocks that cannot be asked to stay: there are no such, or no other could go."""
    outside = [block for block in kept if not 0 <= block < depth]
    if outside:
        raise SelectionError(
            f"blocks {format_blocks(outside)} cannot be kept: the model has {depth} blocks, numbered 0 to {depth - 1}"
        )
    if kept and len({*kept, *pinned}) >= depth:
        raise SelectionError(f"all {depth} blocks are to stay ({format_blocks(kept)} kept), so none can go; keep fewer")


def blocks_for_ratio(ratio: float, depth: int) -> int:
    """How many blocks a share of them is: `round(ratio · depth)`, at least one.

    Raises:
        SelectionError: the ratio is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise SelectionError(f"a ratio of {ratio} is no share; it must lie between 0 and 1, such as 0.25")
    return max(1, round(ratio * depth))
