"""A tiny model of random weights for each type of causal language model that transformers knows.

A configuration class says which fields it has. `_SIZES` gives small values to those it has, whatever the type;
`_OVERRIDES` adds what one type needs: sizes that must fit each other, and patterns over the blocks that are
irregular on purpose, so that a removal which forgets to rewrite such a field is caught. The weights are drawn anew
after construction, larger than transformers draws them, so that every block visibly changes the stream.

::

    model = tiny_model("llama", blocks=6)
    logits = model(**tiny_batch("llama", model)).logits
"""

import contextlib
import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4_unified.configuration_gemma4_unified import Gemma4UnifiedTextConfig

if Version(transformers.__version__) < Version("5.23"):
    pytest.skip("tiny models of all types are made for transformers 5.23", allow_module_level=True)

MODEL_TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""The types that transformers' own table of causal language models names."""


class Direct(NamedTuple):
    """How to build a type that AutoModelForCausalLM cannot build."""

    model_class: str
    sub_config: str
    reason: str


_COMPOSITE = "its configuration is the composite's, and the class wants the decoder's, which no Auto class knows"
DIRECT: dict[str, Direct] = {
    "musicgen": Direct("MusicgenForCausalLM", "decoder", _COMPOSITE),
    "musicgen_melody": Direct("MusicgenMelodyForCausalLM", "decoder", _COMPOSITE),
}
"""The types that AutoModelForCausalLM cannot build, with the reason."""

# ---------------------------------------------------------------------------------------------------------------------
# Sizes, for every configuration class that has the field

_COUNTS = """num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers num_decoder_layers
    encoder_layers num_encoder_layers depth"""
"""What the number of blocks is called."""

_SMALL: dict[int, str] = {
    128: """vocab_size decoder_vocab_size vocab_size_per_layer_input max_position_embeddings n_positions n_ctx
        max_seq_len max_target_positions context_length mamba_d_ssm""",
    96: """intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_inner dff dim_ff ffn_hidden_size mlp_dim
        feed_forward_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size
        prefix_dense_intermediate_size""",
    64: """hidden_size d_model n_embd emb_dim embedding_dim word_embed_proj_dim attention_hidden_size lru_width
        max_source_positions adapter_in_dim adapter_out_dim adapter_input_size""",
    32: """moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        expert_ffn_hidden_size moe_shared_expert_intermediate_size backbone_hidden_size
        embedding_size input_embedding_size output_embedding_size
        shape_vocab_size shape_embed_dim pronunciation_vocab_size pronunciation_embed_dim""",
    24: "q_lora_rank",
    16: """head_dim d_head dim_head swa_head_dim attention_head_size kv_channels mamba_head_dim
        kv_lora_rank o_lora_rank qk_nope_head_dim v_head_dim
        index_head_dim index_n_heads indexer_head_dim router_hidden_size local_attention image_size""",
    8: """sliding_window sliding_window_size attention_window_size window_size attention_chunk_size
        local_attention_window_len rotary_dim qk_rope_head_dim
        linear_key_head_dim linear_value_head_dim linear_head_dim mamba_n_heads mamba_num_heads
        chunk_size mamba_chunk_size state_size mamba_d_state ssm_state_size
        hidden_size_per_layer_input laurel_rank hc_lowrank adapter_rank patch_size""",
    4: """num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads
        num_decoder_attention_heads num_encoder_attention_heads attention_heads swa_num_attention_heads
        num_experts n_routed_experts num_local_experts moe_num_experts index_topk indexer_budget
        linear_num_value_heads time_step_rank mamba_dt_rank""",
    3: "altup_num_inputs hc_count hc_mult",
    2: """num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads linear_num_heads
        indexer_n_heads indexer_compress_ratio n_groups o_groups num_experts_per_tok moe_topk moe_k
        zero_expert_num num_codebooks eos_token_id""",
    1: """n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts indexer_kv_heads bos_token_id
        decoder_start_token_id""",
    0: "pad_token_id",
}
_SIZES: dict[str, Any] = {name: size for size, names in _SMALL.items() for name in names.split()}
_SIZES["is_decoder"] = True  # types born as encoders are causal with it alone

# ---------------------------------------------------------------------------------------------------------------------
# What one type needs beside them; a function is called with the number of blocks


def _each(*pattern: Any) -> Callable[[int], list[Any]]:
    """A value for each block: the pattern, over and over."""
    return lambda blocks: [pattern[i % len(pattern)] for i in range(blocks)]


def _words(pattern: str) -> Callable[[int], list[Any]]:
    return _each(*pattern.split())


def _two(usual: str, other: str) -> Callable[[int], list[Any]]:
    """Two kinds of block, in an order that no count, prefix or shorter period says."""
    return _each(usual, other, usual, usual, other, usual)


