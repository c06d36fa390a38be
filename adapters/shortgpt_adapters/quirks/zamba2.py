"""Zamba 2: Mamba 2 blocks, and before some of them one of a few attention blocks whose weights they share in turn.

::

    hybrid block    3  9  15  21  27          num_mem_blocks 2: every other one has the same weights
    weights         A  B  A   B   A           a checkpoint holds a set at the first block that has it, here at 3 and 9
    adapters        a  b  c   d   e           each hybrid block has low-rank adapters of its own, kept with its set

    x ─●─ attention ─ mlp ─ linear ─(+)─ norm ─ mamba ─(+)─▶ x'
       ├────────────────────────────┘                   │      attention sees the word embeddings beside x
       └────────────────────────────────────────────────┘

The config says only how many sets take turns. Without block 9, A A B A stays: a cycle of 3 that has A twice. So
`num_mem_blocks` becomes the length of the shortest cycle, each set moves to where the new cycle has it, a second time
as a copy, and adapters take their blocks' new numbers. The function is the same. Where the copies are more than what
went, so that the model would grow, the removal is refused. Without any hybrid block the cache cannot count the tokens.

transformers raises small time steps to `time_step_min` in a prompt and not in cached tokens, so with a cache any
Zamba 2 generates a little otherwise than without. A verification compares the two without that bound; the logits keep
it.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from shortgpt.basics.inputs import Config, Fold
from shortgpt.models.configs.rules import RENUMBER, Blocks, Rule
from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import UnboundedTimeSteps
from shortgpt_adapters.transformers.structural import Structural, list_in_files
from shortgpt_adapters.transformers.structure import Structure


@dataclass(frozen=True)
class Turns:
    """Who has which set of weights, before and after a removal. Hybrid blocks are numbered among themselves.

    Attributes:
        blocks: the hybrid blocks that stay, as blocks of the model.
        places: where they will be.
        numbers: their old numbers; the new ones are 0, 1, ...
        sets: the set of each.
        cycle: the length of the shortest cycle in which they take turns.
    """

    blocks: tuple[int, ...]
    places: tuple[int, ...]
    numbers: tuple[int, ...]
    sets: tuple[int, ...]
    cycle: int

    @classmethod
    def of(cls, hybrid: Sequence[int], length: int, keep: Sequence[int]) -> "Turns":
        """Args: the hybrid blocks, after how many of them the sets begin anew, and the blocks that stay."""
        numbers = tuple(number for number, block in enumerate(hybrid) if block in keep)
        blocks = tuple(hybrid[number] for number in numbers)
        sets = tuple(number % length for number in numbers)
        cycles = (n for n in range(1, len(sets) + 1) if all(one == sets[i % n] for i, one in enumerate(sets)))
        return cls(blocks, tuple(keep.index(block) for block in blocks), numbers, sets, next(cycles, length))


def _shortest_cycle(length: int, blocks: Blocks) -> int:
    return Turns.of(blocks.config["hybrid_layer_ids"], length, blocks.keep).cycle


class Zamba2(Structural):
    architecture = "zamba2"
    loader = "shortgpt_adapters.quirks.zamba2:reload"
    rules: ClassVar[Mapping[str, Rule]] = {
        "hybrid_layer_ids": RENUMBER,
        "num_mem_blocks": Rule("the shortest cycle", _shortest_cycle),
    }

    def refuse(self, config: Config, keep: Sequence[int]) -> str | None:
        if reason := super().refuse(config, keep):
            return reason
        hybrid, length = config["hybrid_layer_ids"], config["num_mem_blocks"]
        turns = Turns.of(hybrid, length, keep)
        if turns.cycle > length and self.parameters(self.rewrite_config(config, keep)) > self.parameters(config):
            return (
                f"the {length} attention blocks that the hybrid blocks share would take turns no more (they would be "
                f"{' '.join(map(str, turns.sets))}), so {turns.cycle} would have to be held, and the model would grow; "
                f"keep or remove another hybrid block ({', '.join(map(str, hybrid))}) as well"
            )
        return None

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        names = list(names)
        path = list_in_files(names, self.structure.path, depth)
        shared = re.compile(rf"{re.escape(path)}\.(\d+)\.shared_transformer\.(.+)")
        held: dict[int, dict[str, str]] = {}
        for name in names:
            if match := shared.fullmatch(name):
                held.setdefault(int(match[1]), {})[match[2]] = name
        hybrid = self.resolved.hybrid_layer_ids
        turns = Turns.of(hybrid, self.resolved.num_mem_blocks, keep)
        renamed = {new: old for new, old in super().rename(names, depth, keep).items() if not shared.fullmatch(old)}
        for new, (block, place) in enumerate(zip(turns.blocks, turns.places, strict=True)):
            # A file holds a set once. A model in memory has it at each of its blocks.
            holder = block if block in held or new >= turns.cycle else hybrid[turns.sets[new]]
            same = {old: i for i, old in enumerate(turns.numbers) if i % turns.cycle == new % turns.cycle}
            for rest, name in held.get(holder, {}).items():
                if rest := _with_adapter_at(rest, same):
                    renamed[f"{path}.{place}.shared_transformer.{rest}"] = name
        return renamed

    def folds(self, config: Config, keep: Sequence[int], names: Iterable[str]) -> dict[str, Fold]:
        turns = Turns.of(config["hybrid_layer_ids"], config["num_mem_blocks"], keep)
        once = zip(turns.places[: turns.cycle], turns.sets, strict=False)
        again = {place for i, (place, one) in enumerate(once) if one in turns.sets[:i]}
        matches = ((name, re.search(r"\.(\d+)\.shared_transformer\.", name)) for name in names)
        return {name: _copy for name, match in matches if match and int(match[1]) in again}

    def find(self, model: PreTrainedModel) -> Structure:
        return replace(super().find(model), norm_placement="pre")


def _with_adapter_at(name: str, places: Mapping[int, int]) -> str:
    """The name with its adapter's new number; empty for the adapter of a block that goes, or has another set now."""
    match = re.fullmatch(r"(.+_adapter_list)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    number = int(match[2])
    return f"{match[1]}.{places[number]}.{match[3]}" if number in places else ""


def _copy(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensor.clone()


reload = functools.partial(transformers_loader.reload, kind=UnboundedTimeSteps)
