"""The kernel for CUDA, held to float64 truth by Triton's interpreter on the CPU, and compiled for such devices.

The interpreter must be requested for before Triton is imported: so each program runs in a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import shortgpt
from tests.support import Playback
from tests.values.test_scores import LENGTHS, batches, stream

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

INTERPRETED = """
import json, sys
import torch
import shortgpt
from shortgpt.measuring.scoring import boundary_sums, kernel
from tests.support import Playback
from tests.measuring.scoring.test_kernel import CASES, CRITERIA, case
from tests.values.test_scores import LENGTHS, batches, stream

found = {}
for name in CASES:
    held, hidden, chosen = case(name)
    norms = torch.full([hidden.shape[0] * hidden.shape[1] if chosen is None else len(chosen)], -1.0).double()
    updates = norms.clone()
    kernel.norms_of(held, hidden, chosen, norms, updates)
    found[name] = [norms.tolist(), updates.tolist()]

boundary_sums._kernel_for = lambda hidden: kernel.norms_of  # as on CUDA
for dtype in ("float32", "bfloat16"):
    model = Playback(stream().to(getattr(torch, dtype)))
    scores = shortgpt.score(model, batches(LENGTHS, rows=4), criteria=CRITERIA)
    found["scores " + dtype] = scores.to_json()
json.dump(found, sys.stdout)
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from shortgpt.measuring.scoring.kernel import _norms

numbers = ("held_row", "held_token", "held_element", "hidden_row", "hidden_token", "hidden_element", "tokens")
for dtype in ("bf16", "fp16", "fp32"):
    for gathered, first in ((False, False), (True, False), (True, True)):
        fixed = {"WIDTH": 4096, "GATHERED": gathered, "FIRST": first, "WIDE": 1024}
        types = {"held": "*" + dtype, "hidden": "*" + dtype, "chosen": "*i64", "norms": "*fp64", "updates": "*fp64"}
        types |= dict.fromkeys(numbers, "i64") | dict.fromkeys(fixed, "constexpr")
        for capability in (80, 90):
            source = ASTSource(fn=_norms, signature=types, constexprs=fixed)
            made = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
            assert made.asm["cubin"]
print("compiled")
"""

CRITERIA = ("block-influence", "angular-distance", "relative-magnitude")
CASES = (
    "plain",
    "wide",
    "narrow",
    "bfloat16",
    "float16",
    "float64",
    "mixed",
    "turned",
    "sliced",
    "chosen",
    "first",
    "far",
)


def case(name: str) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """A boundary, the next one, and the places of the tokens that count."""
    width = {"wide": 2500, "narrow": 1, "chosen": 100}.get(name, 64)
    held, hidden = torch.randn(2, 3, 7, width, generator=torch.Generator().manual_seed(0)).unbind()
    hidden = held + 0.1 * hidden
    if name in ("bfloat16", "float16", "float64"):
        held, hidden = held.to(getattr(torch, name)), hidden.to(getattr(torch, name))
    if name == "mixed":
        held = held.bfloat16()
    if name == "turned":  # [width, tokens, batch] in memory
        held, hidden = (part.permute(2, 1, 0).contiguous().permute(2, 1, 0) for part in (held, hidden))
    if name == "sliced":
        held, hidden = held[:, 1:5, 3:40], hidden[:, 1:5, 3:40]
    if name == "far":
        held, hidden = 1e30 * held, 1e30 * hidden
    chosen = None
    if name == "chosen":
        chosen = torch.tensor([0, 2, 3, 7, 13, 14, 20])
        hidden[0, 1] = float("nan")  # place 1, which is not chosen
    return None if name == "first" else held, hidden, chosen


def run(program: str, **settings: str) -> str:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path} | settings)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def found() -> Any:
    return json.loads(run(INTERPRETED, TRITON_INTERPRET="1"))


@pytest.mark.parametrize("name", CASES)
def test_norms_are_the_float64_norms_of_the_same_tokens(name: str, found: Any) -> None:
    held, hidden, chosen = case(name)
    places = slice(None) if chosen is None else chosen
    norms, updates = found[name]
    after = hidden.double().flatten(0, 1)[places]
    assert norms == pytest.approx(after.square().sum(-1).sqrt().tolist(), rel=1e-14)
    if held is None:
        assert set(updates) == {-1.0}  # there is nothing to write
    else:
        before = held.double().flatten(0, 1)[places]
        assert updates == pytest.approx((after - before).square().sum(-1).sqrt().tolist(), rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_by_the_kernel_are_those_without_it(dtype: str, found: Any) -> None:
    fused = shortgpt.Scores.from_json(found[f"scores {dtype}"])
    model = Playback(stream().to(getattr(torch, dtype)))
    plain = shortgpt.score(model, batches(LENGTHS, rows=4), criteria=fused.criteria)
    assert fused.counts == plain.counts
    for ours, theirs in zip((*fused.sums, [fused.update_norm]), (*plain.sums, [plain.update_norm]), strict=True):
        for row, expected in zip(ours, theirs, strict=True):
            assert row == pytest.approx(expected, rel=1e-12)


def test_the_kernel_compiles_for_the_devices_that_it_is_for() -> None:
    assert run(COMPILED, TRITON_INTERPRET="0").strip() == "compiled"
