"""What an RWKV `.pth` file holds: which version it is, whether all of it is there, and the tokenizer that goes with it.

::

    emb.weight ─ blocks.0.ln0 ─▶ blocks.0 ... blocks.{L-1} ─▶ ln_out ─ head.weight
                                 └─ ln1, att.*, ln2, ffn.*: their names tell the version

Nothing of the `rwkv` package is needed here, but for the vocabulary of the World models.
"""

from __future__ import annotations

import functools
import importlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from shortgpt.basics.block_lists import format_blocks
from shortgpt.checkpoints import torch_files
from shortgpt.errors import CheckpointError, ModelError

Config = dict[str, Any]

_LINEAR = "att.receptance.weight att.key.weight att.value.weight att.output.weight ffn.key.weight ffn.value.weight"
_NORMS = "ln1.weight ln1.bias ln2.weight ln2.bias"
_V4 = f"{_NORMS} {_LINEAR} ffn.receptance.weight att.time_decay att.time_first"
_MIX = "att.time_mix_k att.time_mix_v att.time_mix_r ffn.time_mix_k ffn.time_mix_r"
_LN_X = "att.ln_x.weight att.ln_x.bias"
_MAA = "x w k v r g w1 w2"
_V7 = "x_r x_w x_k x_v x_a x_g w0 w1 w2 a0 a1 a2 v0 v1 v2 g1 g2 k_k k_a r_k"

TENSORS: Mapping[str, frozenset[str]] = {
    version: frozenset(names.split())
    for version, names in {
        "4": f"{_V4} {_MIX}",
        "5.0": f"{_V4} {_MIX} {_LN_X}",
        "5.1": f"{_V4} {_MIX} {_LN_X} att.gate.weight att.time_mix_g",
        "6": f"{_V4} {_LN_X} att.gate.weight att.time_decay_w1 att.time_decay_w2 ffn.time_maa_k ffn.time_maa_r "
        + " ".join(f"att.time_maa_{name}" for name in _MAA.split()),
        "7": f"{_NORMS} {_LINEAR} {_LN_X} ffn.x_k " + " ".join(f"att.{name}" for name in _V7.split()),
    }.items()
}
"""Version → the tensors of a block. 5.2 has the names of 5.1, and a decay for every channel."""

_OUTSIDE = ("emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias", "head.weight")
_FIRST_VALUES = {"att.v0", "att.v1", "att.v2"}  # RWKV 7's block 0 has no use for them; some files leave them out
_TUNED_STATE = {"att.time_state"}  # RWKV 5 and 6 may begin with a state that was trained
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def find_file(path: Path) -> Path:
    """The checkpoint that a path means: a file, or the only `.pth` of a folder.

    Raises:
        CheckpointError: the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(f"{path}: the folder holds {len(files)} .pth files; name the one that is meant")
    return files[0]


def read(file: Path) -> dict[str, Tensor]:
    """A file's tensors by name, mapped from the disk rather than copied into memory.

    Raises:
        CheckpointError: it is damaged, no mapping of names to tensors, or has been converted for one strategy.
    """
    loaded = torch_files.loaded(file)
    if isinstance(loaded, Mapping) and "_strategy" in loaded:
        raise CheckpointError(
            f"{file}: the rwkv package has converted it for the strategy {loaded['_strategy']!r}, which cannot be "
            "undone; name the original file"
        )
    plain = isinstance(loaded, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items())
    if not plain:
        raise CheckpointError(f"{file}: holds no plain mapping of names to tensors, so it is no RWKV checkpoint")
    return torch_files.plain(file, loaded)


def stamp(file: Path) -> tuple[int, int, int]:
    """What tells a file from another one written in its place."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def config_of(file: Path, tensors: Mapping[str, Tensor]) -> Config:
    """`n_layer`, `n_embd`, `version` and `vocab_size` of a checkpoint, after checking that all of it is there.

    Raises:
        ModelError: it is no RWKV model. CheckpointError: blocks or tensors are missing, or of different versions.
    """
    blocks: dict[int, set[str]] = {}
    for name in tensors:
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), set()).add(match[2].replace("time_faaaa", "time_first"))
    embedding = tensors.get("emb.weight")
    if embedding is None or embedding.ndim != 2 or not any("att.key.weight" in names for names in blocks.values()):
        raise ModelError(
            f"{file}: no RWKV model: it has no emb.weight and blocks.N.att.key.weight (but "
            f"{', '.join(map(str, list(tensors)[:4])) or 'nothing'}); supported are the .pth files of RWKV 4 to 7"
        )
    lacking = next((number for number in range(len(blocks)) if number not in blocks), None)
    if lacking is not None:
        raise CheckpointError(f"{file}: block {lacking} of {max(blocks) + 1} is missing; fetch the file again")
    version = _version(file, blocks)
    unread = [name for name in tensors if name not in _OUTSIDE and not _BLOCK.fullmatch(name)]
    if unread:
        raise CheckpointError(f"{file}: holds {unread[0]}, which the rwkv package's RWKV {version} does not read")
    missing = [name for name in _OUTSIDE if name not in tensors]
    if missing:
        raise CheckpointError(f"{file}: {missing[0]} is missing; fetch the file again")
    decays = {tuple(t.shape) for name, t in tensors.items() if name.endswith("att.time_decay")}
    if len(decays) > 1:
        raise CheckpointError(f"{file}: mixes versions: the blocks' decays have the shapes {sorted(decays)}")
    shapes: dict[str, dict[tuple[int, ...], str]] = {}
    for name, tensor in tensors.items():
        if (match := _BLOCK.fullmatch(name)) and match[2] not in _FIRST_VALUES:
            shapes.setdefault(match[2], {}).setdefault(tuple(tensor.shape), name)
    for leaf, found in shapes.items():
        if len(found) > 1:
            sizes = ", ".join(f"{shape} ({name})" for shape, name in found.items())
            raise CheckpointError(f"{file}: mixes models of different size: {leaf} has the shapes {sizes}")
    if version == "5.1" and (shape := decays.pop())[1:] and shape[1] > 1:
        version = "5.2"
    vocabulary, width = embedding.shape
    return {"version": version, "n_layer": len(blocks), "n_embd": width, "vocab_size": vocabulary}


