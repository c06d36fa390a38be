"""Other people's plugins: the two packages of examples/, built, installed, and used by the command line as it is.

What the commands print is checked against the example model run by hand, layer by layer, without shortgpt.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortgpt.basics.inputs import OpenOptions, Source
from shortgpt.errors import CheckpointError, UnknownArchitectureError
from shortgpt.models.recognition import recognise, resolve
from tests.example_environment import EXAMPLES, ROOT, Environment

TOKENS = 32
SEGMENT = 16 * TOKENS  # characters; a text of two segments gives two windows, and each begins a segment
TEXT = "".join(f"{n} pebbles in {n * n % 97} brooks; " for n in range(200))[: 2 * SEGMENT]


@pytest.fixture(scope="module")
def pebble() -> Iterator[Any]:
    """The example's model, imported here from its folder: a reference that no plugin has to be installed for."""
    folder = str(EXAMPLES / "third_party_architecture")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("shortgpt_pebble.make_model").make_model()
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def folder(examples: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: a model, and a text to score it on."""
    work = tmp_path_factory.mktemp("third-party")
    (work / "text.txt").write_text(TEXT, encoding="utf-8")
    examples.ok("-m", "shortgpt_pebble.make_model", "tiny", cwd=work)
    return work


@pytest.fixture(scope="module")
def by_hand(pebble: Any) -> Mapping[str, list[float]]:
    """Criterion → its value of each block: the mean over the tokens of the text's two windows."""
    ids = torch.tensor([list(TEXT[at : at + TOKENS].encode()) for at in (0, SEGMENT)])
    with torch.no_grad():
        hidden = pebble.embedding(ids)
        stream = [hidden.double()]
        for block in pebble.blocks:
            hidden, _ = block(hidden, torch.zeros(len(ids), hidden.shape[2]))
            stream.append(hidden.double())
    pairs = list(itertools.pairwise(stream))
    return {
        "block-influence": [1 - torch.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairs],
        "norm-change": [(y.norm(dim=-1) / x.norm(dim=-1)).log().abs().mean().item() for x, y in pairs],
    }


def least_first(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)


CALIBRATION = ("--calibration", "text.txt", "--sequences", "2", "--tokens", str(TOKENS))


def test_our_code_has_never_heard_of_the_examples() -> None:
    ours = [file for name in ("shortgpt", "adapters", "plugins") for file in (ROOT / name).rglob("*.py")]
    assert len(ours) > 20
    for word in ("pebble", "norm-change", "shortgpt_extras"):
        assert [file for file in ours if word in file.read_text(encoding="utf-8").lower()] == []


def test_without_the_plugin_the_architecture_is_unknown_and_the_error_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UnknownArchitectureError, match=r"'pebble'.*docs/writing-an-adapter\.md"):
        recognise(resolve("tiny"))
    assert (ROOT / "docs/writing-an-adapter.md").is_file()


def test_plugins_lists_what_was_installed(examples: Environment) -> None:
    listed = json.loads(examples.ok("-m", "shortgpt", "plugins", "--json", "-"))
    records = {record["name"]: record for record in listed["records"]}
    assert {name: record["error"] for name, record in records.items()} == dict.fromkeys(records)
    assert {"adapters", "plugins", "pebble", "extras"} <= set(records)
    found = {name: (records[name]["distribution"], records[name]["provides"]) for name in ("pebble", "extras")}
    assert found == {
        "pebble": ("shortgpt-pebble", ["architectures: pebble"]),
        "extras": ("shortgpt-extras", ["criteria: norm-change", "reporters: ranking"]),
    }


def test_listing_plugins_imports_no_torch(examples: Environment) -> None:
    heavy = "print(sorted({'numpy', 'torch', 'transformers'} & set(sys.modules)))"
    program = f"import sys, shortgpt_pebble.catalog, shortgpt_extras.catalog; {heavy}"
    assert examples.ok("-c", program, anew=True) == "[]\n"


