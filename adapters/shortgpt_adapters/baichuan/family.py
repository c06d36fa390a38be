"""Baichuan and Baichuan2, 7B and 13B. See `baichuan_model` for the model, which transformers does not have.

::

    x ─●─ input_layernorm ─ W_pack ─ attention ─ o_proj ─(+)─●─ post_attention_layernorm ─ mlp ─(+)─▶ x'
       └───────────────────────────────────────────────────┘ └──────────────────────────────────────┘

The first checkpoints carry rotary frequencies in every block, which the library computes itself. The 7B models can be
written as Llama, exactly, so that any server takes them.
"""

from pathlib import Path

from transformers import GenerationConfig, LlamaForCausalLM

from shortgpt.basics.inputs import Config, OpenOptions, Source
from shortgpt.checkpoints.companions import copy_companions
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import ModelError
from shortgpt_adapters.baichuan import model as baichuan_model
from shortgpt_adapters.baichuan.fast_tokenizer import fast_tokenizer
from shortgpt_adapters.own_code import BAICHUAN
from shortgpt_adapters.transformers.family import CarryingCode, open_tokenizer
from shortgpt_adapters.transformers.verbosity import quiet

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class Baichuan(CarryingCode):
    architecture = "baichuan"
    norm_placement = "pre"
    block_lists = ("model.layers", "layers")
    code = BAICHUAN
    exports = ("llama",)

    def refuse_export(self, config: Config, target: str) -> str | None:
        if config["position_embedding"] == "rope":
            return None
        return "its positions are ALiBi (13B), and Llama has rotary positions only; a 7B can be written as Llama"

    def export(self, source: Source, target: str, directory: Path) -> None:
        config = baichuan_model.BaichuanConfig.from_pretrained(source.path)
        weights = Weights(source)
        tensors = {name: tensor for file in weights.files for name, tensor in weights.tensors_of(file).items()}
        try:
            llama_config, renamed = baichuan_model.as_llama(config, tensors)
        except ValueError as error:
            raise ModelError(f"{source.name}: {error}") from None
        copy_companions(source, directory)
        (directory / self.code.file).unlink()  # Llama is transformers' own
        self._write_tokenizer(source, directory)
        with quiet():
            model = LlamaForCausalLM.from_pretrained(None, config=llama_config, state_dict=renamed, dtype="auto")
            if (source.path / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(source.path)
            model.save_pretrained(directory)

    def _write_tokenizer(self, source: Source, directory: Path) -> None:
        """Put a `tokenizer.json` in the place of what only this package, or the code in the folder, can read."""
        if (directory / "tokenizer.json").is_file():
            return
        slow = open_tokenizer(source, OpenOptions())
        for file in (*directory.glob("*.py"), *(directory / name for name in TOKENIZER_FILES)):
            file.unlink(missing_ok=True)
        if slow is None:
            return
        try:
            fast_tokenizer(slow).save_pretrained(directory)
        except ValueError as error:
            raise ModelError(f"{source.name}: {error}") from None
