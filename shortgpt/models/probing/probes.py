"""What both models are run on to be compared.

::

    short    2 × 32 tokens                                          every logit is compared
    side     inputs that the tokens alone leave blocks idle without: an image's states, an encoder's
    long     1 × as many tokens as the config's windows ask for     the logits of some tokens are compared
    near     the short one, with a window that no probe reaches     every logit is compared
             set so small in the config of both models
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shortgpt.basics.inputs import NearDistance
from shortgpt.models.probing.reach import MARGIN, Reach

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import BlockSequence

PROBE = (2, 32)
NEW_TOKENS = 8
NEW_TOKENS_BEHIND_LONG = 3
"""The first is the prompt's own; the others are read from the cache that it filled."""

SPREAD = 64
"""Tokens of the long probe whose logits are compared, beside the last ones."""


@dataclass(frozen=True)
class Probe:
    """What both models are run on.

    Attributes:
        input_ids: the short probe, [2, tokens].
        long_ids: the long probe, [1, tokens]; None where there is none.
        side: shapes of what is given beside the short probe's tokens, by name; see `drawn`.
        near: distances that are set small, one after the other, for one more look at the short probe.
        continued: how many tokens are generated behind the long probe.
    """

    input_ids: Tensor
    long_ids: Tensor | None = None
    side: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    near: tuple[NearDistance, ...] = ()
    continued: int = 0

    def ids(self) -> dict[str, Tensor]:
        """The token ids by name."""
        return {"input_ids": self.input_ids} | ({} if self.long_ids is None else {"long_ids": self.long_ids})


def probe(vocab_size: int, longest: int | None = None) -> Tensor:
    """The short probe: the same random token ids every time, [2, 32]; shorter where the model's window is, so that
    the new tokens fit behind it."""
    rows, tokens = PROBE
    if longest is not None:
        tokens = max(1, min(tokens, longest - NEW_TOKENS))
    return _random_ids(vocab_size, rows, tokens)


def probe_of(model: BlockSequence) -> tuple[Probe, tuple[str, ...]]:
    """The short probe and the long one that a model asks for; and which of its distances neither reaches."""
    short = probe(model.vocab_size, model.max_tokens)
    reach = Reach.of(model, short.shape[1])
    if not reach.tokens:
        return Probe(short), reach.beyond
    room = NEW_TOKENS_BEHIND_LONG if reach.continued and not model.streamed else 0
    if model.max_tokens is not None:
        room = max(0, min(room, model.max_tokens - reach.tokens))
    return Probe(short, _random_ids(model.vocab_size, 1, reach.tokens), continued=room), reach.beyond


def _random_ids(vocab_size: int, rows: int, tokens: int) -> Tensor:
    import torch

    return torch.randint(0, vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Inputs of these shapes in float32 from a standard normal distribution, the same every time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tuple(shape), generator=generator) for name, shape in sorted(shapes.items())}


def some_of(logits: Tensor, tokens: int) -> Tensor:
    """What is compared of a long probe's logits, in float32 on the CPU: those of some tokens spread over the text, and
    of the last ones. [1, some, vocabulary]: of 1,024 tokens with a large vocabulary all would take 600 MB.

    Logits of another shape than [1, tokens, vocabulary] are compared whole.
    """
    import torch

    if logits.dim() == 3 and logits.shape[1] == tokens:
        spread = torch.linspace(0, tokens - 1, SPREAD).long()
        places = torch.cat((spread, torch.arange(max(0, tokens - MARGIN), tokens))).unique()
        logits = logits[:, places.to(logits.device)]
    return logits.float().cpu()