def test_score_takes_the_architecture_the_criterion_and_the_report_format(
    examples: Environment, folder: Path, by_hand: Mapping[str, list[float]]
) -> None:
    criteria = ("--criterion", "norm-change", "--criterion", "block-influence")
    command = ("-m", "shortgpt", "score", "tiny", *CALIBRATION, *criteria)
    printed = examples.ok(*command, "--format", "ranking", "--json", "scores.json", cwd=folder)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["architecture"] == "pebble"
    assert scores["criteria"] == ["norm-change", "block-influence"]
    assert sum(scores["tokens"]) == 2 * TOKENS
    for name, sums in zip(scores["criteria"], scores["sums"], strict=True):
        values = [sum(column) / (2 * TOKENS) for column in zip(*sums, strict=True)]
        assert values == pytest.approx(by_hand[name], rel=1e-5)
    assert printed == f"tiny\t{','.join(map(str, least_first(by_hand['norm-change'])))}\n"


def test_compare_puts_it_beside_a_model_of_ours(
    examples: Environment, folder: Path, by_hand: Mapping[str, list[float]]
) -> None:
    command = ("-m", "shortgpt", "compare", "tiny", "zoo:llama", "nowhere/", *CALIBRATION)
    printed = examples.ok(*command, "--format", "ranking", "--json", "comparison.json", cwd=folder)
    tiny, llama, nowhere = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["rows"]
    assert (tiny["scores"]["architecture"], llama["scores"]["architecture"]) == ("pebble", "llama")
    assert nowhere["scores"] is None
    assert "nowhere" in nowhere["error"]
    first, second = (line.split("\t") for line in printed.splitlines())
    assert first == ["tiny", ",".join(map(str, least_first(by_hand["block-influence"])))]
    assert second[0] == "zoo:llama"
    assert sorted(map(int, second[1].split(","))) == list(range(len(llama["scores"]["block_names"])))


def test_prune_writes_a_checkpoint_that_the_foreign_library_loads(
    examples: Environment, folder: Path, pebble: Any, by_hand: Mapping[str, list[float]]
) -> None:
    command = ("-m", "shortgpt", "prune", "tiny", *CALIBRATION, "--criterion", "norm-change", "--blocks", "2")
    printed = examples.ok(*command, "--output", "shorter", cwd=folder)
    assert "verified: logits differ by 0 " in printed
    assert "8 tokens of cached generation equal uncached" in printed
    shorter = type(pebble).load(folder / "shorter")
    gone = set(least_first(by_hand["norm-change"])[:2])
    keep = [i for i in range(len(pebble.blocks)) if i not in gone]
    assert shorter.config["num_blocks"] == len(keep)
    assert shorter.config["mlp_widths"] == [pebble.config["mlp_widths"][i] for i in keep]
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        hidden = pebble.embedding(ids)
        for i in keep:
            hidden, _ = pebble.blocks[i](hidden, torch.zeros(len(ids), hidden.shape[2]))
        assert torch.equal(shorter(ids)[0], pebble.head(pebble.norm(hidden)))
    card = (folder / "shorter" / "README.md").read_text(encoding="utf-8")
    assert 'model = Pebble.load("DIR")' in card


def test_the_examples_own_contract_test_passes(examples: Environment, tmp_path: Path) -> None:
    # Away from this repository, so that nothing but what was installed is found.
    tests = shutil.copytree(EXAMPLES / "third_party_architecture" / "tests", tmp_path / "tests")
    printed = examples.ok("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tests, cwd=tmp_path)
    assert "1 passed" in printed


def test_a_checkpoint_that_lacks_a_tensor_is_refused(pebble: Any, tmp_path: Path) -> None:
    pebble.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["blocks.3.mixer.out.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    family = importlib.import_module("shortgpt_pebble.adapter").PebbleFamily()
    with pytest.raises(CheckpointError, match=r"blocks\.3\.mixer\.out\.bias"):
        family.open(Source("damaged", tmp_path), OpenOptions())


def test_the_criterion_is_zero_for_a_block_that_only_turns_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "criterion_and_reporter"))
    criterion = importlib.import_module("shortgpt_extras.norm_change").NormChange()
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]], dtype=torch.float64)
    y = torch.tensor([[-4.0, 3.0], [6.0, 8.0], [0.3, 0.4]], dtype=torch.float64)
    assert criterion.values(x, y).tolist() == pytest.approx([0.0, math.log(2), math.log(10)])
