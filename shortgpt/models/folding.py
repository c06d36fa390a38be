"""Folded weights, and the proof of those that half precision rounds.

::

    source, as float32 ──fold──▶ exact, float32 ──rounded once──▶ saved, in the source's dtype
                                       │                             │
                                       └── the model of these is     └── must be that rounding, to the bit
                                           compared, in float32

Were the saved weights compared instead, the tolerance would have to allow what half precision rounds, and that is more
than what leaving out a whole fold does to the logits of some models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import Fold


class Widened(Mapping[str, Any]):
    """Tensors by name, those in half precision as float32."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return widened(self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def widened(tensor: Tensor) -> Tensor:
    """A tensor in half precision as float32, which holds it exactly; any other as it is."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def folded(fold: Fold, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What becomes of a tensor, before it is rounded to its dtype."""
    return fold(widened(tensor), Widened(tensors))


def rounded(fold: Fold, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What becomes of a tensor, in its dtype: computed in float32 and rounded once."""
    return folded(fold, tensor, tensors).to(tensor.dtype)


def folded_twice(first: Mapping[str, Fold], second: Mapping[str, Fold]) -> dict[str, Fold]:
    """Folds of which those of `second` come after those of `first`."""

    def both(one: Fold, other: Fold) -> Fold:
        return lambda tensor, tensors: other(one(tensor, tensors), tensors)

    return {**first, **second, **{name: both(first[name], second[name]) for name in first.keys() & second.keys()}}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))
