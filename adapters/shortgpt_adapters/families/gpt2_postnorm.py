"""Post-norm GPT-2: the stream itself is normalised after every branch. See `gpt2_postnorm_model` for the model.

::

    x ─●─ attn ─(+)─ ln_1 ─●─ mlp ─(+)─ ln_2 ─▶ x'
       └──────────┘        └─────────┘

There is no final norm: boundary L is what the head reads.
"""

from shortgpt_adapters.families import gpt2_postnorm_model  # noqa: F401  (registers the classes with transformers)
from shortgpt_adapters.families.gpt2 import GPT2
from shortgpt_adapters.own_code import POST_NORM_GPT2
from shortgpt_adapters.transformers.family import CarryingCode


class PostNormGPT2(CarryingCode, GPT2):
    architecture = "gpt2_postnorm"
    norm_placement = "post"
    code = POST_NORM_GPT2
