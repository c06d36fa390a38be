"""The mamba-ssm library on a CPU: its own classes, computing with its own reference functions instead of its kernels.

::

    with mamba_ssm_on_cpu():                     in sys.modules, inside only: a private copy of mamba_ssm
        from mamba_ssm import MambaLMHeadModel      selective_scan_fn      → selective_scan_ref
        ...                                         layer_norm_fn          → layer_norm_ref, rms_norm_ref
                                                    mamba_chunk_scan_...   → selective_scan_ref, head by head

The library cannot be imported without Triton and its compiled extension, so both are stood in for while it is, and at
no other time. Outside the context the process knows neither them nor the copy: others look for `triton` and
`mamba_ssm` at their own import, transformers' Mamba among them, and would bind what does not run there.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

STAND_INS = ("triton", "triton.language", "triton.language.extra", "triton.testing", "selective_scan_cuda")
STAYS = ExitStack()


@contextmanager
def mamba_ssm_on_cpu() -> Iterator[None]:
    """Inside, `import mamba_ssm` gives a copy of the library that runs on a CPU."""
    # They import mamba_ssm where they find it, and then call it for tensors of any device.
    importlib.import_module("transformers.models.mamba.modeling_mamba")
    importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    with _instead(_copy()):
        yield


@contextmanager
def mamba_ssm_missing() -> Iterator[None]:
    """Inside, mamba_ssm cannot be imported, as where it is not installed."""
    with _instead({"mamba_ssm": None}):
        yield


def reload(directory: Path, **options: Any) -> Any:
    """The adapter's loader for verification, in a process that ends afterwards: the copy stays."""
    STAYS.enter_context(mamba_ssm_on_cpu())
    from shortgpt_adapters.mamba_ssm import loader as mamba_ssm_loader

    return mamba_ssm_loader.reload(directory, **options)


@contextmanager
def _instead(modules: dict[str, Any]) -> Iterator[None]:
    """Inside, these are all the modules of mamba_ssm that there are."""
    hidden = _taken_out("mamba_ssm")
    sys.modules.update(modules)
    try:
        yield
    finally:
        _taken_out("mamba_ssm")
        sys.modules.update(hidden)


@functools.cache
def _copy() -> dict[str, ModuleType]:
    """The library's modules, imported once and patched."""
    importlib.import_module("transformers.generation")  # asks for Triton too, and must not find the stand-in
    hidden = {**_taken_out("mamba_ssm"), **_taken_out("triton"), **_taken_out("selective_scan_cuda")}
    try:
        sys.modules.update({name: MagicMock(__path__=[], __version__="3.4.0") for name in STAND_INS})
        triton: Any = sys.modules["triton"]  # at its import the library looks at the kernels' configurations
        triton.Config = lambda kwargs, num_warps=4, **_: SimpleNamespace(kwargs=kwargs, num_warps=num_warps)
        triton.autotune = lambda configs, **_: lambda kernel: SimpleNamespace(configs=configs)
        importlib.import_module("mamba_ssm.models.mixer_seq_simple")
        copy = _taken_out("mamba_ssm")
    finally:
        for name in ("mamba_ssm", "triton", "selective_scan_cuda"):
            _taken_out(name)
        sys.modules.update(hidden)
    _patch(copy)
    return copy


class RotaryEmbedding(nn.Module):
    """As flash-attn has it for the library's attention: halves are rotated, the frequencies are in no checkpoint."""

    def __init__(self, dim: int, base: float, interleaved: bool, device: Any) -> None:
        super().__init__()
        assert not interleaved
        frequencies = base ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, q: Tensor, kv: Tensor, seqlen_offset: int, max_seqlen: int | None) -> tuple[Tensor, Tensor]:
        """q is [batch, tokens, heads, width], kv [batch, tokens, 2, heads, width]."""
        positions = seqlen_offset + torch.arange(q.shape[1], device=q.device)
        angles = positions[:, None, None] * self.inv_freq  # [tokens, 1, dim / 2]
        keys, values = kv.unbind(2)
        return self._rotated(q, angles), torch.stack([self._rotated(keys, angles), values], dim=2)

    def _rotated(self, x: Tensor, angles: Tensor) -> Tensor:
        first, second, rest = x.split([angles.shape[-1]] * 2 + [x.shape[-1] - 2 * angles.shape[-1]], dim=-1)
        sine, cosine = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine, rest], dim=-1)


def _taken_out(package: str) -> dict[str, ModuleType]:
    """The package's modules, no longer in `sys.modules`."""
    names = [name for name in sys.modules if name == package or name.startswith(package + ".")]
    return {name: sys.modules.pop(name) for name in names}


def _patch(copy: dict[str, ModuleType]) -> None:
    """Put reference functions in the place of kernels, wherever the library's modules have bound them."""
    scan: Any = copy["mamba_ssm.ops.selective_scan_interface"]
    norm: Any = copy["mamba_ssm.ops.triton.layer_norm"]
    gated: Any = copy["mamba_ssm.ops.triton.layernorm_gated"]
    attention: Any = copy["mamba_ssm.modules.mha"]
    update: Any = copy["mamba_ssm.ops.triton.selective_state_update"]

    def layer_norm_fn(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        eps: float = 1e-6,
        dropout_p: float = 0.0,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
        is_rms_norm: bool = False,
    ) -> Any:
        assert dropout_p == 0.0
        reference = norm.rms_norm_ref if is_rms_norm else norm.layer_norm_ref
        result = reference(x, weight, bias, residual=residual, eps=eps, prenorm=prenorm, upcast=True)
        if not prenorm:
            return result
        kept_in = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
        return result[0], result[1].to(kept_in)

    def mamba_chunk_scan_combined(
        x: Tensor,  # [batch, tokens, heads, width of a head]
        dt: Tensor,  # [batch, tokens, heads]
        A: Tensor,
        B: Tensor,  # [batch, tokens, groups, state]
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        **unused: Any,
    ) -> Any:
        assert not any(value is not None and value is not False for value in unused.values()), unused
        heads, width = x.shape[2:]
        dt = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
        dt = nn.functional.softplus(dt) if dt_softplus else dt
        dt = dt.clamp(*dt_limit)
        if D is not None and D.dim() == 1:
            D = D[:, None].expand(heads, width)
        y, last = scan.selective_scan_ref(
            x.flatten(2).mT,
            dt.repeat_interleave(width, dim=2).mT,
            A.float().repeat_interleave(width)[:, None].expand(-1, B.shape[-1]),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            D=None if D is None else D.float().flatten(),
            z=None if z is None else z.flatten(2).mT,
            return_last_state=True,
        )
        y = y.mT.unflatten(2, (heads, width))
        return (y, last.unflatten(1, (heads, width))) if return_final_states else y

    attention.RotaryEmbedding = RotaryEmbedding
    references = {
        "selective_scan_fn": scan.selective_scan_ref,
        "selective_state_update": update.selective_state_update_ref,
        "layer_norm_fn": layer_norm_fn,
        "rms_norm_fn": functools.partial(layer_norm_fn, is_rms_norm=True),
        "rmsnorm_fn": gated.rms_norm_ref,
        "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    }
    for module in copy.values():
        for name, reference in references.items():
            if hasattr(module, name):
                setattr(module, name, reference)
