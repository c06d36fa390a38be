"""Small MLPs in the places of removed runs: put into a model of transformers, and written so that it opens without us.

::

    modeling_with_mlps.py ── names filled in ──▶ DIR/modeling_with_mlps.py ◀── "auto_map", "mlps" in DIR/config.json

What is written has a model type of its own, so that nobody opens it by mistake as the model without the MLPs. Whether a
type can hold them is tried: with random numbers in them it is written, opened by plain transformers and compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from shortgpt.errors import ModelError, reason_of
from shortgpt.models.configs.text import updated
from shortgpt.models.probing.logit_comparison import EXACT, SAME_PROCESS, compare_logits
from shortgpt.models.probing.probes import probe
from shortgpt_adapters.transformers import modeling_with_mlps
from shortgpt_adapters.transformers.generation import cache_is_right
from shortgpt_adapters.transformers.loader import arguments, logits_of, placement
from shortgpt_adapters.transformers.verbosity import quiet

if TYPE_CHECKING:
    from shortgpt.torch_models.sequence import TorchBlockSequence

CODE = Path(modeling_with_mlps.__file__)
LOAD = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("DIR", dtype="auto", trust_remote_code=True)"""
NOTE = f"`{CODE.name}` computes it, and is opened with `trust_remote_code=True`."


@dataclass(frozen=True)
class Mlps:
    """The arguments of `modeling_with_mlps.add_mlps`."""

    path: str
    stream: int
    width: int
    in_front_of: tuple[int, ...]


def planned(blocks: TorchBlockSequence, in_front_of: Sequence[int], width: int | None) -> Mlps:
    """MLPs for a model.

    Args:
        in_front_of: the blocks' numbers; their number for the place behind the last one.
        width: of the MLPs; None for the stream's own.

    Raises:
        ModelError: it holds some already.
    """
    if hasattr(blocks.model.config, "mlps"):
        raise ModelError(
            f"{blocks.name}: MLPs stand in places of its blocks already; train all weights (--method full)"
        )
    stream = _stream_width(blocks)
    return Mlps(blocks.family.block_lists[0], stream, width or stream, tuple(in_front_of))


def _stream_width(blocks: TorchBlockSequence) -> int:
    """The width of the stream, as blocks are handed it.

    Raises:
        ModelError: they are handed several at once, of which the stream is made.
    """
    whole: list[tuple[int, ...]] = []
    handed: list[tuple[int, ...]] = []

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        handed.append(tuple(getattr(given, "shape", ())))

    hook = blocks.blocks[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        blocks.trace(_probe(blocks), lambda boundary, hidden: whole.append(tuple(hidden.shape)))
    finally:
        hook.remove()
    if handed != whole[:1]:
        raise ModelError(
            f"{blocks.name}: the blocks of a {type(blocks.model).__name__} are handed {list(handed[0])} where their "
            f"stream is {list(whole[0])}, so there is no one stream that an MLP could stand on; train LoRA or all "
            "weights (--method lora, full)"
        )
    return whole[0][-1]


def put(blocks: TorchBlockSequence, mlps: Mlps, scratch: Path | None) -> list[nn.Module]:
    """Put MLPs into a model that will be written with them; it computes what it did before, to the bit.

    For the trial there must be room for the model once more, in memory and in the folder `scratch`.

    Raises:
        ModelError: models of this type cannot hold them.
    """
    model: Any = blocks.model
    had_cache = cache_is_right(model, blocks.logits)
    try:
        modules = modeling_with_mlps.add_mlps(blocks.model, **asdict(mlps))
        for module in modules:
            module.to(blocks.device, next(blocks.model.parameters()).dtype)
        with tempfile.TemporaryDirectory(prefix=".shortgpt-", dir=scratch) as folder:
            _try(blocks, Path(folder), had_cache)
    except Exception as error:  # code of any kind runs here, by hooks that it was not written for
        raise ModelError(
            f"{blocks.name}: no MLP can stand in the place of blocks of a {type(blocks.model).__name__} "
            f"({reason_of(error)}); train LoRA or all weights (--method lora, full)"
        ) from error
    for module in modules:
        nn.init.zeros_(module.down.weight)
    return list(modules)


def write(model: PreTrainedModel, mlps: Mlps, directory: Path) -> None:
    """Have a folder that holds the model's tensors and its library's config say that there are MLPs in it."""
    file = directory / "config.json"
    text = file.read_text(encoding="utf-8")
    config = json.loads(text)
    carried = config.get("auto_map") or {}
    name = f"{type(model).__name__}WithMlps"
    model_type = f"{config['model_type']}_with_mlps"
    filled = {
        "from transformers import PreTrainedConfig as": _import(type(model.config), carried.get("AutoConfig")),
        "from transformers import PreTrainedModel as": _import(type(model), carried.get("AutoModelForCausalLM")),
        f'"{modeling_with_mlps.MODEL_TYPE}"': json.dumps(model_type),
        "class ModelWithMlps": f"class {name}",
    }
    code = CODE.read_text(encoding="utf-8")
    for old, new in filled.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    (directory / CODE.name).write_text(code, encoding="utf-8")
    auto = {"AutoConfig": f"{CODE.stem}.ConfigWithMlps", "AutoModelForCausalLM": f"{CODE.stem}.{name}"}
    told = {"model_type": model_type, "architectures": [name], "auto_map": auto, "mlps": asdict(mlps)}
    file.write_text(updated(text, config | json.loads(json.dumps(told))), encoding="utf-8")


def _import(kind: type, carried: Any) -> str:
    """The line that imports a class: of transformers, or of the code that lies in the folder.

    Raises:
        ModelError: it is in neither.
    """
    if kind.__module__.startswith("transformers."):
        return f"from {kind.__module__} import {kind.__name__} as"
    if isinstance(carried, str) and carried.endswith(f".{kind.__name__}"):
        return f"from .{carried.rpartition('.')[0]} import {kind.__name__} as"
    raise ModelError(f"its class {kind.__name__} is in no file that goes along")


def _probe(blocks: TorchBlockSequence) -> dict[str, Any]:
    return {"input_ids": probe(blocks.vocab_size, blocks.max_tokens).to(blocks.device)}


def _try(blocks: TorchBlockSequence, folder: Path, had_cache: bool) -> None:
    """Raise where plain transformers does not open what is written, or computes something else with it."""
    blocks.write(folder)
    with quiet():
        opened: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=next(blocks.model.parameters()).dtype, **placement(str(blocks.device))
        ).eval()

    def logits(batch: Any) -> torch.Tensor:
        with torch.no_grad(), quiet():
            return logits_of(opened(**arguments(opened, batch)))

    batch = _probe(blocks)
    tolerance = EXACT if blocks.device.type == "cpu" else SAME_PROCESS
    difference = compare_logits(logits(batch), blocks.logits(batch), tolerance)
    if not difference.equal:
        raise ModelError(f"opened by transformers its logits {difference.told('those that were written')}")
    if had_cache and not cache_is_right(opened, logits):
        raise ModelError("opened by transformers it gives other tokens with a cache than without")
