"""The config.json of a model of transformers, as every reader of it takes it.

::

    of a source's blocks      the source's text, changed where the removal changes it (`configs.spelling`)
    of a model in memory      what the library writes, and beside it the names that readers of transformers 4 know

transformers 5 reads the names of transformers 4 and writes its own only: `rope_parameters`, `dtype`, one name of each
field. Who knows the others only (transformers 4, vLLM, llama.cpp's converter) takes defaults without a word.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from shortgpt.models.configs.spelling import plain
from shortgpt.models.configs.text import same, updated

ROPE_NAMES = (
    {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
)
"""What types of transformers 4 call the rotary parameters that are not of a scaling."""

ROPE_NAMES_BY_KIND = (
    {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
    {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
    {"full_attention": "rope_theta", "sliding_attention": "rope_theta"},
)
"""The same where blocks of two kinds have a base each; a scaling is of the full attention."""


def parts(config: PreTrainedConfig, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    """A config and those inside it, each with the keys that lead to it."""
    yield keys, config
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            yield from parts(inner, (*keys, key))


def aliases(config: PreTrainedConfig, part: tuple[str, ...]) -> Mapping[str, str]:
    """Other names that the library reads for the fields of a part of a config → the field."""
    for key in part:
        config = getattr(config, key)
    return dict(config.attribute_map)


def with_dtypes(text: str, saved: Mapping[str, Any]) -> str:
    """A written config that names the dtypes of a saved one, wherever it names a dtype."""
    return updated(text, _with_dtypes(json.loads(text), saved))


def _with_dtypes(written: Any, saved: Mapping[str, Any]) -> Any:
    dtype = saved.get("dtype")
    result = {}
    for key, value in written.items():
        if key in ("dtype", "torch_dtype") and value is not None and dtype is not None:
            result[key] = dtype
        elif isinstance(value, dict) and isinstance(saved.get(key), Mapping):
            result[key] = _with_dtypes(value, saved[key])
        else:
            result[key] = value
    return result


def add_old_names(file: Path, read: Callable[[], PreTrainedConfig]) -> None:
    """Put the names of transformers 4 beside those of transformers 5, as far as the library reads the same with them.

    Args:
        file: a config.json that the library wrote.
        read: gives what the library makes of it.
    """
    text = file.read_text(encoding="utf-8")
    config = read()
    meant = plain(config.to_dict())
    for keys, part in parts(config):
        written = json.loads(text)
        place = _at(written, keys)
        if place is None:
            continue
        place.update({name: value for name, value in _old_names(part, place).items() if name not in place})
        file.write_text(updated(text, written), encoding="utf-8")
        if same(plain(read().to_dict()), meant):
            text = file.read_text(encoding="utf-8")
        else:
            file.write_text(text, encoding="utf-8")


def _at(config: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _old_names(config: PreTrainedConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    names = {alias: written[name] for alias, name in config.attribute_map.items() if name in written}
    if "dtype" in written:
        names["torch_dtype"] = written["dtype"]
    return names | _old_rope_names(config, written)


def _old_rope_names(config: PreTrainedConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters under names from which the type's own class reads them; none where there are none."""
    rope = written.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    rest = {name: value for name, value in plain(config.to_dict()).items() if name != "rope_parameters"}
    other = _with_other_bases(rope)  # no class has these by default, so that they show whether a name is read
    for names, others in zip(_spellings(rope), _spellings(other), strict=True):
        try:
            read = type(config).from_dict(copy.deepcopy({**rest, **others}))  # it writes into what it is given
        except Exception:  # a config class that these names are foreign to can refuse them in any way
            continue
        if same(plain(getattr(read, "rope_parameters", None) or {}), other):
            return names
    return {}


def _with_other_bases(rope: Mapping[str, Any]) -> dict[str, Any]:
    other = {key: _with_other_bases(value) if isinstance(value, dict) else value for key, value in rope.items()}
    return {**other, "rope_theta": 2.0 * rope["rope_theta"] + 1.0} if "rope_theta" in rope else other


def _spellings(rope: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kinds = {kind: values for kind, values in rope.items() if isinstance(values, dict)}
    if not kinds:
        for spelt in ROPE_NAMES:
            yield {spelt[name]: rope[name] for name in spelt if name in rope} | _scaling(rope)
    for by_kind in ROPE_NAMES_BY_KIND:
        if set(by_kind) == set(kinds):
            bases = {name: kinds[kind].get("rope_theta") for kind, name in by_kind.items()}
            yield bases | _scaling(kinds["full_attention"])


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    return {"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {}
