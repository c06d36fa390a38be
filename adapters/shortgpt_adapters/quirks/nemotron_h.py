"""Nemotron-H: blocks of several kinds, counted by their list alone; time steps bounded in prompts only.

::

    x ─●─ norm ─ mixer ─(+)─▶ x'      mixer: Mamba 2, attention, MLP or mixture of experts, by `layers_block_type`
       └────────────────┘

A removal filters that list, and the number of blocks follows. In a prompt the library keeps Mamba's time steps above
`time_step_min`, and in a token that is decoded with a cache it does not: unpruned as well, what is generated with a
cache is not quite what is generated without. So generation is compared without that bound, and the logits with it.
"""

import functools

from shortgpt_adapters.transformers import loader as transformers_loader
from shortgpt_adapters.transformers.loader import UnboundedTimeSteps
from shortgpt_adapters.transformers.structural import Structural


class NemotronH(Structural):
    architecture = "nemotron_h"
    loader = "shortgpt_adapters.quirks.nemotron_h:reload"


reload = functools.partial(transformers_loader.reload, kind=UnboundedTimeSteps)
