"""The families that come with shortgpt: one row each, plain data, nothing imported before it is needed."""

from pathlib import Path

from shortgpt.hookspecs import hookimpl
from shortgpt.plugins import Architecture, Extension

HERE = "shortgpt_adapters"

ARCHITECTURES = (
    Architecture(
        "baichuan",
        f"{HERE}.baichuan:Baichuan",
        "Baichuan and Baichuan2, 7B and 13B",
        model_types=("baichuan",),
        architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    ),
    Architecture("llama", f"{HERE}.llama:Llama", "Llama of transformers", model_types=("llama",)),
    Architecture("mistral", f"{HERE}.mistral:Mistral", "Mistral of transformers", model_types=("mistral",)),
    Architecture("gpt2", f"{HERE}.gpt2:GPT2", "GPT-2 of transformers", model_types=("gpt2",)),
    Architecture(
        "gpt2_postnorm",
        f"{HERE}.gpt2_postnorm:PostNormGPT2",
        "GPT-2 with post-norm blocks",
        model_types=("gpt2_postnorm",),
    ),
    Architecture(
        "openai-gpt", f"{HERE}.openai_gpt:OpenAIGPT", "GPT-1 of transformers (post-norm)", model_types=("openai-gpt",)
    ),
    Architecture("mamba", f"{HERE}.mamba:Mamba", "Mamba of transformers", model_types=("mamba",)),
    Architecture("mamba2", f"{HERE}.mamba2:Mamba2", "Mamba 2 of transformers", model_types=("mamba2",)),
    Architecture(
        "falcon_mamba", f"{HERE}.falcon_mamba:FalconMamba", "FalconMamba of transformers", model_types=("falcon_mamba",)
    ),
    Architecture("rwkv", f"{HERE}.rwkv:Rwkv", "RWKV-4 of transformers", model_types=("rwkv",)),
    Architecture(
        "rwkv-package",
        f"{HERE}.rwkv_package:RwkvPackage",
        "RWKV 4 to 7 .pth files, run by the rwkv package",
        suffixes=(".pth",),
        modules=("rwkv.model", f"{HERE}.rwkv_package"),
    ),
    Architecture(
        "mamba-ssm",
        f"{HERE}.mamba_ssm:MambaSsm",
        "Mamba 1, 2 and hybrids of the mamba-ssm library",
        config_keys=("d_model", "n_layer", "ssm_cfg"),
        modules=("mamba_ssm",),
    ),
)

ZOO = ("llama", "mistral", "mamba", "rwkv", "gpt2", "gpt2-postnorm", "baichuan")


@hookimpl
def shortgpt_architectures() -> tuple[Architecture, ...]:
    return ARCHITECTURES


@hookimpl
def shortgpt_models() -> tuple[Extension, ...]:
    folder = Path(__file__).parent / "zoo"
    return tuple(Extension(f"zoo:{name}", str(folder / name), "12 blocks, trained, shipped") for name in ZOO)
