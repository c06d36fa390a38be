"""Opens a folder in mamba-ssm's format: with the library itself, or, where that does not run, through transformers.

::

    config.json, pytorch_model.bin ──▶ does the library run such a model here?
                                        ├─ yes ─▶ MambaLMHeadModel.from_pretrained
                                        └─ no ──▶ MambaForCausalLM, Mamba2ForCausalLM: one tensor renamed,
                                                  options translated, and those they lack refused by name

The adapter opens models with it, and verification does, in a fresh process.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.mamba2 import modeling_mamba2

from shortgpt.basics.inputs import Config
from shortgpt.checkpoints import torch_files
from shortgpt.errors import CheckpointError, ModelError
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.verbosity import quiet

WEIGHTS = "pytorch_model.bin"
DEFAULTS: Config = {
    "d_model": 2560,
    "d_intermediate": 0,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
"""Those of mamba_ssm.models.config_mamba.MambaConfig, which cannot be imported where the kernels are missing."""


# -- config and files -----------------------------------------------------------------------------------------


def resolved(config: Mapping[str, Any], name: str) -> Config:
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise CheckpointError(f"{name}: the config has fields that mamba-ssm does not know ({', '.join(unknown)})")
    full = DEFAULTS | {field: value for field, value in config.items() if value is not None}
    return full | {"attn_layer_idx": list(full["attn_layer_idx"])}


def stored_tensors(directory: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    return torch_files.load(directory / WEIGHTS, mapped=mapped)


def brief(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# -- loading --------------------------------------------------------------------------------------------------


def load_model(directory: Path, config: Config, device: str, dtype: str) -> nn.Module:
    """The model, by the library's own `from_pretrained`, or, where the library cannot run it, through transformers.

    Raises:
        ModelError: it runs neither way.
    """
    reason = why_not(config, device)
    stored = stored_tensors(directory, mapped=True)["backbone.embedding.weight"].dtype
    opened_in = stored if dtype == "auto" else getattr(torch, dtype)
    if reason is None:
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

        return MambaLMHeadModel.from_pretrained(str(directory), device=device, dtype=opened_in).eval()
    way_out = (
        "run it on a CUDA device with mamba-ssm's kernels: pip install 'shortgpt-blocks[mamba]' "
        "(to prune its folder with --no-verify takes neither)"
    )
    lacking = not_in_transformers(config)
    if lacking:
        raise ModelError(
            f"mamba-ssm does not run this model on {device} ({reason}), and transformers' Mamba has no "
            f"{', no '.join(lacking)}; {way_out}"
        )
    tensors = stored_tensors(directory)
    if dtype != "auto":  # the library keeps A and D in float32 whatever Mamba's other tensors are in
        tensors = {
            name: t.float() if name.endswith(("A_log", ".D")) else t.to(opened_in) for name, t in tensors.items()
        }
    model = through_transformers(config, {name: tensor.to(device) for name, tensor in tensors.items()})
    try:
        with quiet(), torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=device))
    except Exception as error:
        raise ModelError(
            f"mamba-ssm does not run on {device} ({reason}), and transformers' Mamba, which takes the kernels of "
            f"mamba-ssm wherever they are installed, fails there too ({brief(error)}); {way_out}"
        ) from error
    return model


def why_not(config: Config, device: str) -> str | None:
    """Why the library cannot run such a model on this device, or None where it can.

    It is asked by running: the kernels, Triton, causal-conv1d for Mamba 2 and flash-attn for rotary embeddings can be
    missing, be built for another torch, or not take this device, each with an error of its own. Two blocks without
    values are enough, one of each kind that the model has.
    """
    try:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

        few = config | {"n_layer": 2, "vocab_size": 8, "attn_layer_idx": [1] if config["attn_layer_idx"] else []}
        model = MambaLMHeadModel(MambaConfig(**few), device="meta").to_empty(device=device)
        with torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=device))
    except Exception as error:
        return brief(error)
    return None


# -- transformers ---------------------------------------------------------------------------------------------

SAME: dict[str, dict[str, tuple[str, Any]]] = {
    "Mamba1": {
        "d_state": ("state_size", 16),
        "d_conv": ("conv_kernel", 4),
        "expand": ("expand", 2),
        "dt_rank": ("time_step_rank", "auto"),
        "conv_bias": ("use_conv_bias", True),
        "bias": ("use_bias", False),
    },
    "Mamba2": {
        "d_state": ("state_size", 128),
        "d_conv": ("conv_kernel", 4),
        "expand": ("expand", 2),
        "headdim": ("head_dim", 64),
        "ngroups": ("n_groups", 1),
        "chunk_size": ("chunk_size", 256),
        "dt_limit": ("time_step_limit", (0.0, float("inf"))),
        "conv_bias": ("use_conv_bias", True),
        "bias": ("use_bias", False),
    },
}
"""Option in `ssm_cfg` → its name in transformers, and mamba-ssm's default (those of transformers are others)."""

