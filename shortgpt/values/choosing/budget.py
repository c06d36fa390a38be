"""Budgets: what a shorter model may cost, read from a text, and what that asks of the blocks that go.

::

    parameters<=110M              bytes<=200MB (of the checkpoint)          tokens/s>=1.3x@1x512 (sequences × tokens)
    memory<=1.5GB@4096x8          kv<=1GB@32768x1 (tokens × sequences)      new-tokens/s>=40@1x512 (behind 512 tokens)

Each is a bound on a sum over the parts that stay, `Σ amount ≤ limit`: a rate is one on seconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shortgpt.basics.value import Value
from shortgpt.errors import SelectionError

PARAMETERS, BYTES, MEMORY, KV, RATE, NEW_RATE = "parameters", "bytes", "memory", "kv", "tokens/s", "new-tokens/s"
RATES = (RATE, NEW_RATE)
"""These are to be no less; all others, no more."""
TIMED_SHAPE = (1, 512)
"""Sequences and tokens of a rate of which none are given."""
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
SIZES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
UNITS = {PARAMETERS: COUNTS, BYTES: SIZES, MEMORY: SIZES, KV: SIZES, RATE: {"": 1}, NEW_RATE: {"": 1}}
RELATIVE = "x"
FORM = re.compile(
    r"\s*(?P<what>[a-z/-]+)\s*(?P<sign><=|>=)\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[a-z]*)\s*"
    r"(@\s*(?P<first>[1-9]\d*)\s*x\s*(?P<second>[1-9]\d*)\s*)?",
    re.IGNORECASE,
)
EXAMPLES = (
    "'parameters<=110M', 'bytes<=200MB', 'memory<=1.5GB@4096x8', 'kv<=0.5x@32768x1', 'tokens/s>=1.3x@1x512' or "
    "'new-tokens/s>=40@1x512'"
)


@dataclass(frozen=True)
class Budget:
    """What is asked of the cost of a shorter model.

    Attributes:
        text: as it was written.
        what: "parameters", "bytes", "memory", "kv", "tokens/s" or "new-tokens/s".
        amount: the bound: a number, bytes, tokens a second; or a share of what the whole model has.
        relative: whether it is such a share.
        tokens, sequences: at which a cache or a rate is taken; 0 for others.
    """

    text: str
    what: str
    amount: float
    relative: bool
    tokens: int = 0
    sequences: int = 0

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Raises:
            SelectionError: it says nothing that can be held to.
        """
        found = FORM.fullmatch(text)
        problem = "it has another form" if found is None else _problem(found)
        if found is None or problem is not None:
            raise SelectionError(f"{text!r} is no target ({problem}); write such as {EXAMPLES}")
        what, unit, amount = found["what"].lower(), found["unit"].lower(), float(found["number"])
        sequences, tokens = TIMED_SHAPE if what in RATES else (0, 0)
        if found["first"] is not None:
            sequences, tokens = int(found["first"]), int(found["second"])
            if what not in RATES:  # a context for so many
                sequences, tokens = tokens, sequences
        factor = 1 if unit == RELATIVE else UNITS[what][unit]
        return cls(text.strip(), what, amount * factor, unit == RELATIVE, tokens, sequences)

    def bound(self, amounts: Sequence[float]) -> Bound:
        """What it asks of the blocks.

        Args:
            amounts: of each block, and last of what is outside the blocks: numbers, bytes, or seconds.

        Raises:
            SelectionError: the whole model is such already.
        """
        whole = sum(amounts)
        if self.what not in RATES:
            limit = self.amount * whole if self.relative else self.amount
        elif self.relative:
            limit = whole / self.amount
        else:
            made = self.sequences * (self.tokens if self.what == RATE else 1)
            limit = made / self.amount
        bound = Bound(self.text, self.what, tuple(map(float, amounts)), limit, self.sequences, self.tokens)
        if whole <= limit:
            raise SelectionError(
                f"{self.text}: the whole model has {bound.told(whole)} already, so no block needs to go"
            )
        return bound


