"""What others rely on: the public names and signatures, what an import costs, and which way the arrows run.

A table that fails here is a change that users and authors of adapters can see: note it in CHANGELOG.md.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from shortgpt_adapters.catalog import ARCHITECTURES

import shortgpt
from shortgpt import plugins
from shortgpt.basics.inputs import CalibrationOptions, LoadOptions
from shortgpt.models.family import ANY_MODEL_TYPE

ROOT = Path(__file__).parents[1]
ENGINE, PLUGINS, ADAPTERS = (ROOT / p for p in ("shortgpt", "plugins/shortgpt_plugins", "adapters/shortgpt_adapters"))

NAMES = {
    *("ShortGPTError", "__version__"),
    *("load", "wrap", "calibrate", "score", "remove", "prune_checkpoint", "verify", "compare"),
    *("curve", "ablate", "effect", "prune", "trace", "inspect", "evaluate", "Evaluation"),
    *("compensate", "Compensation", "cost", "Cost", "heal", "Healing", "search", "prefill_skipping", "push_to_hub"),
    *("Ablation", "Calibration", "Choice", "Comparison", "Curves", "Effect", "Plan", "Scores", "Search", "Source"),
    *("Verification", "Training", "BlockInfluenceMonitor"),
    *("BlockSequence", "Tap", "TokenBatch", "TorchBlockSequence"),
    *("Family", "TorchFamily", "Criterion", "BatchCriterion", "OrderCriterion", "BlockInfluence", "Evaluator", "Cut"),
    *("Step", "StepCriterion"),
    *("Architecture", "Extension", "hookimpl"),
}

FUNCTIONS = {
    "cost": "(model: Any, *, tokens: int | None = None, sequences: int = 1, rounds: int = 9, timed: bool = True, "
    "progress: Progress | bool | None = None, **options: Unpack[LoadOptions]) -> Cost",
    "heal": "(original: str | Path | Source, shorter: str | Path | Source, output: str | Path, *, "
    "calibration: Any = stdlib, resume: bool = False, progress: Progress | bool | None = None, "
    "**options: Unpack[HealingOptions]) -> Healing",
    "evaluate": "(models: Any, removed: Blocks | Iterable[Blocks] = (), *, "
    "tasks: Sequence[str] | None = None, text: Any = stdlib, field: str | None = None, items: int | None = None, "
    "seed: int = 0, shots: int | None = None, include_path: Sequence[str | Path] = (), chat_template: bool = False, "
    "batch_size: int | None = None, require: Sequence[str] = (), until_settled: bool = False, "
    "resume: str | Path | None = None, progress: Progress | bool | None = None, **options: Unpack[LoadOptions]) "
    "-> Evaluation",
    "load": "(name: str | Path | Source, *, device: str | None = None, dtype: str = auto, tokenizer: Any = None, "
    "trust_remote_code: bool = False, architecture: str | None = None, stream: bool = False, "
    "revision: str | None = None) -> BlockSequence",
    "wrap": "(model: Any, *, tokenizer: Any = None, name: str | None = None, architecture: str | None = None) "
    "-> BlockSequence",
    "calibrate": "(source: Any, model: BlockSequence, *, sequences: int | None = None, tokens: int | None = None, "
    "seed: int = 0, field: str | None = None, batch_size: int | None = None) -> Calibration",
    "score": "(model: Any, calibration: Any = stdlib, *, criteria: Sequence[str] = (block-influence,), "
    "spans: bool = False, resume: str | Path | None = None, progress: Progress | bool | None = None, "
    "**options: Unpack[MeasuringOptions]) -> Scores",
    "push_to_hub": "(model: str | Path | BlockSequence, repository: str, *, private: bool | None = None, "
    "revision: str | None = None, message: str | None = None, create_pr: bool = False, token: str | None = None) "
    "-> str",
    "remove": "(model: BlockSequence, blocks: Plan | Iterable[int]) -> BlockSequence",
    "prune_checkpoint": "(source: str | Path | Source, output: str | Path, blocks: Plan | Iterable[int], *, "
    "verify: bool = True, device: str | None = None, dtype: str = auto, trust_remote_code: bool = False, "
    "architecture: str | None = None, export_as: str | None = None, stream: bool = False, "
    "fitted: Fitted | None = None, rehash: bool = False, progress: Progress | bool | None = None) -> Plan",
    "compensate": "(model: BlockSequence, blocks: Plan | Iterable[int], calibration: Any = stdlib, *, "
    "progress: Progress | bool | None = None, **options: Unpack[CalibrationOptions]) -> BlockSequence",
    "effect": "(model: Any, blocks: Plan | Iterable[int], text: Any = stdlib, *, "
    "changes: Sequence[Change] = (), progress: Progress | bool | None = None, **options: Unpack[MeasuringOptions]) "
    "-> Effect",
    "prefill_skipping": "(model: Any, blocks: Plan | Iterable[int]) -> Iterator[BlockSequence]",
    "prune": "(model: Any, output: str | Path | None = None, *, "
    "blocks: int | None = None, "
    "ratio: float | None = None, contiguous: int | None = None, max_perplexity_ratio: float | None = None, "
    "target: str | Iterable[str] = (), remove: str | Iterable[int] | None = None, "
    "plan: Plan | str | Path | None = None, "
    "keep: str | Iterable[int] = (), criterion: str | None = None, "
    "scores: Scores | str | Path | None = None, search: str | None = None, "
    "objective: str | None = None, evaluations: int | None = None, width: int | None = None, "
    "resume: str | Path | None = None, calibration: Any = None, "
    "effect: bool | None = None, compensate: bool | None = None, "
    "verify: bool = True, exports: Sequence[str] = (), export_as: str | None = None, "
    "merge_adapter: bool = False, rehash: bool = False, dry_run: bool = False, require: Sequence[str] = (), "
    "progress: Progress | bool | None = None, **options: Unpack[MeasuringOptions]) "
    "-> Plan | None",
    "trace": "(model: Any, calibration: Any = stdlib, **options: Unpack[MeasuringOptions]) -> Iterator[Boundary]",
    "inspect": "(model: Any, remove: str | Iterable[int] = (), *, architecture: str | None = None, "
    "trust_remote_code: bool = False, revision: str | None = None) -> Inspection",
    "search": "(model: Any, blocks: int | None, calibration: Any = stdlib, *, method: str = pairs, "
    "objective: str = perplexity, evaluations: int = 2000, width: int = 4, keep: Iterable[int] = (), "
    "contiguous: bool = False, refuse: Refuse | None = None, compensate: bool = False, "
    "besides: Iterable[Iterable[int]] = (), bounds: Sequence[Bound] = (), "
    "refuse_change: Callable[[Projection], str | None] | None = None, "
    "resume: str | Path | None = None, progress: Progress | bool | None = None, "
    "**options: Unpack[MeasuringOptions]) -> Search",
    "verify": "(original: Any, directory: str | Path, blocks: Iterable[int], *, "
    "dtype: str = auto, trust_remote_code: bool = False, family: Family | None = None, "
    "changes: Sequence[Change] = ()) -> Verification",
    "compare": "(models: Iterable[BlockSequence | Scores | str | Path], calibration: Any = stdlib, *, "
    "criteria: Sequence[str] = (block-influence,), resume: str | Path | None = None, "
    "progress: Progress | bool | None = None, **options: Unpack[MeasuringOptions]) -> Comparison",
    "curve": "(models: BlockSequence | str | Path | Iterable[BlockSequence | str | Path], "
    "calibration: Any = stdlib, *, criteria: Sequence[str] | None = None, evaluator: str = perplexity, "
    "most: float | None = None, search: str | None = None, objective: str | None = None, "
    "evaluations: int | None = None, width: int | None = None, resume: str | Path | None = None, "
    "compensate: bool = False, progress: Progress | bool | None = None, **options: Unpack[MeasuringOptions]) -> Curves",
    "ablate": "(model: Any, calibration: Any = stdlib, *, criteria: Sequence[str] = (block-influence,), "
    "evaluator: str = perplexity, resume: str | Path | None = None, progress: Progress | bool | None = None, "
    "**options: Unpack[MeasuringOptions]) -> Ablation",
}

KEYWORDS = {
    CalibrationOptions: "calibrate",
    LoadOptions: "load",
}

TO_IMPLEMENT = {
    "BlockSequence": {
        "device": "property",
        "trace": "(self, batch: TokenBatch, tap: Tap) -> None",
        "logits": "(self, batch: TokenBatch) -> Tensor",
        "skipping": "(self, blocks: Iterable[int]) -> AbstractContextManager[None]",
        "without": "(self, blocks: Iterable[int]) -> BlockSequence",
        "write": "(self, directory: Path) -> None",
        "parameter_counts": "(self) -> tuple[int, ...]",
        "total_parameters": "(self) -> int",
    },
    "TorchBlockSequence": {},
    "Family": {
        "read_config": "(self, source: Source, *, trust_remote_code: bool = False) -> Config",
        "write_config": "(self, config: Config, source: Source, directory: Path) -> None",
        "open": "(self, source: Source, options: OpenOptions) -> BlockSequence",
        "wrap": "(self, model: Any, *, name: str, tokenizer: Any = None, source: Source | None = None) "
        "-> BlockSequence",
    },
    "TorchFamily": {
        "read_config": "(self, source: Source, *, trust_remote_code: bool = False) -> Config",
        "write_config": "(self, config: Config, source: Source, directory: Path) -> None",
        "open": "(self, source: Source, options: OpenOptions) -> BlockSequence",
        "config_of": "(self, model: Any) -> Config",
        "build": "(self, config: Config, tensors: Mapping[str, Tensor], *, like: Any) -> nn.Module",
        "write_model": "(self, blocks: Any, directory: Path) -> None",
    },
    "Criterion": {"values": "(self, before: Tensor, after: Tensor) -> Tensor"},
    "StepCriterion": {"of_step": "(self, step: Step) -> Tensor"},
}


def shape(thing: object) -> str:
    """A signature as text, without quotation marks: annotations are strings here, and string defaults read the same."""
    return "property" if isinstance(thing, property) else str(inspect.signature(thing)).replace("'", "")


def test_the_public_names() -> None:
    assert set(shortgpt.__all__) == NAMES
    assert set(dir(shortgpt)) == NAMES
    assert [name for name in NAMES if getattr(shortgpt, name, None) is None] == []


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shorten'"):
        shortgpt.shorten  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_signature_of_a_function(name: str) -> None:
    assert shape(getattr(shortgpt, name)) == FUNCTIONS[name]


@pytest.mark.parametrize("options", KEYWORDS)
def test_options_are_the_keywords_of_the_function_that_says_what_they_mean(options: type) -> None:
    parameters = inspect.signature(getattr(shortgpt, KEYWORDS[options])).parameters.values()
    keywords = {one.name: one.annotation for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {name: hint.__forward_arg__ for name, hint in options.__annotations__.items()} == keywords


@pytest.mark.parametrize("name", TO_IMPLEMENT)
def test_what_a_subclass_must_implement(name: str) -> None:
    cls = getattr(shortgpt, name)
    assert {m: shape(inspect.getattr_static(cls, m)) for m in cls.__abstractmethods__} == TO_IMPLEMENT[name]


@pytest.mark.parametrize(
    "lines", ["import shortgpt", "from shortgpt import Architecture, Extension, hookimpl"], ids=["package", "catalog"]
)
def test_importing_it_costs_nothing(lines: str) -> None:
    heavy = ("torch", "transformers", "numpy", "click", "rich", "safetensors", "huggingface_hub")
    script = f"{lines}\nimport sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- which way the arrows run ---------------------------------------------------------------------------------


def files(*folders: Path) -> list[Path]:
    found = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    assert found
    return found


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(file: Path) -> set[str]:
    """The modules that a file imports, by their absolute names; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names.update({node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def code_texts(file: Path) -> Iterator[str]:
    """Every identifier and string of a file's code. Docstrings, comments and a command's example are not code."""
    nodes = list(ast.walk(tree(file)))
    examples = [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "epilog"]
    documentation = {id(node.value) for node in (*examples, *(n for n in nodes if isinstance(n, ast.Expr)))}
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) not in documentation:
                yield text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name, asname=other):
                yield from (part for part in (*name.split("."), other) if part)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        (ENGINE, ("shortgpt_adapters", "shortgpt_plugins")),
        (PLUGINS, ("shortgpt_adapters",)),
        (ADAPTERS, ("shortgpt_plugins",)),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_a_package_knows_nothing_of_those_that_plug_into_it(folder: Path, others: tuple[str, ...]) -> None:
    for file in files(folder):
        for other in others:
            assert not any(name.split(".")[0] == other for name in imported(file)), f"{file} imports {other}"
            assert not any(other in text for text in code_texts(file)), f"{file} names {other}"


