"""Text to token batches.

::

    name | path | texts ─▶ texts ─▶ segments, in a seeded order ─▶ windows of T tokens ─▶ right-padded batches
    token batches ─────────────────────────────────────────────────────────────────────▶ repacked to the right

A document is a text: a file, a line of JSON Lines, a row of a data set, or a text that was handed in. Windows of one
document are alike, so each sequence's document is kept (`Calibration.documents`) for the errors of what is measured.

Batches made here are never padded on the left: recurrent models do not mask it. A left-padded batch that is handed in
is moved to the right, token for token.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.basics.stages import stage
from shortgpt.errors import CalibrationError, is_panic, reason_of
from shortgpt.measuring.texts import is_data_set, is_local, texts_of, texts_of_data_set
from shortgpt.models.generation import padded

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence, TokenBatch

SEQUENCES = 32
TOKENS = 512
TOKENS_PER_BATCH = 4096
HELD_OUT_PER_BATCH = 1024
CHARACTERS_PER_TOKEN = 16
"""Texts are cut into segments of this many characters for each token wanted; more than tokenizers put into one."""
DOCUMENTS = "document_ids"
"""Of a token batch: the document of each sequence."""


@dataclass(frozen=True)
class Calibration:
    """Token batches, and what they are.

    Attributes:
        documents: the document that each sequence is of, numbered from 0, [sequences], in the order of the batches;
            empty where that is not known.
    """

    batches: tuple[TokenBatch, ...]
    info: CalibrationInfo
    documents: tuple[int, ...] = ()


class Windows(NamedTuple):
    """Sequences of token ids, the document that each is of, and what was taken.

    Attributes:
        text_hash: of the texts that the sequences begin in.
        field: as `CalibrationInfo` has it.
    """

    ids: list[list[int]]
    documents: list[int]
    text_hash: str
    field: str | None


def calibrate(
    source: Any,
    model: BlockSequence,
    *,
    sequences: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    field: str | None = None,
    batch_size: int | None = None,
) -> Calibration:
    """Token batches for a model.

    Args:
        source: the name of an installed source (`stdlib`, `wikitext2`, `hub:NAME`, ...); the path of a text file, a
            folder of them, or a JSON Lines file; an iterable of texts, each a sequence and a document of its own; or an
            iterable of token batches, which are taken as they are. `document_ids` in a batch, a LongTensor [batch],
            says which of its sequences, and of those in other batches, are of one document; a data set of the library
            `datasets`, each record of which is a text. A `Calibration` is given
            back as it is.
        sequences: how many windows to take; default 32. Of iterables: how many items; default all.
        tokens: the length of a window; default 512, less where the model's own window is shorter.
        field: the text's field in JSON Lines, or its column in a data set (`hub:NAME`). Default: `text`, or the only
            one that holds strings.
        batch_size: sequences in a batch; default 4,096 tokens' worth.

    Raises:
        CalibrationError: there is no text, not enough of it, no such field, several that could be meant, or no
            tokenizer.
        UnknownNameError: no source of that name is installed.
    """
    if isinstance(source, Calibration):
        return source
    if is_data_set(source):
        source, field = texts_of_data_set(source, field, sequences or SEQUENCES)
    if not isinstance(source, (str, Path)):
        items = items_of(source)
        if not items:
            raise CalibrationError("the calibration iterable is empty; give texts or token batches")
        if all(isinstance(item, Mapping) for item in items):
            _check_numbers(sequences, tokens, batch_size)
            return _of_batches(items[:sequences], model)
        if not all(isinstance(item, str) for item in items):
            kinds = sorted({type(item).__name__ for item in items})
            raise CalibrationError(
                f"a calibration iterable holds texts (str) or token batches (mappings), found {kinds}"
            )
    length = _length(model, sequences, tokens, batch_size)
    size = batch_size or max(1, TOKENS_PER_BATCH // length)
    if isinstance(source, (str, Path)):
        count = sequences or SEQUENCES
        windows = _sampled(source, model, length, count, seed=seed, field=field)
        return _of_windows(windows, str(source), model, size, seed=seed)
    texts = items[:sequences]
    ids = [_tokenised(model.tokenizer, text, length) for text in texts]
    if not all(ids):
        raise CalibrationError("a calibration text has no tokens; leave empty texts out")
    text_hash = _hash(text.encode() for text in texts)
    return _of_windows(Windows(ids, list(range(len(ids))), text_hash, field), "texts", model, size, seed=None)


def held_out(
    source: Any,
    model: BlockSequence,
    *,
    sequences: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    field: str | None = None,
    batch_size: int | None = None,
) -> Calibration:
    """The windows of a source that come after those which `calibrate` takes with the same arguments: text that nothing
    was scored on. As many, or as many as the source still gives.

    Args:
        source: a named source or a path; a `Calibration` is given back as it is.
        batch_size: sequences in a batch; default 1,024 tokens' worth, for logits take more memory than scoring does.

    Raises:
        CalibrationError: it gives no more, or windows are no share of it, as of an iterable of texts.
    """
    if isinstance(source, Calibration):
        return source
    if not isinstance(source, (str, Path)):
        raise CalibrationError("texts and token batches that were handed in are all scored, so none is held out")
    length, count = _length(model, sequences, tokens, batch_size), sequences or SEQUENCES
    windows = _sampled(source, model, length, count, seed=seed, field=field, after=count)
    size = batch_size or max(1, HELD_OUT_PER_BATCH // length)
    return _of_windows(windows, str(source), model, size, seed=seed)


def calibrate_and_hold_out(
    source: Any, model: BlockSequence, *, sequences: int | None = None, **options: Any
) -> tuple[Calibration, Calibration]:
    """Token batches to score blocks on, and others of the same source to judge by what was chosen.

    Of a named source or a path: the windows that `calibrate` takes, and those that `held_out` takes after them. Of an
    iterable of texts or token batches, or a `Calibration`: its first half, and the other one.

    Args:
        sequences: how many windows, or items, for each of the two.
        options: as `calibrate` takes them.

    Raises:
        CalibrationError: see `calibrate` and `held_out`; or one item cannot serve both.
    """
    if isinstance(source, (str, Path)):
        both = {"sequences": sequences, **options}
        return calibrate(source, model, **both), held_out(source, model, **both)
    _check_numbers(sequences, None, None)
    items = _batches_of(source) if isinstance(source, Calibration) else items_of(source)
    half = min(sequences or len(items), (len(items) + 1) // 2)
    if len(items) == 1:
        raise CalibrationError(
            "found one text or token batch; what is scored on cannot be held out, so give two or more"
        )
    return calibrate(items[:half], model, **options), calibrate(items[half : 2 * half], model, **options)


def items_of(source: Any) -> list[Any]:
    """The texts or token batches that were handed in. A mapping, such as a tokenizer gives, is one token batch.

    Raises:
        CalibrationError: it is nothing of the kind.
    """
    if isinstance(source, Mapping):
        return [source]
    if not isinstance(source, Iterable):
        raise CalibrationError(
            "a calibration is the name of a source, a path, an iterable of texts or of token batches, found "
            f"{type(source).__name__}"
        )
    return list(source)


def _check_numbers(sequences: int | None, tokens: int | None, batch_size: int | None) -> None:
    for name, number in (("sequences", sequences), ("tokens", tokens), ("batch size", batch_size)):
        if number is not None and (not isinstance(number, Integral) or number < 1):
            raise CalibrationError(f"{name} must be at least 1, found {number!r}")


def _length(model: BlockSequence, sequences: int | None, tokens: int | None, batch_size: int | None) -> int:
    """The length of a window, after every check of what was asked for."""
    _check_numbers(sequences, tokens, batch_size)
    if model.tokenizer is None:
        raise CalibrationError(
            f"{model.name} has no tokenizer, so text cannot be tokenised for it; name one "
            "(--tokenizer NAME, tokenizer= of shortgpt.load), put its files beside the model, or give token batches"
        )
    length = min(tokens or TOKENS, model.max_tokens or TOKENS if tokens is None else tokens)
    if model.max_tokens is not None and length > model.max_tokens:
        raise CalibrationError(f"{model.name} takes at most {model.max_tokens} tokens, {length} were asked for")
    if length < 2:
        raise CalibrationError(f"windows of {length} tokens are too short to say anything; take 2 or more")
    return length


def _batches_of(data: Calibration) -> list[Any]:
    """Its batches as `calibrate` takes them, with their `document_ids` where they are known."""
    import torch

    if not data.documents:
        return list(data.batches)
    rows = [len(batch["input_ids"]) for batch in data.batches]
    documents = torch.tensor(data.documents).split(rows)
    return [{**batch, DOCUMENTS: of_batch} for batch, of_batch in zip(data.batches, documents, strict=True)]


@stage("reading the text")
def _sampled(
    source: str | Path, model: BlockSequence, length: int, count: int, *, seed: int, field: str | None, after: int = 0
) -> Windows:
    """`count` windows of a source, in a seeded order; after the first `after`, if any, fewer will do."""
    texts = texts_of(source, field=field, seed=seed)
    segments = _segments(texts, length, seed, shuffle=is_local(source))
    windows = _windows(segments, str(source), model.tokenizer, count, length, after)
    return windows._replace(field=texts.field)


def _of_windows(windows: Windows, label: str, model: BlockSequence, size: int, *, seed: int | None) -> Calibration:
    """Windows as batches of `size` sequences."""
    _check_ids(windows.ids, model, label)
    batches = [padded(windows.ids[at : at + size]) for at in range(0, len(windows.ids), size)]
    documents = _numbered(windows.documents)
    info = CalibrationInfo(
        source=label,
        sequences=len(windows.ids),
        tokens=max(len(ids) for ids in windows.ids),
        seed=seed,
        field=windows.field,
        text_hash=windows.text_hash,
        token_hash=_token_hash(batches),
        documents=len(set(documents)),
    )
    return Calibration(tuple(batches), info, documents)


def _numbered(documents: Iterable[int]) -> tuple[int, ...]:
    """The same, numbered from 0 in the order in which they come."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(document, len(numbers)) for document in documents)


