"""The header of a safetensors file, believed as far as it is consistent with itself and with the file.

::

    8 bytes     N, little-endian
    N bytes     JSON: name → dtype, shape, the data's bytes from a to b; "__metadata__": text → text; spaces at the end
    the rest    the data: every byte belongs to one tensor
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shortgpt.basics.inputs import MAX_HEADER
from shortgpt.errors import CheckpointError

MAX_EXTENT = 2**63 - 1
DTYPES = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
}
BITS = {dtype: bits for bits, dtypes in DTYPES.items() for dtype in dtypes.split()}
"""Dtype → bits of an element."""

SHORTEST = 48  # bytes that a header, or a pickle, takes for a tensor at the least
METADATA = "__metadata__"
BLOCK = 4096  # bytes; file systems that can share data between files share whole blocks


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its shape and where it begins; for safetensors, the bytes of the file that it takes."""

    shape: tuple[int, ...]
    dtype: str = ""
    begin: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file by name, in the order of the header, and the file's metadata.

    Raises:
        CheckpointError: the header is no header, two names are equal, a dtype is unknown, a tensor's bytes do not fit
            its shape, or the tensors do not fill the file, each byte once.
    """
    size = file.stat().st_size
    with file.open("rb") as reader:
        length = int.from_bytes(reader.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            _refuse(file, f"a header of {length} bytes, where {size} are in all and the format allows {MAX_HEADER}")
        text = reader.read(length)
    try:
        if not text.startswith(b"{"):
            raise ValueError("no JSON object at its begin")
        header = read_json(text)
    except ValueError as error:
        _refuse(file, f"it has no safetensors header ({error})")
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(file, f"its {METADATA} are not text by name")
    start = 8 + length
    entries = {name: _entry(file, name, tensor, start) for name, tensor in header.items()}
    _check_order(file, entries, start, size)
    return entries, metadata


def tensors_at_most(folder: Path) -> int | None:
    """More tensors than this are not in a folder's weights, known without reading their headers; None where there are
    no weights."""
    files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
    return sum(_at_most(file) for file in files) if files else None


def _at_most(file: Path) -> int:
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        with file.open("rb") as reader:
            size = min(size, int.from_bytes(reader.read(8), "little"))
    return size // SHORTEST + 1


def write_header(tensors: dict[str, Any], metadata: dict[str, str], first: int) -> bytes:
    """The bytes that stand before the data.

    Args:
        tensors: name → dtype, shape and data_offsets.
        first: where the first tensor's data begin in the file that they are taken from. They will begin at the same
            place of a block: a file system that can share blocks between files then shares them.
    """
    header = {METADATA: metadata, **tensors} if metadata else tensors
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data begin at a multiple of 8, as the format asks.
    text += b" " * ((first - 8 - len(text)) % BLOCK if first % 8 == 0 else -len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_json(text: bytes) -> Any:
    """JSON in UTF-8, of which every text can be written again and no object has two members of one name.

    Raises:
        ValueError: it is something else; the message says what.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def quoted(name: str) -> str:
    """A name from a file as it may stand in a message: on one line, and no longer than that."""
    return repr(name if len(name) <= 200 else name[:200] + "...")


def elements(shape: tuple[int, ...], limit: int | None = None) -> int:
    """The number of elements; once beyond `limit`, any number beyond it."""
    if 0 in shape:
        return 0
    count = 1
    for extent in shape:
        count *= extent
        if limit is not None and count > limit:
            break
    return count


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the name {quoted(name)} stands there twice")
        if not _is_text(name) or (isinstance(value, str) and not _is_text(value)):
            raise ValueError(f"{quoted(name)}: half a character")
        content[name] = value
    return content


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON can name half of a character that takes two codes."""
    return text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text)


def _entry(file: Path, name: str, tensor: Any, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = tensor["dtype"], tuple(tensor["shape"]), tensor["data_offsets"]
    except (KeyError, TypeError, ValueError):
        _refuse(file, f"the tensor {quoted(name)} has no dtype, shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(
            f"{file}: the tensor {quoted(name)} has the dtype {quoted(str(dtype))}; supported are {', '.join(BITS)}"
        )
    if not all(type(number) is int and 0 <= number <= MAX_EXTENT for number in (*shape, begin, end)):
        _refuse(file, f"the shape or the data_offsets of the tensor {quoted(name)} are not all numbers of 0 or more")
    size = end - begin
    if elements(shape, 8 * max(size, 0)) * BITS[dtype] != 8 * size:
        shown = f"{list(shape[:8])}"[:-1] + (", ...]" if len(shape) > 8 else "]")
        _refuse(file, f"the tensor {quoted(name)} has {size} bytes, which are no {dtype} of shape {shown}")
    return Entry(shape, dtype, start + begin, start + end)


def _check_order(file: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Every byte of the data belongs to one tensor."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "shares bytes with the one before it" if entry.begin < at else "follows bytes of no tensor"
            _refuse(file, f"the tensor {quoted(name)} {what}")
        at = entry.end
        if at > size:
            _refuse(file, f"the tensor {quoted(name)} ends at byte {at}, the file at {size}")
    if at != size:
        _refuse(file, f"its header speaks of {at} bytes, it has {size}")


def _refuse(file: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{file}: truncated or damaged: {what}; fetch the model again") from None
