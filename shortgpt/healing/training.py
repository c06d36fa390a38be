"""The training itself: transformers' Trainer on windows of text, watched on held-out text.

transformers' Trainer holds the updates, the order of the windows, and what a run needs to be taken up again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from shortgpt.basics.inputs import Progress
from shortgpt.healing.recipe import Recipe
from shortgpt.healing.run import Run
from shortgpt.healing.teacher import TEACHING, Teacher, distillation_loss
from shortgpt.values.healing import Healed

if TYPE_CHECKING:
    from shortgpt.measuring.calibration import Calibration

HISTORY = "losses.json"
BEST = "best.pt"


class WindowTrainer(Trainer):
    """Trains on windows of text: on the next token, or on what a teacher said of it.

    Attributes:
        recipe: how.
    """

    recipe: Recipe

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **unused: Any) -> Any:
        taught = [inputs.pop(name) for name in TEACHING if name in inputs]
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        # Not by the Trainer's own flag, which would leave the model itself in bfloat16 where it is judged.
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            output = model(**inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        if taught:
            loss = distillation_loss(logits, taught[0], taught[1], mask, self.recipe.temperature)
        else:
            loss = next_token_loss(logits, ids, mask)
        return (loss, output) if return_outputs else loss


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The mean cross-entropy of the next token over real tokens, in float32.

    Args:
        logits: [batch, tokens, vocabulary].
        ids, mask: [batch, tokens]; real tokens stand first in every row.
    """
    targets = ids[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~mask[:, 1:].bool(), -100)
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten())


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The sequences of a calibration, a row each, with what a teacher said of it."""

    def __init__(self, data: Calibration, teacher: Teacher | None) -> None:
        self.teacher = teacher
        self.rows = [
            {name: value[row] for name, value in batch.items() if isinstance(value, Tensor)}
            for batch in data.batches
            for row in range(len(batch["input_ids"]))
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.rows[row] | (self.teacher.row(row) if self.teacher is not None else {})


class Watch(TrainerCallback):
    """Notes losses, tells progress, and ends the training where held-out text says so.

    Args:
        judge: the loss on held-out text.
        every: steps from one look at it to the next.
        patience: how many looks without a better one end the training; None for no end.
        folder: where losses, and the best weights, are kept for a run that is taken up again.
    """

    def __init__(
        self, judge: Callable[[], float], every: int, patience: int | None, folder: Path, progress: Progress | None
    ) -> None:
        self.judge, self.every, self.patience, self.folder, self.progress = judge, every, patience, folder, progress
        self.training: list[Healed] = []
        self.held_out: list[Healed] = []

    def read(self, step: int) -> None:
        """Take up what was noted up to a step."""
        if (self.folder / HISTORY).is_file():
            noted = json.loads((self.folder / HISTORY).read_text(encoding="utf-8"))
            self.training, self.held_out = (
                [healed for healed in map(Healed.from_dict, noted[name]) if healed.step <= step]
                for name in ("training", "held_out")
            )

    def look(self, step: int, model: Any) -> None:
        """Judge the model, and keep its weights where they are the best so far and one may go back to them."""
        loss = self.judge()
        is_best = loss < min((healed.loss for healed in self.held_out), default=float("inf"))
        self.held_out.append(Healed(step, loss))
        if self.patience is not None and is_best:
            torch.save(_trained(model), self.folder / BEST)

    def _note(self) -> None:
        """Keep what was noted."""
        noted = {name: [healed.to_dict() for healed in getattr(self, name)] for name in ("training", "held_out")}
        (self.folder / HISTORY).write_text(json.dumps(noted), encoding="utf-8")

    def restore_best(self, model: Any) -> None:
        """Give the model the weights that were best on held-out text."""
        if self.patience is not None:
            best = torch.load(self.folder / BEST, weights_only=True)
            with torch.no_grad():
                for name, parameter in _trained(model).items():
                    parameter.copy_(best[name])

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self._note()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **unused: Any) -> None:
        if logs and "loss" in logs:
            self.training.append(Healed(state.global_step, float(logs["loss"])))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        if self.progress is not None:
            self.progress("steps", state.global_step, state.max_steps)
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        self.look(state.global_step, model)
        best = min(range(len(self.held_out)), key=lambda place: self.held_out[place].loss)
        if self.patience is not None and len(self.held_out) - 1 - best >= self.patience:
            control.should_training_stop = True


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        training, held_out: losses on the two texts.
        steps: updates that were made.
        numbers: how many numbers were trained.
        seconds: that this part of the run took.
    """

    training: tuple[Healed, ...]
    held_out: tuple[Healed, ...]
    steps: int
    numbers: int
    seconds: float


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(
    module: Any,
    data: Calibration,
    teacher: Teacher | None,
    recipe: Recipe,
    run: Run,
    judge: Callable[[], float],
    *,
    seed: int,
    use_cpu: bool,
    progress: Progress | None,
) -> Trained:
    """Train a module; afterwards it holds the weights of the last step, or the best ones where that is asked for.

    Args:
        judge: the loss on held-out text, now.
    """
    if recipe.checkpointing:
        # Older versions of transformers know it by the second name alone.
        enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    watch = Watch(judge, recipe.look_every, recipe.patience, run.folder, progress)
    trainer = _trainer(module, Windows(data, teacher), watch, recipe, seed, use_cpu)
    last = get_last_checkpoint(str(run.folder)) if run.begun else None
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
    seconds = time.monotonic() - clock
    watch.restore_best(module)
    numbers = sum(parameter.numel() for parameter in _trained(module).values())
    return Trained(tuple(watch.training), tuple(watch.held_out), trainer.state.global_step, numbers, seconds)


def _trainer(module: Any, windows: Windows, watch: Watch, recipe: Recipe, seed: int, use_cpu: bool) -> Trainer:
    """The Trainer of a module, with our own callback alone."""
    arguments = TrainingArguments(
        output_dir=str(watch.folder),
        max_steps=recipe.steps,
        learning_rate=recipe.rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, recipe.steps // 20),
        weight_decay=0.0,
        per_device_train_batch_size=recipe.step_sequences,
        gradient_accumulation_steps=recipe.accumulate,
        save_steps=watch.every,
        save_total_limit=1,
        logging_steps=watch.every,
        seed=seed,
        use_cpu=use_cpu,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = WindowTrainer(model=module, args=arguments, train_dataset=windows, callbacks=[watch])
    trainer.recipe = recipe
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean, so accumulated steps are averaged
    trainer.can_return_loss = False
    trainer.remove_callback(PrinterCallback)
    return trainer
