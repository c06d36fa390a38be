"""What lies beside the weights of a checkpoint, and what of it goes along with a shorter one.

::

    tokenizer, generation config, code, licence ...   copied
    chat templates and code in folders                copied
    what counts or names blocks: params.json, ...     rewritten for those that stay; where that is not certain, left out
    an index of other files, an adapter, results      left out: they speak of the whole model
    config.json, weights, card, plan                  written by others

A folder is untrusted input: a link that leads out of it is refused, or a shorter model could be made to hold any file
of this machine, and what is no file is not waited for.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shortgpt.basics import untrusted
from shortgpt.basics.inputs import MAX_HEADER, Source
from shortgpt.checkpoints.exports import EXPORT_FILES
from shortgpt.checkpoints.weights import INDEXES
from shortgpt.errors import ConfigRewriteError
from shortgpt.models.configs import rules
from shortgpt.models.configs.module_paths import LIST_NAMES, Renumbering
from shortgpt.models.configs.text import updated
from shortgpt.models.recognition import FOLDERS, code_folders
from shortgpt.values.plan import CARD_FILE, PLAN_FILE

WEIGHT_SUFFIXES = frozenset(
    {
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".nemo", ".npz", ".npy"),
        *(".h5", ".pb", ".tflite", ".msgpack", ".ot", ".gguf", ".onnx", ".onnx_data", ".mlmodel"),
    }
)
WRITTEN_BY_OTHERS = frozenset({"config.json", CARD_FILE, PLAN_FILE, *EXPORT_FILES, *INDEXES})
WHOLE: Mapping[str, str] = {
    "*.index.json": "an index of files that are not part of the result",
    "adapter_config.json": "an adapter to the whole model",
    "*imatrix*": "measured on the whole model",
    "mergekit_config.y*ml": "how the whole model was merged",
    "trainer_state.json": "of the whole model's training",
    "*_results.json": "results of the whole model",
}
"""What speaks of the whole model, and why it is left out."""

OF_TOKENS = frozenset(
    {
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"),
        *("chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    }
)
"""Files of tokens and templates, which are no names of modules whatever they look like."""

TEXTS = frozenset({".json", ".yaml", ".yml", ".toml", ".ini", ".cfg"})
"""Suffixes of files that may name modules."""


@dataclass(frozen=True)
class Kept:
    """The blocks that stay of a model: what a companion may name.

    Attributes:
        keep: their numbers.
        depth: how many there were.
        lists: dotted paths of the block list, the model's own first.
    """

    keep: Sequence[int]
    depth: int
    lists: Sequence[str]


def copy_companions(source: Source, directory: Path) -> None:
    """Copy what lies beside the weights: tokenizer, generation config, code, licence. Not the card, not the config.

    Raises:
        CheckpointError: see `check`.
    """
    for file in _companions(source):
        target = directory / file.relative_to(source.path)
        target.parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(_checked(file, source), target)


def check(source: Source) -> None:
    """Raise where something beside the weights cannot be copied.

    Raises:
        CheckpointError: a link leads out of the model's folder, or nowhere; or it is no file, but a pipe or a device.
    """
    for file in _companions(source):
        _checked(file, source)


def settle(source: Source, directory: Path, kept: Kept | None) -> tuple[str, ...]:
    """Make the companions that were copied speak of the blocks that stay; leave out those of which that cannot be said.

    Args:
        directory: what was copied into.
        kept: None where that is not known: then none that names blocks by number stays.

    Returns:
        What a user of the result should know, in sentences.
    """
    left = {file.name: why for file in _files(source) if (why := _speaks_of_the_whole(file.name))}
    rewritten = []
    for file in sorted(directory.iterdir()):
        if file.suffix in TEXTS and not _is_settled(file.name) and file.stat().st_size <= MAX_HEADER:
            try:
                new = _for_kept(file.read_text(encoding="utf-8", errors="replace"), file.suffix, kept)
            except (ValueError, ConfigRewriteError) as error:
                left[file.name] = str(error)
                file.unlink()
                continue
            if new is not None:
                file.write_text(new, encoding="utf-8")
                rewritten.append(file.name)
    notes = [f"`{_plain(name)}` was rewritten for the blocks that stay." for name in rewritten]
    notes += [f"`{_plain(name)}` was left out: {_plain(why)}." for name, why in sorted(left.items())]
    folders = [f"`{_plain(folder.name)}`" for folder in _folders(source) if folder not in _carried_folders(source)]
    if folders:
        notes.append(f"Folders beside the weights were left out: {', '.join(folders)}.")
    return tuple(notes)


# -- which files ----------------------------------------------------------------------------------------------


def _companions(source: Source) -> Iterator[Path]:
    """The files that go along as they are."""
    for file in _files(source):
        if not _speaks_of_the_whole(file.name):
            yield file
    for folder, pattern in _carried_folders(source).items():
        yield from sorted(file for file in folder.rglob(pattern) if not file.is_dir())


def _files(source: Source) -> Iterator[Path]:
    """What lies in a model's folder beside what others write: files, and what is none."""
    for file in sorted(source.path.iterdir()) if source.path.is_dir() else ():
        hidden = file.name.startswith(".")
        if not (file.is_dir() or hidden or file.name in WRITTEN_BY_OTHERS or file.suffix in WEIGHT_SUFFIXES):
            yield file


