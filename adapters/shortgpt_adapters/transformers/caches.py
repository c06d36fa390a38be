"""What each block keeps of a sequence, measured on the cache that the library itself makes for a few tokens.

::

    4, 6, 8 tokens ─▶ generate ─▶ cache ─▶ layers, j of them to a block ─▶ bytes of their tensors ─▶ fixed + per token
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from shortgpt.values.cost import CacheSize
from shortgpt_adapters.transformers.generation import generate_plainly
from shortgpt_adapters.transformers.verbosity import quiet

LENGTHS = (4, 6, 8)
"""In tokens. Two tell what grows by the token; the third, whether it is that."""


def cache_sizes(model: PreTrainedModel, depth: int, longest: int | None) -> tuple[CacheSize, ...] | str:
    """By block; or why that is not known.

    Args:
        depth: the number of blocks.
        longest: the model's window.
    """
    if not model.can_generate():
        return f"a {type(model).__name__} does not generate text, so it keeps nothing"
    if longest is not None and longest <= max(LENGTHS):
        return f"the model's window of {longest} tokens is too short to see its cache grow"
    try:
        caches = [_cache(model, tokens) for tokens in LENGTHS]
        layers = [list(getattr(cache, "layers", cache)) for cache in caches]
    except Exception as error:  # a type that cannot be run so fails in ways of its own
        return f"the library makes no cache of a {type(model).__name__} ({type(error).__name__}: {error})"
    parts = len(layers[0])
    # The library's own class has a layer a block; the last ones are not there where they read another's.
    fewer = hasattr(caches[0], "layers") and 0 < parts < depth
    if {len(some) for some in layers} != {parts} or not (fewer or (parts and parts % depth == 0)):
        return f"the cache of a {type(model).__name__} has {parts} parts, and it is not known to which blocks"
    each = max(1, parts // depth)
    sizes = [CacheSize()] * depth
    for at, some in enumerate(zip(*layers, strict=True)):
        found = _size(some)
        if isinstance(found, str):
            return found
        sizes[at // each] = _together(sizes[at // each], found)
    return tuple(sizes)


def _cache(model: PreTrainedModel, tokens: int) -> Any:
    """The library's cache behind so many tokens of one sequence."""
    pad = model.generation_config.pad_token_id
    settings = GenerationConfig(
        max_new_tokens=1, do_sample=False, use_cache=True, return_dict_in_generate=True, pad_token_id=pad or 0
    )
    ids = torch.arange(1, tokens + 1, device=model.device)[None]
    with quiet(), torch.no_grad():
        output = generate_plainly(model, ids, settings, attention_mask=torch.ones_like(ids))
    caches = [value for name, value in output.items() if name != "sequences" and value is not None]
    if len(caches) != 1:
        raise ValueError(f"its generation gives back {len(caches)} things that may be one")
    return caches[0]


def _size(layers: Sequence[Any]) -> CacheSize | str:
    """Of one part of the cache, seen behind each of `LENGTHS`."""
    held = [sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(layer)) for layer in layers]
    window = _window(layers[0])
    kept = [tokens if window is None else min(tokens, window) for tokens in LENGTHS]
    grown = kept[1] - kept[0]
    per_token = (held[1] - held[0]) // grown if grown else held[0] // kept[0]
    size = CacheSize(held[0] - per_token * kept[0], per_token, window)
    if [size.at(tokens) for tokens in LENGTHS] != held:
        told = ", ".join(map(str, held))
        return f"a {type(layers[0]).__name__} of the cache holds {told} bytes behind {LENGTHS} tokens: no line"
    return size


def _window(layer: Any) -> int | None:
    """How many tokens a layer of the cache keeps: a query and those before it are a window."""
    return layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else None


def tensors_in(holder: Any) -> Iterator[Tensor]:
    """All of more than one axis, wherever they are held."""
    if isinstance(holder, Tensor):
        yield from (holder,) if holder.dim() > 1 else ()
    elif isinstance(holder, Mapping):
        for item in holder.values():
            yield from tensors_in(item)
    elif isinstance(holder, (list, tuple)):
        for item in holder:
            yield from tensors_in(item)
    elif hasattr(holder, "__dict__"):
        yield from tensors_in(vars(holder))


def _together(one: CacheSize, other: CacheSize) -> CacheSize:
    """Two parts of one block; both have the same window where both grow."""
    windows = {size.window for size in (one, other) if size.per_token}
    if len(windows) > 1:
        raise ValueError(f"a block keeps {sorted(map(str, windows))} tokens")
    return CacheSize(one.fixed + other.fixed, one.per_token + other.per_token, next(iter(windows), None))