def _segments(texts: Iterable[str], length: int, seed: int, *, shuffle: bool) -> Iterator[tuple[str, int]]:
    """Pieces of the texts, each long enough for a window where its text is, and the number of its text; in a seeded
    order where asked."""
    size = CHARACTERS_PER_TOKEN * length

    def cut() -> Iterator[tuple[str, int]]:
        for document, text in enumerate(texts):
            for at in range(0, len(text), size):
                piece = text[at : at + size]
                if piece.strip():
                    yield piece, document

    if not shuffle:
        return cut()
    pieces = list(cut())
    random.Random(seed).shuffle(pieces)
    return iter(pieces)


def places_taken(texts: Sequence[str], info: CalibrationInfo, *, shuffle: bool) -> list[tuple[int, int, int]]:
    """Where in the texts the windows of a calibration may lie: numbers of texts, and the characters from and to.

    Without a tokenizer it is not known how much a window took, so each is given as much text as it may have needed.

    Args:
        texts: of the same source, in its order.
        shuffle: whether its segments were shuffled by the seed, as those of local texts are.
    """
    size = CHARACTERS_PER_TOKEN * info.tokens
    places = [
        (number, at, min(at + size, len(text)))
        for number, text in enumerate(texts)
        for at in range(0, len(text), size)
        if text[at : at + size].strip()
    ]
    if shuffle:
        random.Random(info.seed).shuffle(places)
    taken: list[tuple[int, int, int]] = []
    windows, characters = 0, 0
    for place in places:
        if windows == info.sequences:
            break
        taken.append(place)
        characters += place[2] - place[1]
        if characters >= size:
            windows, characters = windows + 1, 0
    return taken


