"""A checkpoint whose folded tensors are as they are before they are rounded, for the proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt.checkpoints import torch_files
from shortgpt.errors import VerificationError
from shortgpt.models.folding import folded, same_bits

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.basics.inputs import Fold
    from shortgpt.checkpoints.weights import Weights


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
        torch_files.save(tensors, target, like=torch_files.contents(file))
