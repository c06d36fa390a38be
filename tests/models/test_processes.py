"""Scoring shared by processes: two of them, by gloo on the CPU, and as `torchrun` starts them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shortgpt
from tests.fresh_processes import run_python
from tests.support import Ran, ids_of, run_cli, tiny

OURS = """
import torch
from shortgpt import BatchCriterion, Criterion, Cut, OrderCriterion, hookimpl
from shortgpt.plugins import Extension

class Batch(BatchCriterion):
    def measure(self, model, batch):
        found = [logits.double().square().sum((1, 2)) for logits in model.ablated(batch, map(Cut, range(len(model))))]
        return torch.stack(found, 1), [batch["input_ids"].shape[1]] * len(batch["input_ids"])

class Order(OrderCriterion):
    def order(self, model, data, progress):
        return range(len(model))[::-1]

class Last(Criterion):
    tokens = "last"
    def values(self, before, after):
        return (after - before).square().sum(-1)

@hookimpl
def shortgpt_criteria():
    return [Extension(kind.__name__, f"{__name__}:{kind.__name__}") for kind in (Batch, Order, Last)]
"""

CRITERIA = ("block-influence", "Batch", "relative-magnitude", "Order", "Last")

PROGRAM = """
import importlib.metadata, json, os, sys
from importlib.metadata import EntryPoint, EntryPoints
import torch
import shortgpt
from tests.support import Playback, ids_of, tiny
from tests.models.test_processes import CRITERIA

torch.set_num_threads(1)
second = os.fork()
rank = 0 if second else 1
torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}/meeting", rank=rank, world_size=2)
ids = ids_of(5, 40)
given = [{"input_ids": part} for part in ids.split(2)]
found = {"scores": shortgpt.score(shortgpt.wrap(tiny("llama")), given).to_json()}

installed = importlib.metadata.entry_points
ours = EntryPoint("ours", "ours", "shortgpt")
importlib.metadata.entry_points = lambda **chosen: EntryPoints([*installed(**chosen), ours])
shortgpt.plugins.registry.cache_clear()
for first, *others in (CRITERIA, CRITERIA[::-1]):
    scores = shortgpt.score(shortgpt.wrap(tiny("llama")), given, criteria=(first, *others), spans=True)
    found[first] = scores.to_json()

stream = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
stream[2, 7] = float("nan")
playback, whole, broken = Playback(stream), torch.arange(4)[None], torch.arange(4, 8)[None]
found["fewer batches than processes"] = shortgpt.score(playback, [{"input_ids": whole}]).tokens
for name, batches in {
    "broken": [{"input_ids": whole}, {"input_ids": broken}],  # what is broken is the second process's
    "different": [{"input_ids": whole + rank}, {"input_ids": whole}],
}.items():
    try:
        shortgpt.score(Playback(stream if name == "broken" else stream[:, :7]), batches)
    except shortgpt.ShortGPTError as error:
        found[name] = f"{type(error).__name__}: {error}"
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
if second:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
"""


TORCHRUN = """
# What torchrun does to start two processes, but that they are forks, which imported torch before.
import sys
from pathlib import Path
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def command(*arguments):
    from shortgpt.cli import main

    sys.argv = ["shortgpt", *arguments]
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
    return status, [name for name in threads if "gloo" in name]

meeting = {"run_id": "one", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
config = LaunchConfig(1, 1, 2, **meeting, start_method="fork")
ended = elastic_launch(config, command)(*sys.argv[1:])
assert ended == {0: (0, []), 1: (0, [])}, ended  # the command leaves no thread of the group behind
"""


def with_tests_to_import() -> dict[str, str]:
    """The environment, for a program that imports these tests."""
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "ours.py").write_text(OURS)
    ran = run_python(folder / "program.py", folder, env=with_tests_to_import())
    assert ran.returncode == 0, ran.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_come_to_the_scores_of_one_bit_for_bit_and_both_have_them(found: list[dict[str, Any]]) -> None:
    batches = [{"input_ids": part} for part in ids_of(5, 40).split(2)]
    alone = shortgpt.score(shortgpt.wrap(tiny("llama")), batches)
    for one in found:
        assert shortgpt.Scores.from_json(one["scores"]) == alone


@pytest.mark.parametrize("criteria", [CRITERIA, CRITERIA[::-1]], ids=["of all tokens", "of the last token"])
def test_so_do_spans_and_criteria_of_every_kind(
    criteria: tuple[str, ...], found: list[dict[str, Any]], plug: Callable[[str, str], str]
) -> None:
    plug("ours", OURS)
    batches = [{"input_ids": part} for part in ids_of(5, 40).split(2)]
    alone = shortgpt.score(shortgpt.wrap(tiny("llama")), batches, criteria=criteria, spans=True)
    assert alone.spans is not None
    assert alone.criteria == criteria
    for one in found:
        assert shortgpt.Scores.from_json(one[criteria[0]]) == alone


def test_a_process_without_a_batch_has_the_scores_too(found: list[dict[str, Any]]) -> None:
    assert [one["fewer batches than processes"] for one in found] == [[4], [4]]


def test_what_one_process_cannot_score_is_the_same_error_in_all(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["broken"].startswith("HiddenStateError: playback: NaN or infinity")
        assert "block 1 (blocks.1), batch 1" in one["broken"]


def test_processes_that_read_different_texts_are_told(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["different"].startswith("CalibrationError: the processes read different calibration texts")


def test_under_torchrun_the_first_process_reports_and_the_result_is_that_of_one(
    llama_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A line of text, and then another one.\n" * 100)
    options = ["--calibration", text, "--sequences", 3, "--tokens", 32, "--batch-size", 1, "--device", "cpu", "--quiet"]
    alone = run_cli("score", llama_folder, *options, "--json", tmp_path / "alone.json")
    shared = run_python("-c", TORCHRUN, "score", llama_folder, *options, "--json", tmp_path / "shared.json")
    assert (alone.status, shared.returncode) == (0, 0), shared.stderr
    assert shared.stdout == alone.out
    assert (tmp_path / "shared.json").read_text() == (tmp_path / "alone.json").read_text()


def test_commands_that_share_nothing_refuse_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    refused = run_cli("compare", "zoo:llama", "zoo:mamba")
    assert refused.status == 2
    assert "compare runs in one process, found torchrun with 2" in refused.err
    monkeypatch.setenv("RANK", "1")
    assert run_cli("compare", "zoo:llama", "zoo:mamba") == Ran(2, "", "")
