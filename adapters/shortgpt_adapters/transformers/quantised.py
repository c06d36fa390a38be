"""Checkpoints whose weights are quantised: what their files hold in place of a model's tensors, and whether they run.

::

    q_proj.weight   GPTQ, AWQ            q_proj.qweight, q_proj.qzeros, q_proj.scales, q_proj.g_idx
                    compressed-tensors   q_proj.weight_packed, q_proj.weight_scale, q_proj.weight_shape
                    HQQ                  q_proj.W_q, q_proj.scale, q_proj.zero, ...
    experts.down    MXFP4                experts.down_blocks, experts.down_scales
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers.quantizers import AutoHfQuantizer

from shortgpt.errors import reason_of
from shortgpt_adapters.transformers.verbosity import quiet

SECTION = "quantization_config"


def held_otherwise(lacking: Iterable[str], plain: Collection[str], present: Iterable[str]) -> set[str]:
    """Of a model's tensors that its files lack, those in whose place there are others.

    Where another tensor is held in more parts than this one, this one has lost some, and is not held.

    Args:
        lacking: names of the model's tensors.
        plain: the names of all of its tensors.
        present: the names in the files.
    """
    names = set(present)
    of_module: dict[str, set[str]] = {name.rpartition(".")[0]: set() for name in names.difference(plain)}
    for name in names:
        module, _, leaf = name.rpartition(".")
        if module in of_module and leaf != "bias":  # which some modules have, and others not
            of_module[module].add(leaf)
    parts: dict[str, frozenset[str]] = {}
    for name in lacking:
        module, _, leaf = name.rpartition(".")
        leaves = of_module.get(module, set())
        named = {part.removeprefix(leaf) for part in leaves if part.startswith(f"{leaf}_")}
        parts[name] = frozenset(named if leaf != "weight" and named else leaves)
    kinds = {*parts.values(), *map(frozenset, of_module.values())}
    return {name for name, held in parts.items() if held and not any(held < kind for kind in kinds)}


def is_known(section: Mapping[str, Any]) -> bool:
    """Whether the library knows the quantisation of a config's section; of one that it does not know it says so, and
    passes the section over."""
    with quiet():
        known: bool = AutoHfQuantizer.supports_quant_method({"quant_method": "none", **section})
        return known


def refuse_running(section: Mapping[str, Any], device: str) -> str | None:
    """Why the library cannot run weights of that format here, None where it can.

    Args:
        section: a config's `quantization_config`.
    """
    method = section.get("quant_method", "of no name")
    if not is_known(section):
        return f"transformers knows no quantisation {method!r}"
    try:
        with quiet():
            quantiser = AutoHfQuantizer.from_config(dict(section), pre_quantized=True)
            quantiser.validate_environment(device_map={"": device})
    except Exception as error:  # each format's code has errors of its own: a package or a device is not there
        return f"the format of its weights ({method}) cannot be run on {device} here: {reason_of(error)}"
    return None
