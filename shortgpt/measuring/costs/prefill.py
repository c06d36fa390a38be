"""Blocks that are skipped while a prompt is read: the time of a prompt is saved, and no block is gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from shortgpt.models.loading import wrap
from shortgpt.models.sequence import BlockSequence, check_opened
from shortgpt.values.plan import Plan


@contextmanager
def prefill_skipping(model: Any, blocks: Plan | Iterable[int]) -> Iterator[BlockSequence]:
    """Inside the context these blocks are skipped while a prompt is read, and run at every token that is made.

    As the authors of ShortGPT did for generation (arXiv:2403.03853, their ShortGPT-gen): a skipped block's keys and
    values are written to the cache from the stream as it is, so that it can run at decoding. They are those that the
    block itself computes of that stream, normed and with their positions.

    A prompt is read by a pass over several tokens, or by the first pass over an empty cache. So it works under the
    library's `generate`, batched, padded on the side that the model takes; and where a prompt is read in parts. Under
    assisted generation, which decodes several tokens in one pass, it skips these too.

    Args:
        model: a block sequence, or a model of a library in memory, which is then run as it is: `model.generate(...)`.
        blocks: block numbers, or a `Plan`.

    Yields:
        The model as a block sequence.

    Raises:
        SelectionError: there are no such blocks.
        ModelError: a block keeps a state that cannot be had without running it (Mamba, RWKV), gives more than the
            stream to those behind it, or the model has no cache, or a pass inside the context is run without one.
    """
    opened = wrap(model)
    check_opened(opened)
    with opened.prefill_skipping(blocks.blocks if isinstance(blocks, Plan) else blocks):
        yield opened