@cache
def named_models() -> re.Pattern[str]:
    published = "|".join(re.escape(one.name) for one in plugins.registry().published)
    functions = "|".join(one.target.rpartition(":")[2] for one in plugins.registry().published)
    return re.compile(rf"\bzoo:[\w-]+|\bllama\.cpp\b|\b({published})\b|^({functions})$")


@cache
def plain(text: str) -> str:
    """`LlamaModel` → `llama_model`, `zoo:llama or openai-gpt` → ` or openai_gpt`: a shipped model may be named, one
    that somebody published numbers of, and the program llama.cpp."""
    text = named_models().sub("", text)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower().replace("-", "_")


@cache
def architecture_names() -> dict[str, re.Pattern[str]]:
    """Name → how it is found in `plain` text: short ones as a word of their own, long ones anywhere."""
    rows = [row for row in ARCHITECTURES if row.model_types or row.config_keys or row.suffixes]
    given = {name for row in rows for name in (row.name, *row.model_types, *row.architectures)}
    names = {plain(name) for name in given - {ANY_MODEL_TYPE}} - {"beam"}  # a way to search, too
    return {name: re.compile(name if len(name) > 4 else rf"(?<![a-z0-9]){name}(?![a-z0-9])") for name in names if name}


def architectures_in(file: Path) -> set[tuple[str, str]]:
    texts = {text: plain(text) for text in code_texts(file)}
    return {
        (name, text) for text, words in texts.items() for name, p in architecture_names().items() if p.search(words)
    }


