"""One pass of a model, any number of criteria.

::

    token batches ─▶ trace ─▶ boundary i, i+1 ─▶ criterion, a value a token ─▶ float64 sums [sequence, block] ─▶ Scores

Here batches are shared out among processes, halved where memory does not suffice, and put together; what is taken at
their boundaries is `boundary_sums`'s. Only one boundary of a batch is held at a time, but for spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from shortgpt.basics.inputs import MeasuringOptions, Progress, apart
from shortgpt.basics.progress import shown
from shortgpt.errors import CalibrationError, ShortGPTError
from shortgpt.measuring.batch_parts import BatchParts
from shortgpt.measuring.calibration import Calibration, calibrate
from shortgpt.measuring.criteria import BatchCriterion, OrderCriterion
from shortgpt.measuring.scoring.batch_sums import BatchSums, joined
from shortgpt.measuring.scoring.boundary_sums import BatchTap, Workspace
from shortgpt.measuring.scoring.pairs import refuse_spans
from shortgpt.measuring.scoring.requested import RequestedCriterion, open_criteria
from shortgpt.measuring.scoring.resuming import Kept, journal_of
from shortgpt.models import processes
from shortgpt.models.loading import opened
from shortgpt.values.choosing.spans import Spans
from shortgpt.values.scores import DEFAULT_CRITERION, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import BlockSequence, TokenBatch

CPU_TOKENS = 2048
"""How many tokens of a batch a CPU takes at a time in float32, whole sequences; twice as many in half precision. More
are no faster and take more memory, much of which C libraries hand back to the system after each operation, to be zeroed
for the next (docs/performance.md)."""


def score(
    model: Any,
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] = (DEFAULT_CRITERION,),
    spans: bool = False,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Scores:
    """Score every block of a model, in one pass over the calibration set.

    Where `torch.distributed` has a process group, each process takes its share of the batches; all of them call this,
    and all get the scores of the whole set. A CPU takes a batch some 2,048 tokens at a time, or 4,096 in half
    precision, an accelerator whole; what does not fit into memory is taken in halves: of a streamed model all batches,
    from the first block on.

    Args:
        model: a block sequence; a name or path, which is loaded; or a model of a library in memory, which is wrapped.
        calibration: a named source, a path, an iterable of texts or of token batches, or a `Calibration`, which is
            taken as it is.
        criteria: names of installed criteria; the first is the one that `Scores` ranks by. All that look at the stream
            are taken in the same pass.
        spans: measure the first criterion between all pairs of boundaries too, in the same pass: `Scores.spans`. The
            boundaries of a batch are then all held until it is done; of a streamed model, those of all batches.
        resume: a folder in which the sums of each batch are kept as they are made. Where it holds some of the same
            model and text these are taken as they are, and the scores are those of an uninterrupted run.
        progress: True for bars; or it is called after every block and every batch.
        options: how many windows of how many tokens, and which: the keywords of `shortgpt.calibrate`; and for a model
            that is loaded those of `shortgpt.load`.

    Returns:
        Scores, which batch size, order, padding and accumulation do not move, but for what they make the model's own
        kernels round: sums are float64, and only real tokens are in them.

    Raises:
        HiddenStateError: the stream holds NaN, infinity or a zero vector. The message names block and batch.
        CalibrationError, UnknownNameError: see `calibrate`.
        ShortGPTError: the model can serve none of the criteria; or there are to be spans of one that does not look at
            the stream.
        ModelError: the model cannot be opened.
        torch.OutOfMemoryError: not even one sequence fits into memory.
    """
    progress = shown(progress)
    import torch

    texts, opening = apart(options)
    model = opened(model, opening)
    requested, refused = _requested(model, criteria)
    spanning = requested[0] if spans else None
    if spanning is not None:
        refuse_spans(spanning)
    data = processes.agreed(lambda: calibrate(calibration, model, **texts))
    report = progress or (lambda what, done, total: None)
    rank, size = processes.rank_and_size()
    with journal_of(resume, "score", model, data) as journal:
        kept = Kept(journal, f"score {'spans ' if spans else ''}{' '.join(one.name for one in requested)}")

        def share() -> tuple[str, list[BatchSums]]:
            return _share(model, data, requested, spanning, kept, report, rank, size)

        parts = processes.gathered(processes.agreed(share))
    if len({token_hash for token_hash, _ in parts}) > 1:
        raise CalibrationError("the processes read different calibration texts; give all of them the same")
    batches_summed = sorted((batch for _, batches in parts for batch in batches), key=lambda batch: batch.number)
    lengths = [length for batch in batches_summed for length in batch.lengths]
    norms = torch.cat([batch.norms for batch in batches_summed]).sum(0) / sum(lengths)
    tables = {one.name: _table(one, batches_summed, model, data, report) for one in requested}
    return Scores(
        model=model.name,
        architecture=model.architecture,
        norm_placement=model.norm_placement,
        block_names=tuple(model.block_names),
        criteria=tuple(tables),
        sums=tuple(tuple(tuple(row) for row in sums.tolist()) for sums, _ in tables.values()),
        counts=tuple(tuple(counts) for _, counts in tables.values()),
        tokens=tuple(lengths),
        stream_norm=tuple(norms[:, 0].tolist()),
        update_norm=tuple(norms[:, 1].tolist()),
        parameters=model.parameter_counts(),
        total_parameters=model.total_parameters(),
        pinned=dict(model.pinned),
        calibration=data.info,
        dtype=batches_summed[-1].dtype,
        refused=refused,
        spans=None if spanning is None else _spans(spanning.name, len(model), batches_summed),
        documents=data.documents,
    )


def _requested(model: BlockSequence, criteria: Sequence[str]) -> tuple[list[RequestedCriterion], dict[str, str]]:
    """The criteria that the model can serve, and why it cannot serve the others.

    Raises:
        UnknownNameError: one is not installed; ShortGPTError: the model can serve none.
    """
    requested = open_criteria(criteria)
    refused = {one.name: reason for one in requested if (reason := one.refuse(model))}
    requested = [one for one in requested if one.name not in refused]
    if not requested:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "none was given"
        raise ShortGPTError(f"{model.name}: there is no criterion to score it by ({reasons})")
    return requested, refused


def _table(
    requested: RequestedCriterion,
    batches: Sequence[BatchSums],
    model: BlockSequence,
    data: Calibration,
    report: Progress,
) -> tuple[Tensor, Sequence[int]]:
    """A criterion's sums [sequences, blocks], float64, and of how many values each sequence's are.

    Raises:
        CalibrationError: they are of none.
    """
    import torch

    if isinstance(requested.criterion, OrderCriterion):
        places = processes.agreed(partial(requested.places, model, data, report))
        return torch.tensor([places], dtype=torch.float64), (1,)
    counts = [count for batch in batches for count in batch.counts[requested.name]]
    if not sum(counts):
        raise CalibrationError(f"criterion {requested.name!r}: no sequence has two tokens; give longer texts")
    return torch.cat([batch.sums[requested.name] for batch in batches]), counts


def _spans(criterion: str, depth: int, batches: Sequence[BatchSums]) -> Spans:
    rows = [row for batch in batches if batch.spans is not None for row in batch.spans.tolist()]
    counts = tuple(count for batch in batches for count in batch.counts[criterion])
    return Spans(criterion, depth, tuple(map(tuple, rows)), counts)


def _share(
    model: BlockSequence,
    data: Calibration,
    requested: Sequence[RequestedCriterion],
    spans: RequestedCriterion | None,
    kept: Kept,
    report: Progress,
    rank: int,
    size: int,
) -> tuple[str, list[BatchSums]]:
    """One process's share of the pass: every size-th batch, whole, so that sums don't depend on how many there are.

    An accelerator's sums stay on it till the end, so that nothing waits for them. Only the first batch's are looked at
    when it is done: a model that breaks does so there, as a rule.
    """
    mine = list(enumerate(data.batches))[rank::size]
    tap_for = partial(BatchTap, model, requested, spans, report, Workspace())
    summed: list[BatchSums] = []
    batch_parts = BatchParts()
    if model.streamed:
        known = [found for number, _ in mine if (found := kept.batch(number)) is not None]
        mine = [(number, batch) for number, batch in mine if kept.batch(number) is None]

        def traced(parts: list[list[TokenBatch]]) -> list[BatchSums]:
            batch_taps = [[tap_for(part) for part in of_batch] for of_batch in parts]
            model.trace_all(list(chain(*parts)), [batch_tap.tap for batch_tap in chain(*batch_taps)])
            return [
                joined([batch_tap.result(number) for batch_tap in of_batch])
                for of_batch, (number, _) in zip(batch_taps, mine, strict=True)
            ]

        new = (
            batch_parts.together([batch for _, batch in mine], traced, partial(_rows_at_a_time, model)) if mine else []
        )
        summed = known + [kept.add(batch.landed(model)) if kept else batch for batch in new]
    else:
        for number, batch in mine:
            if (found := kept.batch(number)) is not None:
                summed.append(found)
                report("batches", len(summed), len(mine))
                continue
            work = partial(_scored, model, number=number, requested=requested, tap_for=tap_for)
            scored = joined(batch_parts.each(batch, work, _rows_at_a_time(model, batch)))
            at_once = bool(kept) or not summed or scored.norms.device.type == "cpu"
            summed.append(kept.add(scored.landed(model)) if at_once else scored)
            report("batches", len(summed), len(mine))
    return data.info.token_hash, [batch.landed(model) for batch in summed]


def _rows_at_a_time(model: BlockSequence, batch: TokenBatch) -> int:
    rows, tokens = batch["input_ids"].shape
    if model.device.type != "cpu":
        return rows
    return max(1, CPU_TOKENS * 4 // model.bytes_per_number // max(1, tokens))


def _scored(
    model: BlockSequence,
    part: TokenBatch,
    number: int,
    requested: Sequence[RequestedCriterion],
    tap_for: Callable[[TokenBatch], BatchTap],
) -> BatchSums:
    """The sums of a part of a batch."""
    batch_tap = tap_for(part)
    model.trace(part, batch_tap.tap)
    scored = batch_tap.result(number)
    for one in requested:
        if isinstance(one.criterion, BatchCriterion):
            scored.sums[one.name], scored.counts[one.name] = one.measure(model, part)
    return scored
