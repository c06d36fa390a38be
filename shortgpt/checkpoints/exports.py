"""A plan as the input of other tools that remove layers: the same removal, done by them from the same source.

::

    blocks 21-29 of 32 go ─┬─ mergekit     slices of the source, [0, 21) and [30, 32)
                           └─ llama.cpp    the list that `llama-quantize --prune-layers` takes: 21,22,...,29
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt import plugins
from shortgpt.errors import ModelError, UnknownNameError

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Source
    from shortgpt.values.plan import Plan


def mergekit(plan: Plan, dtype: str | None = None) -> str:
    """The configuration of a passthrough merge, YAML, for `mergekit-yaml FILE DIR`.

    Layer ranges are half open and counted from 0 (https://github.com/arcee-ai/mergekit). A model that ships with a
    plugin is named by its folder, any other one as it was named.

    Args:
        dtype: what the result is written in, such as "bfloat16"; None leaves the tensors as they are.
    """
    shipped = {model.name: model.target for model in plugins.registry().models}
    name = json.dumps(shipped.get(plan.model, plan.model), ensure_ascii=False)  # JSON's strings are YAML's
    lines = ["merge_method: passthrough", "slices:"]
    for first, end in _kept_ranges(plan):
        lines += ["- sources:", f"  - model: {name}", f"    layer_range: [{first}, {end}]"]
    if dtype is not None:
        lines.append(f"dtype: {dtype}")
    return "\n".join(lines) + "\n"


def prune_layers(plan: Plan, dtype: str | None = None) -> str:
    """The blocks that go as `llama-quantize --prune-layers` takes them: numbers from 0 with commas between
    (https://github.com/ggml-org/llama.cpp/pull/13037). It is to be applied to a GGUF file of the source.

    llama.cpp renumbers the tensors and counts the blocks anew, but leaves lists with an entry a block as they are
    (https://github.com/ggml-org/llama.cpp/issues/27976): a model whose blocks differ is better converted from the
    checkpoint that is written here.
    """
    return ",".join(map(str, sorted(plan.blocks))) + "\n"


@dataclass(frozen=True)
class Export:
    """What is written for a tool: the file's name, and its text for a plan and the dtype of the source."""

    file: str
    text: Callable[[Plan, str | None], str]


EXPORTS = {"mergekit": Export("mergekit.yaml", mergekit), "llama.cpp": Export("llama.cpp.txt", prune_layers)}
EXPORT_FILES = frozenset(export.file for export in EXPORTS.values())


def check_export(name: str, source: Source) -> None:
    """Raise where nothing can be written for a tool.

    Raises:
        UnknownNameError: there is no such tool.
        ModelError: it cannot read the source at all.
    """
    if name not in EXPORTS:
        raise UnknownNameError(f"nothing can be written for {name!r}; known are {', '.join(EXPORTS)}")
    if name == "mergekit" and not (source.path.is_dir() and source.config.get("architectures")):
        raise ModelError(
            f"{source.name}: mergekit reads Hugging Face folders whose config.json names the architecture, and this is "
            "none; leave --export mergekit out"
        )


def write_exports(directory: Path, plan: Plan) -> None:
    """Write what a plan says into a checkpoint."""
    for name in plan.exports:
        if name not in EXPORTS:
            raise UnknownNameError(f"nothing can be written for {name!r}; known are {', '.join(EXPORTS)}")
        export = EXPORTS[name]
        (directory / export.file).write_text(export.text(plan, _dtype_of(directory)), encoding="utf-8")


def _kept_ranges(plan: Plan) -> list[tuple[int, int]]:
    """The runs of blocks that stay, [first, end)."""
    ranges: list[tuple[int, int]] = []
    for block in range(plan.depth):
        if block in plan.blocks:
            continue
        if ranges and ranges[-1][1] == block:
            ranges[-1] = (ranges[-1][0], block + 1)
        else:
            ranges.append((block, block + 1))
    return ranges


def _dtype_of(directory: Path) -> str | None:
    """What a checkpoint's config says that its tensors are."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    parts = (config, config.get("text_config") or {})
    dtypes = [part.get(key) for part in parts for key in ("dtype", "torch_dtype")]
    return next((dtype for dtype in dtypes if isinstance(dtype, str)), None)
