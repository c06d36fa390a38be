"""The texts of a named source, a file or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from shortgpt import plugins
from shortgpt.errors import CalibrationError

JSON_LINES = frozenset({".jsonl", ".ndjson"})
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".text", ".py"})


def texts_of(source: str | Path, *, field: str | None = None, seed: int = 0) -> Iterator[str]:
    """The texts of a named source or a path.

    Raises:
        CalibrationError: the path holds no text, or a JSON line lacks the field.
        UnknownNameError: it is neither a path nor an installed source.
    """
    registry = plugins.registry()
    name, _, argument = str(source).partition(":")
    if not isinstance(source, Path) and any(entry.name == name for entry in registry.calibrations):
        entry = plugins.lookup("calibration source", registry.calibrations, name)
        if field is not None:
            raise CalibrationError(f"{source}: a field ({field!r}) is chosen in JSON Lines files only; leave it out")
        texts = plugins.load_target(entry.target)
        with plugins.running("calibration source", entry):
            yield from texts(argument, seed)
        return
    path = Path(source).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in TEXT_SUFFIXES | JSON_LINES)
        if not files:
            kinds = ", ".join(sorted(TEXT_SUFFIXES | JSON_LINES))
            raise CalibrationError(f"{source}: the folder holds no text ({kinds})")
    elif path.exists() and not path.is_file():
        raise CalibrationError(f"{source}: no regular file, and it is read more than once; write the text to a file")
    elif not path.is_file():
        if isinstance(source, Path) or "/" in str(source) or path.suffix:
            raise CalibrationError(f"{source}: no such file or folder, and no calibration source of that name")
        plugins.lookup("calibration source", registry.calibrations, name)
    if field is not None and not any(map(_is_json, files)):
        raise CalibrationError(f"{source}: a field ({field!r}) is chosen in JSON Lines files only; leave it out")
    for file in files:
        yield from _texts_of_file(file, field)


def _is_json(file: Path) -> bool:
    """Whether a file is to hold JSON Lines; some call them .json."""
    return file.suffix.lower() in JSON_LINES | {".json"}


def _texts_of_file(file: Path, field: str | None) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # with a mark of the byte order or without
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    if not _is_json(file):
        yield text
        return
    key = field or "text"
    # Not splitlines(): JSON may hold other signs that it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get(key), str):
            found: object = sorted(record) if isinstance(record, dict) else type(record).__name__
            if isinstance(record, dict) and key in record:
                found = f"{type(record[key]).__name__} there"
            raise CalibrationError(
                f"{file}, line {number}: no text in field {key!r} (found {found}); name it with --field"
            )
        yield record[key].encode("utf-8", "replace").decode()  # JSON may hold halves of a surrogate pair


def is_local(source: str | Path) -> bool:
    """Whether the texts are all at hand, so that their order can be shuffled. A stream comes shuffled or not at all."""
    name = str(source).partition(":")[0]
    if not isinstance(source, Path) and any(entry.name == name for entry in plugins.registry().calibrations):
        return name == "stdlib"
    return True
