"""A model that reads its config in many ways, in a module that says nothing else."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class ToyConfig(PreTrainedConfig):
    """Speaks of `only_told`."""

    model_type = "toy_that_reads"
    attribute_map = {"by_another_name": "aliased"}
    depth: int = 2
    declared: int = 1
    aliased: int = 1
    in_the_class: int = 1
    when_trained: int = 1
    with_a_cache: int = 1
    put_together: int = 1
    by_getattr: int = 1

    def __post_init__(self, popped: int = 1, **kwargs: Any) -> None:
        self.derived = popped + self.in_the_class
        super().__post_init__(**kwargs)


class Toy(PreTrainedModel):
    """A model that reads its config in many ways."""

    config_class = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(config.depth)])
        self.only_a_module = config.by_another_name + self.held("put_" + "together")
        self.post_init()

    def held(self, name: str) -> Any:
        return getattr(self.config, name)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        """Does not read `only_told`."""
        hidden: Tensor = torch.ones((*input_ids.shape, 2), dtype=self.dtype, device=input_ids.device)
        for layer in self.layers:
            hidden = layer(hidden) * self.only_a_module
        if use_cache:
            hidden = hidden * self.held("with_" + "a_cache")
        if self.training:  # which it never is here
            hidden = hidden * self.config.when_trained * getattr(self.config, "by_getattr", 1)
        return hidden


def toy() -> Toy:
    with torch.device("meta"):
        return Toy(ToyConfig())
