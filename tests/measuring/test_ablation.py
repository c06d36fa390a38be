"""Blocks and their parts left out alone: held against Hugging Face's own model with hooks of our own."""

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import shortgpt
from shortgpt import Ablation
from shortgpt.errors import ShortGPTError
from shortgpt.reports import as_text
from shortgpt.reports.plots.ablation import ablation_figure
from shortgpt.values.ablation import Correlation
from tests.support import Playback, Ran, ids_of, perplexity, skipped_by_hand, tiny

Run = Callable[..., Ran]
SCORED, HELD_OUT = ids_of(seed=1), ids_of(seed=2)
BATCHES = [{"input_ids": SCORED}, {"input_ids": HELD_OUT}]
CRITERIA = ("block-influence", "relative-magnitude")


def silenced_by_hand(model: PreTrainedModel, path: str) -> Tensor:
    """Logits when the module of that path gives zeros: a hook written here."""

    def silence(module: Any, args: Any, output: Any) -> Any:
        return output * 0 if isinstance(output, Tensor) else (output[0] * 0, *output[1:])

    with ExitStack() as hooks, torch.no_grad():
        hooks.callback(model.get_submodule(path).register_forward_hook(silence).remove)
        return model(input_ids=HELD_OUT, use_cache=False).logits


def made_up(**changes: Any) -> Ablation:
    """An ablation of 4 blocks, with numbers that are easy to follow."""
    scores = shortgpt.score(Playback(torch.randn(5, 257, 8).cumsum(0), name="made up"), ["a text"], criteria=CRITERIA)
    values = ((0.4, 0.2, 0.1, 0.3), (4.0, 3.0, 2.0, 1.0))
    found = Ablation(
        scores=replace(
            scores, sums=tuple((row,) for row in values), counts=((1,), (1,)), tokens=(6,), pinned={1: "why"}
        ),
        evaluator="perplexity",
        lower_is_better=True,
        whole=2.0,
        without={"block": (90.0, 3.0, 2.5, 4.0), "mixer": (5.0, 2.5, 2.25, 3.0), "mlp": (50.0, None, 2.125, 3.5)},
        parts_refused=None,
        correlations=(
            Correlation("block-influence", 1.0, math.nan, math.nan),
            Correlation(CRITERIA[1], 0.4, -0.6, 0.9),
        ),
        held_out=scores.calibration,
    )
    return replace(found, **changes)


# -- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "parts"),
    [("llama", "model.layers", ("self_attn", "mlp")), ("gpt2", "transformer.h", ("attn", "mlp"))],
)
def test_the_qualities_are_those_of_hugging_faces_model_without_block_attention_and_mlp(
    name: str, path: str, parts: tuple[str, str]
) -> None:
    model = tiny(name, blocks=4)
    found = shortgpt.ablate(shortgpt.wrap(model), BATCHES)
    assert found.parts_refused is None
    assert list(found.without) == ["block", "mixer", "mlp"]
    with torch.no_grad():
        assert found.whole == pytest.approx(perplexity(model(input_ids=HELD_OUT).logits, HELD_OUT), rel=1e-6)
    for block in range(4):
        alone = skipped_by_hand(model, path, [block], HELD_OUT)
        assert found.without["block"][block] == pytest.approx(perplexity(alone, HELD_OUT), rel=1e-6)
        for part, module in zip(("mixer", "mlp"), parts, strict=True):
            expected = perplexity(silenced_by_hand(model, f"{path}.{block}.{module}"), HELD_OUT)
            assert found.without[part][block] == pytest.approx(expected, rel=1e-6), (part, block)


@pytest.mark.parametrize(
    ("model", "run"), [("stories260k-llama", "wikitext2_valid"), ("rwkv-4v0-660K-hf", "lambada_test")]
)
def test_without_each_block_it_is_the_truths_perplexity(real: Path, model: str, run: str) -> None:
    truth = json.loads((real / model / "bi_truth.json").read_text())["runs"][run]
    ids = {"input_ids": torch.tensor(truth["token_ids"])}
    found = shortgpt.ablate(shortgpt.load(real / model, device="cpu"), [ids, ids])
    assert found.whole == pytest.approx(truth["ppl_full"], rel=1e-4)
    assert found.without["block"] == pytest.approx(truth["ppl_without_block"], rel=1e-4)
    assert set(found.without) == {"block", "mixer", "mlp"}


