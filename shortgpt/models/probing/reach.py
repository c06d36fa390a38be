"""How many tokens it takes to see all that a config makes depend on the distance between them.

::

    sliding_window 128 ──────────────▶ 128 + 32 tokens: the last ones see something else if a block has another's window
    original_max_position_embeddings 4096 ─▶ 4096 + 32, where that can be afforded
    sliding_window 131072 ─▶ not afforded: both models are compared with the field set to 8 (`near_distances`)

Fields are found by their names, nested ones too: windows, chunks, blocks of sparse attention, the tokens that an
indexer chooses, the length at which long-context RoPE switches over. Code that a folder brings along may call a window
anything: for it every number of the config is taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shortgpt.basics.inputs import NearDistance

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

CONTINUED = 10**11
"""Parameters × tokens of a long probe behind which tokens are generated as well: without a cache each is a pass."""

SMALL = 8
"""What a distance that no probe reaches is set to."""

NEAR = 3
"""Of so many distances that is tried; each takes opening both models once more."""

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
        continued: whether it is cheap enough to generate tokens behind the long probe.
    """

    tokens: int
    beyond: tuple[str, ...] = ()
    continued: bool = False

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
        beyond = tuple(name for name, number in named.items() if number > max(tokens, seen))
        return cls(tokens, beyond, 0 < tokens * model.total_parameters() <= CONTINUED)


def _is_affordable(tokens: int, model: BlockSequence) -> bool:
    return tokens <= ALWAYS or (
        tokens * model.total_parameters() <= WORK
        and tokens * tokens * len(model) <= SCORES
        and tokens * model.vocab_size <= LOGITS
    )


def near_distances(config: Mapping[str, Any], beyond: Collection[str]) -> tuple[NearDistance, ...]:
    """Those of the distances `beyond` that are fields, which can be set small. (Products of fields cannot.)"""
    fields = (NearDistance(name, number, SMALL) for name, number in dict.fromkeys(_named(config)))
    return tuple(near for near in fields if str(near) in beyond)[:NEAR]


def set_near(config: Mapping[str, Any], near: NearDistance) -> dict[str, Any]:
    """A config in which a distance is the small one, wherever its field holds it."""

    def changed(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {
                key: item if _is_passed_over(value, key) else changed(item, _name_of(key, name))
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return type(value)(changed(item, name) for item in value)
        is_it = isinstance(value, int) and not isinstance(value, bool) and (name, value) == (near.field, near.number)
        return near.small if is_it else value

    result: dict[str, Any] = changed(config, "")
    return result


def distances(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The distances between tokens that a config speaks of: field, tokens. Products of fields are among them: so many
    blocks of that size are chosen, so many tokens of which each stands for several."""
    numbers, named = list(_numbers(config)), _named(config)
    yield from named
    sizes = [(name, n) for name, n in named if _SIZE.search(name)]
    for name, count in ((name, n) for name, n in numbers if _COUNT.search(name)):
        # Blocks chosen at random come beside the first, the last and three around the token: with fewer, all are seen.
        many = 2 * count + 5 if "random" in name else count
        yield from ((f"{name} × {of_size}", many * size) for of_size, size in sizes)
    rates = [n for name, n in named if "compress" in name]
    if rates:
        yield from ((f"{name} × {min(rates)}", n * min(rates)) for name, n in named if _CHOSEN.search(name))


def _named(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in _numbers(config) if _DISTANCE.search(name) and not _NO_DISTANCE.search(name)]


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The integers above 1 in a config with their fields' names, but for parts that speak of other inputs than text.

    What stands inside a field that speaks of distances has that field's name, unless its own speaks of them too.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not _is_passed_over(value, key):
                yield from _numbers(item, _name_of(key, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
        yield name, value


def _is_passed_over(part: Mapping[str, Any], key: Any) -> bool:
    """Whether a field of a part of a config says nothing of distances between tokens of text."""
    kind = part.get("rope_type", part.get("type"))
    static = isinstance(kind, str) and kind not in _ROPE_BY_LENGTH
    static &= not any("scaling_beta" in str(name) for name in part)  # a scale that grows with the position
    return bool(_OF_ANOTHER_INPUT.search(str(key))) or (static and "original_max" in str(key))


def _name_of(key: Any, around: str) -> str:
    """By what name a field goes that stands inside another one."""
    own = bool(_DISTANCE.search(str(key))) or not _DISTANCE.search(around)
    return str(key) if own else around
