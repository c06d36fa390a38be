"""Fixtures for all tests."""

import gc
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch

from shortgpt import plugins
from tests import example_environment, support
from tests.fresh_processes import forked_verification

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is not of CUDA finds no accelerator, on a machine that has one too: the default device is the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("gpu") is None:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch.cuda, "device_count", lambda: 0)
            patch.setattr(torch.backends.mps, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the processes that a test starts
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help="run the cases too that `sampled` leaves out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases that `sampled` does not name; one that is asked for by its own name is run."""
    by_function: dict[str, set[str]] = {}
    for item in items:
        by_function.setdefault(item.nodeid.partition("[")[0], set()).add(
            item.nodeid.partition("[")[2].removesuffix("]")
        )
    left_out = []
    for item in items:
        if (marker := item.get_closest_marker("sampled")) is None:
            continue
        function, _, case = item.nodeid.partition("[")
        if not any("[" in argument for argument in config.args):
            if unknown := set(marker.args) - by_function[function]:
                raise pytest.UsageError(
                    f"{function}: there is no case {sorted(unknown)}; there are {by_function[function]}"
                )
            if case.removesuffix("]") not in marker.args:
                left_out.append(item)
    if left_out and not config.getoption("every_case"):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish() -> None:
    """What was imported is no garbage, and takes a quarter of a second to be looked through when memory is freed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _forks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Verification's fresh processes are forks, but where a test is marked. See `tests.fresh_processes`."""
    if request.node.get_closest_marker("gpu") or request.node.get_closest_marker("fresh_process"):
        yield
        return
    with forked_verification():
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, in a run that began in the background too, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def real() -> Path:
    """The folder of trained models and real text that this project did not make; tests that need it skip without."""
    beside = Path(__file__).parents[2] / "shared" / "real"
    folder = Path(os.environ.get("SHORTGPT_REAL", beside))
    if not folder.is_dir():
        pytest.skip("no trained material: set SHORTGPT_REAL to its folder")
    return folder


@pytest.fixture(scope="session")
def published_configs() -> Path:
    """A folder of configs as they were published, `NAME.json`; tests that need it skip without."""
    beside = Path(__file__).parents[2] / "shared" / "configs"
    folder = Path(os.environ.get("SHORTGPT_CONFIGS", beside))
    if not folder.is_dir():
        pytest.skip("no published configs: set SHORTGPT_CONFIGS to their folder")
    return folder


@pytest.fixture
def tiny() -> Callable[..., torch.nn.Module]:
    """`tiny(name, blocks=6, **config)`: a seeded small model of a family. See `tests.support.tiny`."""
    return support.tiny


@pytest.fixture
def run_cli() -> Callable[..., support.Ran]:
    """`run_cli(*arguments)`: the command line in this process. See `tests.support.run_cli`."""
    return support.run_cli


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama of 6 blocks, with tokenizer and generation config. Never written to."""
    return support.saved(support.tiny("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> example_environment.Environment:
    """An environment with the packages of examples/ installed; workers of one run share it."""
    base = tmp_path_factory.getbasetemp()
    return example_environment.shared((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "examples")


@pytest.fixture
def one_process() -> Iterator[None]:
    """What verification does in a fresh process is done in this one, for speed. See `tests.support.in_this_process`."""
    with support.in_this_process():
        yield


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """`plug(name, source)`: as if a package were installed whose plugin `name` is a module of that source.

    Returns the module's name.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    added: list[EntryPoint] = []
    installed = importlib.metadata.entry_points

    def entry_points(**chosen: str) -> Any:
        found = list(installed(**chosen))
        return EntryPoints(found + added) if chosen.get("group") == plugins.GROUP else EntryPoints(found)

    def add(name: str, source: str) -> str:
        module = f"plugged_{name.replace('-', '_')}_{len(added)}"
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        added.append(EntryPoint(name, module, plugins.GROUP))
        importlib.invalidate_caches()
        plugins.registry.cache_clear()
        return module

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    yield add
    plugins.registry.cache_clear()
    for module in [m for m in sys.modules if m.startswith("plugged_")]:
        del sys.modules[module]
