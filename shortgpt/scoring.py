"""One pass of a model, any number of criteria.

::

    token batches ─▶ trace ─▶ boundary i, i+1 ─▶ criterion, a value a token ─▶ float64 sums [sequence, block] ─▶ Scores

Only one boundary of a batch is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shortgpt import plugins, processes
from shortgpt.calibration import Calibration, calibrate
from shortgpt.criteria import AnyCriterion, BatchCriterion, Criterion, OrderCriterion
from shortgpt.errors import AdapterError, CalibrationError, HiddenStateError, PluginError, ShortGPTError
from shortgpt.scores import DEFAULT_CRITERION, Progress, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.blocks import BlockSequence, TokenBatch


def score(
    model: BlockSequence,
    calibration: Any = "stdlib",
    *,
    criteria: Sequence[str] = (DEFAULT_CRITERION,),
    sequences: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    field: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score every block of a model, in one pass over the calibration set.

    Where `torch.distributed` has a process group, each process takes its share of the batches; all of them call this,
    and all get the scores of the whole set. A batch that does not fit into memory is taken in halves.

    Args:
        calibration: a named source, a path, an iterable of texts or of token batches, or a `Calibration`; with the
            other arguments as `shortgpt.calibrate` takes them.
        criteria: names of installed criteria; the first is the one that `Scores` ranks by. All that look at the stream
            are taken in the same pass.
        progress: called after every block and every batch.

    Returns:
        Scores, which batch size, order, padding and accumulation do not move: sums are float64, and only real tokens
        are in them.

    Raises:
        HiddenStateError: the stream holds NaN, infinity or a zero vector. The message names block and batch.
        CalibrationError, UnknownNameError: see `calibrate`.
        ShortGPTError: the model can serve none of the criteria.
        torch.OutOfMemoryError: not even one sequence fits into memory.
    """
    import torch

    asked = _open_criteria(criteria)
    refused = {one.name: reason for one in asked if (reason := one.refuse(model))}
    asked = [one for one in asked if one.name not in refused]
    if not asked:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "none was given"
        raise ShortGPTError(f"{model.name}: there is no criterion to score it by ({reasons})")
    data = calibration
    if not isinstance(data, Calibration):
        data = processes.agreed(
            lambda: calibrate(
                calibration, model, sequences=sequences, tokens=tokens, seed=seed, field=field, batch_size=batch_size
            )
        )
    report = progress or (lambda what, done, total: None)
    rank, size = processes.rank_and_size()
    parts = processes.gathered(processes.agreed(lambda: _share(model, data, asked, report, rank, size)))
    if len({token_hash for token_hash, _ in parts}) > 1:
        raise CalibrationError("the processes read different calibration texts; give all of them the same")
    found = sorted((batch for _, batches in parts for batch in batches), key=lambda batch: batch.number)
    lengths = [length for batch in found for length in batch.lengths]
    norms = torch.cat([batch.norms for batch in found]).sum(0) / sum(lengths)
    tables: dict[str, tuple[Tensor, Sequence[int]]] = {}
    for one in asked:
        if isinstance(one.criterion, OrderCriterion):
            places = processes.agreed(partial(_places, one, model, data, report))
            tables[one.name] = torch.tensor([places], dtype=torch.float64), (1,)
        else:
            sums = torch.cat([batch.sums[one.name] for batch in found])
            tables[one.name] = sums, [count for batch in found for count in batch.counts[one.name]]
        if not sum(tables[one.name][1]):
            raise CalibrationError(f"criterion {one.name!r}: no sequence has two tokens; give longer texts")
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
        dtype=found[-1].dtype,
        refused=refused,
    )


@dataclass(frozen=True)
class _Asked:
    """A criterion of this pass, and where it comes from."""

    name: str
    entry: plugins.Extension
    criterion: AnyCriterion

    def refuse(self, model: BlockSequence) -> str | None:
        if model.streamed and self.criterion.runs_model:
            return "it runs the model itself, whose blocks are still in their files (stream)"
        with plugins.running("criterion", self.entry):
            return self.criterion.refuse(model)


def _open_criteria(names: Sequence[str]) -> list[_Asked]:
    """New instances of criteria.

    Raises:
        UnknownNameError: one is not installed.
        ShortGPTError: one was named twice.
        PluginError: one cannot be made, or is none.
    """
    if len(set(names)) < len(names):
        raise ShortGPTError(f"a criterion was named twice ({', '.join(names)}); name each once")
    asked = []
    for name in names:
        entry = plugins.lookup("criterion", plugins.registry().criteria, name)
        criterion = plugins.load_target(entry.target)
        with plugins.running("criterion", entry):
            made = criterion()
        if not isinstance(made, AnyCriterion):
            raise PluginError(
                f"criterion {name!r} (plugin {entry.plugin}) is a {type(made).__name__}, not a shortgpt.Criterion, "
                "BatchCriterion or OrderCriterion"
            )
        asked.append(_Asked(name, entry, made))
    return asked


