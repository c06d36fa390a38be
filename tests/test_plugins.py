"""Plugins: finding them, what becomes of a broken one, and the criteria and formats that come with shortgpt."""

import ast
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import shortgpt
from shortgpt import plugins
from shortgpt.basics.inputs import Source
from shortgpt.basics.registry import PluginRecord
from shortgpt.basics.targets import load_target
from shortgpt.errors import (
    AmbiguousArchitectureError,
    HiddenStateError,
    PluginError,
    ShortGPTError,
    UnknownArchitectureError,
    UnknownNameError,
)
from shortgpt.models.recognition import recognise
from tests.support import Playback, tiny, turned

Plug = Callable[[str, str], str]
HEAD = "from shortgpt import hookimpl\nfrom shortgpt.plugins import Architecture, Extension\n"
GOOD = f"""{HEAD}
@hookimpl
def shortgpt_criteria():
    return [Extension("mine", "HERE:Mine", "of my own")]
"""


def record(name: str) -> PluginRecord:
    return next(r for r in plugins.registry().records if r.name == name)


# -- finding them ---------------------------------------------------------------------------------------------


def test_the_two_that_come_with_shortgpt_load_by_the_public_door() -> None:
    found = plugins.registry()
    ours = {r.name: r for r in found.records if r.name in ("adapters", "plugins")}
    assert ours.keys() == {"adapters", "plugins"}
    assert all(r.error is None and r.distribution == "shortgpt-blocks" for r in ours.values())
    assert {"block-influence", "angular-distance"} <= {e.name for e in found.criteria if e.plugin == "plugins"}
    assert {"llama", "mamba", "rwkv"} <= {e.name for e in found.architectures if e.plugin == "adapters"}


def test_what_a_plugin_provides_can_be_used_by_name(plug: Plug) -> None:
    module = plug("good", GOOD)
    assert record("good").provides == ("criteria: mine",)
    assert record("good").error is None
    assert plugins.lookup("criterion", plugins.registry().criteria, "mine").plugin == "good"
    assert record("good").value == module


def test_a_criterion_of_a_strangers_scores(plug: Plug) -> None:
    plug(
        "norms",
        f"""{HEAD}
from shortgpt import Criterion

class Norm(Criterion):
    def values(self, before, after):
        return after.norm(dim=-1)

@hookimpl
def shortgpt_criteria():
    return [Extension("longest", __name__ + ":Norm")]
""",
    )
    stream = torch.randn(3, 10, 4)
    scores = shortgpt.score(Playback(stream), [{"input_ids": torch.arange(10)[None]}], criteria=["longest"])
    assert scores.values == pytest.approx(stream[1:].double().norm(dim=-1).mean(1).tolist())


def test_every_kind_of_hook_is_collected(plug: Plug) -> None:
    plug(
        "all",
        f"""{HEAD}
@hookimpl
def shortgpt_architectures():
    return [Architecture("a", "x:A", model_types=("a",))]

@hookimpl
def shortgpt_criteria():
    return [Extension("c", "x:C")]

@hookimpl
def shortgpt_calibrations():
    return [Extension("t", "x:T")]

@hookimpl
def shortgpt_reporters():
    return (Extension(name, "x:R") for name in ("r", "s"))

@hookimpl
def shortgpt_models():
    return [Extension("zoo:m", "/m")]
""",
    )
    assert record("all").provides == (
        "architectures: a",
        "criteria: c",
        "calibrations: t",
        "reporters: r, s",
        "models: zoo:m",
    )


# -- broken ones ----------------------------------------------------------------------------------------------

