"""Baichuan and Baichuan2, 7B and 13B, as native ``transformers`` 5 classes: config, model, tokenizer, export to Llama.

``transformers`` has no Baichuan, and the code that comes with the checkpoints was written for ``transformers`` 4.
With this module imported, a folder in its original layout (``W_pack``, ``config.json`` with ``auto_map``,
``tokenizer.model``) loads through ``AutoModelForCausalLM`` and ``AutoTokenizer``; none of the folder's own code runs,
with ``trust_remote_code=True`` neither.

::

    x ──●── norm ── W_pack ── q, k, v ── attention ── o_proj ──(+)──●── norm ── mlp ──(+)── x'
        └──────────────────────────────────────────────────────┘    └──────────────────┘

    7B:  rotary positions (RoPE) turn q and k          13B: ALiBi, −slope · distance, is added to the attention scores
    1:   rotation in the model's dtype, plain head     2:   rotation in fp32 and NormHead (rows of the head normalised)

A block is Llama's, but for the packed projection and, in the 13B models, the positions; the MLP is SwiGLU. So the 7B
models can be written as Llama, exactly (``as_llama``); the 13B models cannot, for Llama has no ALiBi.

Sources: Yang et al. 2023, "Baichuan 2: Open Large-scale Language Models", arXiv:2309.10305;
Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409 (ALiBi); Su et al. 2021, arXiv:2104.09864 (RoPE); the
configs and modelling files of the checkpoints ``baichuan-inc/{Baichuan-7B, Baichuan-13B-Base, Baichuan2-7B-Base,
Baichuan2-13B-Base}``.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizer,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
    rotate_half,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

__all__ = [
    "BaichuanConfig",
    "BaichuanForCausalLM",
    "BaichuanModel",
    "BaichuanTokenizer",
    "NormHead",
    "alibi_slopes",
    "as_llama",
]

FIRST_VOCABULARY, SECOND_VOCABULARY = 64_000, 125_696  # Baichuan, Baichuan2

# (hidden_size, num_attention_heads) of the published models. The number of blocks is no sign: blocks can be removed.
PUBLISHED_SHAPES = {(4096, 32): ("7B", "rope"), (5120, 40): ("13B", "alibi")}


# -------------------------------------------------------------------------------------------------------- the config


@strict
class BaichuanConfig(PreTrainedConfig):
    """The configuration of any of the four models.

    The original ``config.json`` does not say which of the four it describes. What it leaves out is inferred when the
    config is made and stored under a name of its own, so that a saved config says it.

    Args:
        max_position_embeddings: tokens; RoPE models only.
        model_max_length: tokens; of the original configs, those of the 13B models have only this.
        position_embedding: ``"rope"`` (7B) or ``"alibi"`` (13B). ``None``: by the published shapes; for other
            shapes ``"rope"`` if ``max_position_embeddings`` is given, else ``"alibi"``.
        norm_head: whether the head's rows are normalised (Baichuan2). ``None``: by the vocabulary, 64,000 tokens in
            Baichuan and 125,696 in Baichuan2, or some more where tokens were added.
        rope_in_fp32: whether q and k are rotated in fp32 whatever the model's dtype (Baichuan2). ``None``: as
            ``norm_head``.

    Raises:
        ValueError: the positions contradict the shape or ``max_position_embeddings``; the vocabulary is of neither
            generation and ``norm_head`` is not given; ``hidden_size`` is no multiple of the heads.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = SECOND_VOCABULARY
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    position_embedding: str | None = None
    norm_head: bool | None = None
    rope_in_fp32: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The 13B configs hold `gradient_checkpointing`, Baichuan2's as the list [false], which is true in Python.
        # It is a choice of a training run, not of a model.
        kwargs.pop("gradient_checkpointing", None)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads: found {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        self.position_embedding = self._resolved_position_embedding()
        if self.position_embedding == "rope" and self.max_position_embeddings is None:
            self.max_position_embeddings = self.model_max_length or 4096
        if self.norm_head is None:
            self.norm_head = self._inferred_norm_head()
        if self.rope_in_fp32 is None:
            self.rope_in_fp32 = self.norm_head
        super().__post_init__(**kwargs)
        if self.position_embedding == "alibi":
            self.rope_parameters = None  # super() fills in defaults, which no 13B model uses

    def _resolved_position_embedding(self) -> str:
        size, published = PUBLISHED_SHAPES.get((self.hidden_size, self.num_attention_heads), (None, None))
        kind = self.position_embedding
        if kind is None:
            kind = published or ("alibi" if self.max_position_embeddings is None else "rope")
        if kind not in ("rope", "alibi"):
            raise ValueError(f"position_embedding must be 'rope' or 'alibi' (or None, to infer it): found {kind!r}")
        if published is not None and kind != published:
            raise ValueError(
                f"hidden_size {self.hidden_size} with {self.num_attention_heads} heads is Baichuan {size}, which has "
                f"{published!r} positions: found position_embedding={kind!r}; set {published!r} or leave it out"
            )
        if kind == "alibi" and self.max_position_embeddings is not None:
            raise ValueError(
                "Baichuan with 'alibi' positions (13B) has no max_position_embeddings: found "
                f"{self.max_position_embeddings}; give the window as model_max_length"
                + ("" if published else ", or set position_embedding='rope' for a model with rotary positions (7B)")
            )
        return kind

    def _inferred_norm_head(self) -> bool:
        if self.vocab_size >= SECOND_VOCABULARY:
            return True
        if self.vocab_size <= FIRST_VOCABULARY + 1_000:
            return False
        raise ValueError(
            f"cannot tell Baichuan from Baichuan2 by a vocabulary of {self.vocab_size} (they have {FIRST_VOCABULARY} "
            f"and {SECOND_VOCABULARY}): set norm_head to True for Baichuan2, to False for Baichuan"
        )


# --------------------------------------------------------------------------------------------------------- positions


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi's slope of each head (Press et al. 2022, section 3): 2^(−8i/heads), i = 1 … heads, for a power of two.

    For another number of heads: those of the next lower power of two, then every second one of the next higher.
    """

    def geometric(count: int) -> list[float]:
        start = 2 ** (-8 / count)
        return [start ** (index + 1) for index in range(count)]

    lower = 2 ** math.floor(math.log2(heads))
    return geometric(lower) + geometric(2 * lower)[0::2][: heads - lower]


def alibi_mask(mask: Tensor, slopes: Tensor, past: int, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores: ALiBi's bias where ``mask`` allows, the lowest ``dtype`` number elsewhere.

    Distances count entries of the cache, so that padding on the left moves a sequence without changing its biases.

    Args:
        mask: [batch or 1, 1, queries, keys], boolean (True = attend) or additive.
        slopes: [heads], fp32.
        past: how many tokens are in the cache before the first query.
        dtype: of the result [batch or 1, heads, queries, keys].
    """
    queries, keys = (torch.arange(length, device=slopes.device) for length in mask.shape[-2:])
    bias = -slopes[None, :, None, None] * (past + queries[:, None] - keys)
    # Not −inf: a row of padding may attend to nothing, and the softmax of a row of −inf is NaN.
    lowest = torch.finfo(dtype).min
    total = torch.where(mask, bias, lowest) if mask.dtype == torch.bool else bias + mask.float()
    return total.clamp(min=lowest).to(dtype)


# --------------------------------------------------------------------------------------------------------- the model


class BaichuanAttention(nn.Module):
    """Causal attention with one projection for q, k and v: ``W_pack`` has the rows [q; k; v]."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1  # read, like is_causal, by the attention functions of transformers
        self.is_causal = True
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over [batch, tokens, width]; return the same shape and, with eager attention, the weights.

        ``position_embeddings`` are the cosines and sines [batch, tokens, head width] of RoPE, whose dtype is the
        one that q and k are rotated in, or None for ALiBi, which is part of the mask.
        """
        batch, tokens, width = hidden_states.shape
        query, key, value = (
            part.view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for part in self.W_pack(hidden_states).chunk(3, dim=-1)
        )
        if position_embeddings is not None:
            query, key = (rotate(states, *position_embeddings) for states in (query, key))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(batch, tokens, width)), weights


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate [batch, heads, tokens, head width] in the dtype of ``cosines``; the result has that of ``states``."""
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    widened = states.to(cosines.dtype)
    return (widened * cosines + rotate_half(widened) * sines).to(states.dtype)


class BaichuanMLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class BaichuanDecoderLayer(GradientCheckpointingLayer):
    """One block: pre-norm attention, then pre-norm MLP, each added to the stream [batch, tokens, width]."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attention, _ = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, position_embeddings, past_key_values, **kwargs
        )
        hidden_states = hidden_states + attention
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class BaichuanPreTrainedModel(PreTrainedModel):
    config: BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BaichuanDecoderLayer, "attentions": BaichuanAttention}
    # In the files of Baichuan-7B; computed from the config here.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]