def _folders(source: Source) -> list[Path]:
    inside = sorted(source.path.iterdir()) if source.path.is_dir() else []
    return [folder for folder in inside if folder.is_dir() and folder.name[0] not in "._"]


def _speaks_of_the_whole(name: str) -> str | None:
    return next((why for pattern, why in WHOLE.items() if fnmatchcase(name, pattern)), None)


def _is_settled(name: str) -> bool:
    return name in WRITTEN_BY_OTHERS | OF_TOKENS or _speaks_of_the_whole(name) is not None


def _carried_folders(source: Source) -> dict[Path, str]:
    """The folders of which files go along → a pattern for the files."""
    patterns = dict.fromkeys(code_folders(source.path), "*.py") | FOLDERS
    return {folder: patterns[folder.name] for folder in _folders(source) if folder.name in patterns}


def _checked(file: Path, source: Source) -> Path:
    """The file that is to be read for a companion, after every check."""
    return untrusted.check_file(source.name, source.path, file)


# -- what they say --------------------------------------------------------------------------------------------


def _for_kept(text: str, suffix: str, kept: Kept | None) -> str | None:
    """What a text becomes for the blocks that stay; None where it says nothing of blocks, and stays as it is.

    Raises:
        ValueError, ConfigRewriteError: it speaks of blocks, and what becomes of it is not certain.
    """
    content: Any = None
    if suffix == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
    if not isinstance(content, (dict, list)):
        if named := _NAMES_BLOCK.search(text):
            raise ValueError(f"it names blocks by number ({named[0]})")
        return None
    if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
        raise ValueError(WHOLE["*.index.json"])
    names_blocks, counts_blocks = _NAMES_BLOCK.search(text), _counts(content, kept)
    if not names_blocks and not counts_blocks:
        return None
    if kept is None:
        raise ValueError("it speaks of blocks by number")
    if counts_blocks:
        content = _recounted(content, kept)
    if names_blocks:
        content = Renumbering(kept.lists, kept.depth, kept.keep)(content)
    return updated(text, content)


_NAMES_BLOCK = re.compile(rf"\b(?:{'|'.join(sorted(LIST_NAMES))})\b[\\\[\]().]+\d+(?!-9\])")
"""Where a text names a block by its number: as a path, as a glob, as a regular expression."""


def _counts(content: Any, kept: Kept | None) -> bool:
    """Whether some member of it, however deep, is a number of blocks: under a name for that, the depth or any."""
    if isinstance(content, list):
        return any(_counts(item, kept) for item in content)
    if not isinstance(content, dict):
        return False
    for name, value in content.items():
        is_count = name in rules.COUNTS and type(value) is int
        if (is_count and (kept is None or value == kept.depth)) or _counts(value, kept):
            return True
    return False


def _recounted(content: Any, kept: Kept) -> Any:
    """A config with other names than config.json's, by the same rules.

    Raises:
        ValueError: the blocks are counted in a part of it. ConfigRewriteError: a field has no rule, or cannot be
            rewritten.
    """
    inner = content.values() if isinstance(content, dict) else content
    if any(_counts(value, kept) or _depends_on_blocks(value, kept) for value in inner):
        raise ValueError("a part of it depends on the blocks")
    return rules.rewrite_config(content, kept.keep, kept.depth)


def _depends_on_blocks(value: Any, kept: Kept) -> bool:
    if isinstance(value, list):
        return any(_depends_on_blocks(item, kept) for item in value)
    if not isinstance(value, dict):
        return False
    decisions = rules.decide(value, range(kept.depth), kept.depth)
    return any(not rules.is_idle(one) for one in decisions) or any(
        _depends_on_blocks(inner, kept) for inner in value.values()
    )


def _plain(text: str) -> str:
    """A name of a file, or what it holds, as it may stand in a sentence."""
    return re.sub(r"[\s`]+", " ", text)[:200]
