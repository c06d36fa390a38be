"""A `BlockSequence` as tasks use it: text in, log-likelihoods and greedy text out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from shortgpt.basics.block_lists import format_blocks
from shortgpt.errors import CalibrationError, ShortGPTError
from shortgpt.measuring.tasks import likelihood
from shortgpt.measuring.tasks.likelihood import Likelihood, Request

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.models.sequence import BlockSequence, TokenBatch

BATCH_SIZE = 8
PROMPTS = 4
"""So many times as many prompts are generated from together as requests are read: a step is one token of each."""
WINDOW = 2048
"""Tokens, of models that have no bound of their own."""


class Generated(NamedTuple):
    """What came after a prompt.

    Attributes:
        ids: the new tokens, without the one that ends a text.
        text: these decoded, up to the first stop string.
    """

    ids: tuple[int, ...]
    text: str


class LanguageModel:
    """A model, or a model without some of its blocks, with its tokenizer. No answer depends on what was asked before.

    Args:
        removed: blocks that are left out: removed in memory where that can be, else skipped.
        skip: skip them in any case, for a model whose blocks others have put something on.
        batch_size: requests that are run together; of prompts that are generated from, four times as many.

    Attributes:
        model: what is run.
        skipped: the blocks that are skipped while it is run; empty where they were removed.
        window: tokens that it reads at most.
        truncated: how many requests and prompts so far were longer than the window, and lost the left end of their
            context.
        memo: what tasks of one run share about this model, by keys of their own.

    Raises:
        CalibrationError: the model has no tokenizer.
    """

    def __init__(
        self,
        model: BlockSequence,
        removed: Iterable[int] = (),
        *,
        batch_size: int | None = None,
        skip: bool = False,
    ) -> None:
        if model.tokenizer is None:
            raise CalibrationError(
                f"{model.name} has no tokenizer, so tasks cannot be put to it; name one (--tokenizer NAME, tokenizer= "
                "of shortgpt.load), or put its files beside the model"
            )
        gone = tuple(removed)
        self.name = f"{model.name} without {format_blocks(gone)}" if gone else model.name
        self.model, self.skipped = (model, gone) if skip else _shorter(model, gone)
        self.tokenizer = model.tokenizer
        self.batch_size = batch_size or BATCH_SIZE
        self.window = model.max_tokens or WINDOW
        self.truncated = 0
        self.memo: dict[Hashable, Any] = {}

    # -- text and tokens --------------------------------------------------------------------------------------

    @property
    def prefix(self) -> int | None:
        """The token that stands before a text of which nothing comes before: that of its beginning, or of an end."""
        for name in ("bos_token_id", "eos_token_id"):
            found = getattr(self.tokenizer, name, None)
            if isinstance(found, int):
                return found
        return None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            special: with the special tokens that this tokenizer puts before a text by default; those that it puts
                behind it are left out, for text is to follow.
        """
        plain = self._tokenised(text, False)
        if not special:
            return plain
        whole = self._tokenised(text, True)
        behind = next((n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain), None)
        return whole if behind is None or not plain else whole[: behind + len(plain)]

    def encode_pair(self, context: str, continuation: str) -> Request:
        """Token ids of a context, and of what follows it. White space between the two belongs to the latter.

        Both are tokenised as one text; where no token begins with the continuation, each by itself, so that what is
        judged is the continuation in any case.
        """
        end = len(context.rstrip())
        context, continuation = context[:end], context[end:] + continuation
        before, whole = self.encode(context), self.encode(context + continuation)
        if not before and self.prefix is not None:
            before, whole = [self.prefix], [self.prefix, *whole]
        if whole[: len(before)] == before:
            return Request(tuple(before), tuple(whole[len(before) :]))
        return Request(tuple(before), tuple(self.encode(continuation, special=False)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens.

        Raises:
            CalibrationError: the tokenizer cannot decode.
        """
        decode = getattr(self.tokenizer, "decode", None)
        if decode is None:
            raise CalibrationError(f"{self.name}: its tokenizer cannot decode, so what it generates cannot be judged")
        return str(decode(list(ids)))

    def _tokenised(self, text: str, special: bool) -> list[int]:
        call = self.tokenizer if callable(self.tokenizer) else self.tokenizer.__call__
        taken = inspect.signature(call).parameters
        options = {"add_special_tokens": special} if "add_special_tokens" in taken else {}
        options |= {"verbose": False} if "verbose" in taken else {}
        return list(call(text, **options)["input_ids"])

    # -- what is asked of the model ---------------------------------------------------------------------------

    def likelihoods(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[Likelihood]:
        """The log-likelihood of each request's continuation after its context, in the order of the requests.

        Raises:
            CalibrationError: a continuation is longer than the window, or there is nothing before or in it.
            HiddenStateError: the model gives NaN.
        """
        if not requests:
            return []
        self.truncated += sum(likelihood.is_cut(request, self.window) for request in requests)
        (found,) = likelihood.read(
            self._run, requests, window=self.window, batch_size=self.batch_size, progress=progress
        )
        return found

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        until: Sequence[str] = (),
        characters: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Generated]:
        """What greedy decoding gives after each prompt, in the order of the prompts: until the token that ends a text,
        a stop string, so many characters, or as many new tokens.

        A prompt that leaves no room for them in the window loses its left end.

        Args:
            prompts: token ids; none is empty.
            until: stop strings; the text ends before the first one.
            characters: a text that has so many is long enough; it may have some more.
        """
        room = max(1, self.window - new_tokens)
        self.truncated += sum(len(prompt) > room for prompt in prompts)
        shown = [list(prompt)[-room:] for prompt in prompts]
        order = sorted(range(len(shown)), key=lambda at: (-len(shown[at]), at))
        found: dict[int, Generated] = {}

        def stop(row: int, made: Sequence[int]) -> bool:
            if made[-1] in self.model.end_tokens:
                return True
            if not until and characters is None:
                return False
            text = self.decode(made)
            return _first(text, until) is not None or (characters is not None and len(text) >= characters)

        size = PROMPTS * self.batch_size
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            with self._left_out():
                made = self.model.greedy([shown[row] for row in rows], min(new_tokens, self.window - 1), stop)
            found.update((row, self._generated(ids, until)) for row, ids in zip(rows, made, strict=True))
            if progress is not None:
                progress(len(found), len(shown))
        return [found[at] for at in range(len(shown))]

    def some_logits(self) -> list[float]:
        """Some of the logits behind a few fixed tokens, which tell this model from others."""
        from shortgpt.models.probing.probes import probe

        ids = probe(self.model.vocab_size, self.model.max_tokens)[:1, :8]
        (logits,) = self._run({"input_ids": ids.to(self.model.device)})
        last = logits[0, -1].float()
        found: list[float] = last[:: max(1, len(last) // 64)].tolist()
        return found

    def _generated(self, made: Sequence[int], until: Sequence[str]) -> Generated:
        ids = tuple(made[:-1] if made and made[-1] in self.model.end_tokens else made)
        text = self.decode(ids)
        return Generated(ids, text[: _first(text, until)])

    def _run(self, batch: TokenBatch) -> list[Tensor]:
        with self._left_out():
            return [self.model.logits(batch)]

    def _left_out(self) -> ExitStack:
        stack = ExitStack()
        if self.skipped:
            stack.enter_context(self.model.skipping(self.skipped))
        return stack


def _shorter(model: BlockSequence, gone: tuple[int, ...]) -> tuple[BlockSequence, tuple[int, ...]]:
    """A model without blocks; the model itself and the blocks where they can only be skipped, as pinned ones can."""
    if not gone:
        return model, ()
    try:
        return model.without(gone), ()
    except ShortGPTError:
        return model, gone


def _first(text: str, until: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins; None where there is none."""
    places = [place for word in until if (place := text.find(word)) >= 0]
    return min(places, default=None)