BROKEN = {
    "missing-module": ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    "syntax": ("def", "SyntaxError: "),
    "raises": ("raise RuntimeError('what a plugin may do')", "RuntimeError: what a plugin may do"),
    "no-hooks": ("def shortgpt_criteria():\n    return []", "implements no hook of shortgpt (is @hookimpl missing?)"),
    "misspelt": (f"{HEAD}\n@hookimpl\ndef shortgpt_criterion():\n    return []", "unknown hook 'shortgpt_criterion'"),
    "wrong-kind": (
        f"{HEAD}\n@hookimpl\ndef shortgpt_architectures():\n    return [Extension('a', 'b:c')]",
        "expected Architecture values, found Extension",
    ),
    "not-a-list": (f"{HEAD}\n@hookimpl\ndef shortgpt_criteria():\n    return 3", "TypeError: 'int' object"),
    "hook-raises": (f"{HEAD}\n@hookimpl\ndef shortgpt_criteria():\n    return 1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_reported_by_name_and_all_others_work(plug: Plug, kind: str) -> None:
    source, reason = BROKEN[kind]
    plug("broken", source)
    plug("good", GOOD)
    assert reason in (record("broken").error or "")
    assert [r.name for r in plugins.registry().failed] == ["broken"]
    assert record("good").error is None
    scores = shortgpt.score(Playback(torch.randn(3, 10, 4)), [{"input_ids": torch.arange(10)[None]}])
    assert scores.criteria == ("block-influence",)


@pytest.mark.parametrize("kind", BROKEN)
def test_on_request_a_broken_plugin_is_an_error(plug: Plug, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTGPT_STRICT_PLUGINS", "1")
    plug("broken", BROKEN[kind][0])
    with pytest.raises(PluginError, match=r"plugin broken \(plugged_broken_0\) failed to load"):
        plugins.registry()


def test_an_error_about_a_missing_name_mentions_plugins_that_failed(plug: Plug) -> None:
    module = plug("broken", "raise RuntimeError('sorry')")
    with pytest.raises(UnknownNameError) as caught:
        shortgpt.score(Playback(torch.randn(3, 10, 4)), [{"input_ids": torch.zeros(1, 2).long()}], criteria=["x"])
    assert f"Plugins that failed to load: broken ({module}): RuntimeError: sorry." in str(caught.value)


def test_two_plugins_of_one_name_are_told_apart(plug: Plug) -> None:
    plug("twice", GOOD)
    plug("twice", GOOD)
    errors = [r.error for r in plugins.registry().records if r.name == "twice"]
    assert errors == [None, "PluginError: another plugin is already called 'twice'"]


def test_one_module_under_two_names_is_loaded_once() -> None:
    twice = [EntryPoint(name, "shortgpt_plugins.catalog", plugins.GROUP) for name in ("a", "b")]
    found = plugins.load(twice)
    assert [r.error for r in found.records] == [
        None,
        "PluginError: shortgpt_plugins.catalog is already loaded under another name",
    ]
    assert len({e.name for e in found.criteria}) == len(found.criteria)


def test_a_criterion_that_gives_nan_is_told_by_block(plug: Plug) -> None:
    plug(
        "odd",
        f"""{HEAD}
from shortgpt import Criterion

class Odd(Criterion):
    def values(self, before, after):
        return after[:, 0] / 0

@hookimpl
def shortgpt_criteria():
    return [Extension("odd", __name__ + ":Odd")]
""",
    )
    batch = [{"input_ids": torch.arange(10)[None]}]
    with pytest.raises(
        HiddenStateError, match=r"the criterion 'odd' gave NaN or infinity around block 0 .*check the criterion"
    ):
        shortgpt.score(Playback(torch.randn(3, 10, 4)), batch, criteria=["odd"])


def test_one_name_from_two_plugins_is_an_error_when_it_is_used(plug: Plug) -> None:
    plug("one", GOOD)
    plug("two", GOOD)
    assert plugins.registry().failed == ()
    with pytest.raises(PluginError, match="criterion 'mine' is provided by the plugins one and two; uninstall one"):
        plugins.lookup("criterion", plugins.registry().criteria, "mine")


# -- names and targets ----------------------------------------------------------------------------------------


def test_an_unknown_name_says_what_may_have_been_meant_and_what_is_installed() -> None:
    with pytest.raises(UnknownNameError) as caught:
        plugins.lookup("criterion", plugins.registry().criteria, "block_influence")
    installed = sorted(entry.name for entry in plugins.registry().criteria)
    assert len(installed) > 2
    assert str(caught.value) == (
        f"unknown criterion 'block_influence'. Did you mean 'block-influence'? Installed: {', '.join(installed)}."
    )


def test_a_name_like_none_that_is_installed_gets_no_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'xyz'\. Installed: angular-distance"):
        plugins.lookup("criterion", plugins.registry().criteria, "xyz")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("json", "is malformed; it must read 'module:object'"),
        ("json:", "is malformed"),
        ("no_such_module:x", "cannot be imported: ModuleNotFoundError"),
        ("json:no_such_thing", "cannot be imported: AttributeError"),
    ],
)
def test_a_target_that_is_not_there_is_a_plugin_error(target: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_target(target)


@pytest.mark.parametrize("source", ["raise ValueError('broken inside')", "def", "1 / 0"])
def test_a_target_whose_module_breaks_is_a_plugin_error(plug: Plug, source: str) -> None:
    module = plug("unused", source)
    with pytest.raises(PluginError, match=f"target '{module}:x' cannot be imported: "):
        load_target(f"{module}:x")


# -- architectures --------------------------------------------------------------------------------------------


def claiming(name: str, model_type: str, priority: int = 0) -> str:
    return f"""{HEAD}
from shortgpt_adapters.families.llama import Llama

class Mine(Llama):
    architecture = {name!r}

@hookimpl
def shortgpt_architectures():
    return [Architecture({name!r}, __name__ + ":Mine", model_types=({model_type!r},), priority={priority})]
"""


def test_an_architecture_that_two_claim_is_an_error_that_names_both(plug: Plug, llama_folder: Path) -> None:
    plug("stranger", claiming("my-llama", "llama"))
    with pytest.raises(AmbiguousArchitectureError) as caught:
        shortgpt.load(llama_folder)
    assert "claimed by 'llama' (plugin adapters) and 'my-llama' (plugin stranger) with priority 0" in str(caught.value)
    with pytest.raises(AmbiguousArchitectureError):
        shortgpt.wrap(tiny("llama", blocks=2))


def test_the_higher_priority_wins(plug: Plug, llama_folder: Path) -> None:
    plug("stranger", claiming("my-llama", "llama", priority=1))
    assert shortgpt.load(llama_folder, device="cpu").architecture == "my-llama"
    assert shortgpt.wrap(tiny("llama", blocks=2)).architecture == "my-llama"


def test_one_can_be_named(plug: Plug, llama_folder: Path) -> None:
    plug("stranger", claiming("my-llama", "something"))
    assert shortgpt.load(llama_folder, device="cpu", architecture="my-llama").architecture == "my-llama"
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'my-lama'. Did you mean 'my-llama'"):
        shortgpt.load(llama_folder, architecture="my-lama")


def test_an_unknown_architecture_says_what_was_found_what_is_installed_and_what_failed(
    plug: Plug, tmp_path: Path
) -> None:
    plug("broken", "raise RuntimeError('sorry')")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "alien", "architectures": ["AlienLM"]}))
    with pytest.raises(UnknownArchitectureError) as caught:
        shortgpt.load(tmp_path / "m")
    message = str(caught.value)
    assert "model_type 'alien', architectures ['AlienLM']" in message
    assert "Installed: " in message
    assert all(name in message for name in ("llama", "gpt2", "mamba", "rwkv"))
    assert "Plugins that failed to load: broken" in message


