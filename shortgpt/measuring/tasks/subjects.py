"""Which models are put to tasks: the original, the original without blocks, other models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortgpt.basics.block_lists import format_blocks
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.errors import ModelError
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.models.loading import listed
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.evaluation.evaluation import EvaluatedModel
from shortgpt.values.plan import Plan

Model = Any
"""A block sequence; a name or path; or a model of a library in memory."""
Blocks = Plan | Iterable[int]

PROBE = "The quick brown fox, 1234 + 5678: déjà vu → 日本語\n\tif x: return y"
"""A text whose tokens tell tokenizers apart."""


@dataclass(frozen=True)
class Subject:
    """What a column is of: a model and the blocks that it is without."""

    model: Model
    removed: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """What a report calls it."""
        name = str(self.model)
        if not isinstance(self.model, (str, Path)):
            name = str(getattr(self.model, "name", type(self.model).__name__))
        return f"{name} without {format_blocks(self.removed)}" if self.removed else name


def subjects_of(models: Model | Iterable[Model], removed: Blocks | Iterable[Blocks] = ()) -> tuple[Subject, ...]:
    """The columns: the first model, it without each of the sets of blocks, the other models.

    Raises:
        ModelError: there is no model, or one stands there twice.
    """
    named = listed(models)
    if not named:
        raise ModelError("no model to evaluate; name one or more, the original first")
    original, *others = named
    without = [Subject(original, blocks) for blocks in _sets(removed)]
    found = (Subject(original), *without, *(Subject(other) for other in others))
    twice = [
        one.label
        for at, one in enumerate(found)
        if any(one.model is other.model and one.removed == other.removed for other in found[:at])
        or (isinstance(one.model, (str, Path)) and one.label in [other.label for other in found[:at]])
    ]
    if twice:
        raise ModelError(f"{twice[0]} stands there twice; name each model once")
    return found


def scored_on(columns: Sequence[Subject], removed: Iterable[Any], text: Any) -> tuple[CalibrationInfo, ...]:
    """The windows of a text on which blocks of these models were chosen, as far as plans tell."""
    plans: list[Any] = list(removed)
    for model in (subject.model for subject in columns):
        if isinstance(model, BlockSequence):
            plans.append(model.plan)
        elif isinstance(model, (str, Path)) and Path(model).exists():
            plans.append(Plan.beside(Path(model)))
    infos = [one.scores.calibration for one in plans if isinstance(one, Plan) and one.scores is not None]
    return tuple(dict.fromkeys(info for info in infos if info.seed is not None and info.source == str(text)))


def _sets(removed: Blocks | Iterable[Blocks]) -> list[tuple[int, ...]]:
    """One set of blocks, or several, as sorted numbers."""
    if isinstance(removed, Plan):
        return [removed.blocks]
    given: list[Any] = list(removed)
    if given and all(isinstance(one, int) for one in given):
        given = [given]
    return [one.blocks if isinstance(one, Plan) else tuple(sorted(set(one))) for one in given]


def described(subject: Subject, lm: LanguageModel) -> EvaluatedModel:
    """What is recorded of a model that was run."""
    model = lm.model
    return EvaluatedModel(
        model=subject.label,
        removed=subject.removed,
        skipped=bool(lm.skipped),
        architecture=model.architecture,
        blocks=len(model) + (0 if lm.skipped else len(subject.removed)),
        parameters=model.total_parameters(),
        device=str(model.device),
        dtype=_dtype(model),
        window=lm.window,
        batch_size=lm.batch_size,
        tokenizer_hash=tokenizer_hash(lm),
    )


def tokenizer_hash(lm: LanguageModel) -> str:
    """SHA-256 of a tokenizer's vocabulary, where it tells one, and of how it cuts a text."""
    vocabulary: dict[str, int] = getattr(lm.tokenizer, "get_vocab", dict)()
    told = [sorted(vocabulary.items()), lm.encode(PROBE)]
    return hashlib.sha256(json.dumps(told, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def _dtype(model: BlockSequence) -> str:
    """Of the residual stream."""
    import torch

    seen: list[torch.dtype] = []
    few = {"input_ids": torch.zeros(1, 2, dtype=torch.long, device=model.device)}
    model.trace(few, lambda boundary, hidden: seen.append(hidden.dtype))
    return str(seen[-1]).removeprefix("torch.")
