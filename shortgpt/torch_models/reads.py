"""Which weights of a model's blocks a pass reads.

Code that computes with a parameter first asks its module for it (`self.weight`), whatever reads it then: a function of
torch, another module, a kernel of its own. So asking is what is noted. A parameter that nothing asks for cannot have a
part in the result: a cross-attention without an image, an expert that no token is sent to.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from shortgpt.basics.block_lists import format_blocks


class Reads:
    """What was read of some blocks."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.watched = {id(module) for block in blocks for module in block.modules() if module._parameters}
        self.seen: set[tuple[int, str]] = set()

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        """A module was asked for one of its attributes. A tensor without values, in the place of one that is still in
        its file, is none that is computed with: what reads files asks for it."""
        if id(module) in self.watched and isinstance(value, nn.Parameter) and not value.is_meta:
            self.seen.add((id(module), name))

    def idle(self, gone: Collection[int]) -> tuple[str, ...]:
        """The parts of blocks of which nothing was read, those of the blocks `gone` left out.

        As text, blocks that are alike in one: "blocks 1, 4", "blocks 0-5: encoder_attn, encoder_attn_layer_norm". Of
        parts that are numbered, such as experts, it is told how many.
        """
        parts: dict[str, list[int]] = defaultdict(list)
        for number, block in enumerate(self.blocks):
            if number not in gone:
                for name in self._idle_parts(block):
                    parts[re.sub(r"\.\d+(\.|$)", r".*\1", name)].append(number)
        alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, numbers in parts.items():
            times = f" ({len(numbers)})" if "*" in name else ""
            alike[tuple(sorted({*numbers}))].append(f"{name}{times}")
        return tuple(
            f"block{'s' if len(numbers) > 1 else ''} {format_blocks(numbers)}" + (f": {told}" if told else "")
            for numbers, names in alike.items()
            for told in [", ".join(name for name in names if name)]
        )

    def _idle_parts(self, block: nn.Module) -> Iterator[str]:
        """The outermost parts of a block that hold parameters none of which was read; "" for the block itself."""
        idle: set[str] = set()
        for name, module in block.named_modules():
            if any(name == outer or outer == "" or name.startswith(f"{outer}.") for outer in idle):
                continue
            own = [inner for inner in module.modules() if any(p is not None for p in inner._parameters.values())]
            if own and not any(self._is_read(inner) for inner in own):
                idle.add(name)
                yield name
            else:
                for parameter in self._unread(module):
                    yield f"{name}.{parameter}".lstrip(".")

    def _unread(self, module: nn.Module) -> list[str]:
        return [n for n, p in module._parameters.items() if p is not None and (id(module), n) not in self.seen]

    def _is_read(self, module: nn.Module) -> bool:
        return len(self._unread(module)) < sum(p is not None for p in module._parameters.values())


@contextmanager
def noting_reads(blocks: Sequence[nn.Module]) -> Iterator[Reads]:
    """Inside it everything that is read of these blocks is noted."""
    reads, library = Reads(blocks), nn.Module.__getattr__

    def noted(module: nn.Module, name: str) -> Any:
        value = library(module, name)
        reads.note(module, name, value)
        return value

    def runs(module: nn.Module, args: Any) -> None:
        for name, value in module._parameters.items():
            reads.note(module, name, value)

    with ExitStack() as undo:
        for module in {module for block in blocks for module in block.modules() if isinstance(module, nn.RNNBase)}:
            undo.callback(module.register_forward_pre_hook(runs).remove)  # it keeps a list of its parameters
        undo.callback(setattr, nn.Module, "__getattr__", library)
        nn.Module.__getattr__ = noted  # type: ignore[method-assign]
        yield reads
