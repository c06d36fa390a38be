"""Blocks that are skipped while a prompt is read, and run afterwards.

::

    prompt     ─ block i ─: norm ─ k, v ─ positions ─▶ cache ╳        the block ends here; the stream goes on as it came
    new token  ─ block i ─────────────────────────────────── ─▶       with what stands in the cache

What a block writes into the cache is computed by its own code, from the stream as it is: its call is ended from inside
the cache, once that has the keys and values. So they are normed and rotated as the block does it, and of the block's
work only its first norm and its projections of queries, keys and values are done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortgpt.basics.block_lists import format_blocks
from shortgpt.errors import ModelError

if TYPE_CHECKING:
    from shortgpt.torch_models.interface import TorchModel

Given = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
"""(a call's arguments) → what a skipped block gives back."""
Read = Callable[[AbstractContextManager[Any]], Sequence[Tensor]]


class _Written(Exception):
    """The cache has a block's keys and values."""


@contextmanager
def skipping_prefill(model: TorchModel, blocks: Collection[int], read: Read) -> Iterator[None]:
    """Inside the context these blocks are skipped in a pass of several tokens, and in the first one over a cache.

    It is tried first: the logits of a few tokens and of one more behind them, and what is then in the cache, must be
    those of the blocks run and bypassed (`skipping`) while the few were read, which is another road to them.

    Args:
        read: reads a few tokens into a new cache inside a context, then one token more outside of it; gives the logits
            of both, and all tensors of the cache.

    Raises:
        ModelError: what a block keeps cannot be had without running it, or others need more of it.
    """
    given = _given_back(model, blocks, read)
    expected = read(model.skipping(blocks))
    with ExitStack() as stack:
        for block in sorted(blocks):
            stack.enter_context(_ended_early(model, block, given[block]))
        problem = None
        try:
            found = read(nullcontext())
        except Exception as error:  # code of any kind runs here, which another block's work was taken from
            problem = f"{type(error).__name__}: {error}"
        else:
            if len(found) != len(expected) or not all(map(_same, found, expected)):
                problem = "a few tokens, or the cache behind them, are others than where they are run and bypassed"
        if problem is not None:
            raise ModelError(
                f"{model.name}: blocks {format_blocks(blocks)} cannot be skipped while a prompt is read: other blocks "
                f"need more of them than the stream and their keys and values ({problem}); remove them instead "
                "(`shortgpt prune`)"
            )
        yield


def _given_back(model: TorchModel, blocks: Collection[int], read: Read) -> dict[int, Given]:
    """What each block gives back when it is skipped; seen while it runs.

    Raises:
        ModelError: it does not write keys and values once.
    """
    writes: dict[int, int] = dict.fromkeys(blocks, 0)
    given: dict[int, Given] = {}

    def watched(block: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            def count(update: Callable[..., Any], *passed: Any, **named: Any) -> Any:
                writes[block] += 1
                return update(*passed, **named)

            with _updating(args, kwargs, count):
                output = forward(*args, **kwargs)
            empty = _without_tensors(output)
            given[block] = lambda args, kwargs: model.bypassed(block, args, kwargs, empty)
            return output

        return run

    with ExitStack() as watching:
        for block in blocks:
            watching.enter_context(_forward(model, block, watched))
        read(watching)
    for block, number in sorted(writes.items()):
        if number != 1:
            kept = "several keys and values" if number else "a state that cannot be had without running it"
            raise ModelError(
                f"{model.name}: block {block} cannot be skipped while a prompt is read: a "
                f"{type(model.blocks[block]).__name__} keeps {kept}; take other blocks, or remove it (`shortgpt prune`)"
            )
    return given


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are one but for rounding, NaN and infinity in the same places."""
    if found.shape != expected.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    finite = expected[expected.isfinite()].abs()
    rounding = 64 * torch.finfo(found.dtype).eps * float(finite.max() if finite.numel() else 0.0)
    return torch.allclose(found, expected, rtol=0.0, atol=rounding, equal_nan=True)


def _without_tensors(output: Any) -> Any:
    """The form of a block's output: what it gave beside the stream was of another text."""
    if not isinstance(output, (tuple, list)):
        return output
    items: list[Any] = [None if isinstance(item, Tensor) else item for item in output]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


@contextmanager
def _ended_early(model: TorchModel, block: int, given: Given) -> Iterator[None]:
    def wrapped(block: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            caches = _caches(args, kwargs)
            if not caches:
                raise ModelError(
                    f"{model.name}: blocks that are skipped while a prompt is read need a cache to write to; run the "
                    "model with use_cache=True, as its generate does"
                )
            stream = model.observed(block, model.stream(block, args, kwargs))
            if stream.shape[1] == 1 and caches[0].get_seq_length(block) > 0:
                return forward(*args, **kwargs)

            def end(update: Callable[..., Any], *passed: Any, **named: Any) -> Any:
                update(*passed, **named)
                raise _Written

            with _updating(args, kwargs, end):
                try:
                    forward(*args, **kwargs)
                except _Written:
                    return given(args, kwargs)
            raise ModelError(f"{model.name}: block {block} wrote no keys and values; it is run otherwise than before")

        return run

    with _forward(model, block, wrapped):
        yield


@contextmanager
def _forward(
    model: TorchModel, block: int, wrapped: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Inside the context a block's `forward` is another one, given the one that it had."""
    module: Any = model.blocks[block]
    own = vars(module).get("forward")
    module.forward = wrapped(block, module.forward)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _updating(args: tuple[Any, ...], kwargs: Mapping[str, Any], instead: Callable[..., Any]) -> Iterator[None]:
    """Inside the context the caches among a call's arguments call this, given what they would have called."""
    caches = _caches(args, kwargs)
    for cache in caches:
        update = cache.update
        cache.update = lambda *given, update=update, **named: instead(update, *given, **named)
    try:
        yield
    finally:
        for cache in caches:
            del cache.update


def _caches(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """What of a call's arguments keys and values are written to."""
    given = [one for one in (*args, *kwargs.values()) if hasattr(one, "update") and hasattr(one, "get_seq_length")]
    return list({id(inner): inner for one in given for inner in (getattr(one, "self_attention_cache", one),)}.values())
