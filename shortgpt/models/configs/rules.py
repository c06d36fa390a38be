"""The rewrite of a model's config for the blocks that stay, as data: config field → rule.

::

    keep 0 1 3 4     num_hidden_layers 5 → 4     layer_types [a b a b a] → [a b b a]     moe_layers [1, 3] → [1, 2]
                           count                         filter                               renumber

A field that looks as if it depended on the blocks and that no rule explains is an error that names it: guessing would
give a model that loads and is wrong. Only where the family's library is known never to read it, it is carried over as
it is; so is one that its rule does not fit. An adapter adds rules of its own for what only its family has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from shortgpt.errors import CheckpointError, ConfigRewriteError
from shortgpt.models.configs.module_paths import Renumbering

Config = dict[str, Any]

COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_blocks",
)
"""Fields that hold the number of blocks; the first one present is the depth."""


@dataclass(frozen=True)
class Blocks:
    """What a rule may look at: the blocks that stay, how many there were, and the config before the rewrite."""

    keep: tuple[int, ...]
    depth: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """How one field follows from the blocks that stay.

    Attributes:
        name: what it does, as a report says it.
        apply: (value, blocks) → the new value. It raises a ValueError that says why there is none.
    """

    name: str
    apply: Callable[[Any, Blocks], Any]


@dataclass(frozen=True)
class GroupRule:
    """How fields that mean something only together follow from the blocks that stay."""

    name: str
    fields: tuple[str, ...]
    apply: Callable[[Blocks], Config]


# -- single fields --------------------------------------------------------------------------------------------


def _count(value: Any, blocks: Blocks) -> Any:
    if isinstance(value, int) and value != blocks.depth:
        raise ValueError(f"it counts {value}, the model has {blocks.depth} blocks")
    return len(blocks.keep) if value is not None else None


def _filter(value: Any, blocks: Blocks) -> Any:
    if not isinstance(value, (list, tuple)):
        return value  # the same for every block
    if len(value) != blocks.depth:
        raise ValueError(f"it has {len(value)} entries for {blocks.depth} blocks")
    return [value[i] for i in blocks.keep]


def _filter_first(value: Any, blocks: Blocks) -> Any:
    """Of a list or a text with one entry a block; what stands behind is of extra prediction heads, which go."""
    if not isinstance(value, (list, tuple, str)):
        return value  # the same for every block
    if len(value) < blocks.depth:
        raise ValueError(f"it has {len(value)} entries for {blocks.depth} blocks")
    kept = [value[i] for i in blocks.keep]
    return "".join(kept) if isinstance(value, str) else kept


def _frequency(value: Any, blocks: Blocks) -> Any:
    """One entry a block, or every n-th block, where no list made of it stands beside it."""
    if isinstance(value, int) and value > 1 and not blocks.config.get("mlp_layer_types"):
        raise ValueError(f"every {value}th block is meant, and which of those that stay cannot be said so")
    return _filter_first(value, blocks)


def _indexers(value: Any, blocks: Blocks) -> Any:
    kept = _filter(value, blocks)
    if kept and kept[0] == "shared":
        raise ValueError("the first block that stays would share the index mask of one that is gone")
    return kept


def _rekey(value: Any, blocks: Blocks) -> Any:
    if not value:
        return value
    by_number = {int(number): item for number, item in value.items()}
    kept = {new: by_number[old] for new, old in enumerate(blocks.keep) if old in by_number}
    as_wide = len({len(str(number)) for number in value}) == 1  # "05" beside "11": the keys sort as numbers do
    width = len(str(max(kept, default=0))) if as_wide else 0
    return {str(new).zfill(width): item for new, item in kept.items()}


def _renumber(first: int) -> Callable[[Any, Blocks], Any]:
    def rule(value: Any, blocks: Blocks) -> Any:
        if isinstance(value, str):  # "3,4,5"
            return ",".join(map(str, rule([int(number) for number in value.split(",") if number.strip()], blocks)))
        if not isinstance(value, (list, tuple)):
            return value
        new = {old + first: j + first for j, old in enumerate(blocks.keep)}
        return [new[i] for i in value if i in new]

    return rule


def _section(value: Any, blocks: Blocks) -> Any:
    """Of an object whose fields have rules of their own."""
    if not isinstance(value, Mapping):
        return value
    return {
        field: IN_SECTIONS[field].apply(item, blocks) if field in IN_SECTIONS else item for field, item in value.items()
    }


def _kept_below(value: Any, blocks: Blocks) -> Any:
    return sum(1 for i in blocks.keep if i < value) if isinstance(value, int) else value


def _runs(value: Any, blocks: Blocks) -> Any:
    kinds = [kind for run, times in value for _ in range(times) for kind in run]
    return [[[kind], 1] for kind in _filter(kinds, blocks)]


def _cycle(value: Any, blocks: Blocks) -> Any:
    return [value[i % len(value)] for i in blocks.keep] if isinstance(value, (list, tuple)) else value


def _superseded(*lists: str) -> Rule:
    """A pattern from which a list was derived: it says nothing any more once the list stands in the config."""

    def rule(value: Any, blocks: Blocks) -> Any:
        if value and not any(blocks.config.get(name) for name in lists):
            raise ValueError(f"the config does not hold {' or '.join(lists)}, which it stands for")
        return value

    return Rule(f"superseded by {lists[0]}", rule)


COUNT = Rule("count", _count)
FILTER = Rule("filter", _filter)
FILTER_FIRST = Rule("filter, as many as there are blocks", _filter_first)
INDEXERS = Rule("filter; the first must not be shared", _indexers)
REKEY = Rule("re-key", _rekey)
RENUMBER = Rule("renumber", _renumber(0))
RENUMBER_FROM_1 = Rule("renumber from 1", _renumber(1))
SECTION = Rule("by its fields", _section)
KEPT_BELOW = Rule("count those kept below", _kept_below)
RUNS = Rule("write out and filter", _runs)
CYCLE = Rule("write out the cycle and filter", _cycle)
ZERO = Rule("zero: the extra prediction heads are not loaded", lambda value, blocks: 0 if value else value)
UNCHANGED = Rule("unchanged: it speaks of something else", lambda value, blocks: value)
UNREAD = Rule("carried over: the library never reads it", lambda value, blocks: value)
"""For a field that looks as if it depended on the blocks, without a rule that fits."""

IN_SECTIONS: Mapping[str, Rule] = {
    **dict.fromkeys(("full_attn_layers", "kda_layers"), RENUMBER_FROM_1),
    **dict.fromkeys(("sparse_attention_freq", "sparse_disable_index_value"), FILTER_FIRST),
}

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(COUNTS, COUNT),
    **dict.fromkeys(
        (
            "layer_types",
            "mlp_layer_types",
            "layers_block_type",
            "attention_layers",
            "no_rope_layers",
            "layer_rope_theta",
            "num_attention_heads_per_layer",
            "intermediate_size",
            "activation_sparsity_pattern",
            "moe_topk",
            "num_experts",
            "num_shared_expert",
            "attn_layers",
        ),
        FILTER,
    ),
    # What libraries read from older configs, and keep under other names.
    **dict.fromkeys(
        (
            "attn_type_list",
            "compress_ratios",
            "hybrid_layer_pattern",
            "hybrid_override_pattern",
            "index_topk_pattern",
            "partial_rotary_factors",
            "rope_theta",
            "swiglu_limits",
            "swiglu_limits_shared",
        ),
        FILTER_FIRST,
    ),
    **dict.fromkeys(("full_attn_idxs", "local_layer_ids", "moe_layers_enum"), RENUMBER),
    **dict.fromkeys(("dense_mlp_idx", "num_hash_layers"), KEPT_BELOW),
    **dict.fromkeys(("linear_attn_config", "sparse_attention_config"), SECTION),
    "moe_layer_freq": Rule(FILTER_FIRST.name, _frequency),
    "indexer_types": INDEXERS,
    "per_layer_config": REKEY,
    **dict.fromkeys(
        (
            "moe_layers",
            "mlp_only_layers",
            "attn_layer_indices",
            "cross_attention_layers",
            "attn_layer_idx",
        ),
        RENUMBER,
    ),
    "ple_layer_ids": RENUMBER_FROM_1,
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), KEPT_BELOW),
    "attention_types": RUNS,
    "block_types": CYCLE,
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"), ZERO),
    **dict.fromkeys(
        ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers", "layer_group_size"),
        _superseded("layer_types"),
    ),
    "max_window_layers": UNCHANGED,  # read only to make layer_types, and dead where there is no window
    "no_rope_layer_interval": _superseded("no_rope_layers"),
    "interleave_moe_layer_step": _superseded("moe_layers"),
    # Norms, initialisation, output options, sizes of another kind of block, another stack.
    **dict.fromkeys(
        (
            "layer_norm_eps",
            "layer_norm_epsilon",
            "layernorm_epsilon",
            "layer_norm_type",
            "layernorm_embedding",
            "layerdrop",
            "residual_in_fp32",
            "scale_attn_by_inverse_layer_idx",  # folded into the weights by the adapter
            "output_hidden_states",
            "use_weighted_layer_sum",
            "block_size",
            "block_multiple_of",
            "index_block_size",
            "index_local_blocks",
            "index_topk_blocks",
            "num_random_blocks",
            "hidden_size_per_layer_input",
            "vocab_size_per_layer_input",
            "mtp_layers_block_type",
            "mtp_layer_types",
            "mtp_mlp_layer_types",
            "encoder_layers",
            "num_encoder_layers",
        ),
        UNCHANGED,
    ),
}


# -- fields that mean something only together -----------------------------------------------------------------


def _step_and_exceptions(blocks: Blocks) -> Config:
    """Every step-th block is sparse but for a list: written as step 1 and a longer list."""
    step, dense = blocks.config["decoder_sparse_step"], set(blocks.config["mlp_only_layers"] or ())
    sparse = [i not in dense and (i + 1) % step == 0 for i in blocks.keep]
    return {"decoder_sparse_step": 1, "mlp_only_layers": [j for j, is_sparse in enumerate(sparse) if not is_sparse]}


def _range_and_interval(blocks: Blocks) -> Config:
    """Blocks start to end whose number is a multiple of the interval: solved for the numbers that stay."""
    start, end, interval = (blocks.config[f"moe_layer_{what}"] for what in ("start_index", "end_index", "interval"))
    end = blocks.depth - 1 if end == -1 else end
    sparse = [(i + 1) % interval == 0 and start <= i <= end for i in blocks.keep]
    size = len(sparse)
    for every, first, last in product(range(1, size + 1), range(size + 1), (-2, *range(size))):
        if [(j + 1) % every == 0 and first <= j <= last for j in range(size)] == sparse:
            return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": every}
    raise ValueError("the mixture-of-experts blocks that stay are no range with an interval any more")


def _period_and_offset(kind: str) -> GroupRule:
    """Every period-th block from an offset on: solved for the blocks that stay."""
    names = (f"{kind}_layer_period", f"{kind}_layer_offset")

    def solve(blocks: Blocks) -> Config:
        period, offset = (blocks.config[name] for name in names)
        if blocks.config.get("layers_block_type"):
            return {}  # superseded by the list
        marked = [i % period == offset for i in blocks.keep]
        size = len(marked)
        for every in (*range(1, size + 1), size + 1 + period):
            for first in range(every):
                if [j % every == first for j in range(size)] == marked:
                    return dict(zip(names, (every, first), strict=True))
        marks = " ".join("x" if w else "." for w in marked)
        raise ValueError(f"the {kind} blocks that stay ({marks}) do not repeat with a period any more")

    return GroupRule("solve for the period", names, solve)


GROUPS: tuple[GroupRule, ...] = (
    GroupRule("step 1 and a list", ("decoder_sparse_step", "mlp_only_layers"), _step_and_exceptions),
    GroupRule(
        "solve for the range",
        ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
        _range_and_interval,
    ),
    _period_and_offset("attn"),
    _period_and_offset("expert"),
)


# -- the rewrite ----------------------------------------------------------------------------------------------


def depth_of(config: Mapping[str, Any]) -> int:
    """The number of blocks that a config names.

    Raises:
        CheckpointError: none of the known count fields is there.
    """
    for field in COUNTS:
        if isinstance(config.get(field), int):
            return int(config[field])
    raise CheckpointError(f"the config names no number of blocks (looked for {', '.join(COUNTS)})")


@dataclass(frozen=True)
class Decision:
    """What a removal does with one config field.

    Attributes:
        field: its name.
        rule: what it follows; None where there is none.
        value: what it becomes.
        refusal: why it cannot be rewritten, which stops the removal; None where it can.
    """

    field: str
    rule: Rule | GroupRule | None
    value: Any
    refusal: str | None = None


def decide(
    config: Mapping[str, Any],
    keep: Sequence[int],
    depth: int,
    rules: Mapping[str, Rule] | None = None,
    is_read: Callable[[str], bool] = lambda field: True,
) -> Iterator[Decision]:
    """What becomes of each field that depends on the blocks, or looks so, where the blocks `keep` stay.

    Args:
        config: resolved.
        rules: an adapter's own, before the general ones.
        is_read: whether the family's library can read a field; asked only of those that no rule fits.
    """
    blocks = Blocks(tuple(keep), depth, config)
    for field, rule in rules_for(config, depth, rules):
        value = config[field]
        try:
            if rule is None:
                raise ValueError(
                    "no rule says how it depends on the blocks; an adapter of its own could say how "
                    "(see docs/writing-an-adapter.md)"
                )
            new = rule.apply(value, blocks) if isinstance(rule, Rule) else rule.apply(blocks).get(field, value)
            yield Decision(field, rule, new)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as found:
            # A rule raises a ValueError; the others are what it meets in a value of another kind than the field has.
            error = str(found) if isinstance(found, ValueError) else "its value is not of the kind that this field has"
            if any(map(is_read, rule.fields if isinstance(rule, GroupRule) else (field,))):
                yield Decision(field, rule, value, error)
            else:
                yield Decision(field, UNREAD, value)


def rewrite_config(
    config: Config,
    keep: Sequence[int],
    depth: int,
    rules: Mapping[str, Rule] | None = None,
    is_read: Callable[[str], bool] = lambda field: True,
) -> Config:
    """The config of the model that has the blocks `keep` only; `config` is left as it is. See `decide`.

    Raises:
        ConfigRewriteError: a field looks as if it depended on the blocks and no rule explains it, or a rule cannot
            say what it becomes.
    """
    return rewritten(config, decide(config, keep, depth, rules, is_read))


def rewritten(config: Config, decisions: Iterable[Decision]) -> Config:
    """A config after these decisions.

    Raises:
        ConfigRewriteError: one is a refusal.
    """
    new = dict(config)
    for decision in decisions:
        if decision.refusal is not None:
            raise ConfigRewriteError(
                f"config field {decision.field!r} (value {short(config[decision.field])}) cannot be rewritten: "
                f"{decision.refusal}"
            )
        new[decision.field] = decision.value
    return new


NAMING_MODULES = ("quantization_config", "compression_config")
"""Fields that name modules."""


def naming_modules(block_lists: Sequence[str]) -> dict[str, Rule]:
    """The rules for sections that name modules, given where the blocks are. See `module_paths`."""
    rule = Rule("renumber the modules named", lambda value, b: Renumbering(block_lists, b.depth, b.keep)(value))
    return dict.fromkeys(NAMING_MODULES, rule)


def rules_for(
    config: Mapping[str, Any], depth: int, rules: Mapping[str, Rule] | None = None
) -> Iterator[tuple[str, Rule | GroupRule | None]]:
    """The fields of a config that depend on the blocks, or look so, each with its rule; None where there is none."""
    table = {**RULES, **(rules or {})}
    grouped = {field: group for group in GROUPS if all(f in config for f in group.fields) for field in group.fields}
    for field, value in config.items():
        if field in grouped and field not in (rules or {}):
            yield field, grouped[field]
        elif field in table:
            yield field, table[field]
        elif looks_per_block(field, value, depth):
            yield field, None


def is_idle(decision: Decision) -> bool:
    """Whether a value is left alone whatever blocks go: it speaks of something else, or of all blocks alike."""
    alike = (
        decision.rule is not None
        and decision.rule.name in (FILTER.name, FILTER_FIRST.name)
        and not isinstance(decision.value, (list, tuple, str))
    )
    return decision.rule is UNCHANGED or (alike and decision.refusal is None)


def notes(config: Mapping[str, Any], decisions: Iterable[Decision] = ()) -> tuple[str, ...]:
    """What a user of the shorter model should know of its config."""
    carried = tuple(
        f"`{decision.field}` is as it was: it looks as if it spoke of the blocks, and the library never reads it."
        for decision in decisions
        if decision.rule is UNREAD
    )
    dropped = [field for field, value in config.items() if RULES.get(field) is ZERO and value]
    return carried + tuple(
        f"`{field}` is 0 now: the extra prediction heads behind the last block were trained on all blocks and are not "
        "part of the loaded model."
        for field in dropped
    )


_ABOUT_BLOCKS = re.compile(r"(^|_)(layer|layers|block|blocks|depth)(_|$)")
_NOT_BY_BLOCK = frozenset(
    {
        "architectures",
        "id2label",
        "label2id",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "auto_map",
        "time_step_limit",
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        "forced_decoder_ids",
        "mrope_section",
    }
)


def looks_per_block(field: str, value: Any, depth: int) -> bool:
    """Whether a field's name and value look as if it depended on the blocks."""
    if field in _NOT_BY_BLOCK or value is None or isinstance(value, (str, bool)):
        return False
    if isinstance(value, (list, tuple)):
        as_long = depth > 2 and len(value) == depth
        return bool(_ABOUT_BLOCKS.search(field)) or as_long or _holds_block_numbers(value, depth)
    if isinstance(value, dict):
        by_number = bool(value) and all(re.fullmatch(r"\d+", str(key)) for key in value)
        return by_number or _holds_block_numbers(value, depth)
    return isinstance(value, int) and bool(_ABOUT_BLOCKS.search(field))


def _holds_block_numbers(value: Any, depth: int) -> bool:
    """Whether a list of two or more distinct integers below the depth is in a value: blocks by number, maybe."""
    if isinstance(value, dict):  # with a model_type it is the config of another part of the model
        inner = () if "model_type" in value else value.items()
        return any(_holds_block_numbers(item, depth) for key, item in inner if key not in _NOT_BY_BLOCK)
    if not isinstance(value, (list, tuple)):
        return False
    if all(type(item) is int and 0 <= item < depth for item in value):
        return 1 < len(value) == len(set(value))
    return any(_holds_block_numbers(item, depth) for item in value)


def short(value: Any) -> str:
    """A value as text, in 60 signs at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