def _windows(
    segments: Iterator[tuple[str, int]], label: str, tokenizer: Any, count: int, length: int, after: int = 0
) -> Windows:
    """`count` windows of exactly `length` tokens; segments too short for one are joined by an empty line. A window is
    of the document that most of its tokens are from.

    Args:
        after: leave out as many windows first. Then what is left will do, if it is one.
    """
    windows: list[list[int]] = []
    documents: list[int] = []
    used: list[str] = []
    text = ""
    before, most, longest = 0, 0, 0  # tokens so far; the document of the longest piece, and that piece's tokens
    for segment, document in segments:
        text = f"{text}\n\n{segment}" if text else segment
        ids = _tokenised(tokenizer, text, length)
        if len(ids) - before > longest:
            most, longest = document, len(ids) - before
        before = len(ids)
        if len(ids) == length:
            windows.append(ids)
            documents.append(most)
            used.append(text)
            text, before, longest = "", 0, 0
            if len(windows) == after + count:
                break
    left = len(windows) - after
    if left == count or (after and left > 0):
        text_hash = _hash(part.encode("utf-8", "surrogatepass") for part in used[after:])
        return Windows(windows[after:], documents[after:], text_hash, None)
    if not windows and not text:
        raise CalibrationError(f"{label}: the calibration source is empty")
    behind = f", and the first {after} were scored, so none is held out" if after else f", {count} were asked for"
    raise CalibrationError(
        f"{label}: too short: it gives {len(windows)} windows of {length} tokens{behind}; "
        "ask for fewer (--sequences) or shorter ones (--tokens), or give more text"
    )


def _tokenised(tokenizer: Any, text: str, length: int) -> list[int]:
    """The first `length` token ids of a text, with the special tokens that this tokenizer adds by default."""
    try:
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
    except BaseException as error:  # what a model's folder says of its tokenizer can break it in any way
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise CalibrationError(
            f"the tokenizer gave up on a text ({type(error).__name__}: {reason_of(error)}); its files are damaged: "
            "fetch them again, or name another one (--tokenizer)"
        ) from error
    return list(ids)[:length]


