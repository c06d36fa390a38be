"""What of a model's weights goes with each block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from shortgpt.basics.inputs import Fold
from shortgpt.models.sequence import WeightSize

Place = tuple[object, ...]
"""What two names of one tensor share."""

Rename = Callable[[Sequence[int]], tuple[Mapping[str, str], Mapping[str, Fold]]]
"""(blocks that stay) → new name → old one of every tensor that stays, and the changes by new name."""


def weight_sizes(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], depth: int, rename: Rename
) -> tuple[WeightSize, ...]:
    """For each block what the weights are less when it is removed alone, and last what is not of any block.

    Removal renames tensors and changes some, so what it leaves is known without a shorter model. What stands in a block
    but belongs elsewhere (a norm behind the embedding) stays, as does what several blocks share; a tensor outside the
    blocks that has a part for each loses one.

    Args:
        tensors: all that a checkpoint holds, by name.
        parameters: those of the model; they may have other names.
    """
    places = {name: _place(name, tensor) for name, tensor in tensors.items()}
    learnt = {_place(name, parameter) for name, parameter in parameters.items()}
    learnt |= {places[name] for name in parameters if name in places}
    by_place = {places[name]: tensor for name, tensor in tensors.items()}
    whole = _size(by_place, by_place, learnt)
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    sizes = []
    for block in range(depth):
        renamed, folds = rename([other for other in range(depth) if other != block])
        left = _size({places[old] for old in renamed.values()}, by_place, learnt)
        for new, fold in folds.items():
            before, after = shapes[renamed[new]], fold(shapes[renamed[new]], shapes)
            numbers = after.numel() - before.numel()
            is_learnt = places[renamed[new]] in learnt
            left = WeightSize(left.parameters + numbers * is_learnt, left.bytes + numbers * before.element_size())
        sizes.append(WeightSize(whole.parameters - left.parameters, whole.bytes - left.bytes))
    outside = WeightSize(
        whole.parameters - sum(size.parameters for size in sizes), whole.bytes - sum(size.bytes for size in sizes)
    )
    return (*sizes, outside)


def _place(name: str, tensor: Tensor) -> Place:
    address = 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
    return (address, tensor.storage_offset(), tuple(tensor.shape)) if address else (name,)


def _size(places: Iterable[Place], tensors: Mapping[Place, Tensor], learnt: set[Place]) -> WeightSize:
    some = list(places)
    numbers = sum(tensors[place].numel() for place in some if place in learnt)
    return WeightSize(numbers, sum(tensors[place].numel() * tensors[place].element_size() for place in some))
