"""A rewritten config in the words of its source: which fields of a config.json change, under each of their names.

::

    as written    {"n_layer": 6, "num_hidden_layers": 6, "full_attn_idxs": [2, 5], "rope_theta": 1e6}
         │ read by the library                                     ▲ read again: this must come out
         ▼                                                         │
    resolved      {"n_layer": 6, "layer_types": [...], ...}  ── rules ──▶ rewritten

A library reads more names than it keeps: of two names of a field it keeps one, a list that it reads from an old field
it keeps under a new one. Other readers know other names. So what changes is changed under every name under which it
stands, what only the written config has is rewritten by the same rules, and a field is added only where the library
would otherwise derive another value for the blocks that stay. Then the library reads the result, which proves it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shortgpt.errors import ConfigRewriteError
from shortgpt.models.configs.rules import COUNTS, NAMING_MODULES, RULES, Blocks, Config, Rule, looks_per_block, short
from shortgpt.models.configs.text import same, updated

NOT_OF_THE_BLOCKS = frozenset({"transformers_version", "_name_or_path", "architectures", "dtype"})
"""What a library says of itself and of the place when it reads a config, and of the weights when it saves one."""


@dataclass(frozen=True)
class Removal:
    """A rewrite of a resolved config, and how the written one spells it.

    Attributes:
        resolved, rewritten: the whole config as the library reads it, before and after.
        keep, depth: the blocks that stay, and how many there were.
        part: where the blocks' own config is in the whole.
        aliases: other names that the library reads for a field of that part → the field.
        rules: an adapter's own, before the general ones.
    """

    resolved: Config
    rewritten: Config
    keep: Sequence[int]
    depth: int
    part: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolved", plain(self.resolved))
        object.__setattr__(self, "rewritten", plain(self.rewritten))

    def apply(self, written: Config, where: tuple[str, ...]) -> Config:
        """A config as it was written, with what it says of the blocks said of those that stay.

        Args:
            where: the place in it of what the library calls `part`, one of `places`.

        Raises:
            ConfigRewriteError: a field that the library reads and does not keep speaks of the blocks, and no rule says
                what becomes of it.
        """
        own = self._rewritten_fields(_at(written, where), kept_elsewhere=self.resolved if where != self.part else {})
        for outer in range(len(where)):
            around = _at(written, where[:outer])
            around = self._repeated_fields(around) | self._named_modules(around, where[:outer])
            written = _put(written, where[:outer], around)
        return _put(written, where, own)

    def add(self, written: Config, where: tuple[str, ...], fields: Mapping[str, Any]) -> Config:
        """A written config in which fields of the blocks' own config have these values, under every name they have."""
        own = _at(written, where)
        named = {key: fields[name] for key in own if (name := self.aliases.get(key, key)) in fields}
        new = {name: value for name, value in fields.items() if name not in {self.aliases.get(key, key) for key in own}}
        return _put(written, where, {**own, **named, **new})

    def misread(self, read: Callable[[], Config]) -> set[str]:
        """The fields of the blocks' own config that the library reads otherwise than it should; where it takes none of
        the config, all that the removal changes."""
        try:
            differing = self.differences(read())
        except Exception:  # a config class can refuse in any way; the last reading is not guarded
            return set(self._changed())
        return {path[len(self.part)] for path in differing if path[: len(self.part)] == self.part}

    def places(self, written: Config) -> list[tuple[str, ...]]:
        """Where a written config may have what the library calls `part`: old ones have it elsewhere, known by a field
        that the removal changes and that has the value which the library reads."""
        if _has(written, self.part):
            return [self.part]
        sections = {(): written} | {(key,): value for key, value in written.items() if key not in self.resolved}
        own, changed = _at(self.resolved, self.part), self._changed()

        def holds(section: Any) -> bool:
            fields = section.items() if isinstance(section, dict) else ()
            names = ((self.aliases.get(key, key), value) for key, value in fields)
            return any(name in changed and same(value, own.get(name)) for name, value in names)

        return [*(place for place, section in sections.items() if holds(section)), self.part]

    def differences(self, read: Config) -> list[tuple[str, ...]]:
        """Where what the library makes of a written config is not what it should be; fields as paths.

        What does not hang on the blocks is not looked at, nor how weights are initialised, nor what the library copies
        from the blocks' own config to outer ones, nor what describes extra prediction heads, which a removal leaves
        out.
        """
        read = plain(read)
        return [path for path in _differences(read, self.rewritten) if not self._explained(path, read)]

    def _changed(self) -> dict[str, Any]:
        """The fields of the blocks' own config that are rewritten, and their new values."""
        before, after = _at(self.resolved, self.part), _at(self.rewritten, self.part)
        return {name: value for name, value in after.items() if name not in before or not same(before[name], value)}

    def _rewritten_fields(self, own: Config, kept_elsewhere: Config) -> Config:
        before = _at(self.resolved, self.part)
        changed = self._changed()
        blocks = Blocks(tuple(self.keep), self.depth, {**before, **own})
        result = {}
        for key, value in own.items():
            name = self.aliases.get(key, key)
            if name in changed and same(value, before.get(name)):
                result[key] = changed[name]
            elif name in changed:
                result[key] = self._ruled(key, name, value, blocks, changed[name])
            elif name in before or key in kept_elsewhere:
                result[key] = value
            else:
                result[key] = self._ruled(key, name, value, blocks)
        return result

    def _ruled(self, key: str, name: str, value: Any, blocks: Blocks, otherwise: Any = None) -> Any:
        """What becomes of a value that the library keeps in another form (then `otherwise`), or not at all."""
        table = {**RULES, **self.rules}
        rule = table.get(key) or table.get(name)
        try:
            if rule is None and otherwise is None and looks_per_block(key, value, blocks.depth):
                raise ValueError("no rule says how it depends on the blocks")
            return rule.apply(value, blocks) if rule else value if otherwise is None else otherwise
        except ValueError as error:
            if otherwise is not None:
                return otherwise
            raise ConfigRewriteError(
                f"config field {key!r} (value {short(value)}) cannot be rewritten: {error}"
            ) from None

    def _repeated_fields(self, outer: Config) -> Config:
        """An outer config in which fields that repeat the blocks' own follow them."""
        before, changed = _at(self.resolved, self.part), self._changed()
        names = {key: self.aliases.get(key, key) for key in outer}
        repeated = {key for key, name in names.items() if name in changed and same(outer[key], before.get(name))}
        return {key: changed[names[key]] if key in repeated else value for key, value in outer.items()}

    def _named_modules(self, outer: Config, where: Sequence[str]) -> Config:
        """The fields of an outer config that name modules of the blocks."""
        before, after = _at(self.resolved, where), _at(self.rewritten, where)
        return {key: after[key] for key in NAMING_MODULES if key in outer and same(outer[key], before.get(key))}

    def _explained(self, path: tuple[str, ...], read: Config) -> bool:
        *outer, name = path
        if name in NOT_OF_THE_BLOCKS or re.search(r"^mtp_|(^|_)init(_|$)", name):
            return True
        if name not in _at(self.resolved, outer) and name not in _at(self.rewritten, outer):
            return True  # an old field that the library does not ask when it is told by a new one, and so leaves there
        own = _at(read, self.part)
        return tuple(outer) != self.part and name in own and same(_at(read, outer).get(name), own[name])


