"""What blocks cost, held against smaller models of Hugging Face, its caches, closed forms, and a made-up clock."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import shortgpt
from shortgpt import Cost
from shortgpt.errors import CalibrationError, ModelError, ShortGPTError
from shortgpt.measuring.costs import timing
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt.reports.costs.units import duration, operations, size
from shortgpt.reports.plots.cost import cost_figure
from shortgpt.values import kinds
from shortgpt.values.cost import CacheSize, PartCost
from tests.support import Playback, Ran, message_of, tiny

FAMILIES = ("llama", "gpt2", "mamba2", "rwkv", "mistral", "falcon_mamba")


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def uneven(**changes: Any) -> Cost:
    """Three blocks that cost unlike, of numbers that are easy to follow."""
    blocks = tuple(
        PartCost(100 * n, 400 * n, CacheSize(8 * n, n, window), 1000 * n, n / 1000, n / 10_000)
        for n, window in ((1, None), (2, 5), (3, None))
    )
    outside = PartCost(50, 200, CacheSize(), 500, 0.0005, 0.00005)
    cost = Cost(
        *("made up", "llama", tuple(f"blocks.{i}" for i in range(3)), {1: "why"}, blocks, outside),
        *(2, 16, 12, 9, "cpu", 4, 1, {}),
    )
    return replace(cost, **changes)


# -- what is counted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_that_are_left_are_those_of_the_librarys_model_of_so_many_blocks(name: str) -> None:
    cost = shortgpt.cost(tiny(name, blocks=4), tokens=8, timed=False)
    shorter = tiny(name, blocks=2)
    assert cost.parameters() == numbers(tiny(name, blocks=4))
    assert cost.parameters(without=(0, 2)) == numbers(shorter)
    assert cost.bytes(without=(0, 2)) == 4 * numbers(shorter)


def test_a_tie_is_outside_the_blocks_and_counts_once() -> None:
    cost = shortgpt.cost(tiny("gpt2", blocks=2), tokens=8, timed=False)
    assert cost.outside.parameters == 257 * 32 + 512 * 32 + 2 * 32


def test_a_tensor_that_has_a_part_for_each_block_loses_one() -> None:
    from tests.tiny_types import tiny_model

    cost = shortgpt.cost(tiny_model("gemma3n_text", blocks=4), tokens=8, timed=False)
    model = shortgpt.wrap(tiny_model("gemma3n_text", blocks=4))
    gone = next((block,) for block in range(4) if model.refuse_removal((block,)) is None)
    assert cost.parameters(gone) == numbers(model.without(gone).model)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2", "gpt2"])
def test_the_cache_is_as_large_as_that_of_the_library_behind_so_many_tokens(name: str) -> None:
    model = tiny(name, blocks=3)
    with torch.no_grad():
        cache = model(torch.arange(20)[None] + 1, use_cache=True)
    layers = (cache.past_key_values if "past_key_values" in cache else cache.cache_params).layers
    held = [sum(t.nbytes for t in (*_tensors(layer),) if t.dim() > 1) for layer in layers]
    cost = shortgpt.cost(model, tokens=8, timed=False)
    assert [part.cache and part.cache.at(20) for part in cost.blocks] == held
    assert cost.cache(20, 3, without=(1,)) == 3 * (sum(held) - held[1])
    assert cost.memory(20, 3) == cost.bytes() + 3 * sum(held)


def _tensors(holder: Any) -> Iterator[torch.Tensor]:
    for value in vars(holder).values():
        yield from (one for one in (value.values() if isinstance(value, dict) else [value]) if torch.is_tensor(one))


def test_keys_and_values_of_grouped_heads_by_hand() -> None:
    cost = shortgpt.cost(tiny("llama", blocks=2), tokens=8, timed=False)
    assert {part.cache for part in cost.blocks} == {CacheSize(0, 2 * 2 * (32 // 4) * 4, None)}


def test_a_state_does_not_grow_and_the_two_norms_of_the_embedding_are_no_ones() -> None:
    cost = shortgpt.cost(tiny("rwkv", blocks=3), tokens=8, timed=False)
    assert {part.cache for part in cost.blocks} == {CacheSize(5 * 32 * 4, 0, None)}
    assert cost.blocks[0].parameters == cost.blocks[1].parameters
    assert cost.outside.parameters == 2 * 257 * 32 + 2 * 2 * 32


def test_operations_by_hand() -> None:
    tokens, width, inner, kv = 16, 32, 48, 16
    cost = shortgpt.cost(tiny("llama", blocks=2), tokens=tokens, sequences=3, timed=False)
    products = 2 * tokens * width * (2 * width + 2 * kv + 3 * inner)
    attention = 2 * 2 * tokens * tokens * width
    assert {part.flops for part in cost.blocks} == {3 * (products + attention)}
    assert cost.outside.flops == 3 * 2 * tokens * width * 257


def test_a_model_that_tells_nothing_of_its_cache_has_a_reason_in_its_place() -> None:
    cost = shortgpt.cost(Heard(), tokens=8, timed=False)
    assert "do not tell what their blocks keep" in cost.not_measured["cache"]
    with pytest.raises(ModelError, match="its cache cost is not known: models of the adapter"):
        cost.memory(100)
    with pytest.raises(ModelError, match="its prefill cost is not known: no time was measured"):
        cost.prefill()


# -- what is measured -----------------------------------------------------------------------------------------


class Heard(Playback):
    """A model of two blocks whose passes move a clock: 1 s in front, 2 and 3 s for the blocks, 4 s for the head. Now
    and then it is held up, as by another program."""

    def __init__(self, hold_ups: Iterable[float] = ()) -> None:
        super().__init__(torch.randn(3, 257, 8))
        self.time, self.hold_ups, self.decoded = 0.0, iter(hold_ups), 0

    def _steps(self, tap: Tap) -> None:
        self.time += 1
        for boundary, seconds in enumerate((2, 3, 0)):
            tap(boundary, self.stream[boundary][:1])
            self.time += seconds
        self.time += next(self.hold_ups, 0.0)

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        self._steps(tap)

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        self._steps(lambda boundary, hidden: None)
        self.time += 4
        return torch.zeros(1)

    def refuse_decoding(self) -> str | None:
        return None

    def decode(self, prompts: Sequence[Sequence[int]], new_tokens: int, tap: Tap) -> None:
        self.decoded = len(prompts[0])
        for _ in range(new_tokens):
            self._steps(tap)
            self.time += 4


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Heard]:
    def model(*given: Any) -> Heard:
        made = Heard(*given)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: made.time)
        return made

    return model


def test_a_block_is_as_long_as_from_one_boundary_to_the_next(heard: Callable[..., Heard]) -> None:
    model = heard()
    cost = shortgpt.cost(model, tokens=8, rounds=3)
    assert [part.prefill for part in (*cost.blocks, cost.outside)] == pytest.approx([2, 3, 5])
    assert [part.decoding for part in (*cost.blocks, cost.outside)] == pytest.approx([2, 3, 5])
    assert cost.prefill(without=(0,)) == pytest.approx(8)
    assert (cost.rounds, cost.context, model.decoded) == (3, 8, 8)


def test_what_holds_up_a_few_passes_moves_no_time(heard: Callable[..., Heard]) -> None:
    cost = shortgpt.cost(heard([50, 50, *([0, 0] * 3), 7, 0, 0, 9]), tokens=8, rounds=9)
    assert [part.prefill for part in (*cost.blocks, cost.outside)] == pytest.approx([2, 3, 5])


def test_no_more_rounds_than_a_minute_takes_but_three(heard: Callable[..., Heard]) -> None:
    assert shortgpt.cost(heard(), tokens=8, rounds=9).rounds == 3  # 16 s a round


def test_a_whole_that_is_longer_than_its_parts_is_divided_as_they_are() -> None:
    assert timing.shares(12.0, [(1.0, 5.0), (3.0, 2.0), (9.0, 9.0)]) == pytest.approx([4.0, 8.0])


def test_passes_and_steps_of_a_real_model_are_timed() -> None:
    said: list[tuple[str, int, int]] = []
    cost = shortgpt.cost(tiny("mistral", blocks=3), tokens=8, rounds=3, progress=lambda *now: said.append(now))
    assert min(part.prefill or 0 for part in cost.blocks) > 0
    assert min(part.decoding or 0 for part in cost.blocks) > 0
    assert cost.not_measured == {}
    assert said[-1] == ("passes", 3, 3)


def test_a_cache_that_is_not_right_is_not_timed() -> None:
    cost = shortgpt.cost(tiny("rwkv", blocks=3), tokens=8, rounds=3)
    assert cost.not_measured == {"decoding": "a RwkvForCausalLM has no cache, or one that is wrong"}
    assert (cost.context, cost.blocks[0].decoding) == (0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens is 0; it must be 1 or more"),
        ({"rounds": 0}, "rounds is 0"),
        ({"sequences": -1}, "sequences is -1"),
        ({"tokens": 513}, "its window is 512 tokens, 513 were asked for; take fewer"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        shortgpt.cost(tiny("llama", blocks=2), **options)  # type: ignore[arg-type]


# -- the value and how it looks -------------------------------------------------------------------------------


def test_what_is_left_is_the_sum_of_the_other_parts() -> None:
    cost = uneven()
    assert (cost.parameters((2,)), cost.bytes((0, 1)), cost.flops((0,))) == (350, 1400, 5500)
    assert cost.cache(10, 2) == 2 * (8 + 10 + 16 + 2 * 5 + 24 + 30)
    assert cost.cache(10, 2, (1,)) == 2 * (8 + 10 + 24 + 30)
    assert cost.prefill((1,)) == pytest.approx(0.0045)
    assert cost.decoding() == pytest.approx(0.00065)
    with pytest.raises(ShortGPTError, match="blocks 3 do not exist"):
        cost.parameters((3,))


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    file.write_text(uneven().to_json(), encoding="utf-8")
    assert kinds.read(file) == uneven()
    with pytest.raises(ShortGPTError, match="2 costs do not fit 3 blocks"):
        Cost.from_dict(replace(uneven(), blocks=uneven().blocks[:2]).to_dict())


def test_large_numbers_fit_into_60_columns() -> None:
    part = PartCost(302_000_000, 1_208_000_000, CacheSize(104_857_600, 16_384, 4096), 10**12, 0.0123, 0.00456)
    buffer = io.StringIO()
    Console(file=buffer, width=60).print(uneven(blocks=(part,) * 3))
    row = buffer.getvalue().splitlines()[3]
    assert [*row.split()[:5], *row.split()[-4:]] == ["0", "302.0M", "1.21", "GB", "16.4", "12.3", "ms", "4.56", "ms"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits(width: int) -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(uneven(not_measured={"decoding": "no reason " * 9}))
    lines = buffer.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines]
    assert rows[3][:13] == ["0", "100", "400", "B", "1", "B", "8", "B", "1.00k", "1.00", "ms", "100", "µs"]
    assert "cannot be removed: 1" in lines
    assert rows[7] == ["whole", "650", "2.60", "kB", "6", "B", "48", "B", "6.50k", "6.50", "ms", "650", "µs"]
    assert any("kept at most by block: all, 5, all" in line for line in lines)


def test_a_column_of_nothing_is_left_out() -> None:
    cost = shortgpt.cost(tiny("mamba2", blocks=2), tokens=8, timed=False)
    assert "cache a" not in str(cost)
    assert "state" in str(cost)
    assert "step" not in str(cost)


def test_a_row_a_block_in_csv_terms() -> None:
    rows = uneven().rows()
    assert [row["name"] for row in rows] == ["blocks.0", "blocks.1", "blocks.2", "outside", "whole"]
    assert rows[1] == {
        "block": 1,
        "name": "blocks.1",
        "parameters": 200,
        "bytes": 800,
        "cache_bytes_per_token": 2,
        "state_bytes": 16,
        "window": 5,
        "flops": 2000,
        "prefill_seconds": 0.002,
        "decoding_seconds": 0.0002,
    }
    assert rows[4]["prefill_seconds"] == pytest.approx(0.0065)


def test_the_picture_has_a_bar_a_block_in_percent() -> None:
    weights, *others = cost_figure(uneven()).axes
    shares = [100 * held / 2600 for held in (400, 800, 1200, 200)]
    assert [bar.get_height() for bar in weights.patches] == pytest.approx(shares)
    assert weights.get_title() == "weights: 2.60 kB in all"
    assert len(others) == 5


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (size(999), "999 B"),
        (size(1_430_592), "1.43 MB"),
        (size(99_960), "100 kB"),
        (size(3_200_000_000), "3.20 GB"),
        (operations(26_738_688), "26.7M"),
        (duration(0.0019774), "1.98 ms"),
        (duration(61.0), "61.0 s"),
        (duration(3e-8), "0.03 µs"),
    ],
)
def test_units(told: str, text: str) -> None:
    assert told == text


def test_the_command(llama_folder: Path, run_cli: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run_cli("cost", llama_folder, "--tokens", 8, "--no-time", "--json", tmp_path / "cost.json", "-q")
    assert ran.status == 0
    assert "whole" in ran.out
    written = kinds.read(tmp_path / "cost.json")
    assert isinstance(written, Cost)
    assert written.parameters() == numbers(tiny("llama"))
    assert "tokens is 0" in message_of(run_cli("cost", llama_folder, "--tokens", 0))
