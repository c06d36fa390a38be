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
    """WikiText-2, raw: Merity et al. 2016 (arXiv:1609.07843)."""
    return hub("Salesforce/wikitext/wikitext-2-raw-v1@train", seed)


def pg19(argument: str, seed: int) -> Iterator[str]:
    """PG-19: Rae et al. 2019 (arXiv:1911.05507)."""
    return hub("emozilla/pg19@train", seed)


def c4(argument: str, seed: int) -> Iterator[str]:
    """C4, English: Raffel et al. 2019 (arXiv:1910.10683)."""
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
    column: str | None = None
    try:
        stream = datasets.load_dataset(repository, config, split=split or "train", streaming=True)
        for row in stream.shuffle(seed=seed, buffer_size=1000):
            if column is None:
                named = [key for key, value in row.items() if isinstance(value, str)]
                column = "text" if "text" in named else next(iter(named), None)
                if column is None:
                    raise CalibrationError(f"hub:{argument}: its rows hold no text (columns {sorted(row)})")
            if isinstance(row[column], str):
                yield row[column]
    except CalibrationError:
        raise
    except Exception as error:  # the library lets its transports' errors through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CalibrationError(
            f"hub:{argument}: the data set cannot be had ({reason[:300]}); check its name and the network, "
            "or take a local file or `stdlib`"
        ) from error