def write(text: str, removal: Removal, target: Path, read: Callable[[], Config]) -> None:
    """Write the config of the model that has fewer blocks: the source's text, changed where the removal changes it.

    Args:
        text: the source's config.json.
        target: the file to write.
        read: gives what the library makes of that file.

    Raises:
        ConfigRewriteError: a field's new value is not known, or the library reads the result as another config than it
            should.
    """
    *others, usual = removal.places(json.loads(text))
    for place in others:
        if not _written(text, removal, place, target, read):
            return
    for path in _written(text, removal, usual, target, read):
        made, meant = (short(_at(config, path[:-1]).get(path[-1])) for config in (plain(read()), removal.rewritten))
        raise ConfigRewriteError(
            f"config field {'.'.join(path)!r} cannot be written: the library makes {made} of it for the blocks that "
            f"would stay, not {meant}"
        )


def _written(
    text: str, removal: Removal, place: tuple[str, ...], target: Path, read: Callable[[], Config]
) -> list[tuple[str, ...]]:
    """Write the config; the fields that the library reads otherwise than it should."""
    changed = removal.apply(json.loads(text), place)
    _write(target, updated(text, changed))
    own = _at(removal.rewritten, removal.part)
    # What the library makes of fewer blocks, unless it is told, may be something else than it made of all: a count of
    # its own, where none was written, and then what it derives from the right one.
    for names in (set(COUNTS), set(own)):
        derived = names & removal.misread(read)
        if derived:
            changed = removal.add(changed, place, {name: value for name, value in own.items() if name in derived})
            _write(target, updated(text, changed))
    return removal.differences(read())


def plain(config: Config) -> Config:
    """A config as JSON holds it: keys are text, tuples are lists."""
    known: Config = json.loads(json.dumps(config, default=str))
    return known


def _write(target: Path, text: str) -> None:
    target.write_bytes(text.encode("utf-8"))  # line ends stay as they were


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            if key not in one or key not in other:
                yield (*path, key)
            else:
                yield from _differences(one[key], other[key], (*path, key))
    elif not same(one, other):
        yield path


def _at(config: Config, path: Sequence[str]) -> Config:
    """The config at a path; an empty one where nothing stands there."""
    for key in path:
        config = config.get(key) or {}
    return config


def _has(config: Config, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(config.get(key), dict):
            return False
        config = config[key]
    return True


def _put(config: Config, path: Sequence[str], part: Config) -> Config:
    if not path:
        return part
    return {**config, path[0]: _put(config.get(path[0]) or {}, path[1:], part)}