def test_no_architecture_is_named_outside_the_adapters() -> None:
    assert {"llama", "mistral", "gpt2", "mamba", "rwkv", "baichuan", "openai_gpt"} <= set(architecture_names())
    assert {file.name: found for file in files(ENGINE, PLUGINS) if (found := architectures_in(file))} == {}


def test_an_architecture_named_in_code_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "room.py"
    file.write_text(
        '"""llama, in a docstring"""\n'
        "def f(model, zoo='zoo:llama'):  # gpt2, in a comment\n"
        '    """mamba, too"""\n'
        "    if type(model).__name__ == 'BaichuanForCausalLM':\n"
        "        return model.rwkv.blocks\n"
        "    return {'openai-gpt': isLlama}\n"
    )
    assert {name for name, _ in architectures_in(file)} >= {"baichuan", "rwkv", "openai_gpt", "llama"}
    assert {name for name, _ in architectures_in(file)} & {"mamba", "gpt2", "mistral"} == set()
    assert ("llama", "zoo:llama") not in architectures_in(file)


# -- adding an architecture is one file and one row -----------------------------------------------------------

SHARED = ADAPTERS / "transformers"
"""What the families of transformers have in common."""


def family_files() -> dict[str, Path]:
    """The module that a catalog row names, within the package → its file."""
    modules = [row.target.partition(":")[0].removeprefix("shortgpt_adapters.") for row in ARCHITECTURES]
    files = {name: ADAPTERS.joinpath(*name.split(".")).with_suffix(".py") for name in modules}
    return {name: file for name, file in files.items() if file.parent != SHARED}


