"""The last thing that a block adds to the stream, and changes of it that cost no parameter.

::

    x ─●─ ... ─(+)─ r ─(+)─▶ y = r + u          u = W h: what the block's last projection gives
                        └── W h                 W becomes T W, and y becomes r + T u, exactly

Where T can be any matrix the change is a "map". Where a gate multiplies W h number by number, only a diagonal T passes
through it: a "scale". And where a norm stands behind W h, u = g ⊙ n is what the norm gives, and its gain g is what can
change: the "gain" g becomes g + d, and y becomes y + d ⊙ n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from shortgpt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import Fold

Form = Literal["map", "scale", "gain"]
"""What passes from a projection to the stream; see above."""


@dataclass(frozen=True)
class Projection:
    """Tensors of a block by whose change what it adds to the stream changes.

    Attributes:
        block: the block's number.
        form: the changes that pass through to the stream.
        tensors: a tensor's name inside the block → the axis that runs along the stream's width, counted from the end,
            -1 or before: the experts of a mixture may be one tensor in memory and several in a file.
        width: of the stream.
        reason: why no matrix passes through to the stream; None where one does.
    """

    block: int
    form: Form
    tensors: Mapping[str, int]
    width: int
    reason: str | None = None


class Addition(NamedTuple):
    """What a block does to the stream, as its projection can change it.

    Attributes:
        behind: the stream behind the block, [batch, tokens, width].
        added: what is multiplied, of the same shape: the projection's share u of it, or the normed n for a "gain".
    """

    behind: Tensor
    added: Tensor


@dataclass(frozen=True)
class Change:
    """A change of a projection.

    Attributes:
        numbers: float64: the matrix T [width, width] of a "map", the diagonal [width] of a "scale", or what is added to
            a "gain" [width].
    """

    projection: Projection
    numbers: Tensor

    @property
    def hash(self) -> str:
        """SHA-256 of the numbers, as float64 in little-endian order."""
        return hashlib.sha256(self.numbers.double().cpu().contiguous().numpy().astype("<f8").tobytes()).hexdigest()

    def at(self, block: int) -> Change:
        """The same change of a block that stands at another place."""
        return replace(self, projection=replace(self.projection, block=block))

    def of(self, tensor: Tensor, axis: int) -> Tensor:
        """What becomes of a tensor whose axis `axis` runs along the width, in its own dtype."""
        import torch

        if tensor.is_meta:
            return torch.empty_like(tensor)
        wide = torch.float32 if tensor.device.type == "mps" else torch.float64
        numbers = self.numbers.to(tensor.device, wide)
        rows = tensor.to(wide).movedim(axis, 0)
        flat = rows.reshape(len(rows), -1)
        if self.projection.form == "map":
            flat = numbers @ flat
        elif self.projection.form == "scale":
            flat = numbers[:, None] * flat
        else:
            flat = flat + numbers[:, None]
        moved = flat.view(rows.shape).movedim(0, axis)
        if tensor.element_size() < 4:
            moved = moved.float()  # once more on the way, as weights that are folded on disk are rounded
        return moved.to(tensor.dtype).contiguous()

    def fold(self, axis: int) -> Fold:
        """The same for a tensor of a checkpoint, see `folding`."""
        return lambda tensor, tensors: self.of(tensor, axis)


def change_folds(
    changes: Iterable[Change],
    places: Mapping[str, tuple[int, str]],
    shapes: Callable[[str], tuple[int, ...]],
    renamed: Mapping[str, str],
) -> dict[str, Fold]:
    """New tensor name → what changes make of that tensor of a checkpoint.

    Args:
        places: a file's tensor name → the block's number, and what the tensor is called inside a block in memory.
        shapes: a file's tensor name → its shape.
        renamed: new tensor name → that of the file.

    Raises:
        CheckpointError: a tensor that is to be changed is not there, or has no axis of the stream's width.
    """
    folds: dict[str, Fold] = {}
    new_names = {old: new for new, old in renamed.items()}
    for change in changes:
        axes = _axes_in_file(change.projection, places, shapes)
        if isinstance(axes, str):
            raise CheckpointError(f"block {change.projection.block} cannot be changed: {axes}")
        folds |= {new_names[old]: change.fold(axis) for old, axis in axes.items()}
    return folds


def why_unknown(
    projection: Projection, places: Mapping[str, tuple[int, str]], shapes: Callable[[str], tuple[int, ...]]
) -> str | None:
    """Why a projection's tensors are not known in a checkpoint, None where they are. See `change_folds`."""
    axes = _axes_in_file(projection, places, shapes)
    return axes if isinstance(axes, str) else None


def _axes_in_file(
    projection: Projection, places: Mapping[str, tuple[int, str]], shapes: Callable[[str], tuple[int, ...]]
) -> dict[str, int] | str:
    """A file's tensor name → its axis that runs along the width; or why it is not known.

    It is the axis of the tensor in memory, unless its length says that the library turns the tensor when it loads it.
    """
    axes: dict[str, int] = {}
    known = {old: inner for old, (block, inner) in places.items() if block == projection.block}
    for name, axis in projection.tensors.items():
        in_file = [old for old, inner in known.items() if inner == name]
        if not in_file:
            return f"no tensor of its checkpoint is known to be {name}"
        for old in in_file:
            shape = shapes(old)
            fitting = [place for place in range(-len(shape), 0) if shape[place] == projection.width]
            if axis not in fitting and len(fitting) != 1:
                return f"no axis of {old} is as long as the stream is wide, {projection.width}, found {shape}"
            axes[old] = axis if axis in fitting else fitting[0]
    return axes
