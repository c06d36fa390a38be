"""The texts of a named source, a file or a folder of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from shortgpt import plugins
from shortgpt.basics.registry import Extension
from shortgpt.basics.targets import load_target
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import CalibrationError

JSON_LINES = frozenset({".jsonl", ".ndjson"})
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".text", ".py"})
TEXT = "text"
"""The field that holds the text by convention. One of another name is taken only where no other holds strings."""
AT_HAND = frozenset({"stdlib", "prose"})
"""Named sources that are read from this machine whole."""
EXCERPT = 40
"""Characters of a field's value that a message shows."""


class Texts(Iterable[str]):
    """Texts, one document after another. A calibration source may return one, to say which field it took.

    Attributes:
        field: of the records that they were taken from; None where there are no records.
    """

    def __init__(self, texts: Iterable[str], field: str | None = None) -> None:
        self.texts, self.field = texts, field

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


def texts_of(source: str | Path, *, field: str | None = None, seed: int = 0) -> Texts:
    """The texts of a named source or a path.

    Raises:
        CalibrationError: the path holds no text; or no field of its records is the text's beyond doubt, or one lacks
            the field.
        UnknownNameError: it is neither a path nor an installed source.
    """
    registry = plugins.registry()
    name, _, argument = str(source).partition(":")
    if not isinstance(source, Path) and any(entry.name == name for entry in registry.calibrations):
        return _of_plugin(plugins.lookup("calibration source", registry.calibrations, name), argument, field, seed)
    path = local_path(source, CalibrationError)
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
    records = [file for file in files if _is_json(file)]
    if field is not None and not records:
        raise _no_records(source, field)
    key = field
    if key is None and records:
        key = next(
            (text_field(f"{file}, line {number}", record) for file in records for number, record in _records_of(file)),
            None,
        )
    return Texts(chain.from_iterable(_texts_of_file(file, key or TEXT) for file in files), key)


def text_field(
    where: str, record: Mapping[str, Any], field: str | None = None, types: Mapping[str, str] | None = None
) -> str:
    """The field of records that holds their text: `text`, or the only one that holds strings.

    Args:
        where: what messages call the source.
        record: the first one.
        field: the one that was asked for, to be checked.
        types: by field, what it holds in all records, "string" for strings. Where that is not known it is taken from
            the first record.

    Raises:
        CalibrationError: the one that was asked for holds no strings; or there are several that could be meant, or
            none.
    """
    kinds = types or {name: _kind(value) for name, value in record.items()}
    strings = [name for name, kind in kinds.items() if kind == "string"]
    unknown = [name for name, kind in kinds.items() if kind == "null"]  # others may hold strings there
    if field in strings or field in unknown:
        return str(field)
    if field is None and TEXT in strings:
        return TEXT
    if field is None and len(strings) == 1 and not unknown:
        return strings[0]
    if field is not None:
        why = f"no text in field {field!r} ({kinds.get(field, 'there is none')})"
    elif strings:
        why = f"{', '.join(strings + unknown)} could each be the text"
    else:
        why = "no field holds text"
    raise CalibrationError(f"{where}: {why}; name the field with --field (field=) among {_told(kinds, record)}")


def is_data_set(source: Any) -> bool:
    """Whether that is a data set of the library `datasets`, in memory or streamed."""
    return type(source).__module__.split(".")[0] == "datasets" and isinstance(source, Iterable)


def texts_of_data_set(records: Iterable[Mapping[str, Any]], field: str | None, most: int) -> tuple[list[str], str]:
    """The texts of the first records that hold any, and the field that they stand in.

    Raises:
        CalibrationError: no field holds text, or several could be meant.
    """
    texts: list[str] = []
    for record in records:
        field = text_field("the data set", record, field, None)
        if isinstance(text := record[field], str) and text.strip():
            texts.append(text)
        if len(texts) == most:
            break
    if field is None or not texts:
        raise CalibrationError("the data set holds no text; give one with texts")
    return texts, field


def _kind(value: Any) -> str:
    kinds = {str: "string", list: "list", dict: "object", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _told(kinds: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """The fields, what they hold, and how the first record's value begins."""
    told = []
    for name, kind in kinds.items():
        value = record.get(name)
        shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        shown = " ".join(shown[: 4 * EXCERPT].split())
        told.append(f"{name} ({kind}: {shown[:EXCERPT]}{'…' if len(shown) > EXCERPT else ''})")
    return ", ".join(told)


def _no_records(source: str | Path, field: str) -> CalibrationError:
    return CalibrationError(
        f"{source}: a field ({field!r}) is chosen in JSON Lines files and data sets (hub:NAME) only; leave it out"
    )


def _of_plugin(entry: Extension, argument: str, field: str | None, seed: int) -> Texts:
    """The texts of a named source. It is given the field where its function takes one."""
    texts: Callable[..., Iterable[str]] = load_target(entry.target)
    with plugins.running("calibration source", entry):
        takes_field = "field" in inspect.signature(texts).parameters
    if field is not None and not takes_field:
        raise _no_records(entry.name, field)
    with plugins.running("calibration source", entry):
        given = texts(argument, seed, field=field) if takes_field else texts(argument, seed)

    def one_by_one() -> Iterator[str]:
        with plugins.running("calibration source", entry):
            yield from given

    return Texts(one_by_one(), given.field if isinstance(given, Texts) else None)


def _is_json(file: Path) -> bool:
    """Whether a file is to hold JSON Lines; some call them .json."""
    return file.suffix.lower() in JSON_LINES | {".json"}


def _texts_of_file(file: Path, field: str) -> Iterator[str]:
    if not _is_json(file):
        yield _read(file)
        return
    for number, record in _records_of(file):
        text = record.get(field)
        if not isinstance(text, str):
            found: object = f"{type(text).__name__} there" if field in record else sorted(record)
            raise CalibrationError(
                f"{file}, line {number}: no text in field {field!r} (found {found}); name it with --field"
            )
        yield text.encode("utf-8", "replace").decode()  # JSON may hold halves of a surrogate pair


def _records_of(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON Lines, with the numbers of their lines."""
    # Not splitlines(): JSON may hold other signs that it takes for the end of a line.
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise CalibrationError(
                f"{file}, line {number}: no object with a field for the text (found {type(record).__name__})"
            )
        yield number, record


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with a mark of the byte order or without
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{file}: cannot be read as UTF-8 text ({error})") from None


def is_local(source: str | Path) -> bool:
    """Whether the texts are all at hand, so that their order can be shuffled. A stream comes shuffled or not at all."""
    name = str(source).partition(":")[0]
    if not isinstance(source, Path) and any(entry.name == name for entry in plugins.registry().calibrations):
        return name in AT_HAND
    return True
