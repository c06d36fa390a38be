"""Numbers that others published of a model, and a run of ours beside them."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.value import Value


@dataclass(frozen=True)
class PublishedNumber(Value):
    """A number as it is printed.

    Attributes:
        table: where it stands.
        way: of which model it is: "dense", or the method and the share that it removed.
        column: what was measured.
        value: as printed; shares in percent.
        shortened: whether it is of the publication's own method, at the share that its list of removed blocks is of.
    """

    table: int
    way: str
    column: str
    value: float
    shortened: bool = False

    @property
    def dense(self) -> bool:
        """Whether it is of the whole model."""
        return self.way == "dense"


@dataclass(frozen=True)
class Published(Value):
    """What a publication says of one model.

    Attributes:
        model: the name that it is known by here.
        source: of the publication.
        blocks: how many the model has; None where no list of its blocks is given.
        removed: the blocks that were removed, in the order of the list: the least influential first.
        removed_table: where the list stands.
        numbers: of all tables.
        tasks: for each column, the names of tasks here that measure the like of it.
        notes: where the publication disagrees with itself, and what else to know.
    """

    model: str
    source: str
    blocks: int | None = None
    removed: tuple[int, ...] = ()
    removed_table: int | None = None
    numbers: tuple[PublishedNumber, ...] = ()
    tasks: dict[str, tuple[str, ...]] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beside(Value):
    """A column of a publication beside what was measured here; in percent, or as perplexity.

    Attributes:
        column: as published.
        table: where it stands.
        published, published_shorter: of the whole model and of the shortened one.
        here, here_shorter: what was measured of the original and of the first shorter model; NaN where nothing was.
        task: by which task; empty where none was run that measures the like.
    """

    column: str
    table: int
    published: float
    published_shorter: float
    here: float
    here_shorter: float
    task: str = ""


@dataclass(frozen=True)
class PublishedComparison(Value):
    """A run beside a publication.

    Attributes:
        model: what was run here.
        published: the model of the publication, as it is known by here.
        source: the publication.
        removed: the blocks that were removed there, as listed; empty where it gives none.
        removed_here: as many of least score, or those that were removed; empty where none are known.
        rank_correlation: Spearman's, over the blocks of the list, of their order there and their scores here; NaN where
            there are no scores.
        numbers: columns beside what was measured.
        notes: what the publication says against itself, and what to bear in mind.
    """

    model: str
    published: str
    source: str
    removed: tuple[int, ...] = ()
    removed_here: tuple[int, ...] = ()
    rank_correlation: float = float("nan")
    numbers: tuple[Beside, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shared(self) -> tuple[int, ...]:
        """The blocks that are removed in both."""
        return tuple(sorted(set(self.removed) & set(self.removed_here)))

    @property
    def overlap(self) -> float:
        """Blocks that are removed in both, over those that are removed in either; NaN where a list is missing."""
        either = set(self.removed) | set(self.removed_here)
        return len(self.shared) / len(either) if self.removed and self.removed_here else float("nan")