class BaichuanModel(BaichuanPreTrainedModel):
    """The trunk: embedding, blocks, final norm."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([BaichuanDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        # Llama's own class, because the loader of transformers knows how to fill its buffers.
        self.rotary_emb = LlamaRotaryEmbedding(config) if config.position_embedding == "rope" else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run [batch, tokens] ids, or ``inputs_embeds`` [batch, tokens, width], to the normalised last stream.

        ``attention_mask`` is [batch, past and present tokens], 1 = real token, or 4-dimensional and ready made.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        tokens = hidden_states.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + tokens, device=hidden_states.device).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=self.rotary_emb is not None,  # ALiBi needs the mask written out, to add to it
        )
        position_embeddings = None
        if self.rotary_emb is not None:
            like = hidden_states.float() if self.config.rope_in_fp32 else hidden_states  # gives cos and sin its dtype
            position_embeddings = self.rotary_emb(like, position_ids)
        else:
            slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=hidden_states.device)
            mask = alibi_mask(mask, slopes, past, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class NormHead(nn.Linear):
    """Baichuan2's head: the logits are products with unit rows (arXiv:2309.10305).

    The rows are normalised at each call and the weight stays as it is: the original normalises the weight in place on
    its first inference pass, and saves other values from then on.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.normalize(self.weight))


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """The language model: trunk and head, ``NormHead`` or plain."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # used if config.tie_word_embeddings

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        head = NormHead if config.norm_head else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits [batch, tokens, vocabulary] and, given ``labels`` (shifted inside, −100 = ignore), the loss.

        ``logits_to_keep``: how many positions from the end get logits, 0 for all, or a tensor of positions.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# --------------------------------------------------------------------------------------------------- export to Llama


def as_llama(config: BaichuanConfig, tensors: Mapping[str, Tensor]) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Write a RoPE (7B) model as Llama: the same function under Llama's names.

    ``W_pack`` is split into its rows [q; k; v], the rows of a ``NormHead`` are normalised, ``rotary_emb.inv_freq`` is
    left out, everything else keeps its name and its storage. Exact in fp32. In half precision Baichuan2 rotates
    in fp32 and Llama does not, so there the logits differ by rounding.

    Args:
        config: of the model.
        tensors: its weights under their names in the checkpoint, with or without the prefix ``model.``.

    Returns:
        The config of ``LlamaForCausalLM`` and its weights.

    Raises:
        ValueError: the model has ALiBi positions (13B), which Llama cannot express.
    """
    if config.position_embedding != "rope":
        raise ValueError(
            f"Llama has rotary positions only: found position_embedding={config.position_embedding!r} (Baichuan 13B); "
            "only the 7B models can be exported as Llama"
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name.endswith(".W_pack.weight"):
            for projection, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                # clone: a tensor that is part of another one cannot be saved as safetensors
                renamed[name.replace("W_pack", projection)] = rows.clone()
        elif name == "lm_head.weight" and config.norm_head:
            renamed[name] = F.normalize(tensor)
        else:
            renamed[name] = tensor
    shared = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "initializer_range",
        "rms_norm_eps",
        "use_cache",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "rope_parameters",
        "dtype",
    ]
    # A normalised head is no longer the embedding, even where the two were tied.
    tied = config.tie_word_embeddings and not config.norm_head
    return LlamaConfig(**{key: getattr(config, key) for key in shared}, tie_word_embeddings=tied), renamed