def _version(file: Path, blocks: Mapping[int, set[str]]) -> str:
    versions: dict[str, list[int]] = {}
    broken = []
    for index, names in sorted(blocks.items()):
        if index == 0:
            names -= {"ln0.weight", "ln0.bias"}
            names |= _FIRST_VALUES if "att.r_k" in names else set()
        for version, expected in TENSORS.items():
            if names == expected or (version in ("5.0", "5.1", "6") and names == expected | _TUNED_STATE):
                versions.setdefault(version, []).append(index)
                break
        else:
            broken.append(index)
    if len(versions) > 1:
        parts = "; ".join(f"RWKV {version}: blocks {format_blocks(indices)}" for version, indices in versions.items())
        raise CheckpointError(f"{file}: mixes versions ({parts}); no model has such blocks")
    if not broken:
        return next(iter(versions))
    block = broken[0]
    nearest = next(iter(versions), None) or min(TENSORS, key=lambda version: len(TENSORS[version] ^ blocks[block]))
    if missing := sorted(TENSORS[nearest] - blocks[block]):
        raise CheckpointError(f"{file}: blocks.{block}.{missing[0]} of RWKV {nearest} is missing; fetch the file again")
    name = f"blocks.{block}.{min(blocks[block] - TENSORS[nearest])}"
    raise CheckpointError(f"{file}: holds {name}, which the rwkv package's RWKV {nearest} does not read")


# -- tokenizers -----------------------------------------------------------------------------------------------

PILE_TOKENIZER = "20B_tokenizer.json"


class Codec(NamedTuple):
    """Text to token ids and back."""

    encode: Callable[[str], Iterable[int]]
    decode: Callable[[Sequence[int]], str]


class Tokenizer:
    """Text to token ids and back, to be called like a tokenizer of transformers.

    Args:
        make: gives both functions; called on first use, since large vocabularies take a second to read.
    """

    def __init__(self, make: Callable[[], Codec]) -> None:
        self._make = make

    def __call__(
        self, text: str, *, truncation: bool = False, max_length: int | None = None, **unused: Any
    ) -> dict[str, list[int]]:
        return {"input_ids": list(self._make().encode(text))[: max_length if truncation else None]}

    def decode(self, token_ids: Sequence[int], **unused: Any) -> str:
        """The text of tokens; bytes that are no text, as of half a sign, are replaced."""
        return self._make().decode(token_ids)


def tokenizer_for(vocab_size: int, folder: Path) -> Tokenizer | None:
    """The tokenizer of a vocabulary: bytes, World, or Pile where its file lies in the folder. Else None."""
    if vocab_size == 256:
        return Tokenizer(_bytes)
    if vocab_size == 65536:
        return Tokenizer(_world)
    if vocab_size == 50277 and (folder / PILE_TOKENIZER).is_file():
        return Tokenizer(functools.partial(_pile, folder / PILE_TOKENIZER))
    return None


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Take along the tokenizer's file, where there is one."""
    if (folder / PILE_TOKENIZER).is_file():
        shutil.copyfile(folder / PILE_TOKENIZER, target / PILE_TOKENIZER)


def _bytes() -> Codec:
    return Codec(lambda text: text.encode("utf-8", "surrogatepass"), lambda ids: bytes(ids).decode("utf-8", "replace"))


@functools.cache
def _world() -> Codec:
    module = importlib.import_module("rwkv.rwkv_tokenizer")
    assert module.__file__ is not None
    reader = module.TRIE_TOKENIZER(str(Path(module.__file__).with_name("rwkv_vocab_v20230424.txt")))

    def decode(ids: Sequence[int]) -> str:
        known = [i for i in ids if i in reader.idx2token]  # the vocabulary is larger than its words
        return str(reader.decodeBytes(known).decode("utf-8", "replace"))

    return Codec(reader.encode, decode)


@functools.cache
def _pile(file: Path) -> Codec:
    from tokenizers import Tokenizer as Reader

    reader = Reader.from_file(str(file))
    return Codec(lambda text: reader.encode(text).ids, lambda ids: reader.decode(list(ids)))
