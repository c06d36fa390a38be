"""Gemma 3n: parallel streams, keys and values that several blocks share, embeddings for each block in one table.

::

    x ─ predict ─●──────────────────────────────────── correct ─(+)─▶ x'    x, x': several streams
                 └─ one: norm ─ attention, mlp ─ norm ────┘  └───┴─ gate · token's embedding for this block

    block     0  1  2  3  4  5  6  7  8  9     the last `num_kv_shared_layers` blocks make no keys and values of their
    type      w  w  w  a  w  a  w  w  a  w     own: each reads those of the last earlier block of its type
    keys of   0  1  2  3  4  5  4  4  5  4     (w: attends in a window, a: to all tokens)

The stream is the parallel streams together: a token's vector at a boundary is all of them one behind the other, and
Block Influence is the cosine of those. The library holds them as [streams, batch, tokens, width].

Two oddities of removal. A block whose keys and values others read has to stay, since none could take its place; it is
pinned even where its readers would go as well. A block that only reads can go, and the config counts the readers. And
the table of the token embeddings for each block, like the projection beside it, is a row of equal pieces, one a block:
those of the blocks that go are cut out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shortgpt.basics.inputs import Config, Fold
from shortgpt.models.configs.rules import Blocks, Rule
from shortgpt_adapters.transformers.structural import Structural
from shortgpt_adapters.transformers.structure import Structure

PIECES = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
"""Tensors that hold a piece for each block, and the axis along which."""


def _kept_readers(count: int, blocks: Blocks) -> int:
    return sum(block >= blocks.depth - count for block in blocks.keep)


class Gemma3n(Structural):
    architecture = "gemma3n"
    rules: ClassVar[Mapping[str, Rule]] = {"num_kv_shared_layers": Rule("count the readers that stay", _kept_readers)}

    def pinned(self, config: Config) -> Mapping[int, str]:
        own = self.own(config)
        types = own["layer_types"]
        first = len(types) - own["num_kv_shared_layers"]
        readers: dict[int, list[int]] = {}
        for reader in range(first, len(types)):
            makers = [block for block in range(first) if types[block] == types[reader]]
            if makers:  # a drafter's blocks read those of another model
                readers.setdefault(makers[-1], []).append(reader)
        return {
            maker: f"its keys and values are read by {'block' if len(blocks) == 1 else 'blocks'} "
            f"{', '.join(map(str, blocks))}, which cannot do without them"
            for maker, blocks in sorted(readers.items())
        }

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        depth = self.depth(config)
        packed = ((name, axis) for name in names for ending, axis in PIECES.items() if name.endswith(ending))
        return {name: _pieces(axis, depth, keep) for name, axis in packed}

    def find(self, model: PreTrainedModel) -> Structure:
        return replace(super().find(model), norm_placement="sandwich")


def _pieces(axis: int, depth: int, keep: Sequence[int]) -> Fold:
    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        pieces = tensor.unflatten(axis, (depth, -1))
        return pieces.index_select(axis, torch.tensor(keep, device=tensor.device)).flatten(axis, axis + 1)

    return fold
