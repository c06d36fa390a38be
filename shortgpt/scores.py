"""One pass of a model, any number of criteria; and `Scores`, the statistics that come of it.

::

    token batches ─▶ trace ─▶ boundary i, i+1 ─▶ criterion, a value a token ─▶ float64 sums [sequence, block] ─▶ Scores

A score is a mean over tokens. Tokens of one text are not independent, so its uncertainty is taken with the sequence
as the unit. Only one boundary of a batch is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shortgpt import plugins
from shortgpt.calibration import Calibration, CalibrationInfo, calibrate
from shortgpt.errors import AdapterError, HiddenStateError, SelectionError, ShortGPTError
from shortgpt.values import Value

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from shortgpt.blocks import BlockSequence, TokenBatch
    from shortgpt.influence import Criterion
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
        sums: for each criterion, the float64 sums of the tokens' values, [sequences][blocks].
        tokens: the real tokens of each sequence, [sequences].
        stream_norm: mean ‖x_i‖ over tokens, before each block: the paper's mechanism is that it grows with depth.
        update_norm: mean ‖x_{i+1} − x_i‖ over tokens.
        parameters: of each block.
        total_parameters: of the whole model.
        pinned: blocks that cannot be removed, each with its reason.
        calibration: what it was measured on.
        dtype: of the residual stream.
    """

    model: str
    architecture: str
    norm_placement: str
    block_names: tuple[str, ...]
    criteria: tuple[str, ...]
    sums: tuple[tuple[tuple[float, ...], ...], ...]
    tokens: tuple[int, ...]
    stream_norm: tuple[float, ...]
    update_norm: tuple[float, ...]
    parameters: tuple[int, ...]
    total_parameters: int
    pinned: dict[int, str]
    calibration: CalibrationInfo
    dtype: str

    def __len__(self) -> int:
        return len(self.block_names)

    def of(self, criterion: str) -> Scores:
        """The same scores with another of the measured criteria first.

        Raises:
            ShortGPTError: it was not measured.
        """
        if criterion not in self.criteria:
            raise ShortGPTError(f"criterion {criterion!r} was not measured here, only {', '.join(self.criteria)}")
        order = sorted(range(len(self.criteria)), key=lambda k: self.criteria[k] != criterion)
        return replace(self, criteria=tuple(self.criteria[k] for k in order), sums=tuple(self.sums[k] for k in order))

    @property
    def values(self) -> tuple[float, ...]:
        """The mean over all tokens, [blocks]."""
        total = sum(self.tokens)
        return tuple(sum(column) / total for column in zip(*self.sums[0], strict=True))

    @property
    def stderr(self) -> tuple[float, ...]:
        """The standard error of `values`, [blocks]: of a ratio of sums over sequences. NaN for a single sequence."""
        n, total = len(self.tokens), sum(self.tokens)
        if n < 2:
            return (float("nan"),) * len(self)
        errors = []
        for mean, column in zip(self.values, zip(*self.sums[0], strict=True), strict=True):
            squares = sum((s - mean * t) ** 2 for s, t in zip(column, self.tokens, strict=True))
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
        count = len(self.tokens)
        chosen = self.least_influential(n)
        if count < 2:
            return float("nan")
        import numpy

        generator = numpy.random.default_rng(seed)
        weights = generator.multinomial(count, [1 / count] * count, size=resamples)  # how often each is drawn
        means = weights @ numpy.asarray(self.sums[0]) / (weights @ numpy.asarray(self.tokens))[:, None]
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

    Args:
        calibration: a named source, a path, an iterable of texts or of token batches, or a `Calibration`; with the
            other arguments as `shortgpt.calibrate` takes them.
        criteria: names of installed criteria; the first is the one that `Scores` ranks by.
        progress: called after every block and every batch.

    Returns:
        Scores, which batch size, order, padding and accumulation do not move: sums are float64, and only real tokens
        are in them.

    Raises:
        HiddenStateError: the stream holds NaN, infinity or a zero vector. The message names block and batch.
        CalibrationError, UnknownNameError: see `calibrate`.
    """
    import torch

    measures: list[tuple[plugins.Extension, Criterion]] = []
    for name in criteria:
        entry = plugins.lookup("criterion", plugins.registry().criteria, name)
        criterion = plugins.load_target(entry.target)
        with plugins.running("criterion", entry):
            measures.append((entry, criterion()))
    if not measures:
        raise ShortGPTError("no criterion was given; name at least one")
    data = calibration
    if not isinstance(data, Calibration):
        data = calibrate(
            calibration, model, sequences=sequences, tokens=tokens, seed=seed, field=field, batch_size=batch_size
        )
    report = progress or (lambda what, done, total: None)
    sums: list[Tensor] = []
    counts: list[int] = []
    dtype = "unknown"
    passes = [_Pass(model, batch, measures, report) for batch in data.batches]
    for number in model.trace_all(data.batches, [pass_.tap for pass_ in passes]):
        sums.append(passes[number].sums(number))
        counts.extend(passes[number].lengths.tolist())
        dtype = passes[number].dtype
        report("batches", number + 1, len(passes))
    table = torch.cat(sums)  # [sequences, blocks, criteria + 2]
    means = table[..., len(measures) :].sum(0) / sum(counts)
    return Scores(
        model=model.name,
        architecture=model.architecture,
        norm_placement=model.norm_placement,
        block_names=tuple(model.block_names),
        criteria=tuple(criteria),
        sums=tuple(tuple(tuple(row) for row in table[..., k].tolist()) for k in range(len(measures))),
        tokens=tuple(counts),
        stream_norm=tuple(means[:, 0].tolist()),
        update_norm=tuple(means[:, 1].tolist()),
        parameters=model.parameter_counts(),
        total_parameters=model.total_parameters(),
        pinned=dict(model.pinned),
        calibration=data.info,
        dtype=dtype,
    )


class _Pass:
    """The sums of one batch: [sequences, blocks, criteria + ‖x_i‖ + ‖x_{i+1} − x_i‖ + two counts of broken tokens].

    They stay on the device until the batch is done, and one boundary is held at a time.
    """

    def __init__(
        self,
        model: BlockSequence,
        batch: TokenBatch,
        measures: Sequence[tuple[plugins.Extension, Criterion]],
        report: Progress,
    ) -> None:
        import torch

        self.model, self.measures, self.report = model, measures, report
        mask = batch.get("attention_mask")
        self.real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
        self.padded = not bool(self.real.all())
        self.lengths = self.real.sum(1)
        self.held: Tensor | None = None
        self.version = 0

    def tap(self, boundary: int, hidden: Tensor) -> None:
        if self.held is None:
            self._begin(hidden)
        hidden = hidden.to(self.real.device)  # a model may be spread over several devices
        if hidden.shape[:2] != self.real.shape:
            raise AdapterError(
                f"{self.model.name}: boundary {boundary} has the shape {tuple(hidden.shape)}, but the batch has "
                f"{tuple(self.real.shape)} tokens; a boundary is [batch, tokens, width]"
            )
        if boundary > 0 and self.held is not None:
            if _version(self.held) != self.version:
                raise AdapterError(f"{self.model.block_names[boundary - 1]} wrote into the stream that it was given")
            self._add(boundary - 1, self.held, hidden)
            self.report("blocks", boundary, len(self.model))
        self.held, self.version = hidden, _version(hidden)

    def sums(self, batch: int) -> Tensor:
        """The sums, on the CPU, without the counts of broken tokens. The last boundary is let go.

        Raises:
            HiddenStateError: a count is not zero.
        """
        self.held = None
        rows = self.rows.cpu()
        _refuse_broken(self.model, batch, rows)
        return rows[..., :-2]

    def _begin(self, hidden: Tensor) -> None:
        import torch

        from shortgpt.influence import precise

        self.dtype = str(hidden.dtype).removeprefix("torch.")
        self.real = self.real.to(hidden.device)
        # A device without float64 computes a token's value in float32; the sums are float64 all the same, on the CPU.
        home = hidden.device if precise(hidden[:0]).dtype == torch.float64 else torch.device("cpu")
        self.owner = torch.arange(len(self.real), device=home).repeat_interleave(self.lengths.to(home))
        shape = (len(self.real), len(self.model), len(self.measures) + 4)
        self.rows = torch.zeros(shape, dtype=torch.float64, device=home)

    def _add(self, block: int, before: Tensor, after: Tensor) -> None:
        import torch

        from shortgpt.influence import chunks, norm, precise

        # The mask selects and never multiplies: whatever the padding holds, NaN too, is not looked at.
        x, y = (v[self.real] if self.padded else v.flatten(0, 1) for v in (before, after))
        for here in chunks(x):
            u, v = precise(x[here]), precise(y[here])
            norm_before, norm_after = norm(u), norm(v)
            columns = [
                *self._values(u, v),
                norm_before,
                norm(v - u),
                (~(norm_before.isfinite() & norm_after.isfinite())).to(u.dtype),
                ((norm_before == 0) | (norm_after == 0)).to(u.dtype),
            ]
            values = torch.stack(columns, 1).to(self.rows)
            self.rows[:, block].index_add_(0, self.owner[here], values)

    def _values(self, before: Tensor, after: Tensor) -> Iterator[Tensor]:
        for entry, criterion in self.measures:
            with plugins.running("criterion", entry):
                values = criterion.values(before, after)
                if values.shape != before.shape[:1]:
                    raise ValueError(f"it gave values of shape {tuple(values.shape)} for {len(before)} tokens")
            yield values


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
