"""Removal as a rewrite: which blocks stay → a new config and new tensor names.

::

    blocks kept   0  1  3  4          config   n_layer 5 → 4, layer_types[2] gone, moe_layers 3 → 2 ...
                  │  │  │  │          tensors  layers.3.mlp.weight → layers.2.mlp.weight ...
    renumbered    0  1  2  3

The same two rewrites serve in memory (`remove`) and on disk (`shortgpt.checkpoint`). The config rewrite is driven by
the rules below, each for a kind of field. A field that looks as if it depended on the blocks and that no rule
explains is an error that names it: guessing would give a model that loads and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shortgpt.errors import CheckpointError, ConfigRewriteError, ModelError

if TYPE_CHECKING:
    from shortgpt.blocks import BlockSequence
    from shortgpt.plan import Plan

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


def _count(value: Any, keep: Sequence[int], depth: int) -> Any:
    if isinstance(value, int) and value != depth:
        raise ValueError(f"it counts {value}, the model has {depth} blocks")
    return len(keep) if value is not None else None


def _per_block(value: Any, keep: Sequence[int], depth: int) -> Any:
    """A list with an entry a block. A scalar (the same for every block) stays."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != depth:
        raise ValueError(f"it has {len(value)} entries for {depth} blocks")
    return [value[i] for i in keep]


def _keyed_by_block(value: Any, keep: Sequence[int], depth: int) -> Any:
    """A mapping from block number, as a string where it was read from JSON, to anything."""
    if not value:
        return value
    by_number = {int(number): item for number, item in value.items()}
    return {str(new): by_number[old] for new, old in enumerate(keep) if old in by_number}


def _indices(first: int) -> Callable[[Any, Sequence[int], int], Any]:
    """A list of block numbers that begin with `first`."""

    def rule(value: Any, keep: Sequence[int], depth: int) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        new = {old + first: j + first for j, old in enumerate(keep)}
        return [new[i] for i in value if i in new]

    return rule


def _below(value: Any, keep: Sequence[int], depth: int) -> Any:
    """A threshold k that sets the blocks 0..k-1 apart: how many of them stay."""
    return sum(1 for i in keep if i < value) if isinstance(value, int) else value


def _absent(value: Any, keep: Sequence[int], depth: int) -> Any:
    """Extra prediction heads behind the last block: trained on the full stack and not part of the loaded model."""
    return 0 if value else value


def _same(value: Any, keep: Sequence[int], depth: int) -> Any:
    return value


RULES: dict[str, Callable[[Any, Sequence[int], int], Any]] = {
    **dict.fromkeys(COUNTS, _count),
    **dict.fromkeys(
        (
            "layer_types",
            "mlp_layer_types",
            "layers_block_type",
            "indexer_types",
            "no_rope_layers",
            "layer_rope_theta",
            "num_attention_heads_per_layer",
            "intermediate_size",
            "activation_sparsity_pattern",
            "moe_topk",
            "attn_layers",
        ),
        _per_block,
    ),
    "per_layer_config": _keyed_by_block,
    **dict.fromkeys(("moe_layers", "attn_layer_indices", "cross_attention_layers", "attn_layer_idx"), _indices(0)),
    "ple_layer_ids": _indices(1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), _below),
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), _absent),
    # They speak of "layers" and mean something else: norms' epsilons, initialisation, output options, and the
    # patterns that an explicit `layer_types` has replaced.
    **dict.fromkeys(
        (
            "layer_norm_eps",
            "layer_norm_epsilon",
            "layernorm_epsilon",
            "layer_norm_type",
            "layerdrop",
            "residual_in_fp32",
            "scale_attn_by_inverse_layer_idx",  # folded into the weights by the adapter
            "output_hidden_states",
            "max_window_layers",
            "sliding_window_pattern",
        ),
        _same,
    ),
}

_NUMBERED = re.compile(r"\w+\.\d+\.\w+")
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
    }
)


def depth_of(config: Config) -> int:
    """The number of blocks that a config names.

    Raises:
        CheckpointError: none of the known count fields is there.
    """
    for field in COUNTS:
        if isinstance(config.get(field), int):
            return int(config[field])
    raise CheckpointError(f"the config names no number of blocks (looked for {', '.join(COUNTS)})")


