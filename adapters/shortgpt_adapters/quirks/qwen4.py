"""Qwen 4 (experimental): several copies of the stream, and embeddings of n-grams in some blocks.

::

    copies ─●─ (+ n-gram embedding) ─●─ mix ─ attention ─ spread ─(+)─●─ mix ─ experts ─ spread ─(+)─▶ copies'
            └────────────────────────┘   └───────────────────────────┘ └─────────────────────────┘

The stream is `hc_count` copies side by side, [batch, tokens, hc_count·hidden]; Block Influence takes each token's
copies as one vector.

The n-gram tables are numbered through the model: the t-th has as many rows as the t-th run of primes from
`ngram_vocab_size_base` on says, and hashes with the seed `seed` + 10007·t. When the first tables go, with their
blocks, base and seed are moved on to what the first table that stays had, and every table is built as it was. Tables
that stay with one missing between them cannot be described so: such a removal is refused.
"""

from itertools import count, islice
from math import isqrt
from typing import Any

from shortgpt.models.configs.rules import RENUMBER_FROM_1, Blocks, Rule
from shortgpt_adapters.transformers.structural import Structural

SEED_STEP = 10007
"""By how much the library moves the seed from table to table."""


def _tables(blocks: Blocks) -> list[int]:
    """Which n-gram tables stay; they are numbered in the order of their blocks."""
    return [table for table, block in enumerate(blocks.config["ple_layer_ids"]) if block - 1 in blocks.keep]


def _gone_before(blocks: Blocks) -> int:
    return min(_tables(blocks), default=0)


def _in_a_row(value: Any, blocks: Blocks) -> Any:
    tables = _tables(blocks)
    if tables != list(range(_gone_before(blocks), _gone_before(blocks) + len(tables))):
        raise ValueError("n-gram tables are numbered through, and one that goes lies between two that stay")
    return RENUMBER_FROM_1.apply(value, blocks)


def _moved_base(value: Any, blocks: Blocks) -> Any:
    heads = (blocks.config["ngram_size"] - 1) * blocks.config["heads_per_ngram"]
    passed = _gone_before(blocks) * heads
    primes = (number for number in count(value) if _is_prime(number))
    return next(islice(primes, passed, None)) if passed else value


def _moved_seed(value: Any, blocks: Blocks) -> Any:
    return value + SEED_STEP * _gone_before(blocks)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


class Qwen4(Structural):
    architecture = "qwen4"
    rules = {
        "ple_layer_ids": Rule("renumber from 1, tables in a row", _in_a_row),
        "ngram_vocab_size_base": Rule("moved on by the primes of the tables gone", _moved_base),
        "seed": Rule("moved on by the tables gone", _moved_seed),
    }
