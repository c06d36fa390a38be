"""Calibration texts: what the running Python brings along, code and prose, and data sets of the hub."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from shortgpt.errors import CalibrationError, reason_of
from shortgpt.measuring.texts import Texts, text_field

# Not part of every installation, not written by hand, or not about Python: left out so that two installations of one
# Python version give the same text.
LEFT_OUT = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)


def stdlib(argument: str, seed: int) -> Iterator[str]:
    """The text of the standard library's modules, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if argument:
        raise CalibrationError(f"stdlib takes no argument, found {argument!r}")
    for file in sorted(_modules(root), key=lambda f: f.relative_to(root).as_posix()):
        yield file.read_text(encoding="utf-8", errors="replace")


def _modules(folder: Path) -> Iterator[Path]:
    """The modules below a folder. What is left out is not even listed: `site-packages` can be the most of it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in LEFT_OUT or entry.name.startswith(("config-", "_sysconfigdata")):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _modules(Path(entry.path))
            elif entry.name.endswith(".py"):
                yield Path(entry.path)


def prose(argument: str, seed: int) -> Iterator[str]:
    """English prose: the chapters of Python's language reference that its `help` shows, in the order of their names."""
    if argument:
        raise CalibrationError(f"prose takes no argument, found {argument!r}")
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CalibrationError(
            "this Python comes without its help texts (pydoc_data.topics); take a local file or `stdlib`"
        ) from None
    for name in sorted(topics):
        yield topics[name]


def wikitext2(argument: str, seed: int) -> Texts:
    """WikiText-2, raw: Merity et al. 2016 (arXiv:1609.07843)."""
    return hub("Salesforce/wikitext/wikitext-2-raw-v1@train", seed)


def pg19(argument: str, seed: int) -> Texts:
    """PG-19: Rae et al. 2019 (arXiv:1911.05507)."""
    return hub("emozilla/pg19@train", seed)


def c4(argument: str, seed: int) -> Texts:
    """C4, English: Raffel et al. 2019 (arXiv:1910.10683)."""
    return hub("allenai/c4/en@train", seed)


def hub(argument: str, seed: int, field: str | None = None) -> Texts:
    """Texts of a data set: `OWNER/NAME[/CONFIG][@SPLIT]`, the split `train` by default, streamed and shuffled by the
    seed. Each row is a document.

    Args:
        field: the column that holds the text. Default: `text`, or the only one of strings.

    Raises:
        CalibrationError: `datasets` is not installed, or the data set cannot be had or has no rows; or no column is
            the text's beyond doubt.
    """
    name, _, split = argument.partition("@")
    parts = name.split("/")
    if not name or len(parts) > 3:
        raise CalibrationError(f"hub:{argument}: write hub:NAME, hub:OWNER/NAME or hub:OWNER/NAME/CONFIG, with @SPLIT")
    try:
        import datasets
    except ImportError:
        raise CalibrationError(
            "data sets of the hub need the package datasets: pip install 'shortgpt-blocks[datasets]'"
        ) from None
    repository, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    with _reachable(argument):
        stream = datasets.load_dataset(repository, config, split=split or "train", streaming=True)
        rows = iter(stream.shuffle(seed=seed, buffer_size=1000))
        first = next(rows, None)
        if first is None:
            raise CalibrationError(f"hub:{argument}: the data set is empty")
        types = {key: _type(feature) for key, feature in (getattr(stream, "features", None) or {}).items()}
    column = text_field(f"hub:{argument}", first, field, types)

    def texts() -> Iterator[str]:
        with _reachable(argument):
            for row in chain([first], rows):
                if isinstance(row[column], str):
                    yield row[column]

    return Texts(texts(), column)


@contextmanager
def _reachable(argument: str) -> Iterator[None]:
    """Inside it the errors of the library `datasets` are told in our words."""
    try:
        yield
    except CalibrationError:
        raise
    except Exception as error:  # the library lets its transports' errors through
        raise CalibrationError(
            f"hub:{argument}: the data set cannot be had ({reason_of(error)}); check its name and the network, "
            "or take a local file or `stdlib`"
        ) from error


def _type(feature: Any) -> str:
    """What a column of a data set holds, in a word."""
    kind = str(getattr(feature, "dtype", None) or type(feature).__name__)
    return "string" if kind in ("string", "large_string") and type(feature).__name__ == "Value" else kind
