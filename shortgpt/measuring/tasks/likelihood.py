"""Log-likelihoods of continuations, in batches padded on the right.

::

    context  x x x x x │ continuation c c c        the model reads      x x x x x c c
                                                   and is judged by               c c c

The model reads at most as many tokens as its window takes; what is too much is cut from the context's left end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
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
"""Of a batch: which text each of its rows is."""


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

    Batches hold texts of like length, the longest first, so that lack of memory shows at once. What several requests
    read alike, but for the last token that they ask about (as the letters of a multiple choice), is read once.

    Args:
        window: tokens that the model reads at most.
        batch_size: texts in a batch; half as many where they do not fit into memory.
        progress: called with the requests done, and of how many.

    Raises:
        CalibrationError: a continuation is longer than the window, or there is nothing before or in it.
        HiddenStateError: the model gives NaN.
    """
    import torch

    shown = [shortened(request, window) for request in requests]
    readers: dict[tuple[int, ...], list[int]] = {}
    for at, request in enumerate(shown):
        readers.setdefault((*request.context, *request.continuation)[:-1], []).append(at)
    texts = sorted(readers, key=lambda ids: (-len(ids), readers[ids][0]))
    found: dict[int, tuple[Likelihood, ...]] = {}
    batch_parts = BatchParts()

    def work(part: TokenBatch) -> None:
        rows = [readers[texts[row]] for row in part[ROWS].tolist()]
        batch = {name: value for name, value in part.items() if name != ROWS}
        columns = [_likelihoods(logits, [[shown[at] for at in row] for row in rows]) for logits in run(batch)]
        found.update(zip(chain.from_iterable(rows), zip(*columns, strict=True), strict=True))

    for first in range(0, len(texts), batch_size):
        rows = range(first, min(first + batch_size, len(texts)))
        batch_parts.each({**padded([texts[row] for row in rows]), ROWS: torch.tensor(rows)}, work)
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


def _likelihoods(logits: Tensor, requests: Sequence[Sequence[Request]]) -> list[Likelihood]:
    """Of the requests that read each row of a batch, row after row.

    Args:
        logits: [batch, tokens, vocabulary].
        requests: [batch][requests of that row].
    """
    import torch

    found = []
    pairs = ((row, request) for row, several in enumerate(requests) for request in several)
    for row, (context, continuation) in pairs:
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
