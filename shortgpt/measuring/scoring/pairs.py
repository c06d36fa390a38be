"""A criterion between all pairs of boundaries of one batch: what `Spans` is made of.

All boundaries of the batch are held, in the model's dtype, until the last one is there. Then some tokens at a time are
taken to float64, of all boundaries, [boundaries, tokens, width].
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from shortgpt.errors import AdapterError, ShortGPTError
from shortgpt.measuring.criteria import Criterion

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.measuring.scoring.requested import RequestedCriterion

CHUNKS = 8
"""How many chunks of a single boundary a chunk of all of them is worth: what it costs a token falls with its size."""


def refuse_spans(requested: RequestedCriterion) -> None:
    """Raise a `ShortGPTError` for a criterion that looks at no stream."""
    if not isinstance(requested.criterion, Criterion):
        raise ShortGPTError(
            f"spans are measured between boundaries of the stream, at which {requested.name!r} does not look; name a "
            "criterion first that does, such as block-influence"
        )


class Pairs:
    """The sums of one batch.

    Args:
        requested: what is measured between each pair.
        lengths: of the sequences, in tokens; where only the last token counts, ones.
        places: where those tokens lie, counted along the rows of the batch; None for all.
    """

    def __init__(self, requested: RequestedCriterion, lengths: list[int], places: Tensor | None) -> None:
        self.requested, self.lengths, self.places = requested, lengths, places
        self.only_last = isinstance(requested.criterion, Criterion) and requested.criterion.tokens == "last"
        self.held: list[tuple[Tensor, int]] = []

    def keep(self, hidden: Tensor) -> None:
        """Take a boundary, [batch, tokens, width]."""
        flat = hidden.flatten(0, 1)
        if self.only_last and self.places is not None:
            flat = flat[self.places]
        self.held.append((flat, version(flat)))

    def sums(self, blocks: Tensor) -> Tensor:
        """[sequences, pairs], float64, the pairs in lexicographic order. The boundaries are let go.

        Args:
            blocks: the sums of the same criterion at the blocks, [sequences, blocks], which are pairs too.

        Raises:
            AdapterError: the model wrote into a boundary after it had handed it over.
        """
        import torch

        from shortgpt.measuring.angles import precise, tokens_at_a_time
        from shortgpt.measuring.scoring.influence import BlockInfluence

        for boundary, (hidden, kept) in enumerate(self.held):
            if version(hidden) != kept:
                raise AdapterError(f"the stream at boundary {boundary} was written into after it was given")
        first = self.held[0][0]
        boundaries = len(self.held)
        pairs = list(combinations(range(boundaries), 2))
        chunk = min(max(1, CHUNKS * tokens_at_a_time(first) // boundaries), max(self.lengths))
        workspace = precise(first[:0]).new_empty(boundaries, chunk, first.shape[-1])
        by_products = type(self.requested.criterion) is BlockInfluence and workspace.dtype == torch.float64
        sums = torch.zeros(len(self.lengths), len(pairs), dtype=torch.float64, device=blocks.device)
        begin = 0
        for sequence, length in enumerate(self.lengths):
            for at in range(begin, begin + length, chunk):
                here = slice(at, min(at + chunk, begin + length))
                vectors = workspace[:, : here.stop - at]
                for hidden, wide in zip((hidden for hidden, _ in self.held), vectors, strict=True):
                    wide.copy_(self._tokens(hidden, here))
                if by_products:
                    values = _distances(vectors)
                else:
                    values = torch.stack([self.requested.values(vectors[i], vectors[j]) for i, j in pairs])
                sums[sequence] += values.to(sums).sum(1)
            begin += length
        self.held = []
        for block in range(boundaries - 1):
            sums[:, pairs.index((block, block + 1))] = blocks[:, block]
        return sums

    def _tokens(self, flat: Tensor, here: slice) -> Tensor:
        return flat[here] if self.places is None or self.only_last else flat[self.places[here]]


def _distances(vectors: Tensor) -> Tensor:
    """`1 − x·y / (‖x‖ ‖y‖)` between all of [boundaries, tokens, width] in float64, right to 1e-15: [pairs, tokens].

    All products of a token are one product of matrices.
    """
    import torch

    by_token = vectors.transpose(0, 1)
    products = by_token @ by_token.transpose(1, 2)
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    i, j = torch.triu_indices(len(vectors), len(vectors), offset=1, device=vectors.device)
    return (1 - products[:, i, j] / (norms[:, i] * norms[:, j])).clamp_min(0).T


def version(hidden: Tensor) -> int:
    """How often a tensor was written to; tensors made in inference mode don't count it."""
    return 0 if hidden.is_inference() else hidden._version
