"""Which blocks are to go, as a user says it: by one rule and its number, by name, or by a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortgpt.basics.block_lists import block_numbers, parse_blocks
from shortgpt.errors import SelectionError
from shortgpt.values.choosing.budget import Budget
from shortgpt.values.choosing.choice import check_limit, free_runs
from shortgpt.values.plan import Plan
from shortgpt.values.scores import KEPT, blocks_for_ratio, check_kept, check_number

RULES = ("blocks", "ratio", "contiguous", "max_perplexity_ratio", "target", "remove", "plan")


@dataclass(frozen=True)
class Selection:
    """One of these, and what is to stay.

    Attributes:
        blocks: the n blocks of least score.
        ratio: this share of the blocks, by least score.
        contiguous: the n neighbouring blocks that score least as one.
        max_perplexity_ratio: as many blocks, by least score, as keep held-out perplexity within so many times the
            original's.
        target: those that are missed least, of all that are enough for these budgets.
        remove: these blocks.
        plan: what a plan says.
        keep: blocks that stay whatever they score.
    """

    blocks: int | None = None
    ratio: float | None = None
    contiguous: int | None = None
    max_perplexity_ratio: float | None = None
    target: tuple[Budget, ...] | None = None
    remove: tuple[int, ...] | None = None
    plan: Plan | None = None
    keep: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        target: str | Iterable[str] = (),
        remove: str | Iterable[int] | None = None,
        plan: Plan | str | Path | None = None,
        keep: str | Iterable[int] = (),
        **numbers: Any,
    ) -> Selection:
        """What is selected, after every check that needs no model.

        Args:
            target: budgets, such as "parameters<=110M"; see `shortgpt.values.choosing.budget`.
            remove, keep: block numbers, or a list of them in words, such as "21-29,31".
            plan: a plan, or the file or folder that holds one.

        Raises:
            SelectionError: nothing is selected, or two things at once; or a number makes no sense.
        """
        texts = (target,) if isinstance(target, str) else tuple(target)
        rules = {**numbers, "target": texts or None, "remove": remove, "plan": plan}
        options = {name: f"--{name.replace('_', '-')}" for name in RULES}
        given = [option for name, option in options.items() if rules.get(name) is not None]
        if len(given) != 1:
            problem = "two choices at once" if given else "nothing was chosen"
            raise SelectionError(
                f"{problem} ({', '.join(given) or 'no blocks'}); give one of {', '.join(options.values())}"
            )
        selection = cls(
            **numbers,
            target=tuple(Budget.parse(text) for text in texts) or None,
            remove=None if remove is None else _numbers(remove),
            plan=plan if plan is None or isinstance(plan, Plan) else Plan.read(plan),
            keep=_numbers(keep),
        )
        if selection.ratio is not None:
            blocks_for_ratio(selection.ratio, 100)
        if selection.max_perplexity_ratio is not None:
            check_limit(selection.max_perplexity_ratio)
        return selection

    @property
    def scored(self) -> bool:
        """Whether that takes scores."""
        return self.remove is None and self.plan is None

    @property
    def rule(self) -> str:
        """The option of the command line that says it, without what it says."""
        name = next(name for name in RULES if getattr(self, name) is not None)
        return f"--{name.replace('_', '-')}"

    def number(self, depth: int) -> int:
        """How many blocks go, where `blocks` or `ratio` says it."""
        if self.blocks is not None:
            return self.blocks
        assert self.ratio is not None
        return blocks_for_ratio(self.ratio, depth)

    def check(self, depth: int, pinned: Mapping[int, str]) -> None:
        """Raise a `SelectionError` for what a model of that many blocks cannot give."""
        if self.remove is not None:
            block_numbers(self.remove, depth)
        check_kept(self.keep, depth, pinned)
        stay = dict.fromkeys(self.keep, KEPT) | dict(pinned)
        if self.contiguous is not None:
            free_runs(depth, self.contiguous, stay)
        elif self.blocks is not None or self.ratio is not None:
            check_number(self.number(depth), depth, stay)


def _numbers(blocks: str | Iterable[int]) -> tuple[int, ...]:
    return parse_blocks(blocks) if isinstance(blocks, str) else tuple(blocks)
