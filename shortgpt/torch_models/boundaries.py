"""Hooks that see the stream at every boundary while a model of torch modules runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from shortgpt.torch_models.replay import PassEnded

if TYPE_CHECKING:
    from shortgpt.torch_models.interface import TorchModel


@contextmanager
def watching(model: TorchModel, see: Callable[[int, Tensor], None], *, ends: bool) -> Iterator[None]:
    """Inside it `see` gets each boundary 0..L of every pass, in order, as the model carries the stream there.

    Args:
        ends: whether a pass ends behind the last block, by raising `PassEnded`.
    """
    last = len(model.blocks) - 1

    def before(index: int) -> Any:
        return lambda module, args, kwargs: see(index, model.stream(index, args, kwargs))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        see(last + 1, model.stream_out(last, output))
        if ends:
            raise PassEnded

    with ExitStack() as hooks:
        for index, block in enumerate(model.blocks):
            hooks.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        hooks.callback(model.blocks[last].register_forward_hook(after).remove)
        yield
