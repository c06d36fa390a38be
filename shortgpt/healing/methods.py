"""Which numbers of a shorter model are trained.

::

    full    all of them
    lora    W + B A for the linear maps of the blocks, A random and B zero: at step 0 nothing differs. Multiplied out at
            the end, so that what is saved is an ordinary checkpoint (Hu et al., arXiv:2106.09685)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from shortgpt.errors import ModelError
from shortgpt.models.probing.probes import probe

if TYPE_CHECKING:
    from shortgpt.torch_models.sequence import TorchBlockSequence

METHODS = ("lora", "full")


def prepare(blocks: TorchBlockSequence, method: str, rank: int) -> tuple[Any, Callable[[], None]]:
    """The module to train, and what makes the model an ordinary one again.

    Raises:
        ModelError: there is nothing that LoRA can be put on, or peft is not installed.
    """
    if method == "full":
        for parameter in blocks.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return blocks.model, lambda: None
    return _lora(blocks, rank)


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