def _where(*places: int, first: int = 0) -> Callable[[int], list[int]]:
    """The blocks at these places of every six, counted from `first`."""
    return lambda blocks: [i + first for i in range(blocks) if i % 6 in places]


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
HEAVY, SPARSE = "heavily_compressed_attention", "compressed_sparse_attention"
_DENSE_SPARSE = _words("dense sparse sparse dense sparse sparse")
_WINDOWS = {"layer_types": _two(FULL, SLIDING), "use_sliding_window": True}
_THREE_DENSE = {"first_k_dense_replace": 3}
_ROPE_OR_NOT = _each(1, 0, 1, 1, 0, 1)
_ROPE_THETAS = _each(10000.0, 0, 10000.0, 500000.0, 0, 10000.0)
_INDEXERS = _words("full full shared full shared shared")
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
_LAST_THIRD_SHARED = {"num_kv_shared_layers": lambda blocks: blocks // 3}
_ALL_SHARED = {"num_kv_shared_layers": lambda blocks: blocks}
_GEMMA4 = _LAST_THIRD_SHARED | {"global_head_dim": 32}
_BLT_BYTES = {"hidden_size": 32, "hidden_size_global": 64, "num_attention_heads": 2, "intermediate_size": 48}
_UNCLAMPED = {"time_step_min": 1e-6}  # the prompt's time steps are clamped to it, those of cached decoding are not

_OVERRIDES: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 3},
    "bamba": {"attn_layer_indices": _where(1, 4)},
    "big_bird": {"attention_type": "original_full"},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_config": _BLT_BYTES, "decoder_config": _BLT_BYTES},
    "cohere_compass_text": {
        "layer_types": _two(FULL, SLIDING),
        "rope_parameters": {FULL: _SECTIONS, SLIDING: _SECTIONS | {"rope_theta": 500000.0}},
    },
    "cpmant": {"position_bias_num_buckets": 8, "position_bias_max_distance": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _THREE_DENSE,
    "deepseek_v3": _THREE_DENSE,
    "deepseek_v4": {
        "layer_types": _each(SLIDING, HEAVY, SPARSE, SLIDING, SPARSE, HEAVY),
        "mlp_layer_types": _words("hash_moe moe hash_moe moe moe hash_moe"),
        "compress_rates": {SPARSE: 4, HEAVY: 8},
    },
    "dots1": _THREE_DENSE | {"layer_types": _two(FULL, SLIDING)},
    "dots3_note_text": {
        "head_dim": 24,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 8,
    },
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 4},
    "flint": {"mlp_only_layers": _where(0, 4)},
    "gemma3n_text": _LAST_THIRD_SHARED
    | {"intermediate_size": _each(96, 104, 112), "activation_sparsity_pattern": _each(0.5, 0.0, 0.0)},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gemma4_assistant": {
        "text_config": _ALL_SHARED | {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_unified_assistant": {"text_config": _ALL_SHARED},
    "glm4_moe": _THREE_DENSE,
    "glm_moe_dsa": {"indexer_types": _INDEXERS},
    "gpt-sw3": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {"attention_types": _each([["global"], 1], [["local"], 1], [["global"], 1])},
    "granite_swa": {"layer_rope_theta": _ROPE_THETAS},
    "granitemoe_swa": {"layer_rope_theta": _ROPE_THETAS},
    "granitemoehybrid": {"layer_types": _two(LINEAR, FULL)},
    "hunyuan_v1_moe": {"moe_topk": _each(2, 1, 1, 2, 2, 1)},
    "hy_v4": {"indexer_types": _INDEXERS},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "laguna": {
        "layer_types": _two(FULL, SLIDING),
        "mlp_layer_types": _DENSE_SPARSE,
        "num_attention_heads_per_layer": _each(4, 2, 4, 2, 4, 4),
    },
    "lfm2": {"layer_types": _two("conv", FULL)},
    "lfm2_moe": {"layer_types": _two("conv", FULL), "num_dense_layers": 3},
    "lfm3": {"layer_types": _each("conv", SLIDING, FULL, "conv", FULL, SLIDING)},
    "llama4_text": {"no_rope_layers": _ROPE_OR_NOT, "moe_layers": _where(1, 3, 4)},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": _two(FULL, SLIDING), "mlp_layer_types": _DENSE_SPARSE},
    "minimax": {"block_size": 8},
    "minimax_m3_vl_text": {
        "layer_types": _two(FULL, "minimax_m3_sparse"),
        "mlp_layer_types": _DENSE_SPARSE,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "index_n_heads": 2,
    },
    "mllama_text_model": {"cross_attention_layers": _where(1, 4)},
    "moshi": {"sliding_window": 64},  # wider than the inputs: its mask ignores the window, its cache does not
    "nemotron_h": {"layers_block_type": _each(LINEAR, "moe", FULL, "mlp", FULL, LINEAR)} | _UNCLAMPED,
    "qwen2": _WINDOWS,
    "qwen2_moe": _WINDOWS | {"mlp_only_layers": _where(1, 4)},
    "qwen3": _WINDOWS,
    "qwen3_moe": {"mlp_only_layers": _where(1, 4)},
    "qwen3_next": {"mlp_only_layers": _where(0, 4)},
    "qwen4_exp_text": {
        "ple_layer_ids": _where(0, 5, first=1),  # only linear blocks may have one
        "ngram_vocab_size_base": 50,
    },
    "reformer": {
        "attn_layers": _words("local lsh local lsh lsh local"),
        "axial_pos_embds_dim": (32, 32),
        "hash_seed": 0,  # without it every forward hashes differently
    },
    "rwkv": {"rescale_every": 0},  # halving moves the norms' epsilon about, which at these sizes shows
    "smollm3": {"no_rope_layers": _ROPE_OR_NOT, "use_sliding_window": True},
    "xlm": {"causal": True},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": _each(LINEAR, "hybrid", LINEAR, "hybrid", "hybrid", LINEAR),
        "attention_hidden_size": 128,
    },
    "zamba2": {
        "layers_block_type": _each("hybrid", LINEAR, LINEAR, "hybrid", "hybrid", LINEAR),
        "num_key_value_heads": 4,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
    }
    | _UNCLAMPED,
    "zaya": {"layer_types": _two("hybrid", "hybrid_sliding"), "num_experts_per_tok": 1},
}