def _places(asked: _Asked, model: BlockSequence, data: Calibration, report: Progress) -> list[int]:
    """Each block's place in the order of a criterion."""
    assert isinstance(asked.criterion, OrderCriterion)
    with plugins.running("criterion", asked.entry):
        order = list(asked.criterion.order(model, data, report))
        if sorted(order) != list(range(len(model))):
            raise ValueError(f"it gave the order {order} of {len(model)} blocks")
    return [order.index(block) for block in range(len(model))]


@dataclass(frozen=True)
class _Batch:
    """What one batch came to.

    Attributes:
        number: its place among the batches.
        norms: sums of the stream's and the updates' norms, [sequences, blocks, 2].
        sums, counts: for each criterion, as `Scores` has them.
        lengths: the tokens of each sequence.
        dtype: of the stream.
    """

    number: int
    norms: Tensor
    sums: dict[str, Tensor]
    counts: dict[str, list[int]]
    lengths: list[int]
    dtype: str


def _share(
    model: BlockSequence, data: Calibration, asked: Sequence[_Asked], report: Progress, rank: int, size: int
) -> tuple[str, list[_Batch]]:
    """One process's share of the pass: every size-th batch, whole, so that sums don't depend on how many there are."""
    found: list[_Batch] = []
    mine = list(enumerate(data.batches))[rank::size]
    look = partial(_Pass, model, asked, report, _Room())
    if model.streamed:
        passes = [look(batch) for _, batch in mine]
        model.trace_all([batch for _, batch in mine], [pass_.tap for pass_ in passes])
        found = [pass_.result(number) for pass_, (number, _) in zip(passes, mine, strict=True)]
        return data.info.token_hash, found
    rows = 0
    for number, batch in mine:
        scored, rows = _scored(model, batch, number, asked, look, rows)
        found.append(scored)
        report("batches", len(found), len(mine))
    return data.info.token_hash, found


def _scored(
    model: BlockSequence,
    batch: TokenBatch,
    number: int,
    asked: Sequence[_Asked],
    look: Callable[[TokenBatch], _Pass],
    rows: int,
) -> tuple[_Batch, int]:
    """The sums of a batch, taken `rows` sequences at a time (0: all at once), or fewer where memory does not suffice;
    and how many at a time that came to."""
    from shortgpt.verification import release_memory

    total = len(batch["input_ids"])
    parts: list[_Batch] = []
    done = 0
    while done < total:
        now = min(rows or total, total - done)
        part = _rows(batch, done, now)
        pass_ = look(part)
        try:
            model.trace(part, pass_.tap)
            scored = pass_.result(number)
            for one in asked:
                if isinstance(one.criterion, BatchCriterion):
                    scored.sums[one.name], scored.counts[one.name] = _measured(one, model, part)
        except RuntimeError as error:  # torch's OutOfMemoryError is one
            if now == 1 or not _is_lack_of_memory(error):
                raise
            rows = (now + 1) // 2
        else:
            parts.append(scored)
            done += now
            continue
        del pass_  # outside the `except`, whose error holds what the pass held
        release_memory()
    return _joined(parts), rows


def _measured(asked: _Asked, model: BlockSequence, batch: TokenBatch) -> tuple[Tensor, list[int]]:
    """What a criterion that runs the model makes of a batch, checked."""
    import torch

    assert isinstance(asked.criterion, BatchCriterion)
    with plugins.running("criterion", asked.entry):
        sums, counts = asked.criterion.measure(model, batch)
        sums, counts = torch.as_tensor(sums).cpu(), [int(count) for count in counts]
        shape = (len(batch["input_ids"]), len(model))
        if sums.shape != shape or sums.dtype != torch.float64 or len(counts) != shape[0]:
            raise ValueError(
                f"it gave sums {tuple(sums.shape)} {sums.dtype} for {shape[0]} sequences, {shape[1]} blocks"
            )
    if not sums.isfinite().all():
        raise HiddenStateError(
            f"{model.name}: the criterion {asked.name!r} gave NaN or infinity; check the model's dtype"
        )
    return sums, counts


