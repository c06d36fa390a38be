"""Zaya: the routers hand a state from block to block, beside the stream.

::

    r ─────── ·router_states_scale ──────────────┐  ┌─────────────────────────▶ r'
                                                 ▼  │
    x ─●─ norm ─ attention ─(+)─●─ norm ─ down ─(+)─┴─ router ─ experts ─(+)─▶ x'
       └─────────────────────┘  └─────────────────────────────────────────┘

A skipped block lets the state pass by. Block 0 gets none and has no `router_states_scale`; when it goes, whichever
comes first is given no state either, so its scale has nothing to scale and is left out. Block Influence looks at the
stream alone.
"""

import re
from collections.abc import Iterable, Sequence

from shortgpt_adapters.transformers.structural import Structural

SCALE_OF_THE_FIRST = re.compile(r"(?:.*\.)?layers\.0\.mlp\.gate\.router_states_scale")


class Zaya(Structural):
    architecture = "zaya"

    def rename(self, names: Iterable[str], depth: int, keep: Sequence[int]) -> dict[str, str]:
        renamed = super().rename(names, depth, keep)
        return {new: old for new, old in renamed.items() if not SCALE_OF_THE_FIRST.fullmatch(new)}
