"""What sublayers, replay, streaming and the proof in memory use of a block sequence of torch modules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from shortgpt.models.sequence import BlockSequence, TokenBatch


class TorchModel(BlockSequence):
    """A block sequence whose blocks are torch modules. `TorchBlockSequence` implements it.

    Attributes:
        family: the torch-free side of the adapter.
        model: the whole model.
        blocks: the blocks, in order.
        skipped: the blocks that are skipped at present.
    """

    family: Any
    model: Any
    blocks: list[nn.Module]
    skipped: frozenset[int]

    @abstractmethod
    def forward(self, batch: TokenBatch) -> Tensor:
        """The model's logits, without a cache: [batch, tokens, vocabulary]."""

    @abstractmethod
    def stream(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The residual stream that a block's call brings in."""

    @abstractmethod
    def stream_out(self, block: int, output: Any) -> Tensor:
        """The residual stream that a block's output holds."""

    @abstractmethod
    def with_stream(self, block: int, output: Any, hidden: Tensor) -> Any:
        """A block's output with `hidden` in the stream's place and everything else as it is."""

    @abstractmethod
    def bypassed(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """The output of a block that is skipped: the stream as it came in, and all else as in `output`."""

    @abstractmethod
    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        """The true stream at a boundary, [batch, tokens, width], where the model carries it in another form."""
