"""Loaders for `shortgpt.verification.checking.check` that give what a test wrote into the checkpoint's folder."""

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


class Recorded:
    """Answers with the tensors of `answer.safetensors`."""

    def __init__(self, directory: Path) -> None:
        self.answer = load_file(directory / "answer.safetensors")

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.answer["logits"]

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        return self.answer["cached" if cached else "uncached"]


def recorded(directory: Path, **options: Any) -> Recorded:
    return Recorded(directory)


def noting_process(directory: Path, **options: Any) -> Recorded:
    (directory / "process").write_text(f"{os.getpid()} {os.getppid()} {sorted(options.items())}")
    return Recorded(directory)


def failing(directory: Path, **options: Any) -> Recorded:
    raise ValueError("the first line\nand the last, which is the reason")