# ----------------------------------------------------------------------------------------------------- the tokenizer


class BaichuanTokenizer(PreTrainedTokenizer):
    """The SentencePiece tokenizer of the checkpoints (``tokenizer.model``). Needs the package ``sentencepiece``.

    Text is encoded as it stands: no space is put before it, which Llama's tokenizer does. Unlike the original, decoding
    puts no space before a special token either, so that decoding gives back the text.

    Args:
        vocab_file: path of ``tokenizer.model``.
        add_bos_token, add_eos_token: whether ``bos_token`` and ``eos_token`` are put around a text. ``None``, as in
            the published Baichuan2 settings: no, or what a saved tokenizer's ``special_tokens_pattern`` says.
        sp_model_kwargs: passed to ``sentencepiece.SentencePieceProcessor``.

    Raises:
        ImportError: ``sentencepiece`` is not installed.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        clean_up_tokenization_spaces: bool = False,
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = str(vocab_file)
        self.sp_model_kwargs = sp_model_kwargs or {}
        self.sp_model = self._load()  # before super().__init__, which asks for the vocabulary
        pattern = kwargs.pop("special_tokens_pattern", "none")
        if add_bos_token is not None or add_eos_token is not None:
            pattern = "_".join(["bos"] * bool(add_bos_token) + ["eos"] * bool(add_eos_token)) or "none"
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            sp_model_kwargs=self.sp_model_kwargs,
            special_tokens_pattern=pattern,
            **kwargs,
        )
        # save_pretrained leaves out add_bos_token and add_eos_token, which fast tokenizers keep elsewhere.
        self.init_kwargs["special_tokens_pattern"] = pattern

    def _load(self) -> Any:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ImportError(
                "Baichuan's tokenizer needs sentencepiece: pip install 'shortgpt-blocks[baichuan]'"
            ) from error
        processor = SentencePieceProcessor(**self.sp_model_kwargs)
        processor.Load(self.vocab_file)
        return processor

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"sp_model": None}  # a handle to a C++ object: loaded again where it is unpickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self.sp_model = self._load()

    @property
    def vocab_size(self) -> int:
        """The pieces in ``tokenizer.model``, without tokens added later."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        pieces = {self.sp_model.id_to_piece(index): index for index in range(self.vocab_size)}
        return pieces | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text. SentencePiece decodes runs of pieces, which may hold single bytes of a character."""
        added = self.added_tokens_encoder.keys() | set(self.all_special_tokens)
        text, run = "", list[str]()
        for token in tokens:
            if token in added:
                text += self.sp_model.decode(run) + token
                run = []
            else:
                run.append(token)
        return text + self.sp_model.decode(run)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write ``tokenizer.model`` into the folder; return its path."""
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        if Path(self.vocab_file).is_file():
            if Path(self.vocab_file).resolve() != target.resolve():
                shutil.copyfile(self.vocab_file, target)
        else:
            target.write_bytes(self.sp_model.serialized_model_proto())
        return (str(target),)


