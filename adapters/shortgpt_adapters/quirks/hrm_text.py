"""HRM: two stacks that run in loops.

::

    z_L ─(+)─▶ L stack: block 0 ─ block 1 ─ ... ─ norm ─▶ z_L      L_cycles times,
          ▲                                                        then
    z_H ──┴──▶ H stack: block 0 ─ block 1 ─ ... ─ norm ─▶ z_H      once: one of H_cycles

    pass       1          2          3          4       ...        H_cycles · (L_cycles + 1) passes
    block i    L i        L i        L i        H i     ...

The config knows one number of blocks for both stacks, `num_layers_per_stack`. So block i is the i-th block of both, and
is removed from both; `num_hidden_layers` counts block runs in all passes, a slot of the cache for each.

A token's stream at boundary i is what stands before block i in every pass, one pass behind the other along the width:
[batch, tokens, passes · width]. What block i returns in a pass is what block i + 1 is given in it, and boundary L is
before the norm that ends a pass. Block Influence is the cosine of these long vectors: of all that the block does to a
token, one number, in which a pass with a larger stream weighs more. The boundaries of a batch are complete only
after the last pass, so they are all held until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Config
from shortgpt.models.configs.rules import COUNT, UNCHANGED, Blocks, Rule
from shortgpt.models.renaming import rename_blocks
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt.torch_models.sequence import TorchFamily
from shortgpt_adapters.transformers.loader import arguments
from shortgpt_adapters.transformers.structural import Structural, StructuralBlocks, list_in_files
from shortgpt_adapters.transformers.structure import Structure
from shortgpt_adapters.transformers.verbosity import quiet

STACKS = ("L_module.layers", "H_module.layers")


class HrmTextBlocks(StructuralBlocks):
    def __init__(self, family: TorchFamily, model: nn.Module, **details: Any) -> None:
        super().__init__(family, model, **details)
        prefix = self.structure.path.removesuffix(STACKS[0])
        self.loop = model.get_submodule(prefix.removesuffix("."))
        self.stacks = [list(self.loop.get_submodule(name).children()) for name in STACKS]
        self.block_names = tuple(f"{prefix}[LH]_module.layers.{i}" for i in range(len(self.blocks)))

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        seen: list[list[Tensor]] = [[] for _ in range(len(self) + 1)]

        def before(block: int) -> Any:
            return lambda module, args: seen[block].append(args[0])

        given = arguments(self.loop, self._placed(batch))
        with torch.no_grad(), quiet(), ExitStack() as hooks:
            for stack in self.stacks:
                for i, block in enumerate(stack):
                    hooks.callback(block.register_forward_pre_hook(before(i)).remove)
                last = stack[-1].register_forward_hook(lambda module, args, output: seen[-1].append(output))
                hooks.callback(last.remove)
            self.loop(**given)
        for boundary in range(len(self) + 1):
            tap(boundary, torch.cat(seen.pop(0), -1))

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        with ExitStack() as hooks:
            for i in block_numbers(blocks, len(self)):
                for stack in self.stacks:
                    hooks.callback(stack[i].register_forward_hook(lambda module, args, output: args[0]).remove)
            yield

    def parameter_counts(self) -> tuple[int, ...]:
        return tuple(
            sum(p.numel() for block in pair for p in block.parameters()) for pair in zip(*self.stacks, strict=True)
        )


def _runs(value: Any, blocks: Blocks) -> Any:
    passes = blocks.config["H_cycles"] * (blocks.config["L_cycles"] + 1)
    if value != blocks.depth * passes:
        raise ValueError(f"{passes} passes of {blocks.depth} blocks are {blocks.depth * passes}")
    return len(blocks.keep) * passes


class HrmText(Structural):
    architecture = "hrm_text"
    sequence = HrmTextBlocks
    rules: ClassVar[Mapping[str, Rule]] = {
        "num_layers_per_stack": COUNT,
        "num_hidden_layers": Rule("count the runs", _runs),
        "L_bp_cycles": UNCHANGED,
    }

    def describe_blocks(self, config: Config) -> tuple[tuple[str, ...], str]:
        classes, stream = super().describe_blocks(config)
        return classes, f"{stream}; in every pass of both stacks, {' and '.join(STACKS)}"

    def block_parameters(self, config: Config) -> None:
        """A block is in several lists."""

    def find(self, model: PreTrainedModel) -> Structure:
        path = next(name for name, _ in model.named_modules() if name.endswith(STACKS[0]))
        blocks = model.get_submodule(path).children()
        return Structure(path, tuple(type(block).__name__ for block in blocks), norm_placement="pre")

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        renamed = {name: name for name in names}
        prefix = list_in_files(renamed, self.structure.path, depth).removesuffix(STACKS[0])
        for name in STACKS:
            step = rename_blocks(renamed, (prefix + name,), depth, keep)
            renamed = {new: renamed[old] for new, old in step.items()}
        return renamed
