"""From a shorter checkpoint to a trained one.

::

    shorter ─▶ in memory ─▶ LoRA, or all weights ─▶ Trainer ─▶ LoRA multiplied out ─▶ output/
                  │                                    │
    held-out text ┴─ step 0 ─────────────── every N steps ─▶ losses, early stopping

ShortGPT, Section 4.6 and Table 6 (arXiv:2403.03853): training after a removal wins back part of what it cost.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from shortgpt.basics import statistics
from shortgpt.basics.inputs import MeasuringOptions, Progress, Source, apart
from shortgpt.checkpoints import companions
from shortgpt.checkpoints.new_folder import check_output, new_folder
from shortgpt.checkpoints.records import write_records
from shortgpt.checkpoints.weights import TORCH_DTYPES, Weights
from shortgpt.errors import ModelError, OutputError, SelectionError
from shortgpt.healing.methods import METHODS, prepare
from shortgpt.measuring.calibration import Calibration, calibrate
from shortgpt.measuring.compensation.fit import part_of
from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, Quality, evaluate, open_evaluator
from shortgpt.models.loading import load
from shortgpt.models.memory import release_memory
from shortgpt.models.recognition import resolve
from shortgpt.torch_models.sequence import TorchBlockSequence
from shortgpt.values.healing import Healing
from shortgpt.values.plan import Plan, Verification

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence

SEQUENCES, HELD_OUT = 1024, 32
"""Windows that are trained on, again and again, and windows that judge."""
LEARNING_RATES = {"lora": 3e-4, "full": 1e-4}


def heal(
    original: str | Path | Source,
    shorter: str | Path | Source,
    output: str | Path,
    *,
    method: str = "lora",
    steps: int = 500,
    learning_rate: float | None = None,
    step_sequences: int = 8,
    accumulate: int = 1,
    rank: int = 16,
    every: int | None = None,
    patience: int | None = None,
    resume: bool = False,
    calibration: Any = "stdlib",
    progress: Progress | None = None,
    **options: Unpack[MeasuringOptions],
) -> Healing:
    """Train a shorter model on text, and write it as an ordinary checkpoint.

    It is trained in float32 and written in the dtype that it was saved in. Between its steps the run is kept in the
    folder `OUTPUT.checkpoints`, which is gone when it is done.

    Args:
        original: the model that it was made from; its loss says how much there was to win.
        output: a folder that does not exist, or is empty.
        method: "lora" or "full"; see `shortgpt.healing.methods`.
        steps: updates.
        learning_rate: default: 3e-4 with LoRA, 1e-4 for all weights; it rises for a twentieth of the steps and falls as
            a cosine.
        step_sequences, accumulate: sequences that are held at a time, and how many such parts an update sums.
        rank: of LoRA's maps.
        every: steps between looks at the held-out text; default: a tenth of all.
        patience: end after so many looks that found nothing better, and take the weights of the best one.
        resume: go on with the run that was begun for this output.
        calibration: the text, as `shortgpt.score` takes it; its last windows (32, or an eighth) are held out.
        progress: called with "steps" after each.
        options: how models are opened and text is taken; `sequences`, default 1,024, counts the windows trained on.

    Raises:
        ModelError: a model cannot be opened or trained. OutputError: `output` cannot be written, or a run was begun for
            it and not resumed. In every case nothing is left at `output`.
    """
    if method not in METHODS:
        raise SelectionError(f"unknown method {method!r}; supported are {', '.join(METHODS)}")
    for name, number in (("steps", steps), ("batch", step_sequences), ("accumulate", accumulate), ("rank", rank)):
        if number < 1:
            raise SelectionError(f"{name} must be at least 1, found {number}")
    folder = check_output(output)
    work = folder.with_name(f"{folder.name}.checkpoints")
    begun = _begun(work, resume)
    texts, loading = apart(options)
    source = shorter if isinstance(shorter, Source) else resolve(shorter)
    loading["dtype"] = "float32"
    model = _trainable(load(source, **loading))
    data, held_out = _texts(calibration, model, texts)
    whole = _whole(original, loading, held_out)
    from transformers import set_seed

    evaluator = open_evaluator(DEFAULT_EVALUATOR)

    def judged() -> Quality:
        training = model.model.training
        model.model.eval()
        quality = evaluate(model, held_out, evaluator)
        model.model.train(training)
        return quality

    before = judged()
    set_seed(texts.get("seed", 0))  # of LoRA's maps
    module, finish = prepare(model, method, rank)
    settings = {
        "max_steps": steps,
        "learning_rate": LEARNING_RATES[method] if learning_rate is None else learning_rate,
        "per_device_train_batch_size": step_sequences,
        "gradient_accumulation_steps": accumulate,
        "save_steps": every or max(1, steps // 10),
        "seed": texts.get("seed", 0),
        "use_cpu": model.device.type == "cpu",
    }
    watch, seconds, done = _train(module, data, work, begun, lambda: judged().mean, patience, settings, progress)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    watch.restore_best(module)
    finish()
    after = judged()
    numbers = {name: float(value) for name, value in settings.items() if name != "use_cpu"}
    if method == "lora":
        numbers["rank"] = float(rank)
    result = Healing(
        original=original.name if isinstance(original, Source) else str(original),
        shorter=source.name,
        method=method,
        before=before.mean,
        after=after.mean,
        training=tuple(watch.training),
        held_out=tuple(watch.held_out),
        steps=done,
        trained=trained,
        settings=numbers,
        text=data.info,
        judged_on=held_out.info,
        seconds=seconds,
    )
    result = _against(result, whole, before, after, held_out)
    _write(model, source, output, result)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _begun(work: Path, resume: bool) -> bool:
    """Whether there is a run to be taken up.

    Raises:
        OutputError: there is one, and it is not to be; or none, and it is.
    """
    begun = work.is_dir() and any(work.glob("checkpoint-*"))
    if begun and not resume:
        raise OutputError(f"{work}: holds a run that was not finished; go on with it (--resume), or remove the folder")
    if resume and not begun:
        raise OutputError(f"{work}: holds no run to go on with; begin one without --resume")
    return begun


def _trainable(model: BlockSequence) -> TorchBlockSequence:
    """The model, where it is of torch modules in memory.

    Raises:
        ModelError: it is not.
    """
    if not isinstance(model, TorchBlockSequence):
        raise ModelError(
            f"{model.name}: a model of the adapter {model.architecture!r} is no torch module, so it cannot be trained "
            "here; train it with its own library's trainer, or convert it for transformers"
        )
    if model.streamed:
        raise ModelError(f"{model.name}: streamed weights cannot be trained; load it whole (without --stream)")
    return model


def _texts(calibration: Any, model: BlockSequence, texts: Any) -> tuple[Calibration, Calibration]:
    """Windows to train on, and those that judge."""
    number = texts.get("sequences") or SEQUENCES
    held = min(HELD_OUT, max(1, number // 8))
    both = calibrate(calibration, model, **{**texts, "sequences": number + held})
    total = both.info.sequences
    return part_of(both, 0, total - held), part_of(both, total - held, total)


def _whole(original: str | Path | Source, loading: Any, held_out: Calibration) -> Quality:
    """The original's quality on the held-out text; it is let go again."""
    quality = evaluate(load(original, **loading), held_out, open_evaluator(DEFAULT_EVALUATOR))
    release_memory()
    return quality


