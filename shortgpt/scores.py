"""One pass of a model, any number of criteria; and `Scores`, the statistics that come of it.

::

    token batches ─▶ trace ─▶ boundary i, i+1 ─▶ criterion, a value a token ─▶ float64 sums [sequence, block] ─▶ Scores

A score is a mean over tokens. Tokens of one text are not independent, so its uncertainty is taken with the sequence
as the unit. Only one boundary of a batch is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shortgpt import plugins, processes
from shortgpt.calibration import Calibration, CalibrationInfo, calibrate
from shortgpt.criteria import AnyCriterion, BatchCriterion, Criterion, OrderCriterion
from shortgpt.errors import (
    AdapterError,
    CalibrationError,
    HiddenStateError,
    PluginError,
    SelectionError,
    ShortGPTError,
)
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from shortgpt.blocks import BlockSequence, TokenBatch
    from shortgpt.plan import Plan

Progress = Callable[[str, int, int], None]
"""Called with what is being counted ("blocks", "batches"), how many are done, and of how many."""

DEFAULT_CRITERION = "block-influence"


@dataclass(frozen=True)
class Scores(Value):
    """The scores of a model's blocks on a calibration set. Lower means: remove first.

    Attributes:
        model, architecture, norm_placement: of the model that was scored.
        block_names: [blocks].
        criteria: what was measured; `values`, `stderr` and `ranking` speak of the first.
        sums: for each criterion, the float64 sums of the tokens' values, [sequences][blocks]. For one that is no mean
            over tokens there is a single row, its values.
        counts: for each criterion, the tokens that are in each of its rows.
        tokens: the real tokens of each sequence, [sequences].
        stream_norm: mean ‖x_i‖ over tokens, before each block: the paper's mechanism is that it grows with depth.
        update_norm: mean ‖x_{i+1} − x_i‖ over tokens.
        parameters: of each block.
        total_parameters: of the whole model.
        pinned: blocks that cannot be removed, each with its reason.
        calibration: what it was measured on.
        dtype: of the residual stream.
        refused: criteria that were asked for and that this model cannot serve, each with the reason.
    """

    model: str
    architecture: str
    norm_placement: str
    block_names: tuple[str, ...]
    criteria: tuple[str, ...]
    sums: tuple[tuple[tuple[float, ...], ...], ...]
    counts: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    stream_norm: tuple[float, ...]
    update_norm: tuple[float, ...]
    parameters: tuple[int, ...]
    total_parameters: int
    pinned: dict[int, str]
    calibration: CalibrationInfo
    dtype: str
    refused: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.block_names)

    def of(self, criterion: str) -> Scores:
        """The same scores with another of the measured criteria first.

        Raises:
            ShortGPTError: it was not measured.
        """
        if criterion not in self.criteria:
            why = self.refused.get(criterion)
            told = f": {why}" if why else f", only {', '.join(self.criteria)}"
            raise ShortGPTError(f"criterion {criterion!r} was not measured here{told}")
        order = sorted(range(len(self.criteria)), key=lambda k: self.criteria[k] != criterion)
        return replace(
            self,
            criteria=tuple(self.criteria[k] for k in order),
            sums=tuple(self.sums[k] for k in order),
            counts=tuple(self.counts[k] for k in order),
        )

    @property
    def values(self) -> tuple[float, ...]:
        """The mean over all tokens, [blocks]."""
        total = sum(self.counts[0])
        return tuple(sum(column) / total for column in zip(*self.sums[0], strict=True))

    @property
    def stderr(self) -> tuple[float, ...]:
        """The standard error of `values`, [blocks]: of a ratio of sums over sequences. NaN for a single sequence."""
        n, total = len(self.counts[0]), sum(self.counts[0])
        if n < 2:
            return (float("nan"),) * len(self)
        errors = []
        for mean, column in zip(self.values, zip(*self.sums[0], strict=True), strict=True):
            squares = sum((s - mean * t) ** 2 for s, t in zip(column, self.counts[0], strict=True))
            errors.append((n / (n - 1) * squares) ** 0.5 / total)
        return tuple(errors)

    def ranking(self) -> tuple[int, ...]:
        """The blocks, least influential first. Of equal ones the deeper goes first. Pinned ones are not left out."""
        values = self.values
        return tuple(sorted(range(len(self)), key=lambda i: (values[i], -i)))

    def least_influential(self, n: int) -> tuple[int, ...]:
        """The n blocks of least score that may be removed, in the order of the model.

        Raises:
            SelectionError: n is not between 1 and the number of blocks that may go (and at least one stays).
        """
        return _lowest(self.values, self.pinned, n)

    def stability(self, n: int, *, resamples: int = 1000, seed: int = 0) -> float:
        """How sure the set of the n least influential is: in what share of bootstrap resamples of the sequences the
        same set comes out. 1.0 is certain; NaN for a single sequence."""
        count = len(self.counts[0])
        chosen = self.least_influential(n)
        if count < 2:
            return float("nan")
        import numpy

        generator = numpy.random.default_rng(seed)
        weights = generator.multinomial(count, [1 / count] * count, size=resamples)  # how often each is drawn
        means = weights @ numpy.asarray(self.sums[0]) / (weights @ numpy.asarray(self.counts[0]))[:, None]
        same = sum(_lowest(tuple(row), self.pinned, n) == chosen for row in means.tolist())
        return same / resamples

    def plan(self, n: int) -> Plan:
        """The plan that removes the n least influential blocks."""
        from shortgpt.plan import Plan

        return Plan(
            model=self.model,
            architecture=self.architecture,
            depth=len(self),
            blocks=self.least_influential(n),
            scores=self,
        )

    def __rich__(self) -> RenderableType:
        from shortgpt.reports import scores_table

        return scores_table(self)

    def __str__(self) -> str:
        from shortgpt.reports import as_text

        return as_text(self)


def _lowest(values: Sequence[float], pinned: dict[int, str], n: int) -> tuple[int, ...]:
    check_number(n, len(values), pinned)
    free = [i for i in range(len(values)) if i not in pinned]
    return tuple(sorted(sorted(free, key=lambda i: (values[i], -i))[:n]))


def check_number(n: int, depth: int, pinned: Mapping[int, str]) -> None:
    """Raise a `SelectionError` where n blocks of a model cannot be removed: pinned ones stay, and at least one."""
    most = min(depth - len(pinned), depth - 1)
    if not 1 <= n <= most:
        raise SelectionError(f"{n} blocks cannot be chosen: from 1 to {most} of the {depth} blocks may be removed")


def blocks_for_ratio(ratio: float, depth: int) -> int:
    """How many blocks a share of them is: `round(ratio · depth)`, at least one.

    Raises:
        SelectionError: the ratio is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise SelectionError(f"a ratio of {ratio} is no share; it must lie between 0 and 1, such as 0.25")
    return max(1, round(ratio * depth))


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
        if model.streamed and not isinstance(self.criterion, Criterion):
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
