"""`BlockInfluenceMonitor`: what it measures is what scoring a copy gives, and the training is the same without it."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import shortgpt
from shortgpt import BlockInfluenceMonitor, Training
from shortgpt.errors import ModelError
from tests.support import ids_of

PROBE = [{"input_ids": ids_of(rows=2, tokens=12)}]


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=257, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).train()  # with dropout, so that random numbers matter


def train(model: Any, steps: int, after: Any = lambda tokens: None) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        ids = ids_of(rows=2, tokens=16, seed=step + random.randrange(1000) + int(numpy.random.randint(1000)))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(ids.numel())


def seeded() -> None:
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)


def test_a_training_is_the_same_to_the_bit_and_each_moment_is_the_score_of_a_copy() -> None:
    watched, expected = gpt2(), []
    watched.transformer.h[1].eval()  # a part that is frozen by hand stays as it is
    alone_too = gpt2()
    alone_too.transformer.h[1].eval()
    monitor = BlockInfluenceMonitor(watched, PROBE, every=2)

    def after(tokens: int) -> None:
        if monitor.step(tokens=tokens) is not None:
            expected.append(shortgpt.score(copy.deepcopy(watched), PROBE))
            assert watched.training
            assert not watched.transformer.h[1].training
            assert all(parameter.grad is None for parameter in watched.parameters())

    seeded()

    def both(tokens: int) -> None:
        after(tokens)

    train(watched, 6, both)
    seeded()
    train(alone_too, 6)
    for one, other in zip(watched.parameters(), alone_too.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [moment.step for moment in monitor.training.moments] == [2, 4, 6]
    assert [moment.tokens for moment in monitor.training.moments] == [64, 128, 192]
    for moment, scores in zip(monitor.training.moments, expected, strict=True):
        assert moment.influence == scores.values
        assert (moment.stream_norm, moment.update_norm) == (scores.stream_norm, scores.update_norm)


def test_measuring_leaves_the_generators_of_random_numbers_alone() -> None:
    model = gpt2()
    monitor = BlockInfluenceMonitor(model, PROBE, every=1)
    seeded()
    expected = torch.rand(3).tolist(), random.random(), numpy.random.rand()
    seeded()
    monitor.measure(0)
    assert (torch.rand(3).tolist(), random.random(), numpy.random.rand()) == expected


def test_moments_go_where_they_are_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Board:
        seen: list[tuple[Any, ...]] = []

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.seen.append((name, value, step))

        def log(self, values: dict[str, float], step: int) -> None:
            self.seen += [(name, value, step) for name, value in values.items()]

    board = Board()
    model = gpt2()
    outputs: dict[str, Any] = {"file": tmp_path / "bi.jsonl", "tensorboard": board, "wandb": board, "live": True}
    monitor = BlockInfluenceMonitor(model, PROBE, every=2, **outputs)
    train(model, 4, lambda tokens: monitor.step(tokens=tokens))
    lines = [json.loads(line) for line in (tmp_path / "bi.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    first = monitor.training.moments[0]
    named = [(f"block_influence/{block:03}", value, 2) for block, value in enumerate(first.influence)]
    assert board.seen[:6] == named + named
    assert "Block Influence" not in capsys.readouterr().err
    assert Training.from_json(monitor.training.to_json()) == monitor.training
    assert len(monitor.training.rows()) == 2 * 3
    picture = monitor.training.plot()
    assert picture.axes[0].get_ylabel() == "block, counted from 0"


def test_the_trainer_of_transformers_counts_for_it(tmp_path: Path) -> None:
    model = gpt2()
    monitor = BlockInfluenceMonitor(model, PROBE, every=2)
    data = [{"input_ids": row, "labels": row} for row in ids_of(rows=8, tokens=16)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, callbacks=[monitor.callback()]).train()
    assert [moment.step for moment in monitor.training.moments] == [2, 4]
    assert monitor.training.moments[0].influence != monitor.training.moments[1].influence


def test_no_steps_are_refused() -> None:
    with pytest.raises(ModelError, match="found every=0"):
        BlockInfluenceMonitor(gpt2(), PROBE, every=0)