class BaiChuanTokenizer(BaichuanTokenizer):
    """The same under the name by which the folder of Baichuan-7B asks for it."""


# ------------------------------------------------------------------------------------------------------ registration


class _TokenizerKey(PreTrainedConfig):
    """A config class of no model, to register a tokenizer by its name alone.

    Were the tokenizer registered for ``BaichuanConfig``, ``AutoTokenizer`` with ``trust_remote_code=True`` would prefer
    the folder's own ``tokenization_baichuan.py``, which cannot run on transformers 5; and folders whose tokenizer
    is of another class would still be served by that other class. A class known only by the name in
    ``tokenizer_config.json`` is preferred to remote code.
    """

    model_type = "baichuan-tokenizer"


class _FirstTokenizerKey(PreTrainedConfig):
    model_type = "baichuan-7b-tokenizer"


AutoConfig.register(BaichuanConfig.model_type, BaichuanConfig, exist_ok=True)
AutoModel.register(BaichuanConfig, BaichuanModel, exist_ok=True)
AutoModelForCausalLM.register(BaichuanConfig, BaichuanForCausalLM, exist_ok=True)
AutoTokenizer.register(_TokenizerKey, BaichuanTokenizer, exist_ok=True)
AutoTokenizer.register(_FirstTokenizerKey, BaiChuanTokenizer, exist_ok=True)
