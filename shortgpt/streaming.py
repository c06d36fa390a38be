"""Scoring a model whose blocks do not fit into memory: all batches go through a block before the next one is read.

::

                   block 0        block 1        block 2           weights of i + 1 are read while block i computes
    batch 0  embed ──▶ ┆ ─────────▶ ┆ ─────────▶ ┆ ...
    batch 1  embed ──▶ ┆ ─────────▶ ┆ ─────────▶ ┆ ...             ┆ = a forward pass waits here for the block
    batch 2  embed ──▶ ┆ ─────────▶ ┆ ─────────▶ ┆ ...

Each batch is one forward pass of the model's own code, which makes masks, positions and whatever else its blocks take.
The pass runs in a thread and waits at every block until the block's weights are there; one thread runs at a time. So
nothing of the model need be known but which modules the blocks are, and a block is called with what it is always
called with. What is held is the stream of all batches once, two blocks, and a thread for each batch.
"""

from __future__ import annotations

import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from shortgpt.errors import AdapterError

if TYPE_CHECKING:
    from shortgpt.blocks import Tap, TokenBatch
    from shortgpt.modules import TorchBlockSequence


class BlockWeights(ABC):
    """The weights of a model's blocks, in their files.

    Attributes:
        device: where the model computes.
    """

    device: torch.device

    def reading(self) -> AbstractContextManager[None]:
        """Inside it blocks are loaded and dropped."""
        return nullcontext()

    @abstractmethod
    def load(self, block: int) -> None:
        """Read a block's weights into the model. Called from another thread, while other blocks compute.

        Raises:
            ModelError: the block cannot be had alone.
        """

    @abstractmethod
    def drop(self, block: int) -> None:
        """Let them go again, where they are there."""


class _Stop(BaseException):
    """Unwinds a pass that is not needed any more. Never leaves its thread."""


class _Call(NamedTuple):
    """A block's call, as the model's forward makes it."""

    block: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: contextvars.Context


class _Pass:
    """A forward pass that waits at each block. It runs only inside `resume`."""

    current = threading.local()

    def __init__(self, forward: Callable[[], object]) -> None:
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.calls: SimpleQueue[_Call | BaseException | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, args=(forward,), name="shortgpt-pass", daemon=True)
        self.thread.start()

    def _run(self, forward: Callable[[], object]) -> None:
        _Pass.current.it = self
        end: BaseException | None = None
        try:
            self._answer()  # to begin
            with torch.no_grad():
                forward()
        except _Stop:
            pass
        except BaseException as error:
            end = error
        self.calls.put(end)

    def _answer(self) -> Any:
        answer = self.answers.get()
        if answer is _Stop:
            raise _Stop
        return answer

    def call(self, call: _Call) -> Any:
        """Wait for a block's output; in the pass's own thread."""
        self.calls.put(call)
        del call  # the stream that it holds is the next block's to replace
        return self._answer()

    def resume(self, output: object = None) -> _Call | None:
        """Hand over a block's output and run to the next call of a block; None at the end of the pass.

        Raises:
            Exception: what the pass raised.
        """
        self.answers.put(output)
        call = self.calls.get()
        if isinstance(call, BaseException):
            raise call
        return call

    def stop(self) -> None:
        """End the pass where it is."""
        self.answers.put(_Stop)
        self.thread.join()


def trace_by_block(
    model: TorchBlockSequence, weights: BlockWeights, batches: Sequence[TokenBatch], taps: Sequence[Tap]
) -> None:
    """Trace every batch up to the last block, block by block; each with its own tap.

    Args:
        batches: on the device that `weights` names; each is one forward pass, and as much as a block takes at a time.

    Raises:
        AdapterError: the blocks do not run one after another, each once.
        ModelError: a block's weights cannot be had alone.
    """
    last = len(model) - 1

    def see(number: int, boundary: int, hidden: torch.Tensor) -> None:
        taps[number](boundary, model.observed(boundary, hidden))

    passes: list[_Pass] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(weights.reading())
        for block in range(last + 1):
            stack.callback(weights.drop, block)  # when the reader has ended, whatever it was at
        reader = stack.enter_context(ThreadPoolExecutor(1, "shortgpt-weights"))
        forwards = stack.enter_context(_waiting(model.blocks))
        try:
            calls: list[_Call | None] = []
            for batch in batches:
                passes.append(_Pass(partial(model.forward, batch)))
                calls.append(passes[-1].resume())
            weights.load(0)
            for block in range(last + 1):
                following = reader.submit(weights.load, block + 1) if block < last else None
                for number, pass_ in enumerate(passes):
                    call, calls[number] = calls[number], None
                    if call is None or call.block != block:
                        found = "none" if call is None else model.block_names[call.block]
                        raise AdapterError(
                            f"{model.name}: {model.block_names[block]} should run next, but {found} does; the blocks "
                            "do not run one after another, each once"
                        )
                    see(number, block, model.stream(block, call.args, call.kwargs))
                    output = call.context.run(forwards[block], *call.args, **call.kwargs)
                    del call
                    if block == last:
                        see(number, block + 1, model.stream_out(block, output))
                    else:
                        calls[number] = pass_.resume(output)
                    del output
                weights.drop(block)
                if following is not None:
                    following.result()
        finally:
            for pass_ in passes:
                pass_.stop()


@contextmanager
def _waiting(blocks: Sequence[nn.Module]) -> Iterator[list[Callable[..., Any]]]:
    """Inside it a block's forward waits for its pass to be resumed; given are the blocks' real forwards."""

    def standing_in(index: int) -> Callable[..., Any]:
        def wait(*args: Any, **kwargs: Any) -> Any:
            pass_: _Pass = _Pass.current.it
            return pass_.call(_Call(index, args, kwargs, contextvars.copy_context()))

        return wait

    real = [block.forward for block in blocks]
    own = ["forward" in vars(block) for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = standing_in(index)
        yield real
    finally:
        for block, forward, kept in zip(blocks, real, own, strict=True):
            if kept:
                block.forward = forward
            else:
                del block.forward