def test_every_family_is_one_file_and_one_row() -> None:
    assert all(file.is_file() for file in family_files().values())
    targets = [row.target for row in ARCHITECTURES]
    assert len(set(targets)) == len(targets) == len({row.name for row in ARCHITECTURES})
    for file in files(ADAPTERS):
        parents = {base.id for n in tree(file).body if isinstance(n, ast.ClassDef) for base in bases(n)}
        if parents & {"Family", "TorchFamily", "TransformersFamily"} and file.parent != SHARED:
            assert file in family_files().values(), f"{file.name} holds a family that no row of the catalog names"


def bases(node: ast.ClassDef) -> list[ast.Name]:
    return [base for base in node.bases if isinstance(base, ast.Name)]


def test_a_family_file_is_named_by_its_row_and_by_families_built_on_it() -> None:
    families = family_files()
    named = {name: re.compile(rf"\bshortgpt_adapters\.{re.escape(name)}\b") for name in families}
    for file in files(ENGINE, PLUGINS, ADAPTERS):
        if file.is_relative_to(ADAPTERS / "zoo") or file.name == "catalog.py":
            continue  # the zoo trains models of transformers
        imports, texts = imported(file), set(code_texts(file))
        for name, pattern in named.items():
            beside = file.parent == families[name].parent and file.parent.name not in ("families", "quirks")
            if file == families[name] or beside:
                continue
            assert not any(pattern.search(text) for text in texts), f"{file.name} names {name} in a string"
            assert file in families.values() or not any(map(pattern.match, imports)), f"{file.name} imports {name}"


@pytest.mark.parametrize(
    "name", ["__init__", "family", "loader", "streaming", "structure", "config_reads", "config_files"]
)
def test_what_the_families_share_names_none_of_them(name: str) -> None:
    assert architectures_in(SHARED / f"{name}.py") == set()
