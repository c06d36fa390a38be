"""What one batch came to, and whether it can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shortgpt.errors import HiddenStateError

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import BlockSequence


@dataclass(frozen=True)
class BatchSums:
    """What one batch came to. The tensors are on the device that computed them until `landed`.

    Attributes:
        number: its place among the batches.
        sums, counts: for each criterion, as `Scores` has them, [sequences, blocks] and [sequences].
        norms: sums of the stream's and the updates' norms, [sequences, blocks, 2].
        broken: how many tokens of the stream are not finite, and how many are zero, [sequences, blocks, 2].
        lengths: the tokens of each sequence.
        dtype: of the stream.
        spans: the sums between all pairs of boundaries, [sequences, pairs].
    """

    number: int
    sums: dict[str, Tensor]
    counts: dict[str, list[int]]
    norms: Tensor
    broken: Tensor
    lengths: list[int]
    dtype: str
    spans: Tensor | None = None

    def landed(self, model: BlockSequence) -> BatchSums:
        """The same on the host, checked.

        Raises:
            HiddenStateError: the stream, or what a criterion made of it, is not finite, or the stream is zero.
        """
        _refuse_broken_stream(model, self.number, self.broken.cpu())
        sums = {name: one.cpu() for name, one in self.sums.items()}
        for name, one in sums.items():
            _refuse_broken_values(model, name, self.number, one)
        spans = None if self.spans is None else self.spans.cpu()
        if spans is not None and not spans.isfinite().all():
            raise HiddenStateError(
                f"{model.name}: the first criterion gave NaN or infinity between two boundaries, batch {self.number}; "
                "check the criterion"
            )
        return replace(self, sums=sums, norms=self.norms.cpu(), broken=self.broken.cpu(), spans=spans)


def joined(parts: Sequence[BatchSums]) -> BatchSums:
    """Parts of one batch as one."""
    import torch

    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return replace(
        first,
        sums={name: torch.cat([part.sums[name] for part in parts]) for name in first.sums},
        counts={name: [count for part in parts for count in part.counts[name]] for name in first.counts},
        norms=torch.cat([part.norms for part in parts]),
        broken=torch.cat([part.broken for part in parts]),
        lengths=[length for part in parts for length in part.lengths],
        spans=None if first.spans is None else torch.cat([part.spans for part in parts if part.spans is not None]),
    )


def _refuse_broken_stream(model: BlockSequence, batch: int, broken: Tensor) -> None:
    """Raise for the first block at which a batch's stream is not finite, or is zero."""
    for block, (infinite, zeros) in enumerate(broken.sum(0).tolist()):
        if infinite:
            found = f"NaN or infinity in the residual stream of {infinite:.0f} tokens"
            advice = "load the model in a wider dtype (--dtype bfloat16 or float32), or check its weights"
        elif zeros:
            found = f"zero vectors in the residual stream of {zeros:.0f} tokens"
            advice = "their cosine is not defined; check the weights"
        else:
            continue
        raise HiddenStateError(
            f"{model.name}: {found} around block {block} ({model.block_names[block]}), batch {batch}; {advice}"
        )


def _refuse_broken_values(model: BlockSequence, criterion: str, batch: int, sums: Tensor) -> None:
    """Raise for the first block of which a criterion's sums, [sequences, blocks], are not finite.

    What it looked at was finite: so the criterion is to be named.
    """
    broken = (~sums.isfinite()).any(0).nonzero().flatten().tolist()
    if broken:
        raise HiddenStateError(
            f"{model.name}: the criterion {criterion!r} gave NaN or infinity around block {broken[0]} "
            f"({model.block_names[broken[0]]}), batch {batch}; check the criterion, and the model's dtype"
        )
