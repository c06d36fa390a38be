"""XLNet: its blocks attend to both sides, and a permutation mask hides what a token must not see.

::

    x ─●─ attention ─(+)─ norm ─●─ ffn ─(+)─ norm ─▶ x'
       └──────────────┘         └──────────┘

Given token ids alone, every token sees every other. When it generates, the library masks the place of the new token, so
the logits with a cache are those without, although a later token would change them.
"""

import functools

from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from shortgpt_adapters.transformers.structural import Structural


class XLNet(Structural):
    architecture = "xlnet"
    loader = "shortgpt_adapters.quirks.xlnet:reload"


class ReloadedXLNet(ReloadedCausalLM):
    def looks_ahead(self) -> bool:
        return False


reload = functools.partial(transformers_loader.reload, kind=ReloadedXLNet)
