"""From a shorter checkpoint to a trained one.

::

    original ─▶ its loss, and with `distil` what it says of each window ────────────┐
    shorter ──▶ in memory ─▶ LoRA, all weights, or MLPs ─▶ Trainer on windows ◀─────┘ ─▶ LoRA multiplied out ─▶ output/
                    │                                         │
    held-out text ──┴─ step 0 ──────────── every N steps ─────┴─▶ losses, early stopping

ShortGPT, Section 4.6 and Table 6 (arXiv:2403.03853): training after a removal, of all weights or of an MLP in the place
of what was removed, wins back part of what it cost.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack, cast

from shortgpt.basics import statistics
from shortgpt.basics.inputs import CalibrationOptions, Progress, Source, apart
from shortgpt.basics.progress import shown
from shortgpt.errors import ModelError
from shortgpt.healing.methods import prepare
from shortgpt.healing.recipe import HealingOptions, Recipe, recipe_apart
from shortgpt.healing.run import Run
from shortgpt.healing.writing import write
from shortgpt.measuring.calibration import Calibration, calibrate
from shortgpt.measuring.compensation.fit import part_of
from shortgpt.measuring.evaluation import DEFAULT_EVALUATOR, Quality, evaluate, open_evaluator
from shortgpt.models.loading import load
from shortgpt.models.memory import release_memory
from shortgpt.models.recognition import resolve
from shortgpt.models.sequence import BlockSequence
from shortgpt.torch_models.sequence import TorchBlockSequence
from shortgpt.values.healing import Healing

SEQUENCES, HELD_OUT = 1024, 32
"""Windows that are trained on, again and again, and windows that judge."""


def heal(
    original: str | Path | Source,
    shorter: str | Path | Source,
    output: str | Path,
    *,
    calibration: Any = "stdlib",
    resume: bool = False,
    progress: Progress | bool | None = None,
    **options: Unpack[HealingOptions],
) -> Healing:
    """Train a shorter model on text, and write it as a checkpoint.

    It is trained in float32 and written in the dtype that it was saved in. Between its steps the run is kept in the
    folder `OUTPUT.checkpoints`, which is gone when it is done.

    Args:
        original: the model that it was made from. Its loss says how much there was to win, and with `distil` it
            teaches.
        output: a folder that does not exist, or is empty.
        calibration: the text, as `shortgpt.score` takes it; its last windows (32, or an eighth) are held out.
        resume: go on with the run that was begun for this output.
        progress: True for bars; or it is called with "teacher" as the original is asked, and with "steps" after each.
        options: `method` ("lora", "full" or "mlp"), `steps` and the others of `shortgpt.healing.recipe.Recipe`; how
            models are opened and text is taken. `sequences`, default 1,024, counts the windows trained on.

    Raises:
        ModelError: a model cannot be opened or trained. OutputError: `output` cannot be written; or a run was begun for
            it and is not resumed, or not with the settings that it had. In every case nothing is left at `output`.
    """
    progress = shown(progress)
    recipe, measuring = recipe_apart(options)
    run = Run.of(output, resume)
    texts, loading = apart(measuring)
    loading["dtype"] = "float32"
    source = shorter if isinstance(shorter, Source) else resolve(shorter)
    model = _trainable(load(source, **loading), recipe)
    data, held_out = _texts(calibration, model, texts)
    settings = {**asdict(recipe), "shorter": source.name, "text": data.info.token_hash}
    run.check(settings)

    # Here and not before: what is refused above needs none of it.
    from transformers import set_seed

    from shortgpt.healing.training import train

    seed = texts.get("seed", 0)
    before = _judged(model, held_out)
    set_seed(seed)  # of LoRA's maps and of MLPs
    module, finish = prepare(model, recipe, run.scratch)
    run.begin(settings)
    whole, teacher = _ask(load(original, **loading), model.vocab_size, data, held_out, recipe, run, progress)
    release_memory()  # of the original
    trained = train(
        module,
        data,
        teacher,
        recipe,
        run,
        lambda: _judged(model, held_out).mean,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        progress=progress,
    )
    finish()
    after = _judged(model, held_out)
    closed, error = _closed(whole, before, after, held_out)
    result = Healing(
        original=original.name if isinstance(original, Source) else str(original),
        shorter=source.name,
        method=recipe.method,
        before=before.mean,
        after=after.mean,
        whole=whole.mean,
        gap_closed=closed,
        gap_closed_stderr=error,
        training=trained.training,
        held_out=trained.held_out,
        steps=trained.steps,
        trained=trained.numbers,
        settings=recipe.numbers(seed),
        text=data.info,
        judged_on=held_out.info,
        seconds=trained.seconds,
    )
    write(model, source, output, result)
    run.remove()
    return result


def _trainable(model: BlockSequence, recipe: Recipe) -> TorchBlockSequence:
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
    if recipe.checkpointing and not getattr(model.model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{model.name}: a {type(model.model).__name__} does not compute its blocks anew on the way back; leave "
            "--checkpointing out"
        )
    return model


def _texts(calibration: Any, model: BlockSequence, texts: CalibrationOptions) -> tuple[Calibration, Calibration]:
    """Windows to train on, and those that judge."""
    number = texts.get("sequences") or SEQUENCES
    held = min(HELD_OUT, max(1, number // 8))
    both = calibrate(calibration, model, **cast(CalibrationOptions, {**texts, "sequences": number + held}))
    total = both.info.sequences
    return part_of(both, 0, total - held), part_of(both, total - held, total)


def _ask(
    original: BlockSequence,
    vocab_size: int,
    data: Calibration,
    held_out: Calibration,
    recipe: Recipe,
    run: Run,
    progress: Progress | None,
) -> tuple[Quality, Any]:
    """The original's quality on the held-out text, and what it teaches, if anything.

    Raises:
        ModelError: it knows other tokens than the shorter model.
    """
    if original.vocab_size != vocab_size and recipe.distil:
        raise ModelError(
            f"{original.name}: it knows {original.vocab_size:,} tokens and the shorter model {vocab_size:,}, so it "
            "cannot teach it; name the model that the shorter one was made from, or leave --distil out"
        )
    quality = _judged(original, held_out)
    if not recipe.distil:
        return quality, None
    from shortgpt.healing.teacher import ask

    teacher = ask(original, data, run.folder, temperature=recipe.temperature, top_k=recipe.top_k, progress=progress)
    return quality, teacher


def _judged(model: BlockSequence, held_out: Calibration) -> Quality:
    """The quality on the held-out text; a model that is being trained is so again afterwards."""
    module = model.model if isinstance(model, TorchBlockSequence) else None
    training = module is not None and module.training
    if module is not None:
        module.eval()
    quality = evaluate(model, held_out, open_evaluator(DEFAULT_EVALUATOR))
    if module is not None:
        module.train(training)
    return quality


def _closed(
    whole: Quality, before: Quality, after: Quality, held_out: Calibration
) -> tuple[float, float] | tuple[None, None]:
    """The share of the gap that is closed, and its standard error; None where the removal cost nothing."""
    gap = before.mean - whole.mean
    if gap <= 0:
        return None, None
    won, error = statistics.difference(after.sums, before.sums, after.counts, held_out.documents)
    return won / gap, error / gap