@pytest.mark.parametrize(
    ("name", "reason"), [("mamba", "no two parts"), ("gpt2_postnorm", "changes the stream even without")]
)
def test_where_the_parts_are_not_known_the_blocks_are_left_out_and_the_reason_is_told(name: str, reason: str) -> None:
    model = tiny(name, blocks=3)
    found = shortgpt.ablate(shortgpt.wrap(model, name="m"), BATCHES)
    path = "backbone.layers" if name == "mamba" else "transformer.h"
    expected = [perplexity(skipped_by_hand(model, path, [block], HELD_OUT), HELD_OUT) for block in range(3)]
    assert list(found.without) == ["block"]
    assert found.without["block"] == pytest.approx(expected, rel=1e-6)
    assert reason in (found.parts_refused or "")
    assert reason in " ".join(as_text(found).split())


def test_a_block_that_lacks_a_part_has_no_number_there() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, mlp: bool) -> None:
            super().__init__()
            self.mix, self.mlp = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8) if mlp else None

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mix(x)
            return x if self.mlp is None else x + self.mlp(x)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(257, 8), torch.nn.Linear(8, 257)
            self.layers = torch.nn.ModuleList(Layer(mlp) for mlp in (True, False, True, True))

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.embed(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    torch.manual_seed(0)
    found = shortgpt.ablate(shortgpt.wrap(Net().eval(), architecture="plain-torch"), BATCHES)
    assert [value is None for value in found.without["mlp"]] == [False, True, False, False]
    assert found.without["mixer"][1] == pytest.approx(found.without["block"][1], rel=1e-6)
    assert Ablation.from_json(found.to_json()) == found


# -- the rank correlation ---------------------------------------------------------------------------------------------


LIKELIHOOD = """
import torch
from shortgpt import Evaluator, Extension, hookimpl

class Likelihood(Evaluator):
    lower_is_better = False
    def values(self, logits, targets):
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

@hookimpl
def shortgpt_evaluators():
    return [Extension("likelihood", __name__ + ":Likelihood")]
"""


@pytest.mark.parametrize(("evaluator", "sign"), [("perplexity", 1), ("likelihood", -1)])
def test_the_correlation_is_spearmans_with_the_damage_by_the_formula_of_squared_differences(
    evaluator: str, sign: int, plug: Any
) -> None:
    plug("likelihood", LIKELIHOOD)
    found = shortgpt.ablate(shortgpt.wrap(tiny("llama", blocks=8)), BATCHES, criteria=CRITERIA, evaluator=evaluator)
    damage = [sign * float(value) for value in found.without["block"] if value is not None]
    assert len(set(damage)) == 8, "ties have another formula"
    for one in found.correlations:
        values = found.scores.of(one.criterion).values
        squares = sum(
            (sorted(values).index(v) - sorted(damage).index(d)) ** 2 for v, d in zip(values, damage, strict=True)
        )
        rho = 1 - 6 * squares / (8 * 63)
        assert one.rho == pytest.approx(rho, abs=1e-12)
        reach = 1.959963985 * math.sqrt((1 + rho**2 / 2) / 5)
        expected = (math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach))
        assert (one.low, one.high) == pytest.approx(expected, abs=1e-8)
    assert [one.criterion for one in found.correlations] == list(CRITERIA)


# -- how it is told ---------------------------------------------------------------------------------------------------


def test_it_is_read_back_from_its_json() -> None:
    found = made_up()
    read = Ablation.from_json(found.to_json())
    assert read.to_dict() == found.to_dict()
    assert read.without == found.without


@pytest.mark.parametrize("changes", [{"without": {"block": (1.0,)}}, {"without": {}}, {"correlations": ()}])
def test_numbers_that_do_not_fit_the_blocks_are_told(changes: Any) -> None:
    made_up().check()
    with pytest.raises(ShortGPTError, match="do not fit 4 blocks"):
        made_up(**changes).check()


