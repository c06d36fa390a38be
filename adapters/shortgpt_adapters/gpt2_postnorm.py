"""Post-norm GPT-2: the stream itself is normalised after every branch. See `gpt2_postnorm_model` for the model.

::

    x ─●─ attn ─(+)─ ln_1 ─●─ mlp ─(+)─ ln_2 ─▶ x'
       └──────────┘        └─────────┘

There is no final norm: boundary L is what the head reads.
"""

from shortgpt_adapters import gpt2_postnorm_model  # registers the classes with transformers
from shortgpt_adapters.gpt2 import GPT2
from shortgpt_adapters.transformers_loader import reload as reload


class PostNormGPT2(GPT2):
    architecture = "gpt2_postnorm"
    norm_placement = "post"
    loader = "shortgpt_adapters.gpt2_postnorm:reload"
    load_example = f"import {gpt2_postnorm_model.__name__}  # registers the model type\n{GPT2.load_example}"