def _check_ids(windows: Sequence[Sequence[int]], model: BlockSequence, label: str) -> None:
    outside = [i for ids in windows for i in (min(ids), max(ids)) if not 0 <= i < model.vocab_size]
    if outside:
        raise CalibrationError(
            f"{label}: token id {outside[0]} is outside the vocabulary of {model.name} ({model.vocab_size}); "
            "this is not the model's own tokenizer"
        )


def _of_batches(batches: Sequence[Mapping[str, Any]], model: BlockSequence) -> Calibration:
    documents = _documents_of(batches)
    own = [{key: value for key, value in batch.items() if key != DOCUMENTS} for batch in batches]
    packed = [repacked(batch, number) for number, batch in enumerate(own)]
    sequences = sum(len(batch["input_ids"]) for batch in packed)
    if len(documents) not in (0, sequences):
        raise CalibrationError(f"token batches: {len(documents)} {DOCUMENTS} for {sequences} sequences; give one each")
    _check_ids([batch["input_ids"].flatten().tolist() for batch in packed], model, "token batches")
    token_hash = _token_hash(packed)
    info = CalibrationInfo(
        source="token batches",
        sequences=sequences,
        tokens=max(batch["input_ids"].shape[1] for batch in packed),
        seed=None,
        field=None,
        text_hash=token_hash,
        token_hash=token_hash,
        documents=len(set(documents)) or None,
    )
    return Calibration(tuple(packed), info, documents)


def _documents_of(batches: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The `document_ids` of all sequences; none where no batch has any."""
    import torch

    numbers: list[int] = []
    for number, batch in enumerate(batches):
        ids = batch.get(DOCUMENTS)
        if (ids is None) != (batches[0].get(DOCUMENTS) is None):
            raise CalibrationError(f"token batch {number}: {DOCUMENTS} must be in every batch, or in none")
        if ids is None:
            continue
        if not isinstance(ids, torch.Tensor) or ids.dim() != 1 or ids.dtype not in (torch.long, torch.int):
            told = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, torch.Tensor) else type(ids).__name__
            raise CalibrationError(
                f"token batch {number}: {DOCUMENTS} must be a LongTensor [batch], a document's number for each "
                f"sequence, found {told}"
            )
        numbers += ids.tolist()
    return _numbered(numbers)


def repacked(batch: Mapping[str, Any], number: int = 0) -> TokenBatch:
    """A batch with its real tokens first in every row: what was padded on the left is padded on the right.

    Every other tensor of shape [batch, tokens] moves along.

    Raises:
        CalibrationError: the batch is no token batch, a row has no real token, or padding lies between real tokens.
    """
    import torch

    ids = batch.get("input_ids")
    if (
        not isinstance(ids, torch.Tensor)
        or ids.dim() != 2
        or ids.dtype not in (torch.long, torch.int)
        or not ids.numel()
    ):
        found = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise CalibrationError(f"token batch {number}: input_ids must be a LongTensor [batch, tokens], found {found}")
    mask = batch.get("attention_mask")
    if mask is None:
        return batch
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
        found = str(tuple(mask.shape)) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise CalibrationError(
            f"token batch {number}: attention_mask has the shape {found}, input_ids {tuple(ids.shape)}"
        )
    real = mask.bool()
    if not real.any(1).all():
        row = int((~real.any(1)).nonzero()[0])
        raise CalibrationError(f"token batch {number}, row {row}: no real token; leave empty rows out")
    lengths, first = real.sum(1), real.int().argmax(1)
    span = real.shape[1] - real.int().flip(1).argmax(1) - first
    if not torch.equal(span, lengths):
        row = int((span != lengths).nonzero()[0])
        raise CalibrationError(f"token batch {number}, row {row}: padding between real tokens; remove it")
    if not first.any():
        return batch
    order = (torch.arange(ids.shape[1]) + first[:, None].cpu()) % ids.shape[1]
    return {
        key: value.gather(1, order.to(value.device))
        if isinstance(value, torch.Tensor) and value.shape == ids.shape
        else value
        for key, value in batch.items()
    }


def _token_hash(batches: Iterable[TokenBatch]) -> str:
    """Of the real tokens, sequence by sequence, so that batch size and padding do not change it."""

    def sequences() -> Iterator[bytes]:
        for batch in batches:
            ids, mask = batch["input_ids"].cpu().long(), batch.get("attention_mask")
            for row, tokens in enumerate(ids):
                real = tokens if mask is None else tokens[mask[row].cpu().bool()]
                yield real.numpy().tobytes()

    return _hash(sequences())


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
