"""GPT-2 with post-norm residual blocks: the ``transformers`` classes of model type ``gpt2_postnorm``.

Where a block normalises decides how its output compares with its input, and with it how redundant the block looks.
GPT-2 normalises the input of each branch (pre-norm) and leaves the stream itself alone, so that the stream grows
with depth and late blocks turn it less and less. Here the sum is normalised instead (post-norm), as in the original
Transformer and in GPT-1, with nothing else changed: the same attention, MLP, parameters and parameter names.

::

      x ──●── attention ──(+)── ln_1 ──●── mlp ──(+)── ln_2 ── x'        x_mid = ln_1(x + attention(x))
          └────────────────┘           └──────────┘                      x'    = ln_2(x_mid + mlp(x_mid))

The last block already ends in a norm, so there is no final one (``ln_f`` is the identity and has no parameters).
Weights of ``OpenAIGPTLMHeadModel`` (GPT-1) are weights of this model under other names.

Importing this module registers the classes with ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM``.

Sources: Vaswani et al. 2017, "Attention Is All You Need", section 3.1 (post-norm); Radford et al. 2018, "Improving
Language Understanding by Generative Pre-Training" (GPT-1); Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners", section 2.3 (GPT-2 moves the norm to the input of each branch); Xiong et al. 2020, "On Layer
Normalization in the Transformer Architecture", arXiv:2002.04745 (why post-norm wants a longer warm-up).
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.cache_utils import Cache
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

__all__ = ["PostNormGPT2Block", "PostNormGPT2Config", "PostNormGPT2LMHeadModel", "PostNormGPT2Model"]


class PostNormGPT2Config(GPT2Config):
    """``GPT2Config`` under its own model type, so that no GPT-2 loader takes these weights for pre-norm ones."""

    model_type = "gpt2_postnorm"


class PostNormGPT2Block(GPT2Block):
    """One block: attention and MLP, each followed by "add, then normalise".

    A ``GPT2Block`` by inheritance: ``transformers`` finds the blocks whose outputs it records, and those that
    gradient checkpointing recomputes, by that class.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Map the stream ``[batch, tokens, width]`` to the stream after this block, of the same shape and dtype.

        The parameters are those of ``GPT2Block.forward``, in its order (``GPT2Model`` passes four by position).

        Raises:
            ValueError: encoder states were passed; this decoder has no cross-attention.
        """
        if encoder_hidden_states is not None:
            raise ValueError("gpt2_postnorm has no cross-attention: found encoder_hidden_states; do not pass them")
        attention, _ = self.attn(
            hidden_states,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = self.ln_1(hidden_states + attention)
        return self.ln_2(hidden_states + self.mlp(hidden_states))


class PostNormGPT2Model(GPT2Model):
    """The trunk: embeddings and blocks. ``last_hidden_state`` is the output of the last block as it is."""

    config: PostNormGPT2Config
    _no_split_modules = ["PostNormGPT2Block"]

    def __init__(self, config: PostNormGPT2Config) -> None:
        if config.add_cross_attention:
            raise ValueError("gpt2_postnorm has no cross-attention: found add_cross_attention=True; set it to False")
        super().__init__(config)
        self.h = nn.ModuleList([PostNormGPT2Block(config, layer_idx=index) for index in range(config.n_layer)])
        self.ln_f = nn.Identity()
        self.post_init()


class PostNormGPT2LMHeadModel(GPT2LMHeadModel):
    """The language model. As in GPT-2 the head is the token embedding, unless ``tie_word_embeddings`` is False."""

    config: PostNormGPT2Config

    def __init__(self, config: PostNormGPT2Config) -> None:
        # Not GPT2LMHeadModel.__init__, which would build the pre-norm trunk first.
        super(GPT2LMHeadModel, self).__init__(config)
        self.transformer = PostNormGPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(PostNormGPT2Config.model_type, PostNormGPT2Config, exist_ok=True)
AutoModel.register(PostNormGPT2Config, PostNormGPT2Model, exist_ok=True)
AutoModelForCausalLM.register(PostNormGPT2Config, PostNormGPT2LMHeadModel, exist_ok=True)
