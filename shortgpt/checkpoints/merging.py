"""A LoRA adapter merged into its base model, as a checkpoint of its own for as long as it is needed.

::

    adapter_config.json ─▶ its base model ─▶ load ─▶ peft: W + scale · B A ─▶ saved in a temporary folder ─▶ Source
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shortgpt.basics.inputs import Source
from shortgpt.basics.leftovers import no_room_for_temporary, temporary_folder
from shortgpt.basics.untrusted import check_folder, local_path
from shortgpt.errors import ModelError, reason_of
from shortgpt.models.foreign_formats import base_of, is_adapter

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


@contextmanager
def merged(name: str | Path, *, trust_remote_code: bool = False) -> Iterator[Source]:
    """The checkpoint of an adapter that is merged into its base model; its folder is gone with the context.

    The weights stay in the type that the base model was saved in. A tokenizer that the adapter brings takes the place
    of the base's.

    Raises:
        ModelError: it is no adapter, peft is not installed, or the base model is not to be found or does not fit.
    """
    folder = local_path(name)
    if not is_adapter(folder):
        raise ModelError(f"{name}: --merge-adapter takes a folder with the adapter that peft saved, found none there")
    check_folder(str(name), folder)
    base = base_of(folder)
    if base is None:
        raise ModelError(f"{name}: its adapter_config.json names no base model, so there is nothing to merge it into")
    try:
        import peft
    except ImportError:
        raise ModelError(
            f"{name}: merging an adapter needs the package peft: pip install 'shortgpt-blocks[lora]'"
        ) from None
    with temporary_folder() as temporary:
        target = temporary / "merged"
        try:
            _merge(peft, folder, _base(folder, base, temporary), target, trust_remote_code)
        except Exception as error:
            if (full := no_room_for_temporary(error.__cause__ or error)) is None:
                raise
            raise ModelError(f"{folder}: cannot be merged: {full}") from error
        yield Source(str(name), target, adapter_base=base)


def _base(folder: Path, base: str, temporary: Path) -> str | Path | Source:
    """The base model: as it is named, or a copy without the adapter where both are in one folder."""
    place = next((place for place in (local_path(base), folder / base) if place.is_dir()), None)
    if place is None or not is_adapter(place):
        return base if place is None else place
    if not (place / "config.json").is_file():
        raise ModelError(f"{folder}: its base model {base} is an adapter itself; merge that one first, and save it")
    check_folder(base, place)
    apart = shutil.copytree(
        place, temporary / "base", copy_function=_linked, ignore=shutil.ignore_patterns("adapter_*", ".*")
    )
    return Source(base, apart)  # its links are ours, and lead to files that were looked at


def _linked(file: str, target: str) -> str:
    """Copy a file; of weights a link does, which leaves the file as it is (one more name for it would not)."""
    if Path(file).suffix in (".safetensors", ".bin"):
        os.symlink(Path(file).resolve(), target)
    else:
        shutil.copyfile(file, target)
    return target


def _merge(peft: Any, folder: Path, base: str | Path | Source, target: Path, trust_remote_code: bool) -> None:
    from shortgpt.models.loading import load

    try:
        blocks = load(base, device="cpu", trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(f"{folder}: its base model cannot be opened ({error})") from None
    model = getattr(blocks, "model", None)
    if not hasattr(model, "config"):
        raise ModelError(
            f"{folder}: its base model is of {blocks.architecture}, and peft adapts models of transformers"
        )
    try:
        peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    except Exception as error:  # an adapter that does not fit fails in any way
        raise ModelError(
            f"{folder}: peft {peft.__version__} cannot merge it into {base} ({reason_of(error)})"
        ) from error
    blocks.save(target)
    for pattern in TOKENIZER_FILES:
        for file in folder.glob(pattern):
            shutil.copyfile(file, target / file.name)
