"""What comes from outside and is believed no further than it has to be: names of paths, a model's folder, its JSON.

::

    a name          no user of another name, no NUL, no longer than the system takes      `local_path`
    a folder        what is read lies in it, is a file, and is small enough to be read    `check_folder`
    a JSON text     an object, not nested without end, its numbers such as counts can be  `read_object`

In the hub's cache a model's folder, `snapshots/REVISION`, holds links to files of `../../blobs`; these are its own.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shortgpt.errors import CheckpointError, ModelError, ShortGPTError, printable, reason_of

MAX_HEADER = 100_000_000  # bytes, as the reader of safetensors allows
MAX_CONFIG = 10_000_000
MAX_DEPTH = 64
MAX_ITEMS = 300_000  # of all lists and objects of a config together; a large vocabulary is not written into one
MAX_NUMBER = 2**63
MAX_ENTRIES = 100_000
MOST_BLOCKS = 4096
MOST_OF_A_KIND = 100_000
"""So many labels, experts or heads a config may count. (ImageNet has 21,841 labels.)"""

COUNTS_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
READ_WHOLE = ("*.json", "*.model", "*.jinja", "*.py", "vocab*.txt", "merges*.txt")
"""Files that libraries read into memory whole."""

NOT_READ = ("trainer_state.json", "*_results.json", "training_args*")


def local_path(name: str | Path, error: type[ShortGPTError] = ModelError) -> Path:
    """The path of that name, `~` taken for a home; it need not be there.

    Raises:
        ShortGPTError: of the kind `error`, where the system can have no such path.
    """
    try:
        if "\0" in str(name):
            raise ValueError("it holds a NUL")
        path = Path(name).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as found:
        shown = printable(str(name))
        raise error(f"{shown[:200]}: no name that a file or folder can have ({reason_of(found)[:200]})") from None
    return path


def check_folder(name: str, path: Path) -> None:
    """Raise where a model's folder, or its only file, is not one whose files can be read safely.

    Raises:
        CheckpointError: a link leads out of the folder, or nowhere; what should be a file is a pipe or a device; an
            index names a file elsewhere; a file that is read whole is too large.
    """
    if not path.is_dir():
        _check_kind(name, path, path.name)
        return
    for number, entry in enumerate(_entries(name, path)):
        if number > MAX_ENTRIES:
            raise CheckpointError(
                f"{name}: the folder holds more than {MAX_ENTRIES:,} files; name one that holds a model alone"
            )
        check_file(name, path, entry)


def check_file(name: str, folder: Path, entry: Path) -> Path:
    """Raise for one entry of a model's folder as `check_folder` does; where it leads, a file or a folder."""
    shown = _shown(str(entry.relative_to(folder)))
    found = entry
    if entry.is_symlink() or entry.parent.is_symlink():
        try:
            found = entry.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{name}: {shown} is a link that leads nowhere ({reason_of(error)}); fetch the model again, or delete "
                "it"
            ) from None
        if not any(found.is_relative_to(place) for place in _own_places(folder)):
            raise CheckpointError(
                f"{name}: {shown} is a link to {_shown(str(found))}, which is outside of the model's folder; put the "
                "file itself in its place, or delete the link"
            )
    if found.is_dir():
        return found
    _check_kind(name, found, str(entry.relative_to(folder)))
    is_top = entry.parent == folder
    if is_top and _matches(entry.name, READ_WHOLE) and not _matches(entry.name, NOT_READ):
        size = found.stat().st_size
        if size > MAX_HEADER:
            raise CheckpointError(
                f"{name}: {shown} has {size:,} bytes, and such files are read whole, up to {MAX_HEADER:,}; fetch the "
                "model again, or delete it"
            )
    if is_top and entry.name.endswith(".index.json"):
        _check_index(name, entry)
    return found


