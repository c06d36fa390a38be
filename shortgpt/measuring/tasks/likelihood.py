"""Log-likelihoods of continuations, in batches padded on the right.

::

    context  x x x x x │ continuation c c c        the model reads      x x x x x c c
                                                   and is judged by               c c c

The model reads at most as many tokens as its window takes; what is too much is cut from the context's left end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shortgpt.errors import CalibrationError, HiddenStateError
from shortgpt.measuring.batch_parts import BatchParts
from shortgpt.models.generation import padded

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import TokenBatch

Run = Callable[["TokenBatch"], Iterable["Tensor"]]
"""(a batch) → its logits [batch, tokens, vocabulary], once for each model that is asked."""
ROWS = "rows"
"""Of a batch: which request each of its rows is."""


class Request(NamedTuple):
    """What is asked of a model.

    Attributes:
        context: token ids before the continuation; at least one.
        continuation: token ids whose log-likelihood is wanted; at least one.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        tokens: log p of each token of the continuation, in nats.
        predictions: the likeliest token in the place of each.
        greedy: whether the continuation is what greedy decoding would give.
    """

    tokens: tuple[float, ...]
    predictions: tuple[int, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """log p of the continuation, in nats."""
        return math.fsum(self.tokens)


def read(
    run: Run,
    requests: Sequence[Request],
    *,
    window: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Likelihood]]:
    """The log-likelihoods of the requests, [models][requests], for each model that `run` runs.

    Batches hold requests of like length, the longest first, so that lack of memory shows at once.

    Args:
        window: tokens that the model reads at most.
        batch_size: requests in a batch; half as many where they do not fit into memory.
        progress: called with the requests done, and of how many.

    Raises:
        CalibrationError: a continuation is longer than the window, or there is nothing before or in it.
        HiddenStateError: the model gives NaN.
    """
    shown = [shortened(request, window) for request in requests]
    order = sorted(range(len(shown)), key=lambda at: (-len(shown[at].context) - len(shown[at].continuation), at))
    found: dict[int, tuple[Likelihood, ...]] = {}
    batch_parts = BatchParts()

    def work(part: TokenBatch) -> None:
        rows = part[ROWS].tolist()
        batch = {name: value for name, value in part.items() if name != ROWS}
        columns = [_likelihoods(logits, [shown[row] for row in rows]) for logits in run(batch)]
        found.update(zip(rows, zip(*columns, strict=True), strict=True))

    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch_parts.each(_batch([shown[row] for row in rows], rows), work)
        if progress is not None:
            progress(len(found), len(shown))
    return [list(column) for column in zip(*(found[at] for at in range(len(shown))), strict=True)]


def shortened(request: Request, window: int) -> Request:
    """The request with as much of its context's end as the window has room for: of context and continuation the model
    reads all but the last token.

    Raises:
        CalibrationError: there is no room for the continuation and a token before it, or one of the two is empty.
    """
    context, continuation = request
    if not context or not continuation:
        raise CalibrationError("a log-likelihood takes a token or more of context, and of continuation")
    room = window + 1 - len(continuation)
    if room < 1:
        raise CalibrationError(f"a continuation of {len(continuation)} tokens is longer than the window of {window}")
    return Request(context[-room:], continuation)


def is_cut(request: Request, window: int) -> bool:
    """Whether a request's context does not fit into the window."""
    return len(request.context) + len(request.continuation) > window + 1


def _batch(requests: Sequence[Request], rows: Sequence[int]) -> TokenBatch:
    import torch

    return {**padded([(*r.context, *r.continuation)[:-1] for r in requests]), ROWS: torch.tensor(rows)}


def _likelihoods(logits: Tensor, requests: Sequence[Request]) -> list[Likelihood]:
    """Of each row of a batch.

    Args:
        logits: [batch, tokens, vocabulary].
    """
    import torch

    found = []
    for row, (context, continuation) in enumerate(requests):
        first = len(context) - 1
        here = logits[row, first : first + len(continuation)].float()
        came = torch.tensor(continuation, device=here.device)
        logs = torch.nn.functional.log_softmax(here, dim=-1)
        predicted = here.argmax(-1)
        tokens = logs.gather(-1, came[:, None])[:, 0].double().tolist()
        if any(map(math.isnan, tokens)):
            raise HiddenStateError(
                "the model's logits are NaN; load it in a wider dtype (--dtype bfloat16 or float32), or check its "
                "weights"
            )
        found.append(Likelihood(tuple(tokens), tuple(predicted.tolist()), bool((predicted == came).all())))
    return found
