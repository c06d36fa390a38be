"""Whatever is wrong with the input: one message that says what was found and what to do, status 2, nothing written."""

import errno
import json
import math
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.transformers.family import TransformersFamily

from shortgpt.checkpoints import copying
from shortgpt.measuring.criteria import Criterion
from tests.support import Ran, message_of, raising, saved, tiny

Refused = Callable[..., str]


@pytest.fixture
def refused(run_cli: Callable[..., Ran], tmp_path: Path) -> Refused:
    """`refused(*arguments)`: the message of a command that must fail, and must leave every file as it was."""

    def run(*arguments: object) -> str:
        before = dict(contents(tmp_path))
        ran = run_cli(*arguments)
        assert dict(contents(tmp_path)) == before, "nothing written"
        return message_of(ran)

    return run


def contents(folder: Path) -> Iterator[tuple[str, bytes | None]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.read_bytes() if path.is_file() else None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama of 6 blocks that a test may spoil."""
    return saved(tiny("llama"), tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("some words to measure with " * 200)
    return file


ON = ("--sequences", 2, "--tokens", 16, "--device", "cpu")


def every_command(model: object, tmp_path: Path, text: Path) -> list[tuple[object, ...]]:
    """The commands that read a model."""
    return [
        ("score", model, "--calibration", text, *ON),
        ("prune", model, "-o", tmp_path / "out", "--remove", "1", "--no-verify"),
        ("prune", model, "-o", tmp_path / "out", "--blocks", 1, "--calibration", text, *ON),
        ("compare", model, "--calibration", text, *ON),
    ]


NO_TYPE = {"model_type": None, "architectures": 3}


def prune(model: Path, *options: object) -> tuple[object, ...]:
    return ("prune", model, "-o", model.parent / "out", *options)


# -- the model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at-all", "no such file or folder; name a model folder, a checkpoint file, or a hub id"),
        ("./nowhere", "no such file or folder"),
        ("owner/no-such-model", "neither a file or folder here nor a model that the hub gives us"),
        ("zoo:lama", "unknown model 'zoo:lama'. Did you mean 'zoo:llama'?"),
        ("", "the model's name is empty"),
    ],
)
def test_a_model_that_is_not_there(refused: Refused, tmp_path: Path, text: Path, name: str, message: str) -> None:
    for command in every_command(name, tmp_path, text):
        assert message in refused(*command)


def test_a_folder_that_is_no_model(refused: Refused, tmp_path: Path, text: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in every_command(tmp_path / "empty", tmp_path, text):
        assert "the folder holds no config.json, so it is not a model" in refused(*command)


@pytest.mark.parametrize(("name", "found"), [("notes.txt", "a .txt file"), ("notes", "a file without a suffix")])
def test_a_file_that_is_no_model(refused: Refused, tmp_path: Path, text: Path, name: str, found: str) -> None:
    (tmp_path / name).write_text("notes")
    for command in every_command(tmp_path / name, tmp_path, text):
        assert f"no installed adapter knows this architecture ({found})" in refused(*command)


def test_an_unknown_architecture(
    refused: Refused, model: Path, text: Path, tmp_path: Path, plug: Callable[[str, str], str]
) -> None:
    plug("broken", "raise RuntimeError('sorry')")
    (model / "config.json").write_text(json.dumps({"model_type": "alien", "num_hidden_layers": 6}))
    for command in every_command(model, tmp_path, text):
        message = refused(*command)
        assert "no installed adapter knows this architecture (model_type 'alien'" in message
        assert "Installed: " in message
        assert "llama" in message
        assert "Plugins that failed to load: broken (plugged_broken_0): RuntimeError: sorry." in message


NESTED, LONG = b"[" * 100_000, b'{"num_hidden_layers": ' + b"9" * 10_000 + b"}"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", NESTED, LONG])
def test_a_damaged_config(refused: Refused, model: Path, text: Path, tmp_path: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    for command in every_command(model, tmp_path, text):
        assert "config.json" in refused(*command)


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": "six"}, {"hidden_size": -1}, {"num_attention_heads": 5}, NO_TYPE]
)
def test_a_config_that_makes_no_sense(
    refused: Refused, model: Path, text: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    for command in every_command(model, tmp_path, text):
        refused(*command)


@pytest.mark.parametrize("keep", [0, 7, 900, -100])
def test_a_truncated_safetensors_file(refused: Refused, model: Path, text: Path, tmp_path: Path, keep: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    for command in every_command(model, tmp_path, text):
        refused(*command)
    assert "truncated or damaged" in refused(*prune(model, "--remove", 1))


def test_a_corrupt_safetensors_file(refused: Refused, model: Path, text: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(b"\x10" + bytes(7) + b"not a header....." + weights.read_bytes()[500:])
    for command in every_command(model, tmp_path, text):
        refused(*command)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02}q\x00."])
def test_a_corrupt_torch_file(refused: Refused, model: Path, text: Path, tmp_path: Path, content: bytes) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(content)
    for command in every_command(model, tmp_path, text):
        refused(*command)


def test_a_folder_without_weights(refused: Refused, model: Path, text: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    for command in every_command(model, tmp_path, text):
        refused(*command)
    assert "the folder holds no weights" in refused(*prune(model, "--remove", 1))


@pytest.mark.parametrize("lacking", ["model.layers.3.", "model.layers.5.mlp.up_proj.weight", "lm_head"])
def test_tensors_that_are_missing(refused: Refused, model: Path, text: Path, tmp_path: Path, lacking: str) -> None:
    tensors = load_file(model / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(lacking)}
    save_file(left, model / "model.safetensors", metadata={"format": "pt"})
    for command in every_command(model, tmp_path, text):
        assert lacking in refused(*command)


def test_a_config_that_counts_fewer_blocks_than_there_are(
    refused: Refused, model: Path, text: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    for command in every_command(model, tmp_path, text):
        assert "model.layers." in refused(*command)


ALIEN = """
from shortgpt import hookimpl
from shortgpt.plugins import Architecture
from shortgpt_adapters.families.llama import Llama

class Alien(Llama):
    architecture = "alien"

@hookimpl
def shortgpt_architectures():
    return [Architecture("alien", __name__ + ":Alien", model_types=("alien",))]
"""


def test_code_that_the_model_brings_along_and_that_was_not_trusted(
    refused: Refused, model: Path, text: Path, tmp_path: Path, plug: Callable[[str, str], str]
) -> None:
    plug("alien", ALIEN)
    auto_map = {"AutoConfig": "alien.AlienConfig", "AutoModelForCausalLM": "alien.AlienLM"}
    (model / "config.json").write_text(json.dumps({"model_type": "alien", "auto_map": auto_map}))
    (model / "alien.py").write_text("raise SystemExit('this code ran')")
    for command in every_command(model, tmp_path, text):
        message = refused(*command)
        assert "alien.AlienConfig" in message
        assert "pass --trust-remote-code" in message


def test_a_tokenizer_that_is_missing(refused: Refused, tmp_path: Path, text: Path) -> None:
    model = saved(tiny("llama"), tmp_path / "model", tokenizer=False)
    for command in every_command(model, tmp_path, text):
        if "--remove" not in command:
            assert "has no tokenizer" in refused(*command)


def test_a_tokenizer_that_is_damaged(refused: Refused, model: Path, text: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    for command in every_command(model, tmp_path, text):
        if "--remove" not in command:
            assert "its tokenizer cannot be loaded" in refused(*command)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_stream_that_is_not_finite(refused: Refused, model: Path, text: Path, tmp_path: Path, broken: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = broken
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    for command in every_command(model, tmp_path, text):
        if "--remove" not in command:
            message = refused(*command)
            assert "NaN or infinity in the residual stream" in message
            assert "around block 2 (model.layers.2), batch 0" in message


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(refused: Refused, model: Path, text: Path, tmp_path: Path, device: str) -> None:
    for command in every_command(model, tmp_path, text):
        message = refused(*(part for part in command if part not in ("--device", "cpu")), "--device", device)
        assert f"device '{device}' cannot be used" in message


# -- which blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing was chosen"),
        (("--remove", ""), "'' is not a list of blocks"),
        (("--remove", "1;2"), "'1;2' is not a list of blocks"),
        (("--remove", "0-5"), "all 6 blocks were asked for; at least one must stay"),
        (("--remove", "6"), "blocks 6 do not exist: the model has 6 blocks, numbered 0 to 5"),
        (("--remove", "3-9"), "blocks 6-9 do not exist"),
        (("--remove", "0-999999999999"), "is not a list of blocks"),
        (("--remove", "1", "--ratio", 0.5), "two choices at once (--ratio, --remove)"),
        (("--blocks", 1, "--ratio", 0.5), "two choices at once (--blocks, --ratio)"),
        (("--blocks", 1, "--plan", "x"), "two choices at once (--blocks, --plan)"),
        (("--blocks", 0, *ON), "0 blocks cannot be chosen: from 1 to 5 of the 6 blocks"),
        (("--blocks", -1, *ON), "-1 blocks cannot be chosen"),
        (("--blocks", 6, *ON), "6 blocks cannot be chosen"),
        (("--ratio", 0), "must lie between 0 and 1"),
        (("--ratio", 1), "must lie between 0 and 1"),
        (("--ratio", -0.5), "must lie between 0 and 1"),
        (("--ratio", "nan"), "must lie between 0 and 1"),
        (("--ratio", 0.95, *ON), "6 blocks cannot be chosen"),
        (("--plan", "/nowhere/shortgpt.json"), "the plan cannot be read"),
    ],
)
def test_blocks_that_cannot_be_removed(refused: Refused, model: Path, options: Any, message: str) -> None:
    assert message in refused(*prune(model, *options))


@pytest.mark.parametrize("ratio", [0, 1, 2.5, "nan"])
def test_a_ratio_that_is_no_share_when_scoring(refused: Refused, model: Path, ratio: object) -> None:
    assert "must lie between 0 and 1" in refused("score", model, "--ratio", ratio)


def test_both_choices_when_scoring(refused: Refused, model: Path) -> None:
    assert "two choices at once" in refused("score", model, "--ratio", 0.5, "--blocks", 2)


def test_pinned_blocks(refused: Refused, model: Path, text: Path, plug: Callable[[str, str], str]) -> None:
    pinning = ALIEN.replace('model_types=("alien",)', 'model_types=("llama",), priority=1').replace(
        'architecture = "alien"',
        'architecture = "alien"\n    def pinned(self, config):\n        return {0: "the others read its values"}',
    )
    plug("pinning", pinning)
    message = refused(*prune(model, "--remove", "0,3"))
    assert "pinned blocks cannot be removed (block 0: the others read its values); choose others" in message
    assert "from 1 to 5 of the 6" in refused(*prune(model, "--blocks", 6, "--calibration", text, *ON))


def test_a_set_of_blocks_that_the_family_refuses(refused: Refused, tmp_path: Path) -> None:
    model = saved(tiny("rwkv", blocks=3), tmp_path / "model")
    assert "rwkv: one block alone cannot be loaded" in refused(*prune(model, "--remove", "1,2"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"model": "x"}'])
def test_a_plan_that_is_none(refused: Refused, model: Path, content: bytes) -> None:
    (model.parent / "plan.json").write_bytes(content)
    assert "not a plan that shortgpt wrote" in refused(*prune(model, "--plan", model.parent / "plan.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": []}, "no blocks were asked for"),
        ({"blocks": [9]}, "blocks 9 do not exist"),
        ({"blocks": [0, 1, 2, 3, 4, 5]}, "all 6 blocks were asked for"),
        ({"depth": 12, "blocks": [1]}, "the plan is for a model of 12 blocks"),
    ],
)
def test_a_plan_that_does_not_fit(refused: Refused, model: Path, change: dict[str, Any], message: str) -> None:
    plan = {"model": "x", "architecture": "llama", "depth": 6, "blocks": [1]} | change
    (model.parent / "plan.json").write_text(json.dumps(plan))
    assert message in refused(*prune(model, "--plan", model.parent / "plan.json"))


def test_a_config_field_that_no_rule_explains(refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersFamily, "reads", lambda self, config, field: True)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"my_layer_pattern": [1, 2, 3, 4, 5, 6]}))
    message = refused(*prune(model, "--remove", 1, "--no-verify"))
    assert "config field 'my_layer_pattern' (value [1, 2, 3, 4, 5, 6]) cannot be rewritten" in message


# -- the calibration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "the calibration source is empty"),
        ("  \n ", (), "the calibration source is empty"),
        ("short", (), "too short: it gives 0 windows of 512 tokens, 32 were asked for"),
        ("x" * 600, ("--tokens", 64), "too short: it gives 1 windows of 64 tokens"),
        ("x" * 600, ("--tokens", 1), "windows of 1 tokens are too short"),
        ("x" * 600, ("--tokens", 513), "takes at most 512 tokens"),
        ("x" * 600, ("--sequences", 0), "sequences must be at least 1"),
        ("x" * 600, ("--batch-size", -2), "batch size must be at least 1"),
    ],
)
def test_text_that_gives_no_windows(
    refused: Refused, model: Path, tmp_path: Path, content: str, options: Any, message: str
) -> None:
    (tmp_path / "text.txt").write_text(content)
    options = ("--calibration", tmp_path / "text.txt", "--device", "cpu", *options)
    assert message in refused("score", model, *options)
    assert message in refused(*prune(model, "--blocks", 1, *options))
    assert message in refused("compare", model, *options)


def test_a_folder_that_cannot_be_replaced(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "is the current folder, which cannot be replaced; name a new folder inside it" in refused(
        "prune", model, "--remove", 1, "-o", "."
    )
    assert "the name of the folder to write is empty" in refused("prune", model, "--remove", 1, "-o", "")


def test_a_folder_and_a_file_of_one_name(refused: Refused, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    message = refused("prune", model, "--remove", 1, "--output", place, "--json", place)
    assert f"--output and --json both go to {place}" in message
    assert not place.exists()


def test_json_lines_without_the_field(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"story": "once upon a time", "by": "no one"}\n')
    message = refused("score", model, "--calibration", tmp_path / "text.jsonl", "--field", "body")
    assert "line 1: no text in field 'body' (found ['by', 'story']); name it with --field" in message
    message = refused("score", model, "--calibration", tmp_path / "text.jsonl")
    assert "line 1: story, by could each be the text; name the field with --field" in message
    assert "among story (string: once upon a time), by (string: no one)" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stdlb", "unknown calibration source 'stdlb'. Did you mean 'stdlib'?"),
        ("/nowhere.txt", "no such file or folder"),
        ("hub:", "write hub:NAME"),
        ("wikitext2", "the data set cannot be had"),
    ],
)
def test_a_calibration_source_that_is_not_there(refused: Refused, model: Path, name: str, message: str) -> None:
    assert message in refused("score", model, "--calibration", name, "--device", "cpu")


# -- the output -----------------------------------------------------------------------------------------------


def test_an_output_folder_that_is_not_empty(refused: Refused, model: Path, text: Path) -> None:
    (model.parent / "out").mkdir()
    (model.parent / "out" / "mine").write_text("precious")
    assert "exists and is not an empty folder" in refused(*prune(model, "--remove", 1))
    assert "exists and is not an empty folder" in refused("demo", "--output", model.parent / "out")
    assert "exists and is not an empty folder" in refused("prune", model, "-o", model, "--remove", 1)
    assert "exists and is not an empty folder" in refused("prune", model, "-o", text, "--remove", 1)


def test_a_full_disk(refused: Refused, model: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with raising(copying, "copy_piece", full, after=3):
        message = refused(*prune(model, "--remove", 1, "--no-verify"))
    assert "cannot be written (No space left on device); nothing was left behind" in message


def test_a_source_that_vanishes_half_way(refused: Refused, model: Path) -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/model.safetensors")
    with raising(copying, "copy_piece", gone, after=3):
        message = refused(*prune(model, "--remove", 1, "--no-verify"))
    assert "/elsewhere/model.safetensors: No such file or directory; nothing was left at" in message


def test_a_full_disk_for_the_json(refused: Refused, model: Path, text: Path, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    command = ("score", model, "--calibration", text, *ON, "--format", "csv", "--json", tmp_path / "x.json")
    with raising(os, "fsync", full):
        # The table is printed first; only the file is missing.
        from tests.support import run_cli

        before = dict(contents(tmp_path))
        ran = run_cli(*command)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "x.json: cannot be written (No space left on device)" in ran.err
    assert dict(contents(tmp_path)) == before


# -- names and plugins ----------------------------------------------------------------------------------------


def test_an_unknown_criterion(refused: Refused, model: Path, text: Path) -> None:
    for command in (("score", model), prune(model, "--blocks", 1), ("compare", model)):
        message = refused(*command, "--criterion", "block-infuence", "--calibration", text, *ON)
        assert "unknown criterion 'block-infuence'. Did you mean 'block-influence'?" in message


def test_an_unknown_report_format(refused: Refused, model: Path) -> None:
    for command in ("score", "compare"):
        assert "unknown format 'cvs'. Did you mean 'csv'?" in refused(command, model, "--format", "cvs")


def test_an_unknown_adapter(refused: Refused, model: Path) -> None:
    assert "unknown architecture 'lama'" in refused("score", model, "--architecture", "lama")
    assert "unknown architecture 'lama'" in refused(*prune(model, "--remove", 1, "--architecture", "lama"))


def test_a_plugin_whose_criterion_cannot_be_imported(
    refused: Refused, model: Path, text: Path, plug: Callable[[str, str], str]
) -> None:
    plug(
        "broken",
        "from shortgpt import hookimpl\nfrom shortgpt.plugins import Extension\n"
        "@hookimpl\ndef shortgpt_criteria():\n    return [Extension('mine', 'no_such_module:Mine')]",
    )
    message = refused("score", model, "--criterion", "mine", "--calibration", text, *ON)
    assert "target 'no_such_module:Mine' cannot be imported" in message


@pytest.mark.parametrize(
    ("hook", "named", "found"),
    [
        ("criteria", ("--criterion", "mine"), "criterion 'mine' (plugin broken) failed: ZeroDivisionError"),
        ("calibrations", ("--calibration", "mine"), "calibration source 'mine' (plugin broken) failed: ZeroDivision"),
        ("reporters", ("--format", "mine"), "format 'mine' (plugin broken) failed: ZeroDivisionError"),
    ],
)
def test_a_plugin_that_fails_while_it_runs(
    refused: Refused,
    model: Path,
    text: Path,
    plug: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    hook: str,
    named: tuple[str, ...],
    found: str,
) -> None:
    broken = types.ModuleType("broken_at_work")
    vars(broken).update(
        criteria=type("Mine", (Criterion,), {"values": lambda self, before, after: before / (1 // 0)}),
        calibrations=lambda argument, seed: iter([str(1 // 0)]),
        reporters=lambda result: str(1 // 0),
    )
    monkeypatch.setitem(sys.modules, "broken_at_work", broken)
    plug(
        "broken",
        "from shortgpt import hookimpl\nfrom shortgpt.plugins import Extension\n"
        f"@hookimpl\ndef shortgpt_{hook}():\n    return [Extension('mine', 'broken_at_work:{hook}')]",
    )
    assert found in refused("score", model, "--calibration", text, *ON, *named)


def test_a_broken_plugin_on_request(
    refused: Refused, model: Path, plug: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTGPT_STRICT_PLUGINS", "1")
    plug("broken", "1 / 0")
    assert "plugin broken (plugged_broken_0) failed to load: ZeroDivisionError" in refused("score", model)


def test_two_plugins_that_claim_one_architecture(
    refused: Refused, model: Path, text: Path, tmp_path: Path, plug: Callable[[str, str], str]
) -> None:
    plug("stranger", ALIEN.replace('model_types=("alien",)', 'model_types=("llama",)'))
    for command in every_command(model, tmp_path, text):
        message = refused(*command)
        assert "is claimed by 'llama' (plugin adapters) and 'alien' (plugin stranger) with priority 0" in message


def test_a_batch_that_does_not_fit_the_device(refused: Refused, model: Path, text: Path) -> None:
    with raising(torch.nn.functional, "embedding", torch.OutOfMemoryError("CUDA out of memory")):
        assert "out of memory; take a smaller --batch-size" in refused("score", model, "--calibration", text, *ON)


def test_an_unknown_architecture_with_code_of_its_own_says_what_running_it_takes(model: Path, refused: Refused) -> None:
    file = model / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}})
    )
    message = refused("score", model)
    assert "its config names code of its own" in message
    assert "read it, then pass --trust-remote-code" in message
