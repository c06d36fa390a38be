"""What a removal does to a model, before and after; and how sure its blocks are."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from shortgpt.basics.block_lists import format_blocks
from shortgpt.reports.cells import number, too_few_documents
from shortgpt.reports.grid import Grid
from shortgpt.values.choosing.choice import CONTIGUOUS, Choice, Exchange
from shortgpt.values.choosing.search import METHODS
from shortgpt.values.effect import PERPLEXITY, SPEED, Effect

TOSS_UPS = 4
"""As many are told one by one."""


def choice_lines(choice: Choice) -> RenderableType:
    """`choice_texts`, a line each."""
    return Group(*(Text(line) for line in choice_texts(choice)))


def choice_texts(choice: Choice) -> list[str]:
    """Which blocks at the cut are a toss-up, and what else is to be known of a choice."""
    lines = []
    if choice.refused is not None:
        lines.append(f"not the set of least score, which cannot be removed: {choice.refused}")
    if choice.limit is not None:
        ratios = ", ".join("-" if math.isnan(ratio) else f"{ratio:.4g}" for ratio in choice.ratios)
        lines.append(
            f"held-out perplexity without the first 1, 2, ... blocks, times the original's: {ratios}; the largest "
            f"number that stays within {choice.limit:g} is taken"
        )
    lines += map(str, choice.budgets)
    if choice.rule in (CONTIGUOUS, *METHODS) and not math.isnan(choice.stability):
        what = "run" if choice.rule == CONTIGUOUS else "set, of those that were measured,"
        lines.append(f"the same {what} in {choice.stability:.0%} of bootstrap resamples")
    return [*lines, *_toss_ups(choice)]


def _toss_ups(choice: Choice) -> list[str]:
    if not choice.exchanges:
        return ["how sure this is cannot be said: the scores have no standard error, or there is no other choice"]
    even = choice.toss_ups
    if not even:
        return [f"no toss-up; the nearest is {_told(choice.exchanges[0])}"]
    left = len(even) - TOSS_UPS
    more = [f"and {left} toss-up{'s' if left > 1 else ''} more, less even"] if left > 0 else []
    return [*(f"toss-up: {_told(one)}" for one in even[:TOSS_UPS]), *more]


def _told(one: Exchange) -> str:
    return (
        f"{_block(one.gone)} (out) against {format_blocks(one.instead)} (in), {number(one.difference)} ± "
        f"{number(one.stderr)} apart; with {one.probability:.0%} probability {format_blocks(one.instead)} scores lower"
    )


def _block(blocks: tuple[int, ...]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {format_blocks(blocks)}"


def effect_lines(effect: Effect) -> RenderableType:
    """Perplexity and speed as a table of before and after, the two continuations, and what was not measured."""
    table = Grid()
    table.add_column("")
    for title in ("before", "after", ""):
        table.add_column(title, justify="right")
    table.add_column("", overflow="fold")
    for row in effect_rows(effect):
        table.add_row(*(Text(cell) for cell in row))
    parts: list[RenderableType] = [table] if table.row_count else []
    parts += [Text(line) for line in continuation_lines(effect)]
    parts += [Text(line) for line in reasons(effect)]
    return Group(*parts)


def effect_rows(effect: Effect) -> list[tuple[str, str, str, str, str]]:
    """What, before, after, the ratio, and on what."""
    rows = []
    before, after = effect.before, effect.after
    if before.perplexity is not None and effect.text is not None and effect.ratio is not None:
        error = effect.ratio_stderr
        text = effect.text
        rows.append(
            (
                PERPLEXITY,
                f"{before.perplexity:.4g}",
                "-" if after.perplexity is None else f"{after.perplexity:.4g}",
                f"× {effect.ratio:.4g}" + ("" if error is None or math.isnan(error) else f" ± {error:.2g}"),
                f"{text.sequences} held-out sequences of {text.tokens} tokens, {text.source}",
            )
        )
    if before.tokens_per_second is not None and after.tokens_per_second is not None:
        shape = " × ".join(map(str, effect.timed))
        rows.append(
            (
                SPEED,
                f"{before.tokens_per_second:,.0f}",
                f"{after.tokens_per_second:,.0f}",
                f"× {after.tokens_per_second / before.tokens_per_second:.3g}",
                f"forward pass of {shape} tokens, {effect.dtype} on {effect.device}",
            )
        )
    return rows


def continuation_lines(effect: Effect) -> list[str]:
    """The prompt and both continuations, a line each; what is not printable is escaped."""
    if effect.prompt is None:
        return []
    named = (
        ("prompt", effect.prompt),
        ("before", effect.before.continuation or ""),
        ("after", effect.after.continuation or ""),
    )
    return [f"{name}: {on_one_line(text)}" for name, text in named]


def reasons(effect: Effect) -> list[str]:
    """What was not measured, and why, things of one reason together; and what an error cannot say."""
    by_reason: dict[str, list[str]] = {}
    for what, why in effect.not_measured.items():
        by_reason.setdefault(why, []).append(what)
    told = [f"{', '.join(whats)}: not measured: {why}" for why, whats in by_reason.items()]
    doubt = effect.text and too_few_documents(effect.text, effect.ratio_unit)
    return [*told, f"{PERPLEXITY}: {doubt}"] if doubt else told


def on_one_line(text: str) -> str:
    """A text on one line: what a terminal would act upon is written as an escape."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
