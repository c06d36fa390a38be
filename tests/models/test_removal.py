"""The rewrite of config and names, rule by rule; and a shorter model in memory."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import shortgpt
from shortgpt.basics.block_lists import format_blocks, kept_blocks, parse_blocks
from shortgpt.errors import CheckpointError, ConfigRewriteError, ModelError, SelectionError
from shortgpt.models.configs.rules import COUNTS, Rule, depth_of, rewrite_config
from shortgpt.models.renaming import rename_blocks
from tests.support import SIZES, ids_of, skipped_by_hand, tiny

KEEP, DEPTH = (0, 2, 3, 5), 6  # of six blocks, 1 and 4 go


def rewritten(**fields: Any) -> dict[str, Any]:
    config = {"num_hidden_layers": DEPTH, **fields}
    before = dict(config)
    after = rewrite_config(config, KEEP, DEPTH)
    assert config == before, "the config that is rewritten stays as it is"
    assert after.pop("num_hidden_layers") == 4
    return after


# -- the config: a rule for each kind of field ----------------------------------------------------------------


@pytest.mark.parametrize("field", COUNTS)
def test_the_number_of_blocks_is_counted_anew(field: str) -> None:
    assert rewrite_config({field: DEPTH}, KEEP, DEPTH) == {field: 4}


def test_a_second_count_that_says_something_else_is_an_error() -> None:
    with pytest.raises(ConfigRewriteError, match=r"'n_layers' \(value 12\).*it counts 12, the model has 6"):
        rewritten(n_layers=12)


@pytest.mark.parametrize(
    "field",
    [
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
    ],
)
def test_a_list_with_an_entry_a_block_keeps_those_of_the_blocks_that_stay(field: str) -> None:
    assert rewritten(**{field: ["a", "b", "c", "d", "e", "f"]}) == {field: ["a", "c", "d", "f"]}


@pytest.mark.parametrize("length", [5, 7])
def test_such_a_list_of_another_length_is_an_error(length: int) -> None:
    with pytest.raises(ConfigRewriteError, match=f"'layer_types'.*it has {length} entries for 6 blocks"):
        rewritten(layer_types=["full"] * length)


@pytest.mark.parametrize("field", ["intermediate_size", "moe_topk", "activation_sparsity_pattern"])
def test_one_value_for_all_blocks_stays(field: str) -> None:
    assert rewritten(**{field: 64}) == {field: 64}
    assert rewritten(**{field: None}) == {field: None}


@pytest.mark.parametrize("key", [str, int])
def test_a_mapping_from_block_numbers_is_renumbered(key: type) -> None:
    value = {key(1): "gone", key(2): "two", key(5): "five"}
    assert rewritten(per_layer_config=value) == {"per_layer_config": {"1": "two", "3": "five"}}


@pytest.mark.parametrize("field", ["moe_layers", "attn_layer_indices", "cross_attention_layers", "attn_layer_idx"])
def test_a_list_of_block_numbers_is_renumbered(field: str) -> None:
    assert rewritten(**{field: [1, 2, 5]}) == {field: [1, 3]}
    assert rewritten(**{field: []}) == {field: []}


def test_numbers_that_are_padded_to_one_width_stay_so() -> None:
    keep = [i for i in range(12) if i not in (0, 2)]
    before = {"per_layer_config": {"05": "a", "10": "b", "11": "c"}}
    assert rewrite_config(before, keep, 12) == {"per_layer_config": {"3": "a", "8": "b", "9": "c"}}
    assert rewrite_config(before, keep[1:], 13)["per_layer_config"] == {"2": "a", "7": "b", "8": "c"}
    assert rewrite_config(before, range(1, 12), 12)["per_layer_config"] == {"04": "a", "09": "b", "10": "c"}
    assert rewrite_config({"per_layer_config": {"5": "a", "11": "c"}}, range(12), 12)["per_layer_config"].keys() == {
        "5",
        "11",
    }


def test_block_numbers_that_begin_with_1_stay_so() -> None:
    assert rewritten(ple_layer_ids=[1, 2, 3, 6]) == {"ple_layer_ids": [1, 2, 4]}


@pytest.mark.parametrize("field", ["first_k_dense_replace", "num_dense_layers"])
@pytest.mark.parametrize(("threshold", "stays"), [(0, 0), (1, 1), (2, 1), (4, 3), (6, 4)])
def test_a_threshold_counts_the_blocks_before_it_that_stay(field: str, threshold: int, stays: int) -> None:
    assert rewritten(**{field: threshold}) == {field: stays}


@pytest.mark.parametrize("field", ["num_nextn_predict_layers", "num_mtp_layers"])
def test_prediction_heads_behind_the_last_block_are_dropped(field: str) -> None:
    assert rewritten(**{field: 1}) == {field: 0}


def test_fields_that_only_sound_like_blocks_stay() -> None:
    fields = {
        "layer_norm_eps": 1e-5,
        "layerdrop": 0.1,
        "residual_in_fp32": True,
        "output_hidden_states": False,
        "max_window_layers": 21,
        "scale_attn_by_inverse_layer_idx": True,
        "vocab_size": 6,
        "hidden_size": 6,
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "rope_parameters": {"rope_type": "default"},
        "id2label": {"0": "a", "1": "b"},
        "use_layer_scale": True,
    }
    assert rewritten(**fields) == fields


@pytest.mark.parametrize(
    ("pattern", "written_out"),
    [
        ("sliding_window_pattern", "layer_types"),
        ("layer_group_size", "layer_types"),
        ("no_rope_layer_interval", "no_rope_layers"),
        ("interleave_moe_layer_step", "moe_layers"),
    ],
)
def test_a_pattern_is_left_alone_only_where_the_list_made_of_it_stands_beside_it(
    pattern: str, written_out: str
) -> None:
    assert rewritten(**{pattern: 2, written_out: [0, 1, 2, 3, 4, 5]})[pattern] == 2
    with pytest.raises(ConfigRewriteError, match=f"'{pattern}'.*the config does not hold {written_out}"):
        rewritten(**{pattern: 2})


def test_a_shared_index_mask_needs_a_block_before_it_that_makes_one() -> None:
    kinds = ["full", "full", "shared", "full", "shared", "shared"]
    assert rewritten(indexer_types=kinds) == {"indexer_types": ["full", "shared", "full", "shared"]}
    with pytest.raises(ConfigRewriteError, match=r"'indexer_types'.*share the index mask of one that is gone"):
        rewrite_config({"indexer_types": kinds}, (2, 3, 4, 5), 6)


def test_a_step_and_its_exceptions_become_a_list() -> None:
    # Of the blocks 0 to 5, 1, 3 and 5 are at a multiple of the step, and 3 is an exception; 0, 2, 3 and 5 stay.
    fields = {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert rewritten(**fields) == {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 2]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # 1 to 4 are sparse: of the blocks that stay, 2 and 3, now 1 and 2.
        ((1, 4, 1), {1, 2}),
        # 1, 3 and 5 are sparse: of the blocks that stay, 3 and 5, now 2 and 3.
        ((0, -1, 2), {2, 3}),
        # none
        ((6, 6, 1), set()),
    ],
)
def test_a_range_with_an_interval_is_solved_for_the_blocks_that_stay(
    fields: tuple[int, int, int], expected: set[int]
) -> None:
    names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
    start, end, interval = (rewritten(**dict(zip(names, fields, strict=True)))[name] for name in names)
    assert {j for j in range(4) if (j + 1) % interval == 0 and start <= j <= end} == expected


def test_a_range_that_cannot_be_solved_is_refused() -> None:
    # 1, 3 and 5 are sparse, and all but 2 stay: the numbers 1, 2 and 4 are no range with an interval.
    fields = {"moe_layer_start_index": 0, "moe_layer_end_index": 5, "moe_layer_interval": 2}
    with pytest.raises(ConfigRewriteError, match="no range with an interval"):
        rewrite_config(fields, (0, 1, 3, 4, 5), 6)


@pytest.mark.parametrize("kind", ["attn", "expert"])
def test_a_period_is_solved_for_the_blocks_that_stay_or_refused(kind: str) -> None:
    names = (f"{kind}_layer_period", f"{kind}_layer_offset")
    # Every third block from 1 on, of 6: 1 and 4.
    for keep, places in (((0, 1, 4, 5), {1, 2}), ((1, 2, 3, 4), {0, 3}), ((0, 2, 3), set()), ((1, 4), {0, 1})):
        try:
            period, offset = (rewrite_config({names[0]: 3, names[1]: 1}, keep, 6)[name] for name in names)
        except ConfigRewriteError as error:
            assert keep == (0, 1, 4, 5) and "do not repeat with a period" in str(error)  # noqa: PT017, PT018
        else:
            assert {j for j in range(len(keep)) if j % period == offset} == places
    assert rewritten(layers_block_type=list("abcabc"), **{names[0]: 3, names[1]: 1})[names[0]] == 3


def test_a_sequence_in_runs_or_in_a_cycle_is_written_out() -> None:
    runs = {"attention_types": [[["a", "b"], 2], [["c"], 2]]}  # a b a b c c, of which 0, 2, 3 and 5 stay
    assert rewritten(**runs) == {"attention_types": [[["a"], 1], [["a"], 1], [["b"], 1], [["c"], 1]]}
    assert rewritten(block_types=["a", "b", "c", "d"]) == {"block_types": ["a", "c", "d", "b"]}


def test_an_adapters_own_rule_comes_first() -> None:
    rule = Rule("doubled", lambda value, blocks: 2 * value)
    assert rewrite_config({"layer_types": ["a"]}, KEEP, 6, {"layer_types": rule}) == {"layer_types": ["a", "a"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_scales", [1, 2]),
        ("block_sizes", [1, 2]),
        ("something", [1, 2, 3, 4, 5, 6]),
        ("num_layers_before_attention", 2),
        ("shared_depth", 3),
        ("something", {"0": "a", "3": "b"}),
        ("something", [0, 5]),
        ("something", [[2], [3, 1]]),
        ("something", {"else": {"idx": [4, 1, 2]}}),
        ("moe_layer_freq", 2),
    ],
)
def test_a_field_that_looks_like_blocks_and_that_no_rule_explains_is_an_error_that_names_it(
    field: str, value: Any
) -> None:
    with pytest.raises(
        ConfigRewriteError, match=f"config field '{field}'.*(no rule says how|every 2th block is meant)"
    ):
        rewritten(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("something", [3]),
        ("something", [1, 1]),
        ("something", [0, 6]),
        ("something", [-1, 2]),
        ("something", [True, False]),
        ("something", [0.0, 1.0]),
        ("rope_parameters", {"mrope_section": [1, 2, 3]}),
        ("audio_config", {"model_type": "tower", "blocks": [1, 2]}),
        ("eos_token_id", [0, 2]),
    ],
)
def test_lists_that_cannot_be_block_numbers_or_are_known_not_to_be_stay(field: str, value: Any) -> None:
    assert rewritten(**{field: value}) == {field: value}


def test_a_field_that_no_rule_fits_stays_where_it_is_never_read() -> None:
    asked: list[str] = []

    def is_read(field: str) -> bool:
        asked.append(field)
        return field == "num_layers"

    config = {"n_layer": 6, "layer_types": [1, 2], "something": [0, 5], "attn_layer_period": 3, "attn_layer_offset": 1}
    assert rewrite_config(config, (0, 1, 4, 5), 6, is_read=is_read) == config | {"n_layer": 4}
    assert set(asked) == set(config) - {"n_layer"}
    with pytest.raises(ConfigRewriteError, match=r"'num_layers'.*counts 7"):
        rewrite_config({"num_layers": 7}, (0, 1), 6, is_read=is_read)


def test_the_depth_is_read_from_the_first_count_there_is() -> None:
    assert depth_of({"n_layer": 12, "hidden_size": 3}) == 12
    with pytest.raises(CheckpointError, match="names no number of blocks"):
        depth_of({"hidden_size": 3})


# -- the names ------------------------------------------------------------------------------------------------


def names(path: str, blocks: int = 3) -> list[str]:
    return ["embed.weight", *(f"{path}.{i}.{w}" for i in range(blocks) for w in ("q.weight", "q.bias")), "norm.weight"]


def test_blocks_are_renumbered_and_all_else_keeps_its_name() -> None:
    assert rename_blocks(names("model.layers"), ("model.layers",), 3, (0, 2)) == {
        "embed.weight": "embed.weight",
        "model.layers.0.q.weight": "model.layers.0.q.weight",
        "model.layers.0.q.bias": "model.layers.0.q.bias",
        "model.layers.1.q.weight": "model.layers.2.q.weight",
        "model.layers.1.q.bias": "model.layers.2.q.bias",
        "norm.weight": "norm.weight",
    }


def test_no_name_is_renamed_twice_when_blocks_move_up_by_more_than_one() -> None:
    renamed = rename_blocks([f"h.{i}.w" for i in range(12)], ("h",), 12, (0, 3, 10, 11))
    assert renamed == {"h.0.w": "h.0.w", "h.1.w": "h.3.w", "h.2.w": "h.10.w", "h.3.w": "h.11.w"}


def test_a_base_models_checkpoint_has_no_prefix() -> None:
    renamed = rename_blocks(names("h"), ("transformer.h", "h"), 3, (1, 2))
    assert renamed["h.0.q.weight"] == "h.1.q.weight"


def test_other_modules_numbered_lists_are_left_alone() -> None:
    mixed = [*names("model.layers"), "vision.layers.0.w", "vision.layers.1.w", "vision.model.layers.2.w"]
    renamed = rename_blocks(mixed, ("model.layers",), 3, (2,))
    assert {n: o for n, o in renamed.items() if n.startswith("vision")} == {n: n for n in mixed[-3:]}


def test_a_block_without_tensors_is_an_error_that_names_it() -> None:
    lacking = [name for name in names("layers") if not name.startswith("layers.1.")]
    with pytest.raises(CheckpointError, match=r"counts 3 blocks, but layers\.1 has no tensors"):
        rename_blocks(lacking, ("layers",), 3, (0, 2))


def test_a_block_that_the_config_does_not_count_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"counts 3 blocks, but there are tensors of layers\.3"):
        rename_blocks(names("layers", 4), ("layers",), 3, (0, 2))


def test_tensors_of_no_block_at_all_are_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"no tensor belongs to a block: none is named a\.b\.N\.… or c\.N\.…"):
        rename_blocks(["embed.weight"], ("a.b", "c"), 3, (0,))


# -- which blocks may go --------------------------------------------------------------------------------------


def test_lists_of_blocks_are_read_and_written() -> None:
    assert parse_blocks("21-23, 31,3") == (3, 21, 22, 23, 31)
    assert parse_blocks("4") == (4,)
    assert format_blocks((31, 21, 22, 23, 3)) == "3, 21-23, 31"
    assert format_blocks(()) == "none"


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "1.5", "1;2"])
def test_what_is_no_list_of_blocks_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="is not a list of blocks"):
        parse_blocks(text)


def test_blocks_named_twice_go_once() -> None:
    assert kept_blocks(4, [1, 1, 3], {}) == (0, 2)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([4, 7], "blocks 4, 7 do not exist: the model has 4 blocks, numbered 0 to 3"),
        ([-1], "do not exist"),
        ([0, 1], r"pinned blocks cannot be removed \(block 1: it says so\)"),
    ],
)
def test_blocks_that_may_not_go_are_told_with_the_reason(blocks: list[int], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        kept_blocks(4, blocks, {1: "it says so"})


def test_at_least_one_block_must_stay() -> None:
    with pytest.raises(SelectionError, match="all 4 blocks were asked for; at least one must stay"):
        kept_blocks(4, range(4), {})


# -- in memory ------------------------------------------------------------------------------------------------

PATHS = {"llama": "model.layers", "gpt2": "transformer.h", "openai-gpt": "transformer.h", "mamba": "backbone.layers"}


@pytest.mark.parametrize("name", PATHS)
@torch.no_grad()
def test_a_shorter_model_equals_skipping_exactly(name: str) -> None:
    model, ids = tiny(name), ids_of()
    shorter = shortgpt.remove(shortgpt.wrap(model), [0, 3])
    assert len(shorter) == 4
    expected = skipped_by_hand(model, PATHS[name], [0, 3], ids)
    assert torch.equal(shorter.logits({"input_ids": ids}), expected)


def test_what_skipping_gives_is_what_a_hook_by_hand_gives() -> None:
    model, ids = tiny("llama"), ids_of()
    wrapped = shortgpt.wrap(model)
    with wrapped.skipping([1, 5]):
        skipped = wrapped.logits({"input_ids": ids})
    assert torch.equal(skipped, skipped_by_hand(model, "model.layers", [1, 5], ids))


def test_the_original_is_untouched_and_shares_its_tensors() -> None:
    model, ids = tiny("llama"), ids_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    shorter: Any = shortgpt.remove(shortgpt.wrap(model), [2])
    shorter.logits({"input_ids": ids})
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    mine, theirs = model.state_dict(), shorter.model.state_dict()
    assert (
        theirs["model.layers.2.mlp.up_proj.weight"].data_ptr() == mine["model.layers.3.mlp.up_proj.weight"].data_ptr()
    )
    assert theirs["model.norm.weight"].data_ptr() == mine["model.norm.weight"].data_ptr()


def test_cache_slots_are_numbered_anew() -> None:
    shorter: Any = shortgpt.remove(shortgpt.wrap(tiny("llama")), [0, 2])
    assert [layer.self_attn.layer_idx for layer in shorter.model.model.layers] == [0, 1, 2, 3]
    assert shorter.model.config.num_hidden_layers == 4


def test_blocks_can_be_removed_from_a_shorter_model() -> None:
    model, ids = tiny("llama"), ids_of()
    once = shortgpt.remove(shortgpt.wrap(model), [1])
    twice = shortgpt.remove(once, [1])  # the original's block 2
    expected = skipped_by_hand(model, "model.layers", [1, 2], ids)
    assert torch.equal(twice.logits({"input_ids": ids}), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_exact_too(dtype: torch.dtype) -> None:
    model, ids = tiny("llama").to(dtype), ids_of()
    shorter = shortgpt.remove(shortgpt.wrap(model), [1, 4])
    assert torch.equal(shorter.logits({"input_ids": ids}), skipped_by_hand(model, "model.layers", [1, 4], ids))


def test_the_attention_implementation_and_the_generation_config_are_kept() -> None:
    model = tiny("llama", attn_implementation="eager")
    model.generation_config.top_k = 7
    shorter: Any = shortgpt.remove(shortgpt.wrap(model), [1])
    assert shorter.model.config._attn_implementation == "eager"
    assert shorter.model.generation_config.top_k == 7
    assert shorter.model.generation_config is not model.generation_config


def test_a_plan_is_recorded_and_must_fit_the_depth() -> None:
    model = shortgpt.wrap(tiny("llama"))
    plan = shortgpt.score(model, [{"input_ids": ids_of()}]).plan(2)
    shorter = shortgpt.remove(model, plan)
    assert shorter.plan is not None
    assert (shorter.plan.blocks, shorter.plan.scores) == (plan.blocks, plan.scores)
    assert shorter.plan.parameters_before == sum(p.numel() for p in tiny("llama").parameters())
    assert shorter.plan.parameters_after == shorter.total_parameters()
    with pytest.raises(ModelError, match=r"the plan is for a model of 6 blocks, .* has 4"):
        shortgpt.remove(shorter, plan)


def test_a_compiled_or_adapted_or_offloaded_model_is_refused_with_the_way_out() -> None:
    for change in ("_orig_mod", "peft_config"):
        model = tiny("llama", blocks=2)
        object.__setattr__(model, change, True)
        with pytest.raises(ModelError, match="shortgpt prune"):
            shortgpt.remove(shortgpt.wrap(model), [1])
    offloaded = tiny("llama", blocks=2)
    offloaded.model.layers[1].to("meta")
    with pytest.raises(ModelError, match="offloaded"):
        shortgpt.remove(shortgpt.wrap(offloaded), [1])


def test_a_model_changed_by_hand_is_refused() -> None:
    model = tiny("llama")
    del model.model.layers[2]
    with pytest.raises(ModelError, match="the config counts 6 blocks, the model has 5"):
        shortgpt.wrap(model)


def test_the_families_of_the_tests_are_all_known() -> None:
    for name in SIZES:
        assert shortgpt.wrap(tiny(name, blocks=2)).architecture == name


# -- how blocks are named -------------------------------------------------------------------------------------


def skip(model: shortgpt.BlockSequence, blocks: Any) -> None:
    with model.skipping(blocks):
        pass


@pytest.mark.parametrize("named", [3, "3", "1,2", [1.5], [True, False], torch.tensor([True, False]), None, [[1]]])
def test_blocks_that_are_not_named_by_whole_numbers_are_refused(named: Any, llama_folder: Path, tmp_path: Path) -> None:
    model = shortgpt.wrap(tiny("llama"))
    for use in (
        lambda: shortgpt.remove(model, named),
        lambda: shortgpt.effect(model, named, sequences=1),
        lambda: shortgpt.verify(model, llama_folder, named),
        lambda: shortgpt.prune_checkpoint(llama_folder, tmp_path / "out", named),
        lambda: skip(model, named),
    ):
        with pytest.raises(SelectionError, match=r"blocks are named by whole numbers, such as \[21, 22\], found "):
            use()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [torch.tensor([4, 1]), numpy.array([1, 4]), (n for n in (4, 1, 4)), {1, 4}])
def test_blocks_may_be_named_by_integers_of_any_library(named: Any) -> None:
    plan = shortgpt.remove(shortgpt.wrap(tiny("llama")), named).plan
    assert plan is not None
    assert plan.blocks == (1, 4)
    assert [type(block) for block in plan.blocks] == [int, int]


@pytest.mark.parametrize("block", [-1, 6])
def test_blocks_that_do_not_exist_cannot_be_skipped_or_verified(block: int, llama_folder: Path) -> None:
    model = shortgpt.wrap(tiny("llama"))
    for use in (lambda: skip(model, [block]), lambda: shortgpt.verify(model, llama_folder, [block])):
        with pytest.raises(SelectionError, match=f"blocks {block} do not exist: the model has 6 blocks"):
            use()


@pytest.mark.parametrize("model", ["zoo:llama", tiny("llama")])
def test_what_was_not_opened_is_refused_with_what_opens_it(model: Any) -> None:
    with pytest.raises(ModelError, match=r"in place of a shortgpt.BlockSequence; open it with shortgpt.load\(NAME\)"):
        shortgpt.remove(model, [1])


def test_one_model_may_be_compared_with_none() -> None:
    alone = shortgpt.compare(shortgpt.wrap(tiny("llama"), name="alone"), [{"input_ids": ids_of()}])
    assert [row.model for row in alone.rows] == ["alone"]
