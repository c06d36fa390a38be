"""Running a model whose blocks do not fit into memory: everything goes through a block before the next one is read.

::

                   block 0        block 1        block 2           weights of i + 1 are read while block i computes
    batch 0  embed ──▶ ┆ ─────────▶ ┆ ─────────▶ ┆ ...
    batch 1  embed ──▶ ┆ ─────────▶ ┆ ─────────▶ ┆ ...             ┆ = a forward pass waits here for the block
    batch 2  embed ──▶ ┆ ─────────▶ ┆ ─────────▶ ┆ ...

Each batch is one forward pass of the model's own code, which makes masks, positions and whatever else its blocks take.
The pass runs in a thread and waits at every block until the block's weights are there; one thread runs at a time. So
nothing of the model need be known but which modules the blocks are, and a block is called with what it is always
called with. What is held is the stream of all batches once, two blocks, and a thread for each batch.

Work that runs the model several times, such as the generation of a text, takes as many rounds through the blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from shortgpt.errors import AdapterError
from shortgpt.models.memory import hand_back_freed_memory, keep_freed_memory
from shortgpt.torch_models.embedded import letting_go, ordinary
from shortgpt.torch_models.waiting_passes import Call, Pass, waiting

if TYPE_CHECKING:
    from shortgpt.models.sequence import Tap, TokenBatch
    from shortgpt.torch_models.interface import TorchModel

T = TypeVar("T")


class BlockWeights(ABC):
    """The weights of a model's blocks in their files, and those of its head, which stands behind the last block: part
    L, after the blocks 0..L-1.

    Attributes:
        name: what messages call the model.
        device: where the model computes.
        blocks: the blocks, which are empty until they are loaded.
        block_names: what the model calls them.
    """

    name: str
    device: torch.device
    blocks: list[nn.Module]
    block_names: tuple[str, ...]

    def reading(self) -> AbstractContextManager[None]:
        """Inside it parts are loaded and dropped."""
        return nullcontext()

    @abstractmethod
    def load(self, part: int) -> None:
        """Read a part's weights into the model. Called from another thread, while blocks compute.

        Raises:
            StreamingError: the part cannot be had alone.
        """

    @abstractmethod
    def drop(self, part: int) -> None:
        """Let them go again, where they are there."""


class _Reader:
    """Reads parts, one at a time, in a thread of its own.

    Args:
        order: the parts that will be needed: the one behind a part that is needed is begun with.
    """

    def __init__(self, weights: BlockWeights, order: Sequence[int]) -> None:
        self.weights = weights
        self.following = dict(pairwise(order))
        self.coming: dict[int, Future[None]] = {}
        self.here: set[int] = set()
        self.pool = ThreadPoolExecutor(1, "shortgpt-weights")

    def need(self, part: int) -> None:
        """Wait until a part is there."""
        if part in self.here:
            return
        (self.coming.pop(part, None) or self.pool.submit(self.weights.load, part)).result()
        self.here.add(part)
        if part in self.following:
            coming = self.following[part]
            self.coming[coming] = self.pool.submit(self.weights.load, coming)

    def leave(self, part: int) -> None:
        """A part is not needed any more in this round."""
        self.weights.drop(part)
        self.here.discard(part)


def run_by_block(weights: BlockWeights, work: Callable[[], T]) -> T:
    """Do what runs the model, once or several times: each time its weights are read once.

    Raises:
        AdapterError: the blocks do not run one after another, each once.
        StreamingError: a part's weights cannot be had alone.
    """
    return _run(weights, [work], range(len(weights.blocks) + 1))[0]


def logits_by_block(model: TorchModel, weights: BlockWeights, batch: TokenBatch) -> Tensor:
    """The model's logits; a block that is skipped is read only where it may do more than hand the stream on."""
    forms: dict[type, Any] = {}

    def without_reading(call: Call) -> Any:
        if call.block in model.skipped and _is_plain((call.args, *call.kwargs.values())):
            return forms.get(type(model.blocks[call.block]))  # whose stream `bypassed` replaces
        return None

    def step(number: int, call: Call, compute: Callable[[], Any]) -> Any:
        output = compute()
        if model.skipped and _is_stream_alone(output, model.stream_out(call.block, output)):
            forms[type(model.blocks[call.block])] = output
        return output

    read = [part for part in range(len(model) + 1) if part not in model.skipped]
    return _run(weights, [partial(model.forward, batch)], read, step, without_reading)[0]


def trace_by_block(
    model: TorchModel, weights: BlockWeights, batches: Sequence[TokenBatch], taps: Sequence[Tap]
) -> None:
    """Trace every batch up to the last block, block by block; each with its own tap.

    Args:
        batches: on the device that `weights` names; each is one forward pass, and as much as a block takes at a time.

    Raises:
        AdapterError: the blocks do not run one after another, each once.
        StreamingError: a block's weights cannot be had alone.
    """

    def see(number: int, boundary: int, hidden: Tensor) -> None:
        taps[number](boundary, model.observed(boundary, hidden))

    def incoming(number: int, call: Call) -> None:
        see(number, call.block, model.stream(call.block, call.args, call.kwargs))

    def reached(pass_: Pass, number: int, call: Call) -> None:
        # Here and not when the block runs: till then the boundary before it would be held as well. But the first
        # block's stream may be made with its weights (RWKV's first norm).
        if call.block > 0:
            incoming(number, call)
            for embedded in pass_.embedded:
                embedded.let_go()

    def step(number: int, call: Call, compute: Callable[[], Any]) -> Any:
        if call.block == 0:
            incoming(number, call)
        output = compute()
        if call.block == len(model) - 1:
            see(number, len(model), model.stream_out(call.block, output))
        return output

    works = [partial(model.forward, batch) for batch in batches]
    with letting_go(model.model):
        _run(weights, works, range(len(model)), step, reached=reached)