def test_the_table_has_a_row_a_block_and_the_correlations_below() -> None:
    lines = [line.split() for line in as_text(made_up()).splitlines()]
    assert lines[1:3] == [
        ["without", "without", "without", "relative-"],
        ["block", "block", "mixer", "mlp", "BI", "magnitude"],
    ]
    assert [float(cell) for cell in lines[3]] == [0, 90, 5, 50, 0.4, 4]
    assert [float(cell) for cell in lines[4] if cell not in ("-", "pinned")] == [1, 3, 2.5, 0.2, 3]
    assert (lines[4][3], lines[4][-1]) == ("-", "pinned")
    assert lines[-2:] == [["BI", "1.00"], ["relative-magnitude", "0.40", "[-0.60,", "0.90]"]]
    text = " ".join(as_text(made_up()).split())
    assert "perplexity on 1 held-out sequences of texts; 2.0000 for the whole model; scores on 1 others" in text


def test_tables_hold_every_number() -> None:
    blocks, correlations, missing = made_up(parts_refused="nobody looked").tables()
    assert blocks.columns == ("block", "name", "without block", "without mixer", "without mlp", *CRITERIA)
    assert blocks.rows[1] == (1, "blocks.1", 3.0, 2.5, None, 0.2, 3.0)
    assert correlations.rows[1] == ("relative-magnitude", 0.4, -0.6, 0.9)
    assert missing.rows == (("parts", "nobody looked"),)
    tidy = made_up().tidy()
    assert len(tidy.rows) == 4 + 4 + 3
    assert tidy.rows[0] == ("made up", 0, "blocks.0", "block", "perplexity", 90.0, 2.0, 0.4, 4.0)


def test_the_picture_shows_the_qualities_over_the_blocks_and_ranks_against_ranks() -> None:
    left, right = ablation_figure(made_up()).axes
    assert (left.get_xlabel(), left.get_yscale()) == ("block", "log")
    assert left.get_ylabel() == "perplexity on held-out texts, log scale"
    drawn = {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in left.lines}
    assert drawn["without the block"] == [90, 3, 2.5, 4]
    assert drawn["without the mlp"][0] == 50
    assert math.isnan(drawn["without the mlp"][1])
    assert drawn["whole model"] == [2, 2]
    points = {str(line.get_label()): line.get_xydata().tolist() for line in right.lines}
    assert points["BI 1.00"] == [[4, 4], [2, 2], [1, 1], [3, 3]]
    assert points["relative-magnitude 0.40 [-0.60, 0.90]"] == [[4, 4], [3, 2], [2, 1], [1, 3]]
    assert len({line.get_marker() for line in left.lines}) == 4


def test_where_higher_is_better_ranks_of_damage_are_turned() -> None:
    left, right = ablation_figure(made_up(evaluator="accuracy", lower_is_better=False)).axes
    assert left.get_yscale() == "linear"
    points = {str(line.get_label()): line.get_xydata().tolist() for line in right.lines}
    assert points["BI 1.00"] == [[4, 1], [2, 3], [1, 4], [3, 2]]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_draws_and_writes_what_the_library_gives(
    run_cli: Run, llama_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(400)))
    on = ("--calibration", file, "--sequences", 3, "--tokens", 24, "--device", "cpu")
    files = {"--json": tmp_path / "ablation.json", "--plot": tmp_path / "ablation.svg", "--output": tmp_path / "out"}
    ran = run_cli("ablate", llama_folder, *on, *(part for pair in files.items() for part in pair))
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    blocks = shortgpt.load(llama_folder, device="cpu")
    expected = shortgpt.ablate(blocks, file, sequences=3, tokens=24)
    assert Ablation.from_json(files["--json"].read_text()) == expected
    assert files["--plot"].read_text().startswith("<?xml")
    assert files["--output"].read_text() == as_text(expected) + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--criterion", "nonsense"), "unknown criterion 'nonsense'"),
        (("--evaluator", "nonsense"), "unknown evaluator 'nonsense'"),
        (("--tokens", "4000"), "takes at most 512 tokens"),
        (("--calibration", "nowhere.txt"), "nowhere.txt: no such file or folder"),
        (("--plot", "ablation.gif"), "pictures are written as"),
        (("--format", "nonsense"), "unknown format 'nonsense'"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    run_cli: Run, llama_folder: Path, tmp_path: Path, options: Any, message: str
) -> None:
    target = tmp_path / "ablation.json"
    ran = run_cli("ablate", llama_folder, "--device", "cpu", "--json", target, *options)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert not target.exists()
