"""The model card of a shorter checkpoint: its README.md, with the front matter that the hub reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt.blocks import format_blocks
from shortgpt.choice import CONTIGUOUS, LEAST
from shortgpt.reports.effect import choice_texts, continuation_lines, effect_rows, reasons

if TYPE_CHECKING:
    from shortgpt.effects import Effect
    from shortgpt.plan import Plan


def model_card(plan: Plan) -> str:
    """The README.md of a shorter checkpoint, with the front matter that the hub reads."""
    kept = plan.depth - len(plan.blocks)
    lines = [
        "---",
        *([f"base_model: {plan.model}"] if _is_hub_id(plan.model) else []),
        "tags:",
        "- shortgpt",
        "- depth-pruning",
        "---",
        "",
        f"# {Path(plan.model).name}, {kept} of {plan.depth} blocks",
        "",
        f"Made from `{plan.model}` (architecture `{plan.architecture}`) by shortgpt {plan.version}: "
        f"the blocks {format_blocks(plan.blocks)} were removed (numbered from 0), nothing was trained afterwards.",
    ]
    if plan.parameters_before and plan.parameters_after:
        share = 1 - plan.parameters_after / plan.parameters_before
        lines += ["", f"Parameters: {plan.parameters_after:,} of {plan.parameters_before:,} ({share:.1%} removed)."]
    if plan.scores is not None:
        info = plan.scores.calibration
        lines += [
            "",
            "## Scores",
            "",
            f"Criterion: {plan.scores.criteria[0]}, {_rule(plan)}; a block's Block Influence is "
            "1 − E cos(x_i, x_{i+1}) (ShortGPT, arXiv:2403.03853, Eq. 1).",
            f"Calibration: {info.source}, {info.sequences} sequences of up to {info.tokens} tokens"
            + ("" if info.seed is None else f", seed {info.seed}")
            + f"; SHA-256 of the tokens {info.token_hash[:16]}…",
            "",
            "| block | score | standard error | |",
            "|---|---|---|---|",
        ]
        rows = zip(plan.scores.block_names, plan.scores.values, plan.scores.stderr, strict=True)
        for index, (name, value, error) in enumerate(rows):
            mark = "removed" if index in plan.blocks else "kept" if index in plan.scores.pinned else ""
            lines.append(f"| {name} | {value:.6f} | {'-' if error != error else f'{error:.6f}'} | {mark} |")
        if plan.choice is not None:
            lines += ["", *(f"- {line}" for line in choice_texts(plan.choice))]
    if plan.effect is not None:
        lines += ["", "## Effect", "", *_effect(plan.effect)]
    lines += ["", "## Verification", "", _sentence(str(plan.verification or "not verified: it was not asked for"))]
    if plan.notes:
        lines += ["", *plan.notes]
    if plan.load:
        lines += ["", "## Loading", "", "```python", plan.load, "```"]
    if plan.base is not None:
        base = plan.base
        lines += [
            "",
            f"The base model is `{base.model}` ({base.depth} blocks) without {format_blocks(base.blocks)}.",
        ]
    lines += [
        "",
        "`shortgpt.json` holds all that is needed to do it again: `shortgpt prune MODEL --plan shortgpt.json`.",
        "",
    ]
    return "\n".join(lines)


def _rule(plan: Plan) -> str:
    """By what rule the blocks go, for a sentence."""
    rule = plan.choice.rule if plan.choice else LEAST
    if rule == CONTIGUOUS:
        return (
            "taken between the ends of runs of blocks, and the run of least score removed (Gromov et al., "
            "arXiv:2403.17887)"
        )
    limit = plan.choice.limit if plan.choice else None
    most = "" if limit is None else f", as many as keep held-out perplexity within {limit:g} times the original's"
    return f"the lowest removed first{most}"


def _effect(effect: Effect) -> list[str]:
    """Before and after, as a table, then the model's own words."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in effect_rows(effect)]
    words = continuation_lines(effect)
    lines = []
    if rows:
        lines += ["| | before | after | | |", "|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    if words:
        lines += ["Greedy continuation of held-out text:", "", "~~~~text", *words, "~~~~", ""]
    lines += [line for reason in reasons(effect) for line in (_sentence(reason), "")]
    return lines[:-1]


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a hub repository's, which is all that the hub takes for a base model."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