FIXED = {"D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "d_ssm": None}
"""Options for which transformers has this one value."""

WITHOUT_EFFECT = frozenset(
    {"layer", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init", "A_init_range"}
    | {"use_fast_path", "use_mem_eff_path", "sequence_parallel", "process_group"}
)
"""Options of the random start, and of how to compute the same."""


def not_in_transformers(config: Config) -> list[str]:
    """The options of a config that transformers' Mamba and Mamba 2 do not have."""
    options = config["ssm_cfg"]
    layer = options.get("layer", "Mamba1")
    lacking = []
    if config["attn_layer_idx"]:
        lacking.append(f"attention blocks (attn_layer_idx={config['attn_layer_idx']})")
    if config["d_intermediate"]:
        lacking.append(f"MLP (d_intermediate={config['d_intermediate']})")
    if not config["rms_norm"]:
        lacking.append("LayerNorm (rms_norm=False)")
    if options.get("ngroups", 1) > 1 and not _norms_by_group():
        lacking.append(f"norm by group (ssm_cfg ngroups={options['ngroups']}), which newer versions have")
    if layer not in SAME:
        return [*lacking, f"ssm_cfg layer={layer!r}"]
    for option, value in options.items():
        known = option in SAME[layer] or option in WITHOUT_EFFECT or (option in FIXED and value == FIXED[option])
        if not known or (option == "expand" and value != int(value)):
            lacking.append(f"ssm_cfg {option}={value!r}")
    return lacking


def _norms_by_group() -> bool:
    """Whether transformers' Mamba 2 norms each group by itself, as mamba-ssm does; once it took all as one."""
    return "group_size" in inspect.signature(modeling_mamba2.MambaRMSNormGated).parameters


def through_transformers(config: Config, tensors: Mapping[str, Tensor]) -> Any:
    """transformers' model of that config, with those very tensors; it remembers the config."""
    layer = config["ssm_cfg"].get("layer", "Mamba1")
    options: Config = {theirs: config["ssm_cfg"].get(ours, default) for ours, (theirs, default) in SAME[layer].items()}
    options["expand"] = int(options["expand"])
    if layer == "Mamba2":
        options["num_heads"] = options["expand"] * config["d_model"] // options["head_dim"]
        options["time_step_limit"] = tuple(map(float, options["time_step_limit"]))
    multiple = config["pad_vocab_size_multiple"]
    described = AutoConfig.for_model(
        layer.removesuffix("1").lower(),
        vocab_size=-(-config["vocab_size"] // multiple) * multiple,
        hidden_size=config["d_model"],
        num_hidden_layers=config["n_layer"],
        layer_norm_epsilon=1e-5,
        residual_in_fp32=config["residual_in_fp32"],
        tie_word_embeddings=config["tie_embeddings"],
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # the format names none
        **options,
    )
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described)
    model.mamba_ssm_config = config
    return filled(model, {in_transformers(name): tensor for name, tensor in tensors.items()})


def in_transformers(name: str) -> str:
    return name.replace("backbone.embedding.", "backbone.embeddings.")


def in_mamba_ssm(name: str) -> str:
    return name.replace("backbone.embeddings.", "backbone.embedding.")


def filled(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A model that was built without memory, with those very tensors: none missing, none left over."""
    try:
        model.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the tensors do not fit the config ({brief(error)})") from None
    model.tie_weights()
    return model.eval()


# -- verification ---------------------------------------------------------------------------------------------


MENDED = (
    "cached generation was compared with two faults of mamba-ssm's attention made good (2.3.2): without flash-attn a "
    "step sees the first key alone, and the cache of its convolution begins with what came out of it"
)


class ReloadedMambaSsm:
    """A `shortgpt.verification.verify.Reloaded` of mamba-ssm."""

    def __init__(self, model: Any) -> None:
        from mamba_ssm.modules import mha
        from mamba_ssm.utils.generation import InferenceParams

        self.model = model
        self.dtype = model.lm_head.weight.dtype
        self.new_state = InferenceParams
        attention = [module for module in model.modules() if isinstance(module, mha.MHA)]
        for module in attention:
            _mend(module)
        self.cannot_generate = None
        self.mended = MENDED if attention else None
        if attention and self.dtype == torch.float32 and mha.flash_attn_with_kvcache is not None:
            self.cannot_generate = "flash-attn, by which the library's attention uses its cache, takes no float32"

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids.to(self.model.lm_head.weight.device)).logits

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        ids = fed = input_ids.to(self.model.lm_head.weight.device)
        state = self.new_state(max_seqlen=ids.shape[1] + new_tokens, max_batch_size=len(ids)) if cached else None
        steps = []
        for _ in range(new_tokens):
            logits = self.model(fed, inference_params=state, num_last_tokens=1).logits[:, -1]
            steps.append(logits)
            token = logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], dim=1)
            if state is not None:
                state.seqlen_offset += fed.shape[1]
            fed = ids if state is None else token
        return torch.cat(steps)


def _mend(attention: Any) -> None:
    """Make two faults of the library's cached attention good (found in 2.3.2), or no hybrid could be verified.

    Without flash-attn a step's one query is masked as if it stood at the front, and sees the first key alone. And the
    cache of the convolution (d_conv) is begun with what came out of it instead of what went in.
    """
    causal = attention.causal

    def before(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        state = kwargs.get("inference_params")
        module.causal = causal and (state is None or state.seqlen_offset == 0)

    def after(module: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        state = kwargs.get("inference_params")
        if state is not None and state.seqlen_offset == 0 and module.d_conv > 0:
            cache = state.key_value_memory_dict[module.layer_idx][1]  # [batch, channels, d_conv]
            entered = module.in_proj(args[0])[..., : cache.shape[1]].mT
            cache.copy_(nn.functional.pad(entered, (module.d_conv - entered.shape[-1], 0)))

    attention.register_forward_pre_hook(before, with_kwargs=True)
    attention.register_forward_hook(after, with_kwargs=True)


def reload(
    directory: Path, *, device: str, dtype: str, trust_remote_code: bool = False
) -> ReloadedMambaSsm | ReloadedCausalLM:
    """Open a checkpoint with `MambaLMHeadModel.from_pretrained`, or, where the library does not run, transformers."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = load_model(directory, resolved(config, str(directory)), device, dtype)
    return ReloadedCausalLM(model) if isinstance(model, PreTrainedModel) else ReloadedMambaSsm(model)
