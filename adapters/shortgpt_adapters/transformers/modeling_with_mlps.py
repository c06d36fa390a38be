"""A language model in which small gated MLPs stand in the places of blocks that were removed.

::

    block i-1 ─▶ x ─●─ norm ─ gate, up ─ SiLU(gate) · up ─ down ─(+)─▶ x + f(x) ─▶ block i
                    └────────────────────────────────────────────┘

It is the library's own model but for what hooks on its blocks add to the stream. `config.json` says in front of which
blocks: `mlps` holds the path of the block list, the stream's width, the MLPs' width, and the blocks' numbers; the
number of blocks stands for the place behind the last one.

This file lies in the model's folder and needs torch and transformers alone. When it is written there, the classes of
the model take the place of the two that are imported here, and the last class is called after them: the library looks
at names at times.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig as BaseConfig
from transformers import PreTrainedModel as BaseModel

MODEL_TYPE = "with_mlps"


class GatedMlp(nn.Module):
    """What is added to the stream, from [..., stream] to the same shape."""

    def __init__(self, stream: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(stream, eps=1e-6)
        self.gate = nn.Linear(stream, width, bias=False)
        self.up = nn.Linear(stream, width, bias=False)
        self.down = nn.Linear(width, stream, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden.to(self.gate.weight.dtype))
        added: Tensor = self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))
        return added.to(hidden.dtype)


def _in_front(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Add what the MLP gives to the stream that comes into a block."""
    if not args:
        hidden = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": hidden + block.mlp_in_front(hidden)}
    return (args[0] + block.mlp_in_front(args[0]), *args[1:]), kwargs


def _behind(block: Any, args: Any, output: Any) -> Any:
    """Add what the MLP gives to the stream that leaves a block."""
    if isinstance(output, Tensor):
        return output + block.mlp_behind(output)
    hidden = output[0] + block.mlp_behind(output[0])
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: hidden})
    return type(output)([hidden, *output[1:]])


def add_mlps(model: nn.Module, path: str, stream: int, width: int, in_front_of: Sequence[int]) -> list[GatedMlp]:
    """Put MLPs into a model: behind the block that stands before each place.

    Args:
        path: of the block list.
        stream, width: of the residual stream, and of the MLPs.
        in_front_of: the blocks' numbers; their number for the place behind the last one.
    """
    blocks = list(model.get_submodule(path).children())
    mlps = []
    for number in in_front_of:
        mlp = GatedMlp(stream, width)
        if number == 0:
            blocks[0].add_module("mlp_in_front", mlp)
            blocks[0].register_forward_pre_hook(_in_front, with_kwargs=True)
        else:
            blocks[number - 1].add_module("mlp_behind", mlp)
            blocks[number - 1].register_forward_hook(_behind)
        mlps.append(mlp)
    return mlps


class ConfigWithMlps(BaseConfig):
    model_type = MODEL_TYPE

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)


class ModelWithMlps(BaseModel):
    config_class = ConfigWithMlps

    def __init__(self, config: Any, *inputs: Any, **settings: Any) -> None:
        super().__init__(config, *inputs, **settings)
        add_mlps(self, **config.mlps)
