"""What a page tells of a kind of result: facts, tables, text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.value import Table, Value
from shortgpt.errors import OutputError
from shortgpt.reports.cells import number
from shortgpt.reports.effect import choice_texts
from shortgpt.values.choosing.choice import least
from shortgpt.values.effect import Effect
from shortgpt.values.plan import Plan, Verification
from shortgpt.values.scores import Scores


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        facts: names and what they are.
        lines: sentences.
        tables: under the sentences.
        texts: what stands as it is, such as text that a model wrote or lines of Python, each with its heading.
        pictured: another value that is drawn on the page, with `shown`, what its picture shows besides.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    pictured: Value | None = None
    shown: dict[str, Any] = field(default_factory=dict)


def sections(result: Value) -> tuple[Section, ...]:
    """The parts of a result's page, its head first."""
    if isinstance(result, Plan):
        return _of_plan(result)
    if isinstance(result, Scores):
        return _of_scores(result)
    if isinstance(result, Verification):
        return (_of_verification(result),)
    if isinstance(result, Effect):
        return (_of_effect(result),)
    kind = type(result).__name__
    try:
        return (Section(kind, tables=result.tables()),)
    except OutputError:
        return (Section(kind, lines=tuple(str(result).splitlines())),)


def _of_scores(scores: Scores) -> tuple[Section, ...]:
    facts = {
        "Model": scores.model,
        "Architecture": f"{scores.architecture}, {scores.norm_placement}-norm, {len(scores)} blocks, "
        f"{scores.total_parameters:,} parameters",
        "Measured": f"{', '.join(scores.criteria)}, in {scores.dtype}",
        **_measured_on(scores.calibration),
        "Error's unit": f"the {scores.unit}",
    }
    head = Section(f"Scores of {scores.model}", facts, tables=scores.tables())
    if not scores.chosen:
        return (head,)
    _, choice = least(scores, len(scores.chosen))
    lines = (f"To remove: {format_blocks(scores.chosen)}.", *choice_texts(choice))
    return head, Section("Choice", lines=lines)


def _of_plan(plan: Plan) -> tuple[Section, ...]:
    before, after = plan.parameters_before, plan.parameters_after
    facts = {
        "Model": plan.model,
        "Architecture": f"{plan.architecture}, {plan.depth} blocks",
        "Removed": f"{format_blocks(plan.blocks)} ({len(plan.blocks)} of {plan.depth} blocks)",
    }
    if before and after:
        facts["Parameters"] = f"{before:,} before, {after:,} after ({1 - after / before:.1%} fewer)"
    parts = [Section(f"{plan.model} without {format_blocks(plan.blocks)}", facts, lines=plan.notes)]
    if plan.choice is not None:
        parts.append(Section("Choice", lines=tuple(choice_texts(plan.choice))))
    if plan.effect is not None:
        parts.append(_of_effect(plan.effect))
    if plan.scores is not None:
        chosen = plan.scores.choosing(plan.blocks)
        facts = _measured_on(plan.scores.calibration)
        shown = {"marked": plan.blocks}
        parts.append(Section("Scores", facts, tables=chosen.tables(), pictured=chosen, shown=shown))
    if plan.verification is not None:
        parts.append(_of_verification(plan.verification))
    if plan.load:
        parts.append(Section("How to load it", texts={"Python": plan.load}))
    return tuple(parts)


def _of_verification(verification: Verification) -> Section:
    return Section("Verification", lines=(str(verification),))


def _of_effect(effect: Effect) -> Section:
    rows = [
        (name, one, two)
        for name, one, two in (
            ("perplexity", effect.before.perplexity, effect.after.perplexity),
            ("tokens per second", effect.before.tokens_per_second, effect.after.tokens_per_second),
        )
        if one is not None and two is not None
    ]
    lines = [f"{what} was not measured: {why}" for what, why in effect.not_measured.items()]
    if effect.ratio is not None and effect.ratio_stderr is not None:
        lines.insert(0, f"Perplexity × {number(effect.ratio)} ± {number(effect.ratio_stderr)}.")
    texts = {}
    if effect.prompt is not None:
        texts["Prompt"] = effect.prompt
        texts["Text of the whole model"] = effect.before.continuation or ""
        texts["Text of the shorter model"] = effect.after.continuation or ""
    tables = (Table("Before and after", ("", "before", "after"), tuple(rows)),) if rows else ()
    facts = _measured_on(effect.text) if effect.text is not None else {}
    return Section("Effect", facts, tuple(lines), tables, texts)


def _measured_on(info: CalibrationInfo) -> dict[str, str]:
    documents = "" if info.documents is None else f" of {info.documents} documents"
    seed = "" if info.seed is None else f", seed {info.seed}"
    return {
        "Text": info.source,
        "Windows": f"{info.sequences} sequences{documents}, up to {info.tokens} tokens each{seed}",
        "Hash of the text": info.text_hash,
    }
