"""Which task files hold a name: the library's and those of further folders.

The library reads all of its 14,000 files to find one name, which takes it a minute. Here the folders in which a name
stands are found by searching the text of the files, and the library reads those alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks import TaskManager

OWN = Path(__file__).parent / "tasks"
LIBRARY = Path(lm_eval.tasks.__file__).parent
DECLARED = re.compile(r"""^(?:task|group):[ \t]*["']?([^\s"'#\[\]{}]+)""", re.MULTILINE)


def task_manager(name: str, folders: Sequence[str | Path]) -> TaskManager | None:
    """What builds the task, group or tag of that name; None where there is none.

    Args:
        folders: with task files besides the library's and our own; theirs go before.
    """
    beside = [OWN, *map(Path, folders)]
    manager = _manager([*_library_folders(name), *beside])
    while name in manager.task_index:
        missing = [child for child in _members(manager, name) if child not in manager.task_index]
        more = {folder for child in missing for folder in _library_folders(child)}
        known = set(manager.include_path)
        if not more - known:
            return manager
        manager = _manager([*sorted(more | (known - set(beside))), *beside])
    return None


def declared_names(folders: Sequence[str | Path]) -> Iterator[str]:
    """The names of all tasks and groups, some of them more than once."""
    for folder in (LIBRARY, OWN, *map(Path, folders)):
        for file in _files(folder):
            yield from DECLARED.findall(file.read_text(encoding="utf-8", errors="replace"))


def _manager(folders: Sequence[Path]) -> TaskManager:
    return TaskManager(include_path=list(folders), include_defaults=False)


def _members(manager: TaskManager, name: str) -> Iterator[str]:
    """The names that a group names, and those that its groups name."""
    entry = manager.task_index.get(name)
    for child in (entry.cfg or {}).get("task", ()) if entry is not None and (entry.cfg or {}).get("group") else ():
        if isinstance(child, str) and child != name:
            yield child
            yield from _members(manager, child)


def _library_folders(name: str) -> list[Path]:
    """The folders next to the library's root in whose files the name stands by itself in a line."""
    line = re.compile(rf"""^[\s-]*(?:(?:task|group|tag)[ \t]*:[ \t]*)?["']?{re.escape(name)}["']?\s*(?:\#.*)?$""", re.M)
    return [
        folder
        for folder in sorted(path for path in LIBRARY.iterdir() if path.is_dir())
        if any(line.search(text) for text in _library_texts(folder))
    ]


@cache
def _library_texts(folder: Path) -> tuple[str, ...]:
    return tuple(file.read_text(encoding="utf-8", errors="replace") for file in _files(folder))


def _files(folder: Path) -> Iterable[Path]:
    """Task files, and those without a suffix that they include."""
    return (file for file in sorted(folder.rglob("*yaml*")) if file.is_file() and "__pycache__" not in file.parts)
