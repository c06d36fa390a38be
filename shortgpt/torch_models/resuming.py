"""Passes that go on at a boundary where an earlier pass over the same batch was held.

::

    held at 2      embed ─ b0 ─ b1 ─●─ ...                      the stream is kept
    resumed at 2   embed ─ ·  ─ ·  ─●─ b2 ─ b3 ─ norm ─ head    the blocks before hand it on and compute nothing
    without b3     embed ─ ·  ─ ·  ─●─ b2 ─ ╳  ─ norm ─ head    nor does a block that is skipped

As in `replay`, the model's own forward makes masks and positions. A block that hands something on beside the stream
would be missed, so passes are resumed at a boundary only after that gave what a whole pass gives, on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree

from shortgpt.torch_models.replay import equal_logits, giving, probe_batch

if TYPE_CHECKING:
    from shortgpt.torch_models.interface import TorchModel


@contextmanager
def holding(model: TorchModel, boundaries: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Inside it passes keep the stream as it comes into these blocks, under their numbers."""
    held: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs: held.__setitem__(index, model.stream(index, args, kwargs).detach().clone())

    with ExitStack() as hooks:
        for index in boundaries:
            hooks.callback(model.blocks[index].register_forward_pre_hook(keep(index), with_kwargs=True).remove)
        yield held


class Resumable:
    """Where passes of a model can be resumed, as it is found out when that is asked.

    Args:
        never: whether that is known to be nowhere.
    """

    def __init__(self, model: TorchModel, never: bool) -> None:
        self.model, self.never = model, never
        self.known: dict[tuple[int, frozenset[int]], bool] = {}

    @cached_property
    def templates(self) -> list[Any] | None:
        """An output of each block, of a few tokens; None where one holds a tensor beside the stream, which would be
        of those tokens."""
        if self.never:
            return None
        outputs: list[Any] = []
        with ExitStack() as hooks:
            for block in self.model.blocks:
                hooks.callback(block.register_forward_hook(lambda module, args, output: outputs.append(output)).remove)
            self.model.logits(probe_batch(self.model))
        tensors = [sum(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(output)) for output in outputs]
        return outputs if tensors == [1] * len(self.model) else None

    def at(self, boundary: int) -> bool:
        """Whether passes that are resumed at a boundary are whole passes, without the blocks that are skipped at
        present. To be asked where no pass is held."""
        key = boundary, self.model.skipped
        if key not in self.known:
            self.known[key] = self.templates is not None and self._is_whole(boundary)
        return self.known[key]

    @contextmanager
    def resuming(self, boundary: int, stream: Tensor) -> Iterator[None]:
        """Inside it the blocks before a boundary and those that are skipped compute nothing, and the stream there is
        the given one."""
        assert self.templates is not None
        model, templates = self.model, self.templates
        # All of them give it, so that it arrives where the last ones are skipped. Of a skipped block it is not read.
        blocks = {*range(boundary), *model.skipped}
        with giving(model, {block: model.with_stream(block, templates[block], stream) for block in blocks}):
            yield

    def _is_whole(self, boundary: int) -> bool:
        model, batch = self.model, probe_batch(self.model)
        try:
            with holding(model, (boundary,)) as held:
                expected = model.logits(batch).clone()
            # What a block leaves lying somewhere must not be that of the same batch.
            model.logits({"input_ids": batch["input_ids"].flip(-1)})
            with self.resuming(boundary, held[boundary]):
                found = model.logits(batch)
        except Exception:  # code of any kind runs here, in an order that it was not written for
            return False
        return equal_logits(found, expected)