@dataclass(frozen=True)
class Bound:
    """A budget of one model: what its parts have, and what those that stay may have together.

    Attributes:
        text: the budget as it was written.
        what: "parameters", "bytes", "memory", "kv", "tokens/s" or "new-tokens/s".
        amounts: of each block, and last of what is outside the blocks: numbers, bytes, or seconds for a rate.
        limit: of their sum.
        sequences, tokens: of the pass, or of the cache; 0 for others.
    """

    text: str
    what: str
    amounts: tuple[float, ...]
    limit: float
    sequences: int
    tokens: int

    @property
    def needed(self) -> float:
        """What the blocks that go must have together."""
        return sum(self.amounts) - self.limit

    def left(self, blocks: Collection[int]) -> float:
        """What stays without these blocks."""
        return sum(amount for part, amount in enumerate(self.amounts) if part not in blocks)

    def holds(self, blocks: Collection[int]) -> bool:
        """Whether that is within the limit, but for rounding."""
        return self.left(blocks) <= self.limit * (1 + 1e-9)

    def told(self, amount: float) -> str:
        """A sum in the budget's own terms."""
        return f"{self._in_terms(amount):,.6g} {self._unit}"

    def met(self, blocks: Collection[int]) -> Met:
        """The budget beside what the model has whole, and without these blocks."""
        whole, limit, left = (self._in_terms(one) for one in (sum(self.amounts), self.limit, self.left(blocks)))
        return Met(self.text, whole, limit, left, self._unit)

    def _in_terms(self, amount: float) -> float:
        made = self.sequences * (self.tokens if self.what == RATE else 1)
        return made / amount if self.what in RATES else amount

    @property
    def _unit(self) -> str:
        return "tokens/s" if self.what in RATES else PARAMETERS if self.what == PARAMETERS else BYTES


@dataclass(frozen=True)
class Met(Value):
    """A budget, and what a choice of blocks makes of it.

    Attributes:
        text: the budget as it was written.
        whole: what the whole model has.
        limit: what the budget allows.
        left: what the model has without the blocks, as the costs of its parts add up to.
        unit: of the three: "parameters", "bytes" or "tokens/s".
    """

    text: str
    whole: float
    limit: float
    left: float
    unit: str

    def __str__(self) -> str:
        return f"{self.text}: {self.whole:,.6g} → {self.left:,.6g} {self.unit}"


def _problem(found: re.Match[str]) -> str | None:
    """What is wrong with a text that has the form of a budget."""
    what, unit, amount = found["what"].lower(), found["unit"].lower(), float(found["number"])
    if what not in UNITS:
        return f"there is no cost {what!r}; known are {', '.join(UNITS)}"
    sign = ">=" if what in RATES else "<="
    if found["sign"] != sign:
        return f"of {what} a bound is {sign}"
    if unit != RELATIVE and unit not in UNITS[what]:
        known = ", ".join(name for name in (*UNITS[what], RELATIVE) if name)
        return f"{found['unit']!r} is no unit of {what}; known are {known}"
    if amount <= 0 or (unit == RELATIVE and (amount > 1) != (what in RATES)):
        return "no shorter model is such, or every one"
    if found["first"] is None and what in (MEMORY, KV):
        return f"{what} grows with the text: say at how many tokens of how many sequences"
    if found["first"] is not None and what in (PARAMETERS, BYTES):
        return f"{what} do not grow with the text; leave the @ out"
    return None


def most_needed(bounds: Sequence[Bound], free: Sequence[int]) -> int | None:
    """The number of blocks of which any so many are enough for all bounds; None where all that may go are not."""
    most = 0
    for bound in bounds:
        total, number = 0.0, 0
        for amount in sorted(bound.amounts[block] for block in free):
            if total >= bound.needed - 1e-9 * abs(bound.limit):
                break
            total, number = total + amount, number + 1
        if total < bound.needed - 1e-9 * abs(bound.limit):
            return None
        most = max(most, number)
    return most


def check_reachable(bounds: Sequence[Bound], free: Sequence[int], depth: int) -> None:
    """Raise a `SelectionError` where a bound does not hold without all the blocks that may go; one stays in any case.

    Args:
        depth: the model's blocks.
    """
    for bound in bounds:
        dearest = sorted(free, key=lambda block: bound.amounts[block])[-min(len(free), depth - 1) :]
        if not bound.holds(dearest):
            raise SelectionError(
                f"{bound.text}: without all {len(dearest)} blocks that may go the model still has "
                f"{bound.told(bound.left(dearest))}; allow more, or take a smaller model"
            )
