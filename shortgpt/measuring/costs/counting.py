"""Floating-point operations, counted as torch runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    count: int = sdpa_flop_count(query.shape, key.shape, value.shape)
    return count


FORMULAS = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""torch's own, and attention on a CPU, which they leave out."""


class Operations(TorchDispatchMode):
    """Inside it the operations of matrix products, convolutions and attention are counted.

    torch's `FlopCounterMode` does so by module too, for which it hooks into the modules and into autograd; some models
    do not run so.

    Attributes:
        count: a multiplication and an addition are two; attention is counted as if it were not causal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **named)
        if formula is not None:
            self.count += formula(*args, **named, out_val=output)
        return output
