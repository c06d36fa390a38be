"""Which blocks `shortgpt prune` removes: what the options ask for, and the plan that it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shortgpt.cli import common
from shortgpt.errors import SelectionError

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Config, Progress, Source
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.family import Family
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.values.choice import Chosen
    from shortgpt.values.plan import Plan
    from shortgpt.values.scores import Scores

DEFAULT_RATIO = 0.25


@dataclass(frozen=True)
class Wanted:
    """Which blocks are to go, as the options say it: one of these, and what is to stay."""

    blocks: int | None = None
    ratio: float | None = None
    contiguous: int | None = None
    max_perplexity_ratio: float | None = None
    remove: str | None = None
    plan: str | None = None
    keep: tuple[int, ...] = ()

    @property
    def scored(self) -> bool:
        """Whether that takes scores."""
        return self.remove is None and self.plan is None

    @classmethod
    def checked(cls, keep: str | None, **options: Any) -> Wanted:
        """What is wanted, after every check that needs no model.

        Raises:
            SelectionError: nothing is, or two things at once; or a number makes no sense.
        """
        from shortgpt.basics.block_lists import parse_blocks
        from shortgpt.values.choice import check_limit
        from shortgpt.values.scores import blocks_for_ratio

        names = {name: f"--{name.replace('_', '-')}" for name in options}
        chosen = [names[name] for name, value in options.items() if value is not None]
        if len(chosen) != 1:
            found = "two choices at once" if chosen else "nothing was chosen"
            raise SelectionError(
                f"{found} ({', '.join(chosen) or 'no blocks'}); give one of {', '.join(names.values())}"
            )
        wanted = cls(**options, keep=parse_blocks(keep) if keep is not None else ())
        if wanted.ratio is not None:
            blocks_for_ratio(wanted.ratio, 100)
        if wanted.max_perplexity_ratio is not None:
            check_limit(wanted.max_perplexity_ratio)
        return wanted

    def check(self, depth: int, pinned: Mapping[int, str]) -> None:
        """Raise a `SelectionError` for what a model of that many blocks cannot give."""
        from shortgpt.values.choice import free_runs
        from shortgpt.values.scores import KEPT, check_kept, check_number

        check_kept(self.keep, depth, pinned)
        stay = dict.fromkeys(self.keep, KEPT) | dict(pinned)
        if self.contiguous is not None:
            free_runs(depth, self.contiguous, stay)
        elif self.blocks is not None or self.ratio is not None:
            check_number(self.number(depth), depth, stay)

    def number(self, depth: int) -> int:
        """How many blocks `--blocks` or `--ratio` asks for."""
        return common.number_of_blocks(self.blocks, self.ratio, depth, DEFAULT_RATIO)


@dataclass(frozen=True)
class Target:
    """The model on disk, and how it is opened."""

    source: Source
    family: Family
    config: Config
    opening: dict[str, Any]
    tokenizer: str | None

    def refuse(self, blocks: tuple[int, ...]) -> str | None:
        """Why these blocks may not go, None where they may."""
        from shortgpt.models.family import refusal

        return refusal(self.family, self.config, blocks)

    def load(self, stream: bool = False) -> BlockSequence:
        """The model in memory."""
        from shortgpt.models.loading import load

        return load(self.source, tokenizer=self.tokenizer, stream=stream, **self.opening)


def scored(
    target: Target,
    wanted: Wanted,
    *,
    criterion: str | None,
    effect: bool,
    stream: bool,
    calibration: dict[str, Any],
    progress: Progress | None,
) -> Plan | None:
    """The plan by scores; None in all processes that `torchrun` started but the first.

    Args:
        effect: measure it as well.
        calibration: as `shortgpt.calibrate` takes it, the source by the name of "calibration".
    """
    from shortgpt.measuring.calibration import held_out
    from shortgpt.measuring.scoring.score import score
    from shortgpt.models import processes
    from shortgpt.models.devices import started
    from shortgpt.values.plan import Plan
    from shortgpt.values.scores import DEFAULT_CRITERION

    options = dict(calibration)
    source = options.pop("calibration")
    text = None
    with processes.group(target.opening["device"]):
        model = processes.agreed(lambda: target.load(stream))
        if wanted.max_perplexity_ratio is not None:
            text = processes.agreed(lambda: held_out(source, model, **options))
        measuring = options | ({"spans": True} if wanted.contiguous is not None else {})
        scores = score(model, source, criteria=(criterion or DEFAULT_CRITERION,), progress=progress, **measuring)
    if started()[0] > 0:
        return None
    scores = scores.keeping(wanted.keep)
    plan = Plan.chosen(scores, _chosen(scores, wanted, target, model, text, progress))
    if effect:
        plan = _with_effect(plan, model, source if text is None else text, options, progress)
    return plan


def measured(target: Target, plan: Plan, calibration: dict[str, Any], progress: Progress | None) -> Plan:
    """A plan with its effect."""
    options = dict(calibration)
    return _with_effect(plan, target.load(), options.pop("calibration"), options, progress)


def _chosen(
    scores: Scores,
    wanted: Wanted,
    target: Target,
    model: BlockSequence,
    text: Calibration | None,
    progress: Progress | None,
) -> Chosen:
    from shortgpt.measuring.selection import within
    from shortgpt.values.choice import least, run

    if wanted.contiguous is not None:
        return run(scores, wanted.contiguous, target.refuse)
    if wanted.max_perplexity_ratio is not None and text is not None:
        return within(scores, model, text, wanted.max_perplexity_ratio, target.refuse, progress)
    return least(scores, wanted.number(len(scores)), target.refuse)


def _with_effect(
    plan: Plan, model: BlockSequence, text: Any, options: dict[str, Any], progress: Progress | None
) -> Plan:
    from shortgpt.measuring.effect import effect

    return replace(plan, effect=effect(model, plan, text, progress=progress, **options))
