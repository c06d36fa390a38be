"""Baichuan's tokenizer as a `tokenizer.json`, which any server reads without this package.

The SentencePiece model is byte-pair encoding with byte fallback and no normalisation. The same vocabulary and merges in
the `tokenizers` library give the same ids; that is checked on text with everything awkward in it, and where it does not
hold, or where the model is of another kind, nothing is written.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

SPACE = "▁"
PROBES = (
    "The quick brown fox jumps over 12 lazy dogs, 1,345.67 times.",
    "  two leading spaces, and  two inside; a trailing one ",
    "naïve café, Ελληνικά, русский, 日本語のテキスト, 人工智能改变世界。",
    "\n\tdef f(x):\n\t\treturn x ** 2  # tabs\r\n",
    "emoji 👩‍👩‍👧 and bytes \x00\x7f",
    "▁ is a sign, too",
    "",
    " ",
)


def fast_tokenizer(slow: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of the `tokenizers` library that gives the ids of a `BaichuanTokenizer`.

    Raises:
        ValueError: on some probe text it does not; the SentencePiece model is of another kind.
    """
    model = slow.sp_model
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    scores = {piece: model.get_score(index) for index, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            generate_merges(vocabulary, scores),
            unk_token=pieces[model.unk_id()],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    # Pieces that SentencePiece never splits nor merges, such as <reserved_106>, where a chat's turns begin.
    fixed = [piece for index, piece in enumerate(pieces) if re.fullmatch(r"<\w+>", piece) and _is_text(model, index)]
    backend.add_tokens([AddedToken(piece, single_word=False, normalized=False) for piece in fixed])
    for _, token in sorted(slow.added_tokens_decoder.items()):
        known = AddedToken(token.content, single_word=False, normalized=False, special=token.special)
        (backend.add_special_tokens if token.special else backend.add_tokens)([known])
    special = {name: str(token) for name, token in slow.special_tokens_map.items() if isinstance(token, str)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=slow.model_max_length,
        clean_up_tokenization_spaces=False,
        **special,
    )
    fast.chat_template = slow.chat_template
    for text in (*PROBES, *(f"a{piece} b" for piece in fixed)):
        if fast(text, add_special_tokens=False)["input_ids"] != slow(text, add_special_tokens=False)["input_ids"]:
            raise ValueError(f"its tokenizer.model cannot be written as tokenizer.json: they differ on {text!r}")
    if slow("a")["input_ids"] != slow("a", add_special_tokens=False)["input_ids"]:
        raise ValueError("its tokenizer puts special tokens around a text, which the tokenizer.json would not")
    return fast


def _is_text(model: Any, index: int) -> bool:
    """Whether a piece stands for itself in a text: no byte, no end of text, no unknown."""
    return not (model.is_byte(index) or model.is_control(index) or model.is_unknown(index))