def rewrite_config(config: Config, keep: Sequence[int], depth: int) -> Config:
    """The config of the model that has the blocks `keep` only. `config` must be resolved, and is left as it is.

    Raises:
        ConfigRewriteError: a field looks as if it depended on the blocks and no rule explains it, or a per-block list
            has another length than the model.
    """
    rewritten = dict(config)
    for field, value in config.items():
        rule = RULES.get(field)
        try:
            if field == "quantization_config" and (names := _NUMBERED.search(str(value))):
                raise ValueError(f"it names blocks by number ({names[0]})")
            if rule is not None:
                rewritten[field] = rule(value, keep, depth)
            elif _looks_per_block(field, value, depth):
                raise ValueError("no rule says how it depends on the blocks")
        except ValueError as error:
            raise ConfigRewriteError(
                f"config field {field!r} (value {_short(value)}) cannot be rewritten: {error}. "
                "An adapter for this architecture has to handle it in `rewrite_config`"
            ) from None
    return rewritten


def _looks_per_block(field: str, value: Any, depth: int) -> bool:
    if field in _NOT_BY_BLOCK or value is None or isinstance(value, (str, bool)):
        return False
    if isinstance(value, (list, tuple)):
        return bool(_ABOUT_BLOCKS.search(field)) or (depth > 2 and len(value) == depth)
    if isinstance(value, dict):
        return bool(value) and all(re.fullmatch(r"\d+", str(key)) for key in value)
    return isinstance(value, int) and bool(_ABOUT_BLOCKS.search(field))


def rename_blocks(names: Iterable[str], lists: Sequence[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
    """New tensor name → old one for all that stays, in the order of `names`.

    `lists` are the dotted paths with which a block's tensors may begin; the one that is there is taken.

    Raises:
        CheckpointError: a block has no tensors, or there are tensors of blocks that the config does not count.
    """
    names = list(names)
    for path in lists:
        pattern = re.compile(re.escape(path) + r"\.(\d+)\.(.+)")
        matches = {name: match for name in names if (match := pattern.fullmatch(name))}
        if matches:
            break
    else:
        raise CheckpointError(f"no tensor belongs to a block: none is named {' or '.join(f'{p}.N.…' for p in lists)}")
    present = {int(match[1]) for match in matches.values()}
    missing = sorted(set(range(depth)) - present)
    if missing:
        raise CheckpointError(
            f"the config counts {depth} blocks, but {path}.{missing[0]} has no tensors; files are missing"
        )
    if max(present) >= depth:
        raise CheckpointError(f"the config counts {depth} blocks, but there are tensors of {path}.{max(present)}")
    place = {old: new for new, old in enumerate(keep)}
    renamed = {}
    for name in names:
        match = matches.get(name)
        if match is None:
            renamed[name] = name
        elif int(match[1]) in place:
            renamed[f"{path}.{place[int(match[1])]}.{match[2]}"] = name
    return renamed


def remove(model: BlockSequence, blocks: Plan | Iterable[int]) -> BlockSequence:
    """A shorter model in memory that shares its tensors with `model`, which is untouched.

    Its parameters do not require gradients, since they are the original's too; save and load it to train it.

    Args:
        blocks: what goes: block numbers, or a `Plan`, which the shorter model then records when it is saved.

    Raises:
        SelectionError: those blocks cannot be removed.
    """
    from shortgpt.plan import Plan

    plan = blocks if isinstance(blocks, Plan) else Plan.of(model, blocks)
    if plan.architecture != model.architecture:
        raise ModelError(f"the plan is for the architecture {plan.architecture}, {model.name} is {model.architecture}")
    if plan.depth != len(model):
        raise ModelError(f"the plan is for a model of {plan.depth} blocks, {model.name} has {len(model)}")
    shorter = model.without(plan.blocks)
    shorter.plan = replace(
        plan,
        base=model.plan,
        parameters_before=model.total_parameters(),
        parameters_after=shorter.total_parameters(),
        load=shorter.load_example,
    )
    return shorter


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
