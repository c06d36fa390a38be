"""Calibration texts: the running Python's own standard library, and data sets of the hub."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shortgpt.errors import CalibrationError

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
    for file in sorted(root.rglob("*.py"), key=lambda f: f.relative_to(root).as_posix()):
        parts = file.relative_to(root).parts
        if not LEFT_OUT.intersection(parts) and not any(p.startswith(("config-", "_sysconfigdata")) for p in parts):
            yield file.read_text(encoding="utf-8", errors="replace")


def wikitext2(argument: str, seed: int) -> Iterator[str]:
    return hub("Salesforce/wikitext/wikitext-2-raw-v1@train", seed)


def pg19(argument: str, seed: int) -> Iterator[str]:
    return hub("emozilla/pg19@train", seed)


def c4(argument: str, seed: int) -> Iterator[str]:
    return hub("allenai/c4/en@train", seed)


def hub(argument: str, seed: int) -> Iterator[str]:
    """Texts of a data set: `OWNER/NAME[/CONFIG][@SPLIT]`, streamed and shuffled by the seed.

    Raises:
        CalibrationError: `datasets` is not installed, or the data set cannot be had or has no text.
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
    try:
        stream = datasets.load_dataset(repository, config, split=split or "train", streaming=True)
        rows = iter(stream.shuffle(seed=seed, buffer_size=1000))
        first = next(rows, None)
    except Exception as error:  # the library lets its transports' errors through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CalibrationError(
            f"hub:{argument}: the data set cannot be had ({reason[:300]}); check its name and the network, "
            "or take a local file or `stdlib`"
        ) from error
    if first is None:
        return
    column = "text" if isinstance(first.get("text"), str) else None
    column = column or next((key for key, value in first.items() if isinstance(value, str)), None)
    if column is None:
        raise CalibrationError(f"hub:{argument}: its rows hold no text (columns {sorted(first)})")
    yield first[column]
    for row in rows:
        yield row[column]
