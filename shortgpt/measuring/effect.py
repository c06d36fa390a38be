"""What a removal does to a model: measured before and after.

::

    held-out text ─┬─ model, blocks skipped or not ─▶ perplexity
                   └─ its first words ─▶ greedy tokens, one after another ─▶ continuation
    random tokens ─── model and the shorter one, in turn ─▶ tokens per second

Perplexity and multiple choice hide a model that repeats itself; its own words show it. Skipping serves for all that is
said of quality, since removal is proven equal to it; a skipped block is still computed, so time is that of the shorter
model in memory, which shares its tensors with the original.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from shortgpt.basics import statistics as uncertainty
from shortgpt.basics.progress import shown
from shortgpt.errors import CalibrationError, HiddenStateError, ShortGPTError
from shortgpt.measuring.calibration import Calibration
from shortgpt.values.effect import CONTINUATION, PERPLEXITY, SPEED, Effect, Measured

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import MeasuringOptions, Progress
    from shortgpt.models.projections import Change
    from shortgpt.models.sequence import BlockSequence, TokenBatch
    from shortgpt.values.plan import Plan

PROMPT_TOKENS = 32
NEW_TOKENS = 32
TIMED_TOKENS = 512
ROUNDS, LEAST_ROUNDS, SECONDS = 9, 3, 20.0
"""Passes of each model that are timed: so many, or fewer where that takes longer."""


def effect(
    model: Any,
    blocks: Plan | Iterable[int],
    text: Any = "stdlib",
    *,
    changes: Sequence[Change] = (),
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Effect:
    """Measure what the removal of blocks does to a model: perplexity, a greedy continuation, tokens per second.

    Args:
        model: a block sequence; a name or path, which is loaded; or a model of a library in memory, which is wrapped.
        blocks: what goes: block numbers, or a `Plan`.
        text: a named source or a path, as for `shortgpt.score`. The windows that come after those which are scored of
            it with the same arguments are taken (`shortgpt.measuring.calibration.held_out`). A `Calibration` is taken
            as it is. Of anything else no text is held out, which `Effect.not_measured` then says.
        changes: those that make up for the removal (`shortgpt.measuring.compensation`).
        progress: True for bars; or it is called with "effect" after each step.
        options: as for `shortgpt.score`.

    Raises:
        SelectionError: there are no such blocks.
    """
    progress = shown(progress)
    from shortgpt.basics.block_lists import block_numbers, kept_blocks
    from shortgpt.basics.inputs import apart
    from shortgpt.measuring.calibration import held_out
    from shortgpt.models.loading import opened
    from shortgpt.values.plan import Plan

    texts, opening = apart(options)
    model = opened(model, opening)
    gone = blocks.blocks if isinstance(blocks, Plan) else block_numbers(blocks, len(model))
    kept_blocks(len(model), gone, model.pinned)
    if model.streamed:
        return not_measured("the weights are still in their files (stream)", str(model.device))
    reasons: dict[str, str] = {}
    data = None
    try:
        data = held_out(text, model, **texts)
    except CalibrationError as error:
        reasons = dict.fromkeys((PERPLEXITY, CONTINUATION), str(error))
    return _Measuring(model, gone, changes, data, reasons, progress or (lambda what, done, total: None)).effect()


def not_measured(reason: str, device: str = "") -> Effect:
    """The effect of which nothing was measured."""
    reasons = dict.fromkeys((PERPLEXITY, CONTINUATION, SPEED), reason)
    return Effect(Measured(), Measured(), device=device, not_measured=reasons)


class _Measuring:
    """One model, without and with the removal, on one text."""

    def __init__(
        self,
        model: BlockSequence,
        gone: tuple[int, ...],
        changes: Sequence[Change],
        data: Calibration | None,
        reasons: dict[str, str],
        progress: Progress,
    ) -> None:
        self.model, self.gone, self.changes, self.data, self.progress = model, gone, changes, data, progress
        self.reasons = dict(reasons)

    def effect(self) -> Effect:
        perplexities, ratio, error, unit = self._perplexities()
        self.progress("effect", 1, 3)
        prompt, continuations = self._continuations()
        self.progress("effect", 2, 3)
        batch = self._random_batch()
        speeds = self._speeds(batch)
        self.progress("effect", 3, 3)
        before, after = (Measured(*each) for each in zip(perplexities, continuations, speeds, strict=True))
        return Effect(
            before,
            after,
            ratio,
            error,
            text=self.data.info if ratio is not None and self.data is not None else None,
            prompt=prompt,
            timed=tuple(batch["input_ids"].shape) if speeds[0] is not None else (),
            device=str(self.model.device),
            dtype=_dtype(self.model, batch),
            not_measured=self.reasons,
            ratio_unit=unit,
        )

    def _perplexities(
        self,
    ) -> tuple[tuple[float | None, float | None], float | None, float | None, uncertainty.Unit | None]:
        """Before and after, their ratio, its standard error, and what that takes for independent."""
        from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, evaluate, open_evaluator

        if self.data is None:
            return (None, None), None, None, None
        evaluator = open_evaluator(DEFAULT_EVALUATOR)
        try:
            before = evaluate(self.model, self.data, evaluator)
            with self.model.changing(self.changes):
                after = evaluate(self.model, self.data, evaluator, self.gone)
        except HiddenStateError as broken:
            self.reasons[PERPLEXITY] = str(broken)
            return (None, None), None, None, None
        documents = self.data.documents
        apart, error = uncertainty.difference(before.sums, after.sums, before.counts, documents)
        ratio = math.exp(min(apart, 700.0))
        summaries = evaluator.summary(before.mean), evaluator.summary(after.mean)
        return summaries, ratio, ratio * error, uncertainty.unit(before.counts, documents)

    def _continuations(self) -> tuple[str | None, tuple[str | None, str | None]]:
        if self.data is None:
            return None, (None, None)
        decode = getattr(self.model.tokenizer, "decode", None)
        prompt = self._prompt()
        if decode is None or not len(prompt):
            lacking = "the tokenizer cannot decode" if decode is None else "the model's window has no room for it"
            self.reasons[CONTINUATION] = lacking
            return None, (None, None)
        end = getattr(self.model.tokenizer, "eos_token_id", None)
        before = decode(continuation(self.model, prompt, (), NEW_TOKENS, end))
        with self.model.changing(self.changes):
            after = decode(continuation(self.model, prompt, self.gone, NEW_TOKENS, end))
        return decode(prompt), (before, after)

    def _prompt(self) -> list[int]:
        """The first tokens of the held-out text, so that the new ones fit into the model's window behind them."""
        assert self.data is not None
        batch = self.data.batches[0]
        ids, mask = batch["input_ids"][0], batch.get("attention_mask")
        real: list[int] = (ids if mask is None else ids[mask[0].bool()]).tolist()
        longest = self.model.max_tokens
        most = PROMPT_TOKENS if longest is None else min(PROMPT_TOKENS, longest - NEW_TOKENS)
        return real[: max(most, 0)]

    def _random_batch(self) -> TokenBatch:
        import torch

        tokens = min(TIMED_TOKENS, self.model.max_tokens or TIMED_TOKENS)
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.model.vocab_size, (1, tokens), generator=draw)
        return {"input_ids": ids.to(self.model.device)}

    def _speeds(self, batch: TokenBatch) -> tuple[float | None, float | None]:
        try:
            shorter = self.model.without(self.gone)
        except ShortGPTError as error:
            self.reasons[SPEED] = str(error)
            return None, None
        seconds: tuple[list[float], list[float]] = ([], [])
        began = time.perf_counter()
        for number in range(ROUNDS + 1):  # the first one warms up
            for model, taken in zip((self.model, shorter), seconds, strict=True):
                start = time.perf_counter()
                model.logits(batch)[0, -1, 0].item()  # waits for the device
                taken.append(time.perf_counter() - start)
            if number >= LEAST_ROUNDS and time.perf_counter() - began > SECONDS:
                break
        count = batch["input_ids"].numel()
        before, after = (count / statistics.median(taken[1:]) for taken in seconds)
        return before, after


def continuation(
    model: BlockSequence, prompt: list[int], removed: Iterable[int] = (), new_tokens: int = NEW_TOKENS, end: Any = None
) -> list[int]:
    """The tokens that a model without some of its blocks takes for the likeliest, one after another, uncached.

    Args:
        end: the token after which it stops.
    """
    import torch

    gone, ids = tuple(removed), list(prompt)
    for _ in range(new_tokens):
        batch: TokenBatch = {"input_ids": torch.tensor([ids], device=model.device)}
        with model.skipping(gone):
            ids.append(int(model.logits(batch)[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


def _dtype(model: BlockSequence, batch: TokenBatch) -> str:
    """Of the residual stream."""
    seen: list[Tensor] = []
    few = {"input_ids": batch["input_ids"][:, :2]}
    model.trace(few, lambda boundary, hidden: seen.append(hidden[:0]))
    return str(seen[-1].dtype).removeprefix("torch.")
