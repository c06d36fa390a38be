"""What a pass measures of the stream, in one kernel on CUDA: each boundary is read once beside the one before it.

::

    x_i      ──┐   float64, element by element        ‖x_{i+1}‖
    x_{i+1}  ──┴─▶ of one token, in registers    ─▶   ‖x_{i+1} − x_i‖        two numbers a token

Products of float64 have no range that bfloat16 or float32 could leave, so no stream need be scaled, and none of it is
copied. Written in Triton, which comes with torch for CUDA; importing this file needs it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 1024
"""How many elements of a token a program takes at a time."""


@triton.jit
def _norms(  # type: ignore[no-untyped-def]  # Triton reads annotations, and knows but its own
    held,
    hidden,
    chosen,
    norms,
    updates,
    held_row,
    held_token,
    held_element,
    hidden_row,
    hidden_token,
    hidden_element,
    tokens,
    WIDTH: tl.constexpr,
    GATHERED: tl.constexpr,
    FIRST: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program for each token. Offsets are int64: a boundary may have more than 2³¹ elements."""
    here = tl.program_id(0).to(tl.int64)
    place = here
    if GATHERED:
        place = tl.load(chosen + here)
    row = place // tokens
    token = place % tokens
    hidden += row * hidden_row + token * hidden_token
    held += row * held_row + token * held_token
    norm = tl.zeros([WIDE], tl.float64)
    update = tl.zeros([WIDE], tl.float64)
    for first in range(0, WIDTH, WIDE):
        element = (first + tl.arange(0, WIDE)).to(tl.int64)
        inside = element < WIDTH
        y = tl.load(hidden + element * hidden_element, mask=inside, other=0.0).to(tl.float64)
        norm += y * y
        if not FIRST:
            y -= tl.load(held + element * held_element, mask=inside, other=0.0).to(tl.float64)
            update += y * y
    tl.store(norms + here, tl.sqrt(tl.sum(norm, axis=0)))
    if not FIRST:
        tl.store(updates + here, tl.sqrt(tl.sum(update, axis=0)))


def norms_of(held: Tensor | None, hidden: Tensor, chosen: Tensor | None, norms: Tensor, updates: Tensor) -> None:
    """Fill in the norms of a boundary's tokens and, where one came before it, of what was added to it.

    Args:
        held, hidden: the boundary before and this one, [batch, tokens, width] on one device, of any strides.
        chosen: the places of the tokens to look at, int64, each counted as row · tokens + column; None for all.
        norms, updates: to be written, one a chosen token, float64; contiguous.
    """
    width = hidden.shape[-1]
    before = hidden if held is None else held
    with torch.cuda.device_of(hidden):  # Triton launches on the current device
        _norms[(len(norms),)](
            before,
            hidden,
            chosen,
            norms,
            updates,
            *before.stride(),
            *hidden.stride(),
            hidden.shape[1],
            WIDTH=width,
            GATHERED=chosen is not None,
            FIRST=held is None,
            WIDE=min(WIDEST, triton.next_power_of_2(width)),
            enable_fp_fusion=True,
        )