def _joined(parts: Sequence[_Batch]) -> _Batch:
    """Parts of one batch as one."""
    import torch

    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        norms=torch.cat([part.norms for part in parts]),
        sums={name: torch.cat([part.sums[name] for part in parts]) for name in parts[0].sums},
        counts={name: [count for part in parts for count in part.counts[name]] for name in parts[0].counts},
        lengths=[length for part in parts for length in part.lengths],
    )


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether a device's memory, or the host's, did not suffice: most devices say so in the message only."""
    return type(error).__name__ == "OutOfMemoryError" or any(
        sign in str(error) for sign in ("out of memory", "DefaultCPUAllocator: ")
    )


def _rows(batch: TokenBatch, first: int, count: int) -> TokenBatch:
    """Some sequences of a batch: of every tensor that has a row a sequence, these rows."""
    import torch

    total = len(batch["input_ids"])
    if count == total:
        return batch
    return {
        name: value[first : first + count] if isinstance(value, torch.Tensor) and value.shape[:1] == (total,) else value
        for name, value in batch.items()
    }


class _Room:
    """Memory in the wide float for a chunk of x_i, of x_{i+1}, and of their products: one for all passes, for they look
    in turn."""

    held: Tensor | None = None

    def of(self, like: Tensor, tokens: int, width: int) -> Tensor:
        """[3, tokens, width] of the dtype and on the device of `like`."""
        held, size = self.held, 3 * tokens * width
        if held is None or (held.device, held.dtype) != (like.device, like.dtype) or held.numel() < size:
            held = self.held = like.new_empty(size)
        return held[:size].view(3, tokens, width)


class _Pass:
    """The sums of one batch: [sequences, blocks, criteria + ‖x_i‖ + ‖x_{i+1} − x_i‖ + two counts of broken tokens].

    They stay on the device until the batch is done. One boundary is held at a time, with the norms of its tokens, which
    serve the block before it and the block after it; in float64 there is never more of the stream than a chunk.
    """

    def __init__(
        self,
        model: BlockSequence,
        asked: Sequence[_Asked],
        report: Progress,
        room: _Room,
        batch: TokenBatch,
    ) -> None:
        import torch

        self.model, self.report, self.room = model, report, room
        looking = [(one, one.criterion) for one in asked if isinstance(one.criterion, Criterion)]
        self.measures = [(one.entry, criterion) for one, criterion in looking if criterion.tokens == "all"]
        self.at_last = [(one.entry, criterion) for one, criterion in looking if criterion.tokens == "last"]
        self.names = [[one.name for one, c in looking if c.tokens == kind] for kind in ("all", "last")]
        mask = batch.get("attention_mask")
        self.shape = batch["input_ids"].shape
        real = torch.ones(self.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
        self.lengths: list[int] = real.sum(1).tolist()
        self.count = sum(self.lengths)
        # The mask selects and never multiplies: whatever the padding holds, NaN too, is not looked at.
        self.chosen = None if bool(real.all()) else real.flatten().nonzero().squeeze(1)
        self.held: Tensor | None = None
        self.version = 0

    def tap(self, boundary: int, hidden: Tensor) -> None:
        if self.held is None:
            self._begin(hidden)
        hidden = hidden.to(self.norms.device)  # a model may be spread over several devices
        if hidden.shape[:2] != self.shape:
            raise AdapterError(
                f"{self.model.name}: boundary {boundary} has the shape {tuple(hidden.shape)}, but the batch has "
                f"{tuple(self.shape)} tokens; a boundary is [batch, tokens, width]"
            )
        if self.held is not None and _version(self.held) != self.version:
            raise AdapterError(f"{self.model.block_names[boundary - 1]} wrote into the stream that it was given")
        self._look(boundary - 1, hidden)
        if self.at_last:
            self._look_at_last(boundary - 1, hidden)
        if boundary > 0:
            self.report("blocks", boundary, len(self.model))
        self.held, self.version = hidden, _version(hidden)

    def result(self, number: int) -> _Batch:
        """What it came to. The last boundary is let go.

        Raises:
            HiddenStateError: a count of broken tokens is not zero.
        """
        self.held = None
        rows, last = self.rows.cpu(), self.last_rows.cpu()
        _refuse_broken(self.model, number, rows)
        if not last.isfinite().all():
            raise HiddenStateError(f"{self.model.name}: a criterion gave NaN or infinity, batch {number}; check it")
        every, at_last = self.names
        sums = {name: rows[..., k] for k, name in enumerate(every)}
        sums |= {name: last[..., k] for k, name in enumerate(at_last)}
        counts = dict.fromkeys(every, self.lengths) | {name: [1] * len(self.lengths) for name in at_last}
        return _Batch(number, rows[..., len(every) : -2], sums, counts, self.lengths, self.dtype)

    def _begin(self, hidden: Tensor) -> None:
        import torch

        from shortgpt.influence import precise, tokens_at_a_time

        self.dtype = str(hidden.dtype).removeprefix("torch.")
        wide = precise(hidden[:0])
        self.chunk = min(tokens_at_a_time(hidden), self.count)
        self.norms = wide.new_empty(self.count)
        if self.chosen is not None:
            self.chosen = self.chosen.to(hidden.device)
        # A device without float64 computes a token's value in float32; the sums are float64 all the same, on the CPU.
        home = hidden.device if wide.dtype == torch.float64 else torch.device("cpu")
        shape = (len(self.lengths), len(self.model), len(self.measures) + 4)
        self.rows = torch.zeros(shape, dtype=torch.float64, device=home)
        self.last_rows = self.rows.new_zeros(*shape[:2], len(self.at_last))
        if self.at_last:
            ends = torch.tensor(self.lengths).cumsum(0) - 1
            self.ends = ends.to(hidden.device) if self.chosen is None else self.chosen[ends.to(hidden.device)]

    def _look(self, block: int, hidden: Tensor) -> None:
        """Take the norms of a boundary; and where a boundary came before it, the sums of the block between them."""
        import torch

        from shortgpt.influence import BlockInfluence, distance_of, norm

        room = self.room.of(self.norms, self.chunk, hidden.shape[-1])
        norms = torch.empty_like(self.norms)
        columns = norms.new_empty(len(self.measures) + 4, self.count)
        *values, stream, update, infinite, zero = columns
        influences, others = [], []
        for value, (entry, criterion) in zip(values, self.measures, strict=True):
            if type(criterion) is BlockInfluence and norms.dtype == torch.float64:
                influences.append(value)  # the norms are at hand: it needs one product more
            else:
                others.append((value, entry, criterion))
        for at in range(0, self.count, self.chunk):
            here = slice(at, min(at + self.chunk, self.count))
            u, v, w = room[:, : here.stop - at]
            v.copy_(self._tokens(hidden, here))
            norm(v, out=norms[here])
            if self.held is None:
                continue
            u.copy_(self._tokens(self.held, here))
            for value, entry, criterion in others:
                value[here] = self._values(entry, criterion, u, v)
            for value in influences:
                torch.sum(torch.mul(u, v, out=w), -1, out=value[here])
            norm(torch.sub(v, u, out=w), out=update[here])
        if self.held is not None:
            for value in influences:
                value.copy_(distance_of(value, self.norms, norms))
            stream.copy_(self.norms)
            infinite.copy_(~(self.norms.isfinite() & norms.isfinite()))
            zero.copy_((self.norms == 0) | (norms == 0))
            parts = columns.to(self.rows).split(self.lengths, 1)
            self.rows[:, block] = torch.stack([part.sum(1) for part in parts])
        self.norms = norms

    def _look_at_last(self, block: int, hidden: Tensor) -> None:
        """The values of the criteria that count the last token of each sequence only."""
        from shortgpt.influence import precise

        if self.held is None:
            return
        u, v = (precise(part.flatten(0, 1)[self.ends]) for part in (self.held, hidden))
        for k, (entry, criterion) in enumerate(self.at_last):
            self.last_rows[:, block, k] = self._values(entry, criterion, u, v).to(self.last_rows)

    def _tokens(self, hidden: Tensor, here: slice) -> Tensor:
        """Some of the real tokens of a boundary, [tokens, width]."""
        flat = hidden.flatten(0, 1)
        return flat[here] if self.chosen is None else flat[self.chosen[here]]

    def _values(self, entry: plugins.Extension, criterion: Criterion, before: Tensor, after: Tensor) -> Tensor:
        with plugins.running("criterion", entry):
            values = criterion.values(before, after)
            if values.shape != before.shape[:1]:
                raise ValueError(f"it gave values of shape {tuple(values.shape)} for {len(before)} tokens")
        return values


def _version(hidden: Tensor) -> int:
    """How often a tensor was written to; tensors made in inference mode don't count it."""
    return 0 if hidden.is_inference() else hidden._version


def _refuse_broken(model: BlockSequence, batch: int, sums: Tensor) -> None:
    """Raise for the first block at which a batch's stream is not finite, or is zero."""
    import torch

    for block in range(len(model)):
        here = sums[:, block]
        zeros, infinite = int(here[:, -1].sum()), int(here[:, -2].sum())
        if infinite:
            found = f"NaN or infinity in the residual stream of {infinite} tokens"
            advice = "load the model in a wider dtype (--dtype bfloat16 or float32), or check its weights"
        elif zeros:
            found, advice = (
                f"zero vectors in the residual stream of {zeros} tokens",
                "their cosine is not defined; check the weights",
            )
        elif not torch.isfinite(here).all():
            found, advice = "a criterion gave NaN or infinity", "check the criterion"
        else:
            continue
        raise HiddenStateError(
            f"{model.name}: {found} around block {block} ({model.block_names[block]}), batch {batch}; {advice}"
        )
