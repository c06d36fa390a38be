"""How many tokens it takes to see all that a config makes depend on the distance between them.

::

    sliding_window 128 ──────────────▶ 128 + 32 tokens: the last ones see something else if a block has another's window
    original_max_position_embeddings 4096 ─▶ 4096 + 32, where that can be afforded; else it is told as not reached

Fields are found by their names, nested ones too: windows, chunks, blocks of sparse attention, the tokens that an
indexer chooses, the length at which long-context RoPE switches over. Code that a folder brings along may call a window
anything: for it every number of the config is taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence

MARGIN = 32
"""Tokens behind the farthest distance."""

ALWAYS = 1024
"""So many tokens are run whatever the model: a large one's weights take about as long to read."""

WORK = 10**12
"""Parameters × tokens of a longer probe: a minute or so on two cores."""

SCORES = 2**27
"""Blocks × tokens² of a longer probe: attention scores, some seconds on two cores, of slow types half a minute."""

LOGITS = 2**28
"""Tokens × vocabulary of a longer probe: 1 GiB in float32."""

_DISTANCE = re.compile(
    r"window|sliding|chunk|span|extent|horizon|budget|block_size|block_length|kernel|dilat|compress|mem_len"
    r"|original_max|max_distance"
    r"|(^|_)(local|reach|distance|lookback|past|recent|nearby|memory|floor|sinks?)(_|$)"
    r"|(index|sparse|attn|attention|key|token|block)\w*_top_?k|top_?k_(block|token|key|index|position)"
)
_NO_DISTANCE = re.compile(
    r"layer|pattern|expert|head|group|freq|offset|every|interval|norm|hidden|intermediate|channel|max_inference"
    r"|(^|_)(dim|rank|moe|vocab|theta|type|ids?|idx|index(es)?)$|_token_id"
)
_OF_ANOTHER_INPUT = re.compile(r"vision|audio|image|speech|video|codec|tokenizer|quantization|label")
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope", "su"})
"""Kinds of RoPE whose frequencies depend on how long a text is; those of any other kind are the same at every length,
whatever length they were made from."""
_SIZE = re.compile(r"block_size|block_length|chunk")
_COUNT = re.compile(r"(random|top_?k|local|init|sink)\w*_blocks?$")
_CHOSEN = re.compile(r"top_?k$|budget")


@dataclass(frozen=True)
class Reach:
    """How far a model's probes are to reach.

    Attributes:
        tokens: of the long probe; 0 where none is needed.
        beyond: the distances that it does not reach, as text: "sliding_window 131,072".
    """

    tokens: int
    beyond: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: BlockSequence, seen: int) -> Reach:
        """As far as the config asks for, and as the model's own window and what may be spent allow.

        A distance that is as long as the model's window is never reached, and needs no proof.

        Args:
            seen: tokens of the short probe.
        """
        bound = model.max_tokens

        def needed(numbers: Iterator[tuple[str, int]]) -> dict[str, int]:
            """The tokens that it takes to pass each distance, by its name."""
            far = ((name, number) for name, number in numbers if number >= seen and (not bound or number < bound))
            return {f"{name} {number:,}": min(number + MARGIN, bound or number + MARGIN) for name, number in far}

        named = needed(distances(model.config))
        lengths = {*named.values()}
        if model.own_code:
            lengths |= {*needed(_numbers(model.config)).values(), min(ALWAYS, bound or ALWAYS)}
        tokens = max((n for n in lengths if n > seen and _is_affordable(n, model)), default=0)
        return cls(tokens, tuple(name for name, number in named.items() if number > max(tokens, seen)))


def _is_affordable(tokens: int, model: BlockSequence) -> bool:
    return tokens <= ALWAYS or (
        tokens * model.total_parameters() <= WORK
        and tokens * tokens * len(model) <= SCORES
        and tokens * model.vocab_size <= LOGITS
    )


def distances(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The distances between tokens that a config speaks of: field, tokens. Products of fields are among them: so many
    blocks of that size are chosen, so many tokens of which each stands for several."""
    numbers = list(_numbers(config))
    named = [(name, n) for name, n in numbers if _DISTANCE.search(name) and not _NO_DISTANCE.search(name)]
    yield from named
    sizes = [(name, n) for name, n in named if _SIZE.search(name)]
    for name, count in ((name, n) for name, n in numbers if _COUNT.search(name)):
        # Blocks chosen at random come beside the first, the last and three around the token: with fewer, all are seen.
        many = 2 * count + 5 if "random" in name else count
        yield from ((f"{name} × {of_size}", many * size) for of_size, size in sizes)
    rates = [n for name, n in named if "compress" in name]
    if rates:
        yield from ((f"{name} × {min(rates)}", n * min(rates)) for name, n in named if _CHOSEN.search(name))


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The integers above 1 in a config with their fields' names, but for parts that speak of other inputs than text.

    What stands inside a field that speaks of distances has that field's name, unless its own speaks of them too.
    """
    if isinstance(value, Mapping):
        # A scale that grows with the position is another matter.
        kind = value.get("rope_type", value.get("type"))
        static = isinstance(kind, str) and kind not in _ROPE_BY_LENGTH
        static &= not any("scaling_beta" in str(key) for key in value)
        for key, item in value.items():
            if not _OF_ANOTHER_INPUT.search(str(key)) and not (static and "original_max" in str(key)):
                own = bool(_DISTANCE.search(str(key))) or not _DISTANCE.search(name)
                yield from _numbers(item, str(key) if own else name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
        yield name, value
