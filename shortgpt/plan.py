"""`Plan`: which blocks go and why. It is what `shortgpt.json` holds, and the model card is written from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt._version import __version__
from shortgpt.blocks import format_blocks
from shortgpt.errors import OutputError, SelectionError, ShortGPTError
from shortgpt.scores import Scores
from shortgpt.values import Value

if TYPE_CHECKING:
    from shortgpt.blocks import BlockSequence

PLAN_FILE = "shortgpt.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class Verification(Value):
    """Whether a shorter model is what skipping says it should be.

    Attributes:
        verified: False means that it was not checked; a check that fails is a `VerificationError` instead.
        reason: why it was not checked.
        max_difference: the largest absolute difference between the two models' logits.
        max_logit: the largest absolute logit.
        tolerance: the difference that is allowed, relative to `max_logit`.
        probe: the probe batch, [sequences, tokens].
        generated: how many tokens of cached greedy generation were compared with uncached.
        device, dtype: where and in what the check ran.
        streamed: neither model was held in memory: their weights were read block by block.
        not_generated: why no tokens were generated.
        files: file name → SHA-256 of the weights that were written.
        probe_ids: the probe batch itself.
        fingerprint: some of the expected logits, at places that `shortgpt.verification` knows: what a later check
            compares with when the original is not at hand.
    """

    verified: bool
    reason: str | None = None
    max_difference: float | None = None
    max_logit: float | None = None
    tolerance: float | None = None
    probe: tuple[int, ...] = ()
    generated: int = 0
    device: str | None = None
    dtype: str | None = None
    not_generated: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    probe_ids: tuple[tuple[int, ...], ...] = ()
    fingerprint: tuple[float, ...] = ()
    streamed: bool = False

    def __str__(self) -> str:
        if not self.verified:
            return f"not verified: {self.reason}"
        cached = "cached generation chose another first token, as rounding may"
        if self.generated:
            cached = f"{self.generated} tokens of cached generation equal uncached"
        elif self.not_generated:
            cached = f"cached generation was not compared: {self.not_generated}"
        return (
            f"verified: logits differ by {self.max_difference:.3g} (largest logit {self.max_logit:.4g}) from the "
            f"original's with these blocks skipped, on {' × '.join(map(str, self.probe))} tokens; {cached} "
            f"({self.dtype} on {self.device}{', weights read block by block' if self.streamed else ''})"
        )


@dataclass(frozen=True)
class Plan(Value):
    """A removal: all that is needed to do it again.

    Attributes:
        model: the source as it was named.
        architecture: the adapter.
        depth: blocks before the removal.
        blocks: the blocks that go, in the order of the model.
        scores: what they were chosen by; None where they were named.
        verification: None before it ran.
        parameters_before, parameters_after: of the whole model; None before it ran.
        source_hashes: file name → SHA-256 of the checkpoint it was made from; empty for a model in memory.
        load: the lines of Python that load the result.
        export_as: the architecture that the result was written as, where that is another one.
        version: of shortgpt.
        base: how the source itself had been made shorter; None for an original.
        notes: what the removal left behind that a user should know.
    """

    model: str
    architecture: str
    depth: int
    blocks: tuple[int, ...]
    scores: Scores | None = None
    verification: Verification | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    source_hashes: dict[str, str] = field(default_factory=dict)
    load: str = ""
    export_as: str | None = None
    version: str = __version__
    base: Plan | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: BlockSequence, blocks: Iterable[int]) -> Plan:
        """The plan that removes the named blocks."""
        return cls(
            model=model.name,
            architecture=model.architecture,
            depth=len(model),
            blocks=tuple(sorted(set(blocks))),
            base=model.plan,
        )

    @classmethod
    def beside(cls, model: Path) -> Plan | None:
        """The plan by which a model folder or file was made; None for an original."""
        folder = model if model.is_dir() else model.parent
        return cls.read(folder) if (folder / PLAN_FILE).is_file() else None

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """The plan in a `shortgpt.json`, or in the folder that holds one.

        Raises:
            SelectionError: there is none, or it is not a plan.
        """
        file = Path(path)
        file = file / PLAN_FILE if file.is_dir() else file
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise SelectionError(f"{file}: the plan cannot be read ({error.strerror})") from None
        except (ShortGPTError, UnicodeDecodeError) as error:
            raise SelectionError(f"{file}: not a plan that shortgpt wrote: {error}") from None


def write_records(directory: Path, plan: Plan) -> None:
    """Write `shortgpt.json` and the model card into a checkpoint."""
    try:
        (directory / PLAN_FILE).write_text(plan.to_json() + "\n", encoding="utf-8")
        (directory / CARD_FILE).write_text(model_card(plan), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{directory}: cannot be written ({error.strerror})") from None


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
            f"Criterion: {plan.scores.criteria[0]}, the lowest removed first; a block's Block Influence is "
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
            mark = "removed" if index in plan.blocks else ""
            lines.append(f"| {name} | {value:.6f} | {'-' if error != error else f'{error:.6f}'} | {mark} |")
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


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a hub repository's, which is all that the hub takes for a base model."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
