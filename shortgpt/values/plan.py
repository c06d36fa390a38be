"""`Plan`: which blocks go and why. It is what `shortgpt.json` holds, and what the model card tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shortgpt._version import __version__
from shortgpt.basics.inputs import NearDistance
from shortgpt.basics.untrusted import local_path, read_text
from shortgpt.basics.value import Value
from shortgpt.errors import SelectionError, ShortGPTError
from shortgpt.values.choosing.choice import Choice, Chosen
from shortgpt.values.compensation import Compensation
from shortgpt.values.effect import Effect
from shortgpt.values.healing import Healing
from shortgpt.values.scores import Scores

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
        long_ids: the long probe, one sequence, which reaches past the windows of the config; empty where there is none.
        long_fingerprint: as `fingerprint`, of the logits that are compared on the long probe.
        side_inputs: what was given beside the short probe's tokens, and its shape: random numbers, always the same.
        beyond: distances of the config, such as windows, that no probe reaches: what lies behind them is not proven.
        idle: parts of blocks that nothing of the probe reaches, by the blocks' numbers before the removal.
        left_over: tensors of the files that the library passes over, in the original too; `*` for a block's number.
        not_generated: why no tokens were generated.
        files: file name → SHA-256 of what was written, but for the config, this record and the card.
        probe_ids: the probe batch itself.
        fingerprint: some of the expected logits, at places that `shortgpt.verification` knows: what a later
            check compares with when the original is not at hand.
        generation_dtype: what cached generation and the fingerprint were computed in, where that is not `dtype`: in
            half precision a right cache and a wrong one can differ alike.
        rounded_to: the dtype of the saved weights where some were folded in `dtype`, proven so, and rounded once.
        rounding: by how much that rounding moves a logit, at most.
        mended: what had to be changed about the library to compare, and why.
        near: distances of the config that no probe reaches and that were set small in both models for one more
            comparison of logits on the short probe.
        generated_behind: how many tokens of cached generation behind the long probe were compared with uncached.
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
    left_over: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    probe_ids: tuple[tuple[int, ...], ...] = ()
    fingerprint: tuple[float, ...] = ()
    streamed: bool = False
    long_ids: tuple[int, ...] = ()
    long_fingerprint: tuple[float, ...] = ()
    side_inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    generation_dtype: str | None = None
    rounded_to: str | None = None
    rounding: float | None = None
    mended: str | None = None
    near: tuple[NearDistance, ...] = ()
    generated_behind: int = 0

    def __str__(self) -> str:
        if not self.verified:
            return f"not verified: {self.reason}"
        cached = "cached generation chose another first token, as rounding may"
        if self.generated:
            inside = f" in {self.generation_dtype}" if self.generation_dtype else ""
            behind = f" and {self.generated_behind} behind the longer one" if self.generated_behind else ""
            cached = f"{self.generated} tokens of cached generation{behind} equal uncached{inside}"
        elif self.not_generated:
            cached = f"cached generation was not compared: {self.not_generated}"
        probes = [" × ".join(map(str, shape)) for shape in (self.probe, (1, len(self.long_ids))) if shape[-1:] > (0,)]
        unproven = "; ".join((*self.beyond, *self.idle))
        return (
            f"verified: logits differ by {self.max_difference:.3g} (largest logit {self.max_logit:.4g}) from the "
            f"original's with these blocks skipped, on {' and '.join(probes)} tokens{self._beside()}; {cached} "
            f"({self.dtype} on {self.device}{', weights read block by block' if self.streamed else ''})"
            + self._near()
            + (f"; not proven, for nothing of the probe reaches it: {unproven}" if unproven else "")
            + (f"; {self._rounded()}" if self.rounded_to else "")
            + (f"; {self.mended}" if self.mended else "")
        )

    def _near(self) -> str:
        """What was set small to be compared."""
        return "".join(f"; with {near} set to {near.small} in both, they are equal too" for near in self.near)

    def _rounded(self) -> str:
        return (
            f"folded weights are those that were compared, rounded once to {self.rounded_to}, which moves logits by up "
            f"to {self.rounding:.3g}"
        )

    def _beside(self) -> str:
        return f" with {', '.join(self.side_inputs)}" if self.side_inputs else ""


@dataclass(frozen=True)
class Plan(Value):
    """A removal: all that is needed to do it again.

    Attributes:
        model: the source as it was named.
        architecture: the adapter.
        depth: blocks before the removal.
        blocks: the blocks that go, in the order of the model.
        scores: what they were chosen by; None where they were named. Its `pinned` holds what was asked to stay.
        choice: how they were chosen, and how sure that is; None where they were named.
        effect: what the removal does to the model; None where it was not measured.
        verification: None before it ran.
        parameters_before, parameters_after: of the whole model; None before it ran.
        source_hashes: file name → SHA-256 of the checkpoint it was made from; empty for a model in memory.
        load: the lines of Python that load the result.
        adapter_base: the base model, where `model` is an adapter that was merged into it; None for others.
        export_as: the architecture that the result was written as, where that is another one.
        version: of shortgpt.
        base: how the source itself had been made shorter; None for an original.
        notes: what the removal left behind that a user should know.
        exports: other tools for which the same removal is written beside the result.
        compensation: what was folded into weights that stay to make up for the removed runs; None where nothing was
            asked for.
        healing: how the shorter model was trained; None where it was not.
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
    choice: Choice | None = None
    effect: Effect | None = None
    exports: tuple[str, ...] = ()
    adapter_base: str | None = None
    compensation: Compensation | None = None
    healing: Healing | None = None

    @property
    def originals(self) -> tuple[Plan, ...]:
        """How the model came to be, this plan first and that of the original's own removal last."""
        return (self,) if self.base is None else (self, *self.base.originals)

    @property
    def original_depth(self) -> int:
        """The number of blocks of the original."""
        return self.originals[-1].depth

    @property
    def kept(self) -> tuple[int, ...]:
        """The blocks that stay, by their numbers in the original."""
        keep = tuple(range(self.original_depth))
        for removal in reversed(self.originals):
            keep = tuple(block for place, block in enumerate(keep) if place not in removal.blocks)
        return keep

    @classmethod
    def chosen(cls, scores: Scores, chosen: Chosen) -> Plan:
        """The plan that removes what `shortgpt.values.choosing.choice` chose by scores."""
        blocks, choice = chosen
        return cls(
            model=scores.model,
            architecture=scores.architecture,
            depth=len(scores),
            blocks=blocks,
            scores=scores,
            choice=choice,
        )

    @classmethod
    def beside(cls, model: Path) -> Plan | None:
        """The plan by which a model folder or file was made; None for an original, and where it cannot be read."""
        folder = model if model.is_dir() else model.parent
        if not (folder / PLAN_FILE).is_file() or cls.unread_beside(model) is not None:
            return None
        return cls.read(folder)

    @classmethod
    def unread_beside(cls, model: Path) -> str | None:
        """Why the record of how a model was made cannot be read: it is damaged, or a newer shortgpt wrote it. The model
        is good without it."""
        folder = model if model.is_dir() else model.parent
        try:
            if (folder / PLAN_FILE).is_file():
                cls.read(folder)
        except SelectionError as error:
            return f"how the model had been made shorter is not known: {error}"
        return None

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """The plan in a `shortgpt.json`, or in the folder that holds one.

        Raises:
            SelectionError: there is none, or it is not a plan.
        """
        file = local_path(path, SelectionError)
        file = file / PLAN_FILE if file.is_dir() else file
        try:
            return cls.from_json(read_text(file))
        except OSError as error:
            raise SelectionError(f"{file}: the plan cannot be read ({error.strerror})") from None
        except (ShortGPTError, UnicodeDecodeError) as error:
            raise SelectionError(f"{file}: not a plan that shortgpt wrote: {error}") from None
