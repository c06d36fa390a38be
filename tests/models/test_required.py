"""What an adapter leaves out is told at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import shortgpt
from shortgpt import BlockSequence, Family, TorchFamily
from shortgpt.errors import AdapterError
from tests.own_container import FILE, VesselBlocks, make_model


def refusal(make: Callable[[], object]) -> list[str]:
    with pytest.raises(AdapterError) as caught:
        make()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("base", [Family, TorchFamily, BlockSequence])
def test_each_missing_method_stands_there_with_what_it_returns(base: type) -> None:
    unfinished = type("Mine", (base,), {})
    lines = refusal(unfinished)
    assert lines[0] == f"{unfinished.__module__}.Mine is not complete: an adapter must also say"
    for name in base.__abstractmethods__:  # type: ignore[attr-defined]
        (line,) = [line for line in lines if line.startswith((f"  {name}(", f"  {name} ("))]
        assert " -> " in line
        assert "'" not in line.partition(" -> ")[0]
    assert "docs/writing-an-adapter.md" in lines[-1]


def test_what_is_there_is_not_listed_and_attributes_are() -> None:
    class Mine(TorchFamily):
        architecture = "mine"
        block_lists = ("blocks",)

        def build(self, config: Any, tensors: Any, *, like: Any) -> Any:
            return like

        def config_of(self, model: Any) -> Any:
            return {}

        def read_config(self, source: Any, *, trust_remote_code: bool = False) -> Any:
            return {}

        def write_config(self, config: Any, source: Any, directory: Any) -> None: ...

        def write_model(self, blocks: Any, directory: Any) -> None: ...

    lines = refusal(cast(Any, Mine))
    assert [line.split("(")[0].split(":")[0].strip() for line in lines[1:-1]] == ["open", "loader"]
    assert lines[1] == "  open(source: Source, options: OpenOptions) -> BlockSequence: Load the model."


def test_attributes_of_a_model_that_was_made(plug: Callable[[str, str], str], tmp_path: Path) -> None:
    plug("vessel", "from tests.own_container import shortgpt_architectures")
    make_model().save(tmp_path / FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(VesselBlocks, "vocab_size")
        for make in (lambda: shortgpt.wrap(make_model()), lambda: shortgpt.load(tmp_path / FILE, device="cpu")):
            lines = refusal(make)
            assert lines[1:-1] == ["  vocab_size: int: token ids are below it."]
