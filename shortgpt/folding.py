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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt import torch_files
from shortgpt.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.families import Fold
    from shortgpt.weights import Weights


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


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))


def write_unrounded(
    made: Weights, source: Weights, renamed: Mapping[str, str], folds: Mapping[str, Fold], folder: Path
) -> str | None:
    """Write a checkpoint once more, with its folded tensors as they are before they are rounded.

    Args:
        made: what was written; all that lies beside it comes along.
        source: what it was made from.
        renamed: new tensor name → old one.
        folder: an empty one inside that of `made`.

    Returns:
        The dtype that they were rounded to; None where that changed none of them, and nothing was written.

    Raises:
        VerificationError: a saved tensor is not the rounding of the folded one.
    """
    import torch

    changed: set[str] = set()
    dtypes: set[torch.dtype] = set()
    originals = source.lazily()

    def exact(name: str) -> Tensor:
        return folded(folds[name], source.tensor(renamed[name]), originals)

    for name in folds:
        saved, unrounded = made.tensor(name), exact(name)
        if not same_bits(unrounded.to(saved.dtype), saved):
            raise VerificationError(f"{name}: what was saved is not what its weights were folded to, rounded")
        if not torch.equal(saved.to(unrounded.dtype), unrounded):
            changed.add(name)
            dtypes.add(saved.dtype)
    if not changed:
        return None
    for file in made.files:
        mine = changed.intersection(made.tensors[file])
        if mine:
            _write_like(made, file, folder / file.name, {name: exact(name) for name in sorted(mine)})
        else:
            (folder / file.name).symlink_to(file)
    beside = made.source.path if made.source.path.is_dir() else made.source.path.parent
    for other in beside.iterdir():
        if other != folder and other not in made.files:
            (folder / other.name).symlink_to(other, target_is_directory=other.is_dir())
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _write_like(made: Weights, file: Path, target: Path, instead: Mapping[str, Tensor]) -> None:
    """Write a file with other tensors in the place of some."""
    tensors = {**made.tensors_of(file), **instead}
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target, made.metadata[file])
    else:
        torch_files.save(tensors, target)