def _run(
    weights: BlockWeights,
    works: Sequence[Callable[[], T]],
    order: Sequence[int],
    step: Callable[[int, Call, Callable[[], Any]], Any] = lambda number, call, compute: compute(),
    without_reading: Callable[[Call], Any] = lambda call: None,
    reached: Callable[[Pass, int, Call], None] = lambda pass_, number, call: None,
) -> list[T]:
    """Take works through the blocks.

    Args:
        order: the parts that will be read. Where the head is not among them, a work ends behind the last block.
        step: (a work's number, the call of a block that is there, what computes it) → the block's output.
        without_reading: the output of a block that need not be read; None where it is to be.
        reached: called with a pass, its work's number and the call of a block that it has come to.
    """
    keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_on_the_stream_of_all_threads(weights.device))
        stack.enter_context(weights.reading())
        for part in range(len(weights.blocks) + 1):
            stack.callback(weights.drop, part)  # when the reader has ended, whatever it was at
        reader = _Reader(weights, order)
        stack.enter_context(reader.pool)
        forwards = stack.enter_context(waiting(weights.blocks))
        walk = _Walk(weights, reader, forwards, step, without_reading, reached)
        return walk.through(works, to_the_end=len(weights.blocks) in order)


class _Walk:
    """Passes that go through the blocks together: each is at a block's call, until that block is there.

    Args:
        forwards: what computes each block.
        step, without_reading, reached: see `_run`.
    """

    def __init__(
        self,
        weights: BlockWeights,
        reader: _Reader,
        forwards: Sequence[Callable[..., Any]],
        step: Callable[[int, Call, Callable[[], Any]], Any],
        without_reading: Callable[[Call], Any],
        reached: Callable[[Pass, int, Call], None],
    ) -> None:
        self.weights, self.reader, self.forwards = weights, reader, forwards
        self.step, self.without_reading, self.reached = step, without_reading, reached
        self.passes: list[Pass] = []

    def through(self, works: Sequence[Callable[[], T]], *, to_the_end: bool) -> list[T]:
        """The works' results; of such as run the blocks several times, all rounds."""
        # Of many passes: what a block frees lies between the streams that it leaves, where the next one's may not fit.
        many = len(works) > 1 and self.weights.device.type == "cpu"
        head = len(self.weights.blocks)
        try:
            self.passes += [Pass(work) for work in works]
            going = list(range(len(works)))
            begun = False
            while going:
                for block in range(head):
                    for number in going:
                        if not begun and block == 0:
                            self._go_on(number, 0)
                        output = self._output_of(block, number)
                        if block < head - 1:
                            self._go_on(number, block + 1, output)
                        elif to_the_end:
                            self.reader.need(head)
                            self.passes[number].resume(output)
                        del output
                        if many:
                            hand_back_freed_memory()
                    self.reader.leave(block)
                self.reader.leave(head)
                begun = True
                going = [number for number in going if self.passes[number].waits]
        finally:
            for pass_ in self.passes:
                pass_.stop()
        return [pass_.result for pass_ in self.passes]

    def _go_on(self, number: int, block: int, output: Any = None) -> None:
        """Run a pass up to its call of a block."""
        pass_ = self.passes[number]
        pass_.resume(output)
        call = pass_.at
        if call is not None and call.block == block:
            pass_.at = call = call._replace(args=ordinary(call.args), kwargs=ordinary(call.kwargs))
            self.reached(pass_, number, call)

    def _output_of(self, block: int, number: int) -> Any:
        """What a block makes of the call that a pass is at.

        Raises:
            AdapterError: it is at another block's, or at none.
        """
        call = self.passes[number].take()
        if call is None or call.block != block:
            names = self.weights.block_names
            there = "none" if call is None else names[call.block]
            raise AdapterError(
                f"{self.weights.name}: {names[block]} should run next, but {there} does; the blocks do not run one "
                "after another, each once"
            )
        output = self.without_reading(call)
        if output is not None:
            return output
        self.reader.need(block)
        return self.step(number, call, partial(call.context.run, self.forwards[block], *call.args, **call.kwargs))


@contextmanager
def _on_the_stream_of_all_threads(device: torch.device) -> Iterator[None]:
    """Inside it this thread computes on the CUDA stream on which others do: each has a stream of its own to begin with
    where a program chose one, and weights that go would be overwritten while it still reads them."""
    if device.type != "cuda" or torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        yield
        return
    chosen, common = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    common.wait_stream(chosen)
    with torch.cuda.stream(common):
        yield
    chosen.wait_stream(common)


def _is_plain(value: Any) -> bool:
    """Whether a block that is given it can do nothing with it but read it."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, str))


def _is_stream_alone(output: Any, stream: Tensor) -> bool:
    """Whether a block's output holds the stream and nothing else."""
    return output is stream or (
        isinstance(output, (tuple, list)) and all(item is stream or item is None for item in output)
    )
