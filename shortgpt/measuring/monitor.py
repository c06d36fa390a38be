"""Block Influence while a model is trained: Figure 2 of ShortGPT (arXiv:2403.03853) for a training of one's own.

::

    training step ─▶ monitor.step() ─┬─ not the N-th: a count goes up
                                     └─ the N-th: probe batch ─▶ stream ─▶ BI, ‖x_i‖, ‖x_{i+1} − x_i‖ ─▶ JSON Lines, ...

Measuring leaves the training as it was, to the last bit: modules keep their mode, generators of random numbers their
state, and nothing has a gradient.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from shortgpt.basics.inputs import CalibrationOptions
from shortgpt.errors import ModelError, OutputError
from shortgpt.measuring.calibration import Calibration, calibrate
from shortgpt.measuring.scoring.score import score
from shortgpt.models import processes
from shortgpt.models.loading import wrap
from shortgpt.values.training import Moment, Training

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback

PROBE_SEQUENCES = 4


class BlockInfluenceMonitor:
    """Measures a model every `every` steps of its training, on one batch of text that stays the same.

    ::

        monitor = shortgpt.BlockInfluenceMonitor(model, "stdlib", tokenizer=tokenizer, every=100, file="bi.jsonl")
        for batch in batches:
            ...
            optimizer.step()
            monitor.step(tokens=batch["input_ids"].numel())

    With transformers' `Trainer`, `callbacks=[monitor.callback()]` does the counting. In a distributed training the
    process of rank 0 measures, on its own copy of the model; the others only count. A model whose parameters are
    spread over processes (FSDP) is not on any of them and cannot be measured.

    Attributes:
        training: what was measured so far, a `shortgpt.Training`.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any = "stdlib",
        *,
        tokenizer: Any = None,
        every: int = 100,
        file: str | Path | None = None,
        tensorboard: Any = None,
        wandb: Any = None,
        live: bool = False,
        **texts: Unpack[CalibrationOptions],
    ) -> None:
        """
        Args:
            model: the module that is trained, as it is, compiled, or shared among processes by DDP.
            probe, texts: the text to measure on, as `shortgpt.calibrate` takes it; four windows where it is not said.
            tokenizer: the model's, where the probe is text.
            every: measure after so many steps.
            file: append each moment to this file, a line of JSON.
            tensorboard: a `SummaryWriter`, or what has its `add_scalar`.
            wandb: a run of Weights & Biases, or what has its `log`.
            live: print a table of all moments after each.

        Raises:
            ModelError: the model's blocks cannot be found, or `every` is no number of steps.
            CalibrationError: the probe is no text.
        """
        if every < 1:
            raise ModelError(f"a model is measured after 1 step, 2 steps, ...; found every={every}")
        self.every, self.tensorboard, self.wandb, self.live = every, tensorboard, wandb, live
        self.file = None if file is None else Path(file).expanduser()
        self.module = model
        with _undisturbed(model):
            self.model = wrap(model, tokenizer=tokenizer)
            if not isinstance(probe, Calibration):
                texts = {"sequences": PROBE_SEQUENCES, **texts} if isinstance(probe, (str, Path)) else texts
                probe = calibrate(probe, self.model, **texts)
        self.probe = probe
        self.steps, self.tokens = 0, 0
        self.training = Training(
            self.model.name,
            self.model.architecture,
            self.model.norm_placement,
            tuple(self.model.block_names),
            probe.info,
        )

    def step(self, *, tokens: int = 0) -> Moment | None:
        """Count a step of the training, and measure where it is time.

        Args:
            tokens: that this step was trained on.

        Returns:
            What was measured; None between, and in all processes but the first.
        """
        self.steps += 1
        self.tokens += tokens
        return self.measure(self.steps, self.tokens or None) if self.steps % self.every == 0 else None

    def measure(self, step: int, tokens: int | None = None) -> Moment | None:
        """Measure now, whatever the count says.

        Raises:
            HiddenStateError: the stream holds NaN or infinity, as it does when a training diverged.
            OutputError: the file cannot be written.
        """
        if processes.rank_and_size()[0] > 0:
            return None
        begin = time.perf_counter()
        with processes.alone(), _undisturbed(self.module):
            self.module.eval()
            scores = score(self.model, self.probe)
        moment = Moment(
            step,
            tokens,
            scores.values,
            scores.stderr,
            scores.stream_norm,
            scores.update_norm,
            time.perf_counter() - begin,
        )
        self.training = replace(self.training, moments=(*self.training.moments, moment))
        self._tell(moment)
        return moment

    def callback(self) -> TrainerCallback:
        """What transformers' `Trainer` calls after each of its steps."""
        from transformers import TrainerCallback

        monitor = self

        class Measure(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                seen = int(getattr(state, "num_input_tokens_seen", 0) or 0)
                if state.global_step % monitor.every == 0:
                    monitor.measure(state.global_step, seen or None)

        return Measure()

    def _tell(self, moment: Moment) -> None:
        import json

        if self.file is not None:
            try:
                with self.file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(moment.to_dict()) + "\n")
            except OSError as error:
                raise OutputError(f"{self.file}: cannot be written ({error.strerror})") from None
        named = {f"block_influence/{block:03}": value for block, value in enumerate(moment.influence)}
        if self.tensorboard is not None:
            for name, value in named.items():
                self.tensorboard.add_scalar(name, value, moment.step)
        if self.wandb is not None:
            self.wandb.log(named, step=moment.step)
        if self.live:
            print(self.training)


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Inside the context anything may draw random numbers and change modes; afterwards both are as before."""
    import numpy
    import torch

    modes = [(part, part.training) for part in module.modules()]
    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
            yield
    finally:
        for part, training in modes:
            part.training = training
        random.setstate(of_python)
        numpy.random.set_state(of_numpy)
