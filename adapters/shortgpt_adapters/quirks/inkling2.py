"""Inkling 2: the blocks come in groups of n; each group sums up a stream of its own, and every part reads them all.

::

    finished streams   x_0  s_1  s_2 ...
                         └────┼────┘
                         ┌────┴─────────────────────────────┐
                         ▼                                  ▼
    x ─●─ attention over streams ─ attention ─(+)─●─ attention over streams ─ experts ─(+)─▶ x'
       └──────────────────────────────────────┘   └────────────────────────────────────┘
            (not in a group's first block)

A group's first block, whose place is a multiple of n = `n_layers_per_attn_res_block`, puts the stream that it is given
among the finished ones and begins another from zero. So the stream that Block Influence looks at is, for each token,
the finished ones and the current one side by side, with zeros for those to come.

A skipped block begins no group; nothing of it is left. A removal says the same when the blocks that stay begin groups
where they did: n is chosen so that they do, or the removal is refused. The model's first block has nothing finished to
look at, and no query for it. A block that becomes the first gives up its query: over one stream it only normalises,
ahead of a norm, which changes nothing but what the norms' epsilon does.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shortgpt.basics.block_lists import block_numbers
from shortgpt.models.configs.rules import Blocks, Rule
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks

QUERY_OF_THE_FIRST = re.compile(r"(?:.*\.)?layers\.0\.attention_input\..+")
QUERY_IN_FILES = re.compile(r"(.*attn_res\.)(attn|mlp)_queries\.(\d+)")
FIRST_BLOCK = {"attn": 1, "mlp": 0}
"""Whose query is number 0 in a file, which lists them apart from the blocks."""


def _group_size(value: Any, blocks: Blocks) -> Any:
    """A size with which the blocks that stay begin groups where they did."""
    begins = [block % value == 0 for block in blocks.keep]
    for size in (value, *range(1, len(begins) + 1)):
        if [place % size == 0 for place in range(len(begins))] == begins:
            return size
    marks = " ".join("x" if begin else "." for begin in begins)
    raise ValueError(f"the blocks that stay would begin groups unevenly ({marks}); remove whole groups of {value}")


class Inkling2Blocks(StructuralBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        size = self.family.own(self.config)["n_layers_per_attn_res_block"]
        streams = 1 + math.ceil(len(self) / size)  # the embedding, and what each group adds
        finished: list[Tensor] = []

        def whole(boundary: int, hidden: Tensor) -> None:
            to_come = [torch.zeros_like(hidden)] * (streams - len(finished) - 1)
            tap(boundary, torch.cat([*finished, hidden, *to_come], dim=-1))
            if boundary < len(self) and self.blocks[boundary].is_block_boundary:
                finished.append(hidden)

        super().trace(batch, whole)

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        gone = block_numbers(blocks, len(self))
        beginning: list[Any] = [self.blocks[i] for i in gone if self.blocks[i].is_block_boundary]
        try:
            for block in beginning:
                block.is_block_boundary = False
            with super().skipping(gone):
                yield
        finally:
            for block in beginning:
                block.is_block_boundary = True


class Inkling2(Structural):
    architecture = "inkling2"
    sequence = Inkling2Blocks
    tolerance = 1e-3  # the epsilon of one norm behind another
    rules = {"n_layers_per_attn_res_block": Rule("solve for the group size", _group_size)}

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        renamed = {_with_queries(new, keep): old for new, old in super().rename(names, depth, keep).items()}
        return {new: old for new, old in renamed.items() if new and not QUERY_OF_THE_FIRST.fullmatch(new)}


def _with_queries(name: str, keep: Sequence[int]) -> str | None:
    """The new name of a tensor, when it is a query in a file; None for the query of a block that goes."""
    match = QUERY_IN_FILES.fullmatch(name)
    if match is None:
        return name
    before, kind, number = match.groups()
    block = int(number) + FIRST_BLOCK[kind]
    place = keep.index(block) - FIRST_BLOCK[kind] if block in keep else -1
    return f"{before}{kind}_queries.{place}" if place >= 0 else None
