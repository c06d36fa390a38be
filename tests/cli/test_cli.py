"""The command line: what it prints, writes and answers to the shell."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt import Comparison, Plan, Scores, plugins
from shortgpt.basics.registry import Extension, Registry
from shortgpt.basics.targets import load_target
from shortgpt.checkpoints import copying
from shortgpt.cli import cli, main
from tests.support import Ran, ids_of, message_of, raising, saved, skipped_by_hand, tiny

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(400)))
    return file


@pytest.fixture
def on(text: Path) -> tuple[object, ...]:
    """Four windows of 32 tokens, on the CPU."""
    return ("--calibration", text, "--sequences", 4, "--tokens", 32, "--device", "cpu")


def by_library(folder: Path, text: Path, **options: Any) -> Scores:
    model = shortgpt.load(str(folder), device="cpu")
    return shortgpt.score(model, str(text), sequences=4, tokens=32, **options)


def would_go(scores: Scores) -> Scores:
    """With the blocks that the command marks where it is not told how many: a quarter of the six."""
    return scores.choosing(scores.least_influential(2))


# -- score ----------------------------------------------------------------------------------------------------


def test_score_prints_a_row_a_block_and_marks_a_quarter(run_cli: Run, llama_folder: Path, text: Path, on: Any) -> None:
    ran = run_cli("score", llama_folder, *on)
    assert (ran.status, ran.err) == (0, "")
    scores = by_library(llama_folder, text)
    rows = [line for line in ran.out.splitlines() if re.match(r"\s+\d ", line)]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(scores.values, abs=6e-5)
    assert [float(row.split()[2]) for row in rows] == pytest.approx(scores.stderr, abs=6e-5)
    assert tuple(i for i, row in enumerate(rows) if row.endswith("remove")) == scores.least_influential(2)
    assert "4 sequences of 1 document, 128 tokens, seed 0 all 4 sequences are of one document" in " ".join(
        ran.out.split()
    )


@pytest.mark.parametrize(("option", "count"), [(("--blocks", 3), 3), (("--ratio", 0.5), 3), (("--ratio", 0.01), 1)])
def test_score_marks_what_was_asked_for(run_cli: Run, llama_folder: Path, on: Any, option: Any, count: int) -> None:
    assert run_cli("score", llama_folder, *on, *option).out.count(" remove\n") == count


def test_the_json_of_score_is_what_the_library_gives(
    run_cli: Run, llama_folder: Path, text: Path, on: Any, tmp_path: Path
) -> None:
    expected = would_go(by_library(llama_folder, text))
    ran = run_cli("score", llama_folder, *on, "--json", tmp_path / "scores.json")
    assert "BI" in ran.out
    assert Scores.from_json((tmp_path / "scores.json").read_text()) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
    alone = run_cli("score", llama_folder, *on, "--json", "-")
    assert Scores.from_json(alone.out) == expected
    assert alone.err == ""


def test_a_stream_that_the_shell_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as stop:
        main(["plugins"])
    assert not stop.value.code


def test_score_measures_several_criteria(run_cli: Run, llama_folder: Path, text: Path, on: Any) -> None:
    chosen = ("--criterion", "relative-magnitude", "--criterion", "block-influence")
    found = Scores.from_json(run_cli("score", llama_folder, *on, *chosen, "--json", "-").out)
    assert found == would_go(by_library(llama_folder, text, criteria=("relative-magnitude", "block-influence")))


def test_the_seed_and_the_field_reach_the_library(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"body": f"{i} " * 300}) for i in range(9)))
    options = ("--calibration", file, "--field", "body", "--seed", 3, "--sequences", 2, "--tokens", 16)
    found = Scores.from_json(run_cli("score", llama_folder, *options, "--batch-size", 1, "--json", "-").out)
    model = shortgpt.load(str(llama_folder), device="cpu")
    assert found.calibration == shortgpt.calibrate(str(file), model, field="body", seed=3, sequences=2, tokens=16).info


def test_score_computes_in_the_dtype_that_was_asked_for(run_cli: Run, llama_folder: Path, on: Any) -> None:
    found = Scores.from_json(run_cli("score", llama_folder, *on, "--dtype", "bfloat16", "--json", "-").out)
    assert found.dtype == "bfloat16"


@pytest.mark.parametrize("report", ["csv", "markdown", "json"])
def test_a_report_takes_the_tables_place(run_cli: Run, llama_folder: Path, on: Any, text: Path, report: str) -> None:
    ran = run_cli("score", llama_folder, *on, "--format", report)
    entry = plugins.lookup("report format", plugins.registry().reporters, report)
    assert ran.out == load_target(entry.target)(would_go(by_library(llama_folder, text))).rstrip("\n") + "\n"


# -- prune ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [("--blocks", 2), ("--ratio", 0.34)])
def test_prune_removes_the_blocks_of_least_score(
    run_cli: Run, llama_folder: Path, text: Path, on: Any, tmp_path: Path, option: Any
) -> None:
    out, ids = tmp_path / "out", ids_of()
    ran = run_cli("prune", llama_folder, "--output", out, *option, *on, "--no-verify")
    assert ran.status == 0, ran.err
    gone = by_library(llama_folder, text).least_influential(2)
    plan = Plan.read(out)
    assert plan.blocks == gone
    assert plan.scores == by_library(llama_folder, text)
    shorter = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert torch.equal(shorter(ids).logits, skipped_by_hand(tiny("llama"), "model.layers", gone, ids))
    assert ran.out.count(" remove\n") == 2
    assert f"6 → 4 blocks, {plan.parameters_before:,} → {plan.parameters_after:,} parameters" in ran.out
    assert f"written to {out}" in ran.out.replace("\n", "")


def test_prune_by_another_criterion(run_cli: Run, llama_folder: Path, on: Any, text: Path, tmp_path: Path) -> None:
    options = ("--blocks", 1, "--criterion", "relative-magnitude", "--no-verify")
    run_cli("prune", llama_folder, "-o", tmp_path / "out", *options, *on)
    scores = by_library(llama_folder, text, criteria=["relative-magnitude"])
    assert Plan.read(tmp_path / "out").blocks == scores.least_influential(1)


def test_prune_removes_what_is_listed(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--remove", "1-2, 5", "--no-verify")
    assert "removed 1-2, 5: 6 → 3 blocks" in ran.out
    assert Plan.read(tmp_path / "out").blocks == (1, 2, 5)


def test_a_plan_does_it_again_to_the_byte(run_cli: Run, llama_folder: Path, on: Any, tmp_path: Path) -> None:
    run_cli("prune", llama_folder, "-o", tmp_path / "once", "--blocks", 2, *on, "--no-verify")
    plan = tmp_path / "once" / "shortgpt.json"
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "again", "--plan", plan, "--no-verify")
    assert (ran.status, ran.err) == (0, "")
    for file in (tmp_path / "once").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_plan_from_other_weights_is_remarked_on(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    run_cli("prune", llama_folder, "-o", tmp_path / "once", "--remove", "1", "--no-verify")
    torch.manual_seed(1)
    other = saved(tiny("llama", rms_norm_eps=1e-5), tmp_path / "other")
    options = ("--plan", tmp_path / "once", "--no-verify")
    ran = run_cli("prune", other, "-o", tmp_path / "again", *options)
    assert ran.status == 0
    assert f"was made from other weights than those of {other}" in ran.err
    assert run_cli("prune", other, "-o", tmp_path / "quiet", *options, "--quiet").err == ""


def test_the_json_of_prune_is_the_plan_in_the_folder(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--remove", "1", "--no-verify", "--json", "-")
    assert Plan.from_json(ran.out) == Plan.read(tmp_path / "out")


def test_an_output_folder_may_have_any_name(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "[/b]:x: é", "--remove", "1", "--no-verify")
    assert ran.status == 0
    assert "[/b]:x: é" in ran.out


# -- compare --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mamba_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("mamba", blocks=4), tmp_path_factory.mktemp("models") / "mamba")


def test_compare_prints_models_of_different_depth_side_by_side(
    run_cli: Run, llama_folder: Path, mamba_folder: Path, on: Any
) -> None:
    ran = run_cli("compare", llama_folder, mamba_folder, *on)
    assert (ran.status, ran.err) == (0, "")
    strips = re.findall("[▁▂▃▄▅▆▇█]{24}", ran.out)
    assert len(strips) == 2
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert "\x1b" not in ran.out


def test_the_json_of_compare_is_what_the_library_gives(
    run_cli: Run, llama_folder: Path, text: Path, on: Any, tmp_path: Path
) -> None:
    missing = tmp_path / "nowhere"
    ran = run_cli("compare", llama_folder, missing, *on, "--json", "-")
    found = Comparison.from_json(ran.out)
    assert ran.status == 0
    assert found.rows[0].scores == by_library(llama_folder, text)
    assert found.rows[1].model == str(missing)
    assert "no such file or folder" in (found.rows[1].error or "")


def test_a_model_that_fails_is_a_row_and_the_others_still_run(run_cli: Run, llama_folder: Path, on: Any) -> None:
    ran = run_cli("compare", "/nowhere", llama_folder, *on)
    assert ran.status == 0
    assert "/nowhere: no such file or folder" in ran.out
    assert re.search("[▁▂▃▄▅▆▇█]{24}", ran.out)


def test_where_no_model_could_be_measured_the_status_is_2(run_cli: Run, on: Any, tmp_path: Path) -> None:
    message = message_of(run_cli("compare", "/nowhere", "/nor-here", *on), 2)
    assert "no model could be measured (/nowhere: no such file or folder" in message
    ran = run_cli("compare", "/nowhere", *on, "--json", tmp_path / "rows.json")
    assert ran.status == 2
    assert len(Comparison.from_json((tmp_path / "rows.json").read_text()).rows) == 1


def test_compare_takes_scores_from_files(run_cli: Run, llama_folder: Path, on: Any, tmp_path: Path) -> None:
    run_cli("score", llama_folder, *on, "--json", tmp_path / "a.json")
    found = Comparison.from_json(run_cli("compare", tmp_path / "a.json", llama_folder, *on, "--json", "-").out)
    assert found.rows[0] == found.rows[1]


def test_colour_is_for_terminals_that_want_it(
    run_cli: Run, llama_folder: Path, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = re.compile(r"\x1b\[[\d;]*(?:3|4)8;")
    assert coloured.search(run_cli("compare", llama_folder, *on).out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(run_cli("compare", llama_folder, *on).out)


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_tables_fit_the_terminal(
    run_cli: Run, llama_folder: Path, on: Any, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = run_cli("compare", llama_folder, *on).out + run_cli("score", llama_folder, *on).out
    assert max(map(len, out.splitlines())) <= int(columns)


# -- plugins and demo -----------------------------------------------------------------------------------------


def test_plugins_says_what_is_installed_and_what_failed(run_cli: Run, plug: Callable[[str, str], str]) -> None:
    module = plug("broken", "raise RuntimeError('[/b] sorry')")
    ran = run_cli("plugins")
    assert ran.status == 0
    assert f"broken: failed: RuntimeError: [/b] sorry  ({module}, unknown unknown)" in ran.out
    assert f"adapters: loaded  (shortgpt_adapters.catalog, shortgpt-blocks {shortgpt.__version__})" in ran.out
    for name in ("llama", "block-influence", "stdlib", "csv", "zoo:llama"):
        assert re.search(rf"^{name} ", ran.out, re.MULTILINE)


def test_the_json_of_plugins_is_the_registry(run_cli: Run) -> None:
    assert Registry.from_json(run_cli("plugins", "--json", "-").out) == plugins.registry()


@pytest.mark.usefixtures("one_process")
def test_demo_walks_the_whole_road(
    run_cli: Run, llama_folder: Path, mamba_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (Extension("zoo:one", str(llama_folder)), Extension("zoo:two", str(mamba_folder)))
    installed = replace(plugins.registry(), models=models)
    monkeypatch.setattr(plugins, "registry", lambda: installed)
    ran = run_cli("demo", "--output", tmp_path / "out", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert "$ shortgpt compare zoo:one zoo:two" in ran.err
    assert len(re.findall("[▁▂▃▄▅▆▇█]{24}", ran.out)) == 2
    assert "6 → 4 blocks" in ran.out
    assert "verified: logits differ by 0 " in ran.out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4


# -- show -----------------------------------------------------------------------------------------------------


def test_saved_results_are_shown_as_they_were(run_cli: Run, llama_folder: Path, on: Any, tmp_path: Path) -> None:
    for command, *arguments in (("score", llama_folder, *on), ("compare", llama_folder, *on), ("plugins",)):
        file = tmp_path / f"{command}.json"
        first = run_cli(command, *arguments, "--json", file)
        again = run_cli("show", file)
        assert (again.status, again.out, again.err) == (0, first.out, "")
        assert run_cli("show", file, "--json", "-").out == file.read_text()
    assert run_cli("show", tmp_path / "score.json", "--format", "csv").out.startswith("model,criterion,block")
    assert run_cli("show", tmp_path / "score.json", "--plot", tmp_path / "a.svg", "-q").status == 0
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_a_pruned_folder_is_shown_as_its_removal(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    done = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--remove", "1", "--no-verify")
    shown = run_cli("show", tmp_path / "out")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.splitlines() == done.out.splitlines()[:-1]  # but for where it was written to


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is no result that shortgpt wrote: found a JSON list"),
        ("{}", "is no result that shortgpt wrote: it names no schema"),
        ('{"schema": "shortgpt/nonsense/1"}', "'shortgpt/nonsense/1' is no kind of result that this version knows"),
        ('{"schema": "shortgpt/scores/99"}', "this version of shortgpt reads 'shortgpt/scores/1'"),
        ('{"schema": "shortgpt/scores/1"}', "are missing"),
        ("x", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_what_cannot_be_shown_is_message_of(run_cli: Run, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert message in message_of(run_cli("show", tmp_path / "a.json"), 2)


def test_a_file_that_is_not_there_is_message_of(run_cli: Run, tmp_path: Path) -> None:
    assert "no such file" in message_of(run_cli("show", tmp_path / "none.json"), 2).lower()


# -- help -----------------------------------------------------------------------------------------------------


def test_every_command_has_help_with_an_example_of_itself(run_cli: Run) -> None:
    assert "Example:  shortgpt " in run_cli("--help").out
    for name in cli.commands:
        ran = run_cli(name, "--help")
        assert ran.status == 0
        assert f"Example:  shortgpt {name}" in ran.out
        assert run_cli(name, "-h").out == ran.out


def test_every_option_and_argument_is_explained() -> None:
    for command in cli.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.name}"
            else:
                assert (parameter.name or "").upper() in (command.help or "")


def test_help_imports_neither_torch_nor_transformers_nor_numpy() -> None:
    program = (
        "import sys\n"
        "from shortgpt.cli import main\n"
        "for arguments in (['--help'], ['prune', '--help'], ['--version'], ['plugins']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "print('MODULES', *sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules = ran.stdout.rpartition("MODULES ")[2].split()
    assert "shortgpt.cli" in modules
    assert not {"torch", "transformers", "numpy"} & set(modules)


def test_it_runs_as_a_module_too_and_imports_nothing_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('click of the current folder')")
    command = [sys.executable, "-m", "shortgpt", "--version"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.split()[-1] == shortgpt.__version__


# -- what the shell is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [(), ("nope",), ("score",), ("score", "--nope"), ("score", "x", "--dtype", "int")]
)
def test_a_mistake_in_the_command_itself_is_status_2_on_the_standard_error(run_cli: Run, arguments: Any) -> None:
    ran = run_cli(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Usage: shortgpt" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("plugins",), ("plugins", "--json", "-"), ("prune", "--help")])
def test_a_reader_that_has_gone_is_no_error(arguments: tuple[str, ...], buffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "shortgpt", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": buffered},
        check=False,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_an_interrupt_is_status_130_and_leaves_nothing(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    with raising(copying, "copy_piece", KeyboardInterrupt(), after=3):
        ran = run_cli("prune", llama_folder, "-o", tmp_path / "a" / "out", "--remove", "1", "--no-verify")
    assert message_of(ran, 130) == "shortgpt: interrupted; nothing was left behind\n"
    assert list(tmp_path.iterdir()) == []


def test_being_told_to_end_leaves_nothing_either(
    run_cli: Run, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        copying, "copy_piece", lambda reader, at, count, writer: os.kill(os.getpid(), signal.SIGTERM) or count
    )
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--remove", "1", "--no-verify")
    assert ran.status == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_full_device_is_told_with_the_way_out(run_cli: Run, llama_folder: Path, on: Any) -> None:
    with raising(shortgpt.measuring.scoring.score, "score", torch.OutOfMemoryError("CUDA out of memory")):
        message = message_of(run_cli("score", llama_folder, *on), 2)
    assert "out of memory; take a smaller --batch-size" in message


def test_what_the_operating_system_refuses_is_one_message(run_cli: Run, llama_folder: Path, on: Any) -> None:
    with raising(
        shortgpt.models.loading, "load", PermissionError(13, "Permission denied", "/secret/model.safetensors")
    ):
        message = message_of(run_cli("score", llama_folder, *on), 2)
    assert "Permission denied: '/secret/model.safetensors'" in message


def test_a_defect_of_ours_is_not_hidden(
    run_cli: Run, llama_folder: Path, on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with raising(shortgpt.measuring.scoring.score, "score", ZeroDivisionError()):
        message = message_of(run_cli("score", llama_folder, *on), 70)
    (file,) = tmp_path.glob("shortgpt-error-*.txt")
    assert "an error of shortgpt's own (ZeroDivisionError" in message
    assert f"please report this, with the file {file}" in message
    assert "Traceback (most recent call last)" in file.read_text()


def test_progress_is_shown_on_a_terminal_and_not_when_quiet(
    run_cli: Run, llama_folder: Path, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = run_cli("score", llama_folder, *on, "--batch-size", 1)
    assert "blocks" in shown.err
    assert "batches" in shown.err
    assert "4/4" in shown.err
    assert run_cli("score", llama_folder, *on, "--quiet").err == ""


def test_a_json_file_that_cannot_be_written_is_told_before_anything_is_done(
    run_cli: Run, llama_folder: Path, on: Any, tmp_path: Path
) -> None:
    for command in (("score", llama_folder), ("compare", llama_folder), ("prune", llama_folder, "-o", tmp_path / "o")):
        options = ("--remove", "1", "--no-verify") if command[0] == "prune" else on
        assert "there is no folder" in message_of(run_cli(*command, *options, "--json", tmp_path / "no" / "x.json"), 2)
        assert "it is a folder" in message_of(run_cli(*command, *options, "--json", tmp_path), 2)
    assert list(tmp_path.iterdir()) == []