def read_text(file: Path, limit: int = MAX_HEADER) -> str:
    """The text of a file that is read whole.

    Raises:
        OSError: it cannot be read. ShortGPTError: it is no file, or larger than `limit` bytes.
        UnicodeDecodeError: it is not UTF-8.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) and not file.is_dir():
        raise ShortGPTError(f"{file}: it is no file, but a pipe or a device")
    if status.st_size > limit:
        raise ShortGPTError(f"{file}: it is larger than {limit:,} bytes")
    return file.read_text(encoding="utf-8")


def read_object(name: str, file: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """The JSON object in a file, of numbers and sizes that can be worked with.

    Raises:
        CheckpointError: it is something else, and what.
    """
    shown = file.name
    try:
        if file.stat().st_size > limit:
            raise ValueError(f"it is larger than {limit:,} bytes")
        value = json.loads(file.read_text(encoding="utf-8"))
        _check_value(value)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, too deep or numbers too long
        raise CheckpointError(
            f"{name}: {shown} is damaged ({reason_of(error)}); fetch or save the model again"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: {shown} holds a {type(value).__name__}, not an object")
    return value


def check_counts(name: str, config: Mapping[str, Any], most_blocks: int = MOST_BLOCKS) -> None:
    """Raise where a config counts more than can be meant: building a model of it would never end.

    Args:
        most_blocks: what the model's files can hold, where that is known.

    Raises:
        CheckpointError: it names the field.
    """
    for field, value in _numbers(config):
        most = MOST_OF_A_KIND
        if field in COUNTS_BLOCKS:
            most = most_blocks
        elif not (
            field.startswith(("num_", "n_")) and field.endswith(("labels", "experts", "heads", "layers", "blocks"))
        ):
            continue
        if value > most:
            raise CheckpointError(
                f"{name}: config.json says {field} {value:,}, and the model's files can hold no more than {most:,}; "
                "fetch or save the model again"
            )


def _entries(name: str, folder: Path) -> Iterator[Path]:
    """What lies in a folder and, links apart, in the folders in it; what is hidden is passed over."""
    try:
        inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise CheckpointError(f"{name}: the folder cannot be read ({error.strerror})") from None
    for entry in inside:
        if entry.name.startswith("."):
            continue
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(name, Path(entry.path))


def _own_places(folder: Path) -> list[Path]:
    whole = folder.resolve()
    return [whole, whole.parents[1] / "blobs"] if whole.parent.name == "snapshots" else [whole]


def _check_kind(name: str, file: Path, shown: str) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise CheckpointError(f"{name}: {_shown(shown)} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            f"{name}: {_shown(shown)} is no file, but a pipe, a socket or a device, which is not waited for; delete it"
        )


def _check_index(name: str, file: Path) -> None:
    """The files that an index names lie beside it."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # told by what reads it, if anything does
        return
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    for tensor, shard in weight_map.items() if isinstance(weight_map, dict) else ():
        if not isinstance(shard, str):  # told by what reads it too
            continue
        parts = Path(shard).parts
        if not parts or ".." in parts or Path(shard).is_absolute() or "\\" in shard:
            suffix = ".safetensors" if ".safetensors" in file.name else ".bin"
            raise CheckpointError(
                f"{name}: {file.name} says that the tensor {_shown(tensor)} is in {_shown(shard)}; supported are "
                f"{suffix} files beside the index, by their names alone"
            )


def _check_value(value: Any, depth: int = 0, seen: list[int] | None = None) -> None:
    """Raise a `ValueError` for what is nested without end, has too many parts, or too large a number."""
    seen = [0] if seen is None else seen
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    seen[0] += len(inner)
    if seen[0] > MAX_ITEMS:
        raise ValueError(f"it holds more than {MAX_ITEMS:,} values")
    for item in inner:
        if isinstance(item, (dict, list)):
            _check_value(item, depth + 1, seen)
        elif isinstance(item, int) and abs(item) >= MAX_NUMBER:
            raise ValueError(f"it holds a number of {len(str(item))} digits")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(field), value


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shown(name: str) -> str:
    return repr(printable(name if len(name) <= 200 else name[:200] + "..."))
