"""The families that come with shortgpt: one row each, plain data, nothing imported before it is needed."""

from pathlib import Path

from shortgpt.basics.registry import Architecture, Extension
from shortgpt.hookspecs import hookimpl
from shortgpt.models.family import ANY_MODEL_TYPE

HERE = "shortgpt_adapters"

ARCHITECTURES = (
    Architecture(
        "baichuan",
        f"{HERE}.baichuan.family:Baichuan",
        "Baichuan and Baichuan2, 7B and 13B",
        model_types=("baichuan",),
        architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    ),
    Architecture("llama", f"{HERE}.families.llama:Llama", "Llama of transformers", model_types=("llama",)),
    Architecture("mistral", f"{HERE}.families.mistral:Mistral", "Mistral of transformers", model_types=("mistral",)),
    Architecture("gpt2", f"{HERE}.families.gpt2:GPT2", "GPT-2 of transformers", model_types=("gpt2",)),
    Architecture(
        "gpt2_postnorm",
        f"{HERE}.families.gpt2_postnorm:PostNormGPT2",
        "GPT-2 with post-norm blocks",
        model_types=("gpt2_postnorm",),
    ),
    Architecture(
        "openai-gpt",
        f"{HERE}.families.openai_gpt:OpenAIGPT",
        "GPT-1 of transformers (post-norm)",
        model_types=("openai-gpt",),
    ),
    Architecture("mamba", f"{HERE}.families.mamba:Mamba", "Mamba of transformers", model_types=("mamba",)),
    Architecture("mamba2", f"{HERE}.families.mamba2:Mamba2", "Mamba 2 of transformers", model_types=("mamba2",)),
    Architecture(
        "falcon_mamba",
        f"{HERE}.families.falcon_mamba:FalconMamba",
        "FalconMamba of transformers",
        model_types=("falcon_mamba",),
    ),
    Architecture("rwkv", f"{HERE}.families.rwkv:Rwkv", "RWKV-4 of transformers", model_types=("rwkv",)),
    Architecture(
        "rwkv-package",
        f"{HERE}.rwkv_package.blocks:RwkvPackage",
        "RWKV 4 to 7 .pth files, run by the rwkv package",
        suffixes=(".pth",),
        modules=("rwkv.model", f"{HERE}.rwkv_package"),
    ),
    Architecture(
        "mamba-ssm",
        f"{HERE}.mamba_ssm.family:MambaSsm",
        "Mamba 1, 2 and hybrids of the mamba-ssm library",
        config_keys=("d_model", "n_layer", "ssm_cfg"),
        modules=("mamba_ssm",),
    ),
    # Types of transformers whose blocks the structural adapter finds, with a quirk of their own.
    Architecture("beam", f"{HERE}.quirks.beam:Beam", "Beam: residuals scaled by depth", model_types=("beam",)),
    Architecture(
        "blt", f"{HERE}.quirks.blt:Blt", "Byte Latent Transformer: blocks over patches of bytes", model_types=("blt",)
    ),
    Architecture(
        "cpmant", f"{HERE}.quirks.cpmant:CpmAnt", "CPM-Ant: a prompt in front of the text", model_types=("cpmant",)
    ),
    Architecture(
        "diffllama", f"{HERE}.quirks.diffllama:DiffLlama", "DiffLlama: lambda by depth", model_types=("diffllama",)
    ),
    Architecture(
        "gemma3n",
        f"{HERE}.quirks.gemma3n:Gemma3n",
        "Gemma 3n: parallel streams, shared keys and values",
        model_types=("gemma3n", "gemma3n_text"),
    ),
    Architecture(
        "gemma4",
        f"{HERE}.quirks.gemma4:Gemma4",
        "Gemma 4: shared keys and values",
        model_types=("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
    ),
    Architecture(
        "gemma4_assistant",
        f"{HERE}.quirks.gemma4_assistant:Gemma4Assistant",
        "Gemma 4's drafter, which reads another model's keys and values",
        model_types=("gemma4_assistant", "gemma4_unified_assistant"),
    ),
    Architecture(
        "gpt_neox_japanese",
        f"{HERE}.quirks.gpt_neox_japanese:GPTNeoXJapanese",
        "GPT-NeoX Japanese: a bias in the last block only",
        model_types=("gpt_neox_japanese",),
    ),
    Architecture(
        "hrm_text", f"{HERE}.quirks.hrm_text:HrmText", "HRM: two stacks that run in loops", model_types=("hrm_text",)
    ),
    Architecture(
        "inkling2",
        f"{HERE}.quirks.inkling2:Inkling2",
        "Inkling 2: residuals over groups of blocks",
        model_types=("inkling2", "inkling2_text"),
    ),
    Architecture(
        "minicpm3",
        f"{HERE}.quirks.minicpm3:MiniCPM3",
        "MiniCPM 3: residuals scaled by depth",
        model_types=("minicpm3",),
    ),
    Architecture(
        "minimax", f"{HERE}.quirks.minimax:MiniMax", "MiniMax: a cache that counts in block 0", model_types=("minimax",)
    ),
    Architecture(
        "mllama",
        f"{HERE}.quirks.mllama:Mllama",
        "Llama 3.2 Vision: blocks that look at images only",
        model_types=("mllama", "mllama_text_model"),
    ),
    Architecture(
        "modernbert_decoder",
        f"{HERE}.quirks.modernbert_decoder:ModernBertDecoder",
        "ModernBERT as a decoder: no norm in block 0",
        model_types=("modernbert-decoder",),
    ),
    Architecture(
        "musicgen",
        f"{HERE}.quirks.musicgen:Musicgen",
        "MusicGen's decoder: several codebooks a token",
        model_types=("musicgen", "musicgen_melody", "musicgen_decoder", "musicgen_melody_decoder"),
    ),
    Architecture(
        "nemotron_h",
        f"{HERE}.quirks.nemotron_h:NemotronH",
        "Nemotron-H: time steps bounded in prompts only",
        model_types=("nemotron_h",),
    ),
    Architecture(
        "prophetnet", f"{HERE}.quirks.prophetnet:ProphetNet", "ProphetNet: n-gram streams", model_types=("prophetnet",)
    ),
    Architecture(
        "qwen4",
        f"{HERE}.quirks.qwen4:Qwen4",
        "Qwen 4: n-gram embeddings in some blocks",
        model_types=("qwen4_exp", "qwen4_exp_text"),
    ),
    Architecture(
        "reformer",
        f"{HERE}.quirks.reformer:Reformer",
        "Reformer: a reversible pair of streams",
        model_types=("reformer",),
    ),
    Architecture("xlm", f"{HERE}.quirks.xlm:Xlm", "XLM: a block is spread over four lists", model_types=("xlm",)),
    Architecture(
        "xlnet", f"{HERE}.quirks.xlnet:XLNet", "XLNet: a mask hides what is generated", model_types=("xlnet",)
    ),
    Architecture(
        "zamba", f"{HERE}.quirks.zamba:Zamba", "Zamba: one attention block's weights in many", model_types=("zamba",)
    ),
    Architecture("zamba2", f"{HERE}.quirks.zamba2:Zamba2", "Zamba 2: shared memory blocks", model_types=("zamba2",)),
    Architecture("zaya", f"{HERE}.quirks.zaya:Zaya", "Zaya: a router state from block to block", model_types=("zaya",)),
    Architecture(
        "structural",
        f"{HERE}.transformers.structural:Structural",
        "every other model of transformers: its blocks are found by what runs",
        model_types=(ANY_MODEL_TYPE,),
        modules=("transformers",),
        priority=-100,
    ),
    Architecture(
        "plain-torch",
        f"{HERE}.plain_torch:PlainTorch",
        "any other torch model in memory with a list of blocks",
        modules=("torch.nn",),
        priority=-200,
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
