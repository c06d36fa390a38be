"""The blocks that a selection comes to, by scores; and how many may go, judged on held-out text."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from shortgpt.errors import HiddenStateError, SelectionError
from shortgpt.values.choosing.choice import WITHIN, Choice, Chosen, Refuse, anything, check_limit, exchanges, least, run

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Progress
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.values.scores import Scores
    from shortgpt.values.selection import Selection


def choose(
    selection: Selection,
    scores: Scores,
    model: BlockSequence | None,
    text: Calibration | None,
    refuse: Refuse = anything,
    progress: Progress | None = None,
) -> Chosen:
    """The blocks that go by a selection that takes scores, and how sure that is.

    Args:
        model, text: for a limit of the perplexity, on text that was held out; they may be None for another rule.

    Raises:
        SelectionError: the family refuses all sets of that rule.
    """
    if selection.contiguous is not None:
        return run(scores, selection.contiguous, refuse)
    if selection.max_perplexity_ratio is not None:
        assert model is not None
        assert text is not None
        return within(scores, model, text, selection.max_perplexity_ratio, refuse, progress)
    return least(scores, selection.number(len(scores)), refuse)


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
