"""Which numbers of a shorter model are trained.

::

    full    all of them
    lora    W + B A for the linear maps of the blocks, A random and B zero: at step 0 nothing differs. Multiplied out at
            the end, so that what is saved is an ordinary checkpoint (Hu et al., arXiv:2106.09685)
    mlp     a small gated MLP in the place of each removed run, its output zero at step 0; all else stays as it is. What
            is saved carries the code that opens it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from shortgpt.errors import ModelError
from shortgpt.healing.recipe import FULL, MLP, Recipe
from shortgpt.models.probing.probes import probe

if TYPE_CHECKING:
    from shortgpt.torch_models.sequence import TorchBlockSequence


def prepare(blocks: TorchBlockSequence, recipe: Recipe, scratch: Path | None = None) -> tuple[Any, Callable[[], None]]:
    """The module to train, and what makes the model one that can be saved.

    Args:
        scratch: a folder in which there is room for the model, for a while.

    Raises:
        ModelError: there is nothing that LoRA can be put on, or peft is not installed; or no MLP can be put in.
    """
    if recipe.method == FULL:
        for parameter in blocks.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return blocks.model, lambda: None
    if recipe.method == MLP:
        return _mlp(blocks, recipe.width, scratch)
    return _lora(blocks, recipe.rank)


def _mlp(blocks: TorchBlockSequence, width: int | None, scratch: Path | None) -> tuple[Any, Callable[[], None]]:
    if blocks.plan is None:
        raise ModelError(
            f"{blocks.name}: no record (shortgpt.json) says which blocks were removed, and in whose places MLPs are to "
            "stand; train LoRA or all weights (--method lora, full)"
        )
    places = removed_places(blocks.plan.kept, blocks.plan.original_depth)
    mlps = blocks.put_mlps(places, width, scratch)
    blocks.model.requires_grad_(False)
    for mlp in mlps:
        mlp.requires_grad_(True)
    return blocks.model, lambda: None


def removed_places(kept: Sequence[int], depth: int) -> tuple[int, ...]:
    """In front of which blocks of the shorter model some were removed, by its own numbers; its depth for the place
    behind its last one."""
    ends = [-1, *kept, depth]
    return tuple(place for place, block in enumerate(ends[1:]) if block - ends[place] > 1)


def _lora(blocks: TorchBlockSequence, rank: int) -> tuple[Any, Callable[[], None]]:
    try:
        import peft
    except ImportError:
        raise ModelError("LoRA needs peft, which is not installed: pip install 'shortgpt-blocks[heal]'") from None
    from transformers.pytorch_utils import Conv1D

    path, called = blocks.family.block_lists[0], _called(blocks)
    names = [
        f"{path}.{number}.{name}"
        for number, block in enumerate(blocks.blocks)
        for name, module in block.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module in called and not _is_read_by_a_kernel(block, name)
    ]
    if not names:
        raise ModelError(
            f"{blocks.name}: its blocks hold no linear map that LoRA can be put on; train all weights (--method full)"
        )
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, lora_dropout=0.0)
    trained = peft.get_peft_model(blocks.model, config)

    def merged() -> None:
        trained.merge_and_unload()

    return trained, merged


def _called(blocks: TorchBlockSequence) -> set[nn.Module]:
    """The modules that are called in a pass: of others the weights alone are read, past what LoRA adds."""
    seen: set[nn.Module] = set()
    with ExitStack() as hooks:
        for module in blocks.model.modules():
            hooks.callback(module.register_forward_hook(lambda called, args, output: seen.add(called)).remove)
        blocks.logits({"input_ids": probe(blocks.vocab_size, blocks.max_tokens)})
    return seen


def _is_read_by_a_kernel(block: nn.Module, name: str) -> bool:
    """Whether that is the last map of a Mamba mixer, beside a convolution: CUDA kernels read its weight past the
    module, so peft refuses it."""
    parent, _, leaf = name.rpartition(".")
    return leaf == "out_proj" and hasattr(block.get_submodule(parent), "conv1d")