def test_a_model_in_memory_that_nobody_knows_is_told_by_its_class() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"a torch\.nn\.modules\.linear\.Linear"):
        shortgpt.wrap(torch.nn.Linear(2, 2))


def test_an_architecture_whose_target_is_no_family_is_a_plugin_error(plug: Plug, llama_folder: Path) -> None:
    plug("stranger", claiming("my-llama", "llama", priority=1).replace(':Mine"', ':Extension"'))
    with pytest.raises(PluginError, match=r"my-llama.*is no Family"):
        shortgpt.load(llama_folder)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"architectures": ["OldLM"]}, "by-class"),
        ({"n_blocks": 3, "n_state": 2}, "by-keys"),
        ({"model_type": "other", "n_blocks": 3, "n_state": 2}, None),
        ({"n_blocks": 3}, None),
    ],
)
def test_configs_without_a_model_type_are_told_by_class_or_by_keys(
    plug: Plug, tmp_path: Path, config: dict[str, object], found: str | None
) -> None:
    plug(
        "old",
        f"""{HEAD}
from shortgpt_adapters.families.llama import Llama

class ByClass(Llama):
    architecture = "by-class"

class ByKeys(Llama):
    architecture = "by-keys"

@hookimpl
def shortgpt_architectures():
    return [
        Architecture("by-class", __name__ + ":ByClass", architectures=("OldLM",)),
        Architecture("by-keys", __name__ + ":ByKeys", config_keys=("n_blocks", "n_state")),
    ]
""",
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    if found is None:
        with pytest.raises(UnknownArchitectureError):
            recognise(Source("it", tmp_path))
    else:
        assert recognise(Source("it", tmp_path)).architecture == found


# -- what imports what ----------------------------------------------------------------------------------------


def imports_of(file: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


TRAINING = {
    "healing": {
        "from transformers import Trainer, TrainerCallback, TrainingArguments",
        "from transformers import set_seed",
        "from transformers.pytorch_utils import Conv1D",
        "from transformers.trainer_callback import PrinterCallback",
        "from transformers.trainer_utils import get_last_checkpoint",
        "from transformers.utils import logging",
    },
    "monitor.py": {"from transformers import TrainerCallback"},
}
"""What trains, or watches a training, takes the library's trainer, and no model of it."""


def test_the_engine_imports_no_adapter_no_plugin_and_no_model() -> None:
    files = list(Path(shortgpt.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        assert not imports_of(file) & {"shortgpt_adapters", "shortgpt_plugins", "rwkv", "mamba_ssm"}, file
        taken = re.findall(r"(?:from|import) transformers.*", file.read_text("utf-8"))
        training = TRAINING.get(file.parent.name, TRAINING.get(file.name, set()))
        assert set(taken) <= {"from transformers import AutoTokenizer"} | training, file


def test_asking_what_is_installed_imports_neither_torch_nor_an_adapter() -> None:
    program = (
        "import sys; from shortgpt.plugins import registry; assert not registry().failed, registry().failed\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules = set(ran.stdout.split())
    assert "shortgpt_adapters.catalog" in modules
    assert not modules & {
        "torch",
        "transformers",
        "numpy",
        "shortgpt_adapters.families.llama",
        "shortgpt_plugins.criteria",
    }


# -- the criteria ---------------------------------------------------------------------------------------------


def measured(criterion: str, before: torch.Tensor, after: torch.Tensor) -> float:
    ids = torch.arange(len(before))[None]
    return shortgpt.score(Playback(torch.stack([before, after])), [{"input_ids": ids}], criteria=[criterion]).values[0]


@pytest.mark.parametrize("angle", [1e-4, 0.01, 0.5, math.pi / 2, 3.0])
def test_angular_distance_is_the_angle_as_a_share_of_a_half_turn(angle: float) -> None:
    before = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance = 2 * math.sin(angle / 2) ** 2  # 1 − cos, without its cancellation
    after = turned(before, distance, scale=3.0)
    assert measured("angular-distance", before, after) == pytest.approx(angle / math.pi, rel=1e-6)


def test_relative_magnitude_is_the_share_of_the_stream_that_the_block_wrote() -> None:
    before = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # ‖(0, 4)‖ / ‖(3, 4)‖ = 0.8, and nothing
    assert measured("relative-magnitude", before, after) == pytest.approx(0.4, rel=1e-12)


def test_every_error_has_the_one_root() -> None:
    assert issubclass(PluginError, ShortGPTError)
    assert issubclass(AmbiguousArchitectureError, ShortGPTError)
