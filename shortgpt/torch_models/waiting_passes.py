"""Work that runs a model and waits at each of its blocks.

::

    Pass(work), resume() ─▶ the work runs up to a block, which is called ─▶ take() gives the call
         resume(output) ─▶ it goes on with the block's output, up to the next one ─▶ take() gives its call
         resume(output) ─▶ it ends: `result`

The work is code of the model's own, in a thread; it runs only inside `resume`, so one thread runs at a time.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import nn


class _Stop(BaseException):
    """Unwinds a pass that is not needed any more. Never leaves its thread."""


class Call(NamedTuple):
    """A block's call, as the model's forward makes it."""

    block: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: contextvars.Context


class Pass:
    """Work that runs a model, in a thread of its own that waits at each block.

    Attributes:
        result: what the work returned; None before its end.
        embedded: what embeddings gave in it, see `shortgpt.torch_models.embedded`.
    """

    current = threading.local()
    result: Any = None

    def __init__(self, work: Callable[[], object]) -> None:
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.calls: SimpleQueue[Call | BaseException | None] = SimpleQueue()
        self.at: Call | None = None
        self.embedded: list[Any] = []
        self.autocast = [  # which torch keeps for each thread
            torch.autocast(kind, torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        ]
        self.thread = threading.Thread(target=self._run, args=(work,), name="shortgpt-pass", daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        Pass.current.it = self
        end: BaseException | None = None
        try:
            self._answer()  # to begin
            with torch.no_grad(), ExitStack() as stack:
                for context in self.autocast:
                    stack.enter_context(context)
                self.result = work()
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

    def call(self, call: Call) -> Any:
        """Wait for a block's output; in the pass's own thread."""
        self.calls.put(call)
        del call  # the stream that it holds is the next block's to replace
        return self._answer()

    def resume(self, output: object = None) -> None:
        """Hand over a block's output and run to the next call of a block, or to the end.

        Raises:
            Exception: what the work raised.
        """
        self.answers.put(output)
        call = self.calls.get()
        if isinstance(call, BaseException):
            raise call
        self.at = call

    @property
    def waits(self) -> bool:
        """Whether it waits at a block."""
        return self.at is not None

    def take(self) -> Call | None:
        """The call at which it waits, which is not held here any longer; None at the end of the work."""
        call, self.at = self.at, None
        return call

    def stop(self) -> None:
        """End the pass where it is."""
        self.answers.put(_Stop)
        self.thread.join()


@contextmanager
def waiting(blocks: Sequence[nn.Module]) -> Iterator[list[Callable[..., Any]]]:
    """Inside it a block's forward waits for its pass to be resumed; given are the blocks' real forwards."""

    def standing_in(index: int) -> Callable[..., Any]:
        def wait(*args: Any, **kwargs: Any) -> Any:
            pass_: Pass = Pass.current.it
            return pass_.call(Call(index, args, kwargs, contextvars.copy_context()))

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