_STREAM_PARTS = ("text_config", "decoder", "global_config")
"""The sub-configurations that describe the blocks; the others are towers of two."""


def tiny_config(model_type: str, blocks: int = 6) -> PreTrainedConfig:
    """The configuration of a tiny model of that type."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**copy.deepcopy(_settings(config_class, model_type, blocks)))  # some write into what they get


def _settings(config_class: Any, model_type: str, blocks: int) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(config_class)}
    settings = dict.fromkeys(_COUNTS.split(), blocks) | _SIZES | _patterns(config_class, blocks)
    if "kv_lora_rank" in fields:  # latent attention has no groups
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings = {name: value for name, value in settings.items() if name in fields}
    for key, part in config_class.sub_configs_defaults.items():
        part_class = CONFIG_MAPPING[part.model_type] if part.config_class is AutoConfig else part.config_class
        part_blocks = blocks if key in _STREAM_PARTS else 2
        settings[key] = {"model_type": part.model_type} | _settings(part_class, part.model_type, part_blocks)
    return _merged(settings, _OVERRIDES.get(model_type, {}), blocks)


def _patterns(config_class: Any, blocks: int) -> dict[str, Any]:
    """Irregular patterns of the two kinds of block, or of feed-forward, that the class's defaults mix."""
    patterns: dict[str, Any] = {}
    if not {"layer_types", "mlp_layer_types"} & {field.name for field in dataclasses.fields(config_class)}:
        return patterns
    default = vars(config_class())
    kinds = [kind for kind, _ in Counter(default.get("layer_types") or ()).most_common()]
    if len(kinds) == 2:
        patterns["layer_types"] = _two(*kinds)(blocks)
    if {*(default.get("mlp_layer_types") or ())} == {"dense", "sparse"}:
        patterns["mlp_layer_types"] = _DENSE_SPARSE(blocks)
    return patterns


def _merged(settings: dict[str, Any], overrides: dict[str, Any], blocks: int) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in overrides.items():
        if callable(value):
            merged[name] = value(blocks)
        elif isinstance(value, dict) and name in settings:
            merged[name] = _merged(settings[name], value, blocks)
        else:
            merged[name] = value
    return merged


# ---------------------------------------------------------------------------------------------------------------------
# Models


class _NoTower(PreTrainedModel):
    """Stands for Gemma 3n's vision tower, which needs the package timm, and which text never reaches."""

    config_class = Gemma3nVisionConfig
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_init()


def _all_may_share(upstream: property) -> property:
    """`kv_sharing_modes` that also answers where no block is left to produce keys and values."""

    def modes(config: Any) -> list[str | None]:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        found: list[str | None] = upstream.__get__(config)
        return found

    return property(modes)