def _train(
    module: Any,
    data: Calibration,
    work: Path,
    begun: bool,
    judge: Any,
    patience: int | None,
    settings: dict[str, Any],
    progress: Progress | None,
) -> tuple[Any, float, int]:
    """Train a module; what was noted, the seconds it took, and the steps that were made."""
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils import logging

    from shortgpt.healing.training import Watch, trainer_for

    work.mkdir(parents=True, exist_ok=True)
    watch = Watch(judge, settings["save_steps"], patience, work, progress)
    trainer = trainer_for(module, data, work, watch, settings)
    last = get_last_checkpoint(str(work)) if begun else None
    if last is None:
        watch.look(0, module)
    else:
        watch.read(int(last.rpartition("-")[2]))
    clock = time.monotonic()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of the files that it writes
    try:
        trainer.train(resume_from_checkpoint=last)
    finally:
        if bars:
            logging.enable_progress_bar()
    return watch, time.monotonic() - clock, trainer.state.global_step


def _against(result: Healing, whole: Quality, before: Quality, after: Quality, held_out: Calibration) -> Healing:
    """The result with the share of the gap that is closed."""
    gap = before.mean - whole.mean
    won, error = statistics.difference(after.sums, before.sums, after.counts, held_out.documents)
    if gap <= 0:
        return replace(result, whole=whole.mean)
    return replace(result, whole=whole.mean, gap_closed=won / gap, gap_closed_stderr=error / gap)


def _write(model: TorchBlockSequence, source: Source, output: str | Path, result: Healing) -> None:
    """Write the trained model, and how it came to be."""
    import torch

    weights = Weights(source)
    dtypes = {entry.dtype for table in weights.tensors.values() for entry in table.values()}
    half = [TORCH_DTYPES[name] for name in ("BF16", "F16") if name in dtypes]
    if half and "F32" not in dtypes:
        model.model.to(getattr(torch, half[0]))
    model.model.eval()
    with new_folder(output) as folder:
        model.write(folder)
        notes = companions.settle(source, folder, None)
        plan = Plan.beside(source.path)
        (folder / "healing.json").write_text(result.to_json() + "\n", encoding="utf-8")
        if plan is not None:
            why = Verification(verified=False, reason="its weights were trained after the removal (shortgpt heal)")
            plan = replace(plan, verification=why, healing=result, effect=None, notes=(*plan.notes, *notes), exports=())
            write_records(folder, plan, source.path)
