"""A trained model as a checkpoint, with how it came to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shortgpt.basics.inputs import Source
from shortgpt.checkpoints import companions
from shortgpt.checkpoints.new_folder import new_folder
from shortgpt.checkpoints.records import write_records
from shortgpt.checkpoints.weights import TORCH_DTYPES, Weights
from shortgpt.torch_models.sequence import TorchBlockSequence
from shortgpt.values.healing import Healing
from shortgpt.values.plan import Plan, Verification

UNVERIFIED = "its weights were trained after the removal (shortgpt heal)"


def write(model: TorchBlockSequence, source: Source, output: str | Path, result: Healing) -> None:
    """Write a trained model in the dtype of its source, all or nothing.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    _narrow(model, source)
    model.model.eval()
    with new_folder(output) as folder:
        model.write(folder)
        notes = companions.settle(source, folder, None)
        plan = Plan.beside(source.path)
        (folder / "healing.json").write_text(result.to_json() + "\n", encoding="utf-8")
        if plan is not None:
            plan = replace(
                plan,
                verification=Verification(verified=False, reason=UNVERIFIED),
                healing=result,
                effect=None,
                load=model.load_example,
                parameters_after=model.total_parameters(),
                notes=tuple(dict.fromkeys((*plan.notes, *model.notes, *notes))),
                exports=(),
            )
            write_records(folder, plan, source.path)


def _narrow(model: TorchBlockSequence, source: Source) -> None:
    """Put the weights into half precision where the source's are."""
    import torch

    weights = Weights(source)
    dtypes = {entry.dtype for table in weights.tensors.values() for entry in table.values()}
    half = [TORCH_DTYPES[name] for name in ("BF16", "F16") if name in dtypes]
    if half and "F32" not in dtypes:
        model.model.to(getattr(torch, half[0]))
