"""The best set of blocks that a search found, and how sure that is among those that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.statistics import RESAMPLES, difference, observed, resampled_means
from shortgpt.basics.value import Value
from shortgpt.errors import SelectionError, ShortGPTError, UnknownNameError
from shortgpt.values.choosing.choice import Choice, Chosen, Exchange, nearest

EXACT, PAIRS, BEAM = "exact", "pairs", "beam"
METHODS = (EXACT, PAIRS, BEAM)
PERPLEXITY, KL = "perplexity", "kl"
OBJECTIVES = (PERPLEXITY, KL)

LINES = tuple(f"{method}-search" for method in METHODS)
"""What the lines of a curve are called that a search gives."""

EVALUATIONS = 2_000
WIDTH = 4
SHOWN = 20
"""How many of the measured sets a result holds, the best first."""
RESAMPLED = 200
"""Of the measured sets, how many of the best take part in resampling: one further back hardly ever comes out first."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        method: "exact", "pairs" or "beam".
        objective: "perplexity" or "kl".
        evaluations: how many sets may be measured.
        width: of the beam.
        resume: the file or folder in which measurements are kept; None for none.
    """

    method: str
    objective: str = PERPLEXITY
    evaluations: int = EVALUATIONS
    width: int = WIDTH
    resume: str | Path | None = None

    @property
    def line(self) -> str:
        """What the line of a curve is called."""
        return f"{self.method}-search"

    @classmethod
    def of(cls, search: str | None, **options: Any) -> SearchOptions | None:
        """What is wanted, None for no search; options that are None have their default.

        Raises:
            SelectionError: options of a search were given without one, or a number makes no sense.
            UnknownNameError: there is no such method or objective.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if search is None:
            if given:
                names = ", ".join(f"--{name}" for name in given)
                raise SelectionError(f"{names}: nothing is searched for without --search {'|'.join(METHODS)}")
            return None
        wanted = cls(search, **given)
        wanted.check()
        return wanted

    def check(self) -> None:
        """Raise for a search that cannot be, before a model is opened; as `of`."""
        for what, name, known in (("search", self.method, METHODS), ("objective", self.objective, OBJECTIVES)):
            if name not in known:
                raise UnknownNameError(f"unknown {what} {name!r}; known are {', '.join(known)}")
        for what, number in (("evaluations", self.evaluations), ("the width", self.width)):
            if not isinstance(number, int) or number < 1:
                raise SelectionError(f"{what} of a search must be 1 or more, found {number!r}")


class Sums(NamedTuple):
    """The objective of the model without some blocks.

    Attributes:
        sums: float64 sums over the tokens of each sequence, [sequences]; infinite where the model gives no number.
        counts: the tokens of each sequence, [sequences].
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Over all tokens."""
        return sum(self.sums) / sum(self.counts)


@dataclass(frozen=True)
class Candidate(Value):
    """A set of blocks that was measured.

    Attributes:
        blocks: in the order of the model.
        value: the objective without them, in nats a token: log-perplexity, or the divergence from the whole model.
        predicted: what the model by singles and pairs had said of it before it was measured; None for other methods.
        compensated: the objective where what they did is made up for by compensation; None where that was not measured.
    """

    blocks: tuple[int, ...]
    value: float
    predicted: float | None = None
    compensated: float | None = None


@dataclass(frozen=True)
class Search(Value):
    """What a search for the best set of blocks found.

    Attributes:
        model, architecture: of the model that was searched.
        depth: its blocks.
        method: "exact", "pairs" or "beam".
        objective: "perplexity" (its logarithm is what is made small) or "kl".
        blocks: the best set, in the order of the model.
        choice: how sure it is, among the sets that were measured.
        whole: the objective of the whole model, in nats a token; 0 for "kl".
        candidates: the best of the measured sets of that many blocks, the best first.
        measured: how many sets of that many blocks were measured.
        evaluations: how often the model was measured without some blocks; all sets, smaller ones too, each once.
        passes: what these took, in passes of the whole model by blocks computed: what sets share is computed once.
        calibration: the text that it was searched on.
        stays: blocks that could not go, each with its reason.
        contiguous: whether only neighbouring blocks were looked for.
        width: of the beam; None for other methods.
        optimal: whether each solution of the program was proven to be its best; None where there was no program.
    """

    model: str
    architecture: str
    depth: int
    method: str
    objective: str
    blocks: tuple[int, ...]
    choice: Choice
    whole: float
    candidates: tuple[Candidate, ...]
    measured: int
    evaluations: int
    passes: float
    calibration: CalibrationInfo
    stays: dict[int, str] = field(default_factory=dict)
    contiguous: bool = False
    width: int | None = None
    optimal: bool | None = None

    @property
    def value(self) -> float:
        """The objective without `blocks`, uncompensated, in nats a token."""
        return next(one.value for one in self.candidates if one.blocks == self.blocks)

    def check(self) -> None:
        """Raise a `ShortGPTError` where the chosen set is not among the candidates, or there are no such blocks."""
        fits = self.blocks in {one.blocks for one in self.candidates}
        fits &= all(0 <= block < self.depth for one in self.candidates for block in one.blocks)
        if not fits:
            raise ShortGPTError(f"Search: the blocks {format_blocks(self.blocks)} are none of its candidates")


def best_set(measured: Mapping[tuple[int, ...], Sums], rule: str, documents: Sequence[int] = ()) -> Chosen:
    """The set of blocks of least objective, of equal ones that with the deeper blocks; and how sure it is.

    Its stability is the share of bootstrap resamples of the documents, or of the sequences, in which it comes out first
    among the `RESAMPLED` best. What a search did not measure cannot come out.

    Args:
        measured: by set; all on the same sequences.
        rule: what the choice is called.
        documents: the document that each sequence is of; empty where that is not known.
    """
    order = sorted(measured, key=lambda blocks: (measured[blocks].mean, [-block for block in reversed(blocks)]))
    best, *others = [blocks for blocks in order[:RESAMPLED] if math.isfinite(measured[blocks].mean)] or order[:1]
    counts = measured[best].counts
    stability = float("nan")
    if observed(counts) > 1 and math.isfinite(measured[best].mean):
        rows = list(zip(*(measured[blocks].sums for blocks in (best, *others)), strict=True))
        means = resampled_means(rows, counts, RESAMPLES, 0, documents)
        stability = float((means.argmin(1) == 0).mean())
    exchanges = []
    for blocks in others:
        gone, instead = (tuple(sorted({*one} - {*other})) for one, other in ((best, blocks), (blocks, best)))
        apart = difference(measured[best].sums, measured[blocks].sums, counts, documents)
        exchanges.append(Exchange(gone, instead, *apart))
    return best, Choice(rule, stability, nearest(exchanges)[:SHOWN])