@contextlib.contextmanager
def upstream_mended() -> Iterator[None]:
    """Within it transformers can build and load every type.

    Two defects: the assistants of Gemma 4 take all keys and values from the model they assist, and their
    configuration refuses just that; Gemma 3n's vision tower needs a package that is not here.
    """
    with contextlib.ExitStack() as stack:
        for config_class in (Gemma4TextConfig, Gemma4UnifiedTextConfig):
            mended = _all_may_share(config_class.kv_sharing_modes)
            stack.enter_context(mock.patch.object(config_class, "kv_sharing_modes", mended))
        towers = AutoModel._model_mapping._extra_content  # what AutoModel.register fills
        stack.enter_context(mock.patch.dict(towers, {Gemma3nVisionConfig: _NoTower}))
        yield


def tiny_model(model_type: str, blocks: int = 6, seed: int = 0) -> PreTrainedModel:
    """A tiny model of that type, float32, whose blocks all change the stream; the same for the same seed."""
    config = tiny_config(model_type, blocks)
    with torch.random.fork_rng(devices=[]), upstream_mended():
        torch.manual_seed(seed)
        if model_type in DIRECT:
            direct = DIRECT[model_type]
            model_class = getattr(transformers, direct.model_class)
            model = model_class._from_config(getattr(config, direct.sub_config), dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model)
    return model.eval()


_LEARNED_BUFFERS = ("balancing_biases", "e_score_correction_bias", "expert_bias", "layer_scalar")
"""State of a block that training sets though it is no parameter."""


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw matrices so that they keep a vector's length, and shift what is per channel."""
    seen = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter in seen or not parameter.is_floating_point():
                continue
            seen.add(parameter)
            noise = torch.randn(parameter.shape)
            if parameter.ndim < 2:
                shut = parameter.numel() == 1 and not parameter.any()  # a gate that training has yet to open
                parameter.add_(0.1 * noise + 0.5 * shut)
            elif isinstance(module, nn.Embedding):
                parameter.copy_(0.7 * noise)
            else:
                convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
                inputs = math.prod(parameter.shape[1:]) if convolution else max(parameter.shape[1:])
                parameter.copy_(noise / math.sqrt(inputs))
        for name, buffer in module.named_buffers(recurse=False):
            if name in _LEARNED_BUFFERS:
                buffer.add_(0.1 * torch.randn(buffer.shape))
            elif name == "tid2eid":  # for each token, the experts that it is sent to
                buffer.copy_(torch.rand(len(buffer), 4).argsort()[:, : buffer.shape[1]])
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0  # as torch has it; some types do so again when they load


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def tiny_batch(model_type: str, model: Any, seed: int = 0, rows: int = 2, tokens: int = 20) -> dict[str, Any]:
    """Keyword inputs of the model's forward: token ids, [rows, tokens], and what else the type asks for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 90, (rows, tokens), generator=generator)
    if model_type in _INPUTS:
        return _INPUTS[model_type](model, ids, generator)
    return {"input_ids": ids}


def _assistant_inputs(model: Any, ids: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """One drafted position on top of the keys and values of the assisted model, as assisted generation asks for it."""
    rows, tokens = ids.shape
    config = model.config.get_text_config()

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shared = {}
    for kind in sorted({*config.layer_types}):
        of_kind = config.per_layer_config[kind]
        shape = (rows, of_kind.num_key_value_heads, tokens, of_kind.head_dim)
        shared[kind] = (drawn(*shape), drawn(*shape))
    return {
        "inputs_embeds": drawn(rows, 1, 2 * model.config.backbone_hidden_size),
        "shared_kv_states": shared,
        "position_ids": torch.full((rows, 1), tokens),
    }


def _music_inputs(model: Any, ids: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """A row for each codebook."""
    return {"input_ids": ids.repeat_interleave(model.config.num_codebooks, 0)}


def _sung_inputs(model: Any, ids: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """A row for each codebook, and the encoded text to follow."""
    encoded = torch.randn(len(ids), 5, model.config.hidden_size, generator=generator)
    mask = torch.ones(len(ids), 5, dtype=torch.long)
    return _music_inputs(model, ids, generator) | {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}


def _seen_inputs(model: Any, ids: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """An encoded image; without one the blocks that attend to it skip themselves."""
    width = model.config.get_text_config().hidden_size
    return {"input_ids": ids, "cross_attention_states": torch.randn(len(ids), 6, width, generator=generator)}


_INPUTS: dict[str, Callable[[Any, Tensor, torch.Generator], dict[str, Any]]] = {
    "blt": lambda model, ids, generator: {"input_ids": ids, "use_cache": False},  # its cache asks for a missing field
    "gemma4_assistant": _assistant_inputs,
    "gemma4_unified_assistant": _assistant_inputs,
    "mllama": _seen_inputs,
    "musicgen": _sung_inputs,
    "musicgen_melody": _music_inputs,
}
