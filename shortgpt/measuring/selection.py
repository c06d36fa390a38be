"""The blocks that a selection comes to, by scores; and how many may go, judged on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from shortgpt.errors import HiddenStateError, SelectionError
from shortgpt.values.choosing.choice import (
    TARGET,
    WITHIN,
    Choice,
    Chosen,
    Refuse,
    anything,
    check_limit,
    exchanges,
    least,
    run,
)

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.values.choosing.budget import Bound
    from shortgpt.values.scores import Scores
    from shortgpt.values.selection import Selection


def choose(
    selection: Selection,
    scores: Scores,
    model: BlockSequence | None,
    text: Calibration | None,
    refuse: Refuse = anything,
    progress: Progress | None = None,
    bounds: Sequence[Bound] = (),
) -> Chosen:
    """The blocks that go by a selection that takes scores, and how sure that is.

    Args:
        model, text: for a limit of the perplexity, on text that was held out; they may be None for another rule.
        bounds: what the selection's budgets ask of the blocks.

    Raises:
        SelectionError: the family refuses all sets of that rule.
    """
    if selection.contiguous is not None:
        return run(scores, selection.contiguous, refuse)
    if selection.max_perplexity_ratio is not None:
        assert model is not None
        assert text is not None
        return within(scores, model, text, selection.max_perplexity_ratio, refuse, progress)
    if bounds:
        return enough(scores, bounds, refuse)
    return least(scores, selection.number(len(scores)), refuse)


def enough(scores: Scores, bounds: Sequence[Bound], refuse: Refuse = anything) -> Chosen:
    """The blocks of least score together of all sets that are enough for some bounds, by the program of a search.

    Scores may be below 0, where a sum would grow less with every block more; then it is that of what they are above the
    least of them, so that no block goes that need not.

    Raises:
        SelectionError: no set is enough, or the family refuses all that score least.
    """
    from shortgpt.measuring.search.methods import Refused
    from shortgpt.measuring.search.program import Program
    from shortgpt.measuring.search.space import Space

    space = Space(len(scores), 0, scores.pinned, contiguous=False, refuse=refuse, bounds=tuple(bounds))
    base = min(0.0, *scores.values)
    damage = {block: scores.values[block] - base for block in space.free}
    refused = Refused(space)
    found = refused.allowed(Program(space), damage, {}, 1)
    if not found:
        raise space.nothing_may_go(*refused.example)
    (blocks,) = found

    def unfit(other: tuple[int, ...]) -> str | None:
        return refuse(other) if space.enough(other) else "it is not enough"

    near = exchanges(scores, blocks, unfit)
    reason = refused.example[1] if refused.count else None
    return blocks, Choice(TARGET, math.nan, near, reason, budgets=tuple(bound.met(blocks) for bound in bounds))


def within(
    scores: Scores,
    model: BlockSequence,
    text: Calibration,
    limit: float,
    refuse: Refuse = anything,
    progress: Progress | None = None,
) -> Chosen:
    """The first n blocks of the ranking, n the largest number without which the perplexity on `text` is at most
    `limit` times that of the whole model.

    Perplexity need not grow with every block, so all numbers are tried, and the largest that stays within the limit is
    taken, though a smaller one may not. Blocks are skipped; nothing is rebuilt.

    Args:
        text: other than that which the scores were measured on.
        progress: called with "numbers" after each one.

    Raises:
        SelectionError: the limit is no ratio, or no number stays within it.
    """
    from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, evaluate, open_evaluator

    check_limit(limit)
    evaluator = open_evaluator(DEFAULT_EVALUATOR)
    whole = evaluate(model, text, evaluator).mean
    order = [block for block in scores.ranking() if block not in scores.pinned]
    most = min(len(order), len(scores) - 1)
    ratios = []
    for n in range(1, most + 1):
        ratio = float("nan")
        if refuse(tuple(sorted(order[:n]))) is None:
            with suppress(HiddenStateError):  # what is left gives NaN or infinity
                ratio = math.exp(min(evaluate(model, text, evaluator, order[:n]).mean - whole, 700.0))
        ratios.append(ratio)
        if progress is not None:
            progress("numbers", n, most)
    fitting = [n for n, ratio in enumerate(ratios, start=1) if ratio <= limit]
    if not fitting:
        known = [ratio for ratio in ratios if not math.isnan(ratio)]
        told = f"the best of all numbers of blocks gives {min(known):.4g} times" if known else "none may be removed"
        raise SelectionError(
            f"no number of blocks keeps the perplexity within {limit:g} times the original's: {told}, in the order of "
            f"{scores.criteria[0]}; allow a larger ratio, or choose by --blocks"
        )
    n = fitting[-1]
    blocks = tuple(sorted(order[:n]))
    near = exchanges(scores, blocks, refuse)
    return blocks, Choice(WITHIN, scores.stability(n), near, limit=limit, ratios=tuple(ratios))
