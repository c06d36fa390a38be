r"""What scoring costs beside the model's own passes, and beside the way of the paper's own code.

    python benchmarks/scoring.py [--shape 4x2048] [--dtype bfloat16] [--device cuda] [--part ways]... [--clock cpu]

On a random Llama (by default 70 million parameters: 12 blocks of width 512, a vocabulary of 32,000), in one process,
what is compared is taken in turn, one warm-up round and then as many as --rounds says. A number is the median over
rounds of the ratio of two times of the same round, with its quartiles. The parts:

ways        trunk       model.model(...) without a cache: the floor, all that scoring needs of the model
            score       shortgpt.score on the same batch: trunk, tap and float64 sums
            forward     the model's own forward pass, with the head
            official    the paper's code: a forward pass that keeps all hidden states, for each block an N x N product
                        of the whole batch's tokens in the model's dtype, of which the diagonal is read
            cosine      the same with `cosine_similarity` in float32 in place of the N x N product
            Memory is what a way takes at its peak beyond what was there before, less what the trunk takes, in
            boundaries: the residual stream of the whole batch, once. On the CPU each way is measured in a process of
            its own, in which freed memory goes back at once.
            Scoring tells the C library to keep what is freed, which would serve the other ways too. So on the CPU each
            way runs in a process of its own, and these take turns; two more are told by their names: scoring that does
            not tell the library, and the trunk in the process that scores.
tap         what scoring does beside the trunk, measured inside of one pass: the time within the tap over the time
            outside of it. This varies far less than the ratio of two passes.
criteria    all installed criteria that look at the stream, over the first of them alone
spans       Block Influence between all pairs of boundaries, over Block Influence of the blocks; and over the ways in
            which others find the best run: all hidden states kept, then
            PruneMe             for every pair the angle at the last token only, in the model's dtype
            short-transformers  for every pair the cosine of all tokens, in float32
budgets     scoring by the tokens taken at a time, over that of the default in float32; the speed is the inverse

The shape of Llama-3-8B, for a GPU:

    python benchmarks/scoring.py --device cuda --dtype bfloat16 --part ways --part tap --width 4096 --blocks 32 \
        --vocabulary 128256 --intermediate 14336 --heads 32 --kv-heads 8

On a busy machine --clock cpu counts the processor's time in place of the wall's; take OMP_NUM_THREADS=1 with it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import shortgpt
import shortgpt.measuring.batch_parts
from shortgpt import plugins
from shortgpt.basics.targets import load_target
from shortgpt.measuring.calibration import TOKENS_PER_BATCH
from shortgpt.measuring.scoring import boundary_sums as batch_tap
from shortgpt.measuring.scoring import score as engine

DTYPES = ("float32", "bfloat16")
SHAPES = ("8x512", "4x2048")
PARTS = ("ways", "tap", "criteria", "spans")
HANDED_BACK = "score, freed memory handed back"
SAME_PROCESS = "trunk, in the same process"
BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Setting:
    """What is measured on."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: str = "float32"
    shape: str = "8x512"
    width: int = 512
    blocks: int = 12
    vocabulary: int = 32_000
    intermediate: int = 0  # of the MLP; 0 for what goes with the width, as of the two below
    heads: int = 0
    kv_heads: int = 0
    rounds: int = 7
    clock: str = "wall"

    @property
    def batch(self) -> int:
        return int(self.shape.split("x")[0])

    @property
    def tokens(self) -> int:
        return int(self.shape.split("x")[1])

    def __str__(self) -> str:
        return f"{self.device} {self.dtype}, {self.batch} x {self.tokens} tokens"


@dataclass(frozen=True)
class Row:
    """The time of one thing over that of another: the median over rounds, and the quartiles.

    Attributes:
        memory: what `what` takes beyond the trunk at its peak, in boundaries of the batch; None where not measured.
    """

    setting: str
    what: str
    over: str
    ratio: float
    low: float
    high: float
    memory: float | None = None

    def __str__(self) -> str:
        memory = "" if self.memory is None else f", {self.memory:+.1f} boundaries of memory"
        return (
            f"{self.setting}: {self.what} over {self.over} {self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}){memory}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting()
    for name in ("width", "blocks", "vocabulary", "intermediate", "heads", "kv_heads", "rounds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--clock", choices=CLOCKS, default=default.clock)
    parser.add_argument("--dtype", action="append", choices=(*DTYPES, "float16"), help=f"default: {', '.join(DTYPES)}")
    parser.add_argument("--shape", action="append", help=f"sequences x tokens; default: {', '.join(SHAPES)}")
    parser.add_argument("--part", action="append", choices=(*PARTS, "budgets"), help=f"default: {', '.join(PARTS)}")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # in a process of its own, as the next
    parser.add_argument("--turns-of", help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    if given["device"].startswith("cuda"):
        if given["clock"] == "cpu":
            parser.error("--clock cpu is for --device cpu; on a GPU the work is not the processor's")
        torch.cuda.set_device(torch.device(given["device"]).index or 0)
    dtypes, shapes, parts = (given.pop(name) for name in ("dtype", "shape", "part"))
    peak_of, turns_of = given.pop("peak_of"), given.pop("turns_of")
    if peak_of or turns_of:
        setting = Setting(**given, dtype=dtypes[0], shape=shapes[0])
        made = ways(llama(setting), setting)
        return print(peak_on_cpu(made[peak_of])) if peak_of else take_turns(made, turns_of, setting)
    for row in measure(dtypes or DTYPES, shapes or SHAPES, parts or PARTS, **given):
        print(row, flush=True)


def measure(
    dtypes: Sequence[str] = DTYPES, shapes: Sequence[str] = SHAPES, parts: Sequence[str] = PARTS, **options: Any
) -> Iterator[Row]:
    """Rows as they are measured; the options are those of `Setting`."""
    measures = {"ways": of_ways, "tap": of_tap, "criteria": of_criteria, "spans": of_spans, "budgets": of_budgets}
    for dtype in dtypes:
        for shape in shapes:
            setting = Setting(dtype=dtype, shape=shape, **options)
            model = llama(setting)
            for part in parts:
                yield from measures[part](model, setting)


def llama(setting: Setting) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = setting.heads or setting.width // 64
    config = LlamaConfig(
        hidden_size=setting.width,
        intermediate_size=setting.intermediate or setting.width * 8 // 3 // 16 * 16,
        num_hidden_layers=setting.blocks,
        num_attention_heads=heads,
        num_key_value_heads=setting.kv_heads or heads,
        vocab_size=setting.vocabulary,
        max_position_embeddings=1 << 15,
    )
    with torch.device(setting.device):  # a model of billions would take minutes to be drawn on the CPU
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, setting.dtype)).eval()


# -- the parts ------------------------------------------------------------------------------------------------


def of_ways(model: LlamaForCausalLM, setting: Setting) -> Iterator[Row]:
    made = ways(model, setting)
    on_cpu = setting.device == "cpu"
    times = rounds_apart([*made, HANDED_BACK], setting) if on_cpu else rounds(made, setting)
    boundary = setting.batch * setting.tokens * setting.width * getattr(torch, setting.dtype).itemsize
    peaks = {name: peak(name, way, setting) for name, way in made.items()}
    for name in made:
        if name != "trunk":
            yield row(setting, times, name, "trunk", memory=(peaks[name] - peaks["trunk"]) / boundary)
    for name in times:
        if name not in ("trunk", "score"):
            yield row(setting, times, "score", name)
    if on_cpu:
        together = rounds({SAME_PROCESS: made["trunk"], "score": made["score"]}, setting)
        yield row(setting, together, "score", SAME_PROCESS)


def of_tap(model: LlamaForCausalLM, setting: Setting) -> Iterator[Row]:
    sequence = shortgpt.wrap(model)
    data = [{"input_ids": ids_of(setting)}]
    times: dict[str, list[float]] = {"tap": [], "trunk": []}
    for _ in range(setting.rounds + 1):
        with timed_tap(setting) as spent:
            (total,) = rounds({"score": lambda: shortgpt.score(sequence, data)}, setting, warm=False)["score"]
        times["tap"].append(spent())
        times["trunk"].append(total - times["tap"][-1])
    yield row(setting, {name: taken[1:] for name, taken in times.items()}, "tap", "trunk")


def of_criteria(model: LlamaForCausalLM, setting: Setting) -> Iterator[Row]:
    sequence = shortgpt.wrap(model)
    data = [{"input_ids": ids_of(setting)}]
    looking = [
        entry.name for entry in plugins.registry().criteria if issubclass(load_target(entry.target), shortgpt.Criterion)
    ]
    one, every = f"{looking[0]} alone", f"{len(looking)} criteria"
    made: Ways = {
        one: lambda: shortgpt.score(sequence, data, criteria=looking[:1]),
        every: lambda: shortgpt.score(sequence, data, criteria=looking),
    }
    yield row(setting, rounds(made, setting), every, one)


def of_spans(model: LlamaForCausalLM, setting: Setting) -> Iterator[Row]:
    sequence = shortgpt.wrap(model)
    data = [{"input_ids": ids_of(setting)}]
    made: Ways = {
        "scores": lambda: shortgpt.score(sequence, data),
        "scores with spans": lambda: shortgpt.score(sequence, data, spans=True),
    }
    made |= ways_to_pairs(model, setting)
    times = rounds(made, setting)
    for other in made:
        if other != "scores with spans":
            yield row(setting, times, "scores with spans", other)


def of_budgets(model: LlamaForCausalLM, setting: Setting) -> Iterator[Row]:
    sequence = shortgpt.wrap(model)
    ids = torch.randint(0, setting.vocabulary, (max(BUDGETS) // setting.tokens, setting.tokens))
    kept = engine.CPU_TOKENS
    default = kept if setting.device == "cpu" else TOKENS_PER_BATCH
    made: Ways = {}
    for budget in BUDGETS:
        batches = [{"input_ids": part} for part in ids.split(max(1, budget // setting.tokens))]
        made[f"{budget} tokens at a time"] = functools.partial(shortgpt.score, sequence, batches)
    try:
        engine.CPU_TOKENS = max(BUDGETS)
        times = rounds(made, setting)
    finally:
        engine.CPU_TOKENS = kept
    for name in made:
        yield row(setting, times, name, f"{default} tokens at a time")


# -- what they share ------------------------------------------------------------------------------------------


def ids_of(setting: Setting) -> torch.Tensor:
    return torch.randint(
        0, setting.vocabulary, (setting.batch, setting.tokens), generator=torch.Generator().manual_seed(0)
    )


def ways(model: LlamaForCausalLM, setting: Setting) -> Ways:
    ids = ids_of(setting)
    placed = ids.to(setting.device)
    sequence = shortgpt.wrap(model)

    @torch.inference_mode()
    def states() -> tuple[torch.Tensor, ...]:
        return model(placed, output_hidden_states=True).hidden_states

    @torch.inference_mode()
    def official() -> None:
        hidden = states()
        for before, after in zip(hidden, hidden[1:], strict=False):  # noqa: RUF007
            x, y = before.flatten(0, 1), after.flatten(0, 1)
            cosines = (x @ y.T) / (x.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True))
            (1 - cosines.diagonal().nan_to_num(nan=0.5)).sum().item()

    @torch.inference_mode()
    def cosine() -> None:
        hidden = states()
        for before, after in zip(hidden, hidden[1:], strict=False):  # noqa: RUF007
            (1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum().item()

    return {
        "trunk": torch.no_grad()(lambda: model.model(placed, use_cache=False)),
        "score": lambda: shortgpt.score(sequence, [{"input_ids": ids}]),
        "forward": torch.no_grad()(lambda: model(placed, use_cache=False)),
        "official": official,
        "cosine": cosine,
    }


def ways_to_pairs(model: LlamaForCausalLM, setting: Setting) -> Ways:
    placed = ids_of(setting).to(setting.device)

    @torch.inference_mode()
    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return itertools.combinations(model(placed, output_hidden_states=True).hidden_states, 2)

    @torch.inference_mode()
    def pruneme() -> None:
        for before, after in pairs():
            cosine = torch.cosine_similarity(before[:, -1], after[:, -1], dim=-1)
            (torch.acos(cosine.clamp(-1, 1)) / torch.pi).mean().item()

    @torch.inference_mode()
    def short_transformers() -> None:
        for before, after in pairs():
            (1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).mean().item()

    return {"PruneMe's way": pruneme, "short-transformers' way": short_transformers}


def rounds(made: Ways, setting: Setting, *, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each way in each round; before them comes one that is not counted."""
    clock = CLOCKS[setting.clock]
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(setting.rounds + 1 if warm else 1):
        for name, way in made.items():
            begin = clock()
            way()
            if setting.device != "cpu":
                torch.cuda.synchronize()
            times[name].append(clock() - begin)
    return {name: taken[1:] for name, taken in times.items()} if warm else times


def rounds_apart(names: Sequence[str], setting: Setting) -> dict[str, list[float]]:
    """The same, each way in a process of its own: they take turns."""
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {}
        for name in names:
            command = command_on(setting, "--clock", setting.clock, "--turns-of", name)
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers[name] = stack.enter_context(worker)
        for _ in range(setting.rounds + 1):
            for name, worker in workers.items():
                print(file=worker.stdin, flush=True)
                times[name].append(float(worker.stdout.readline()))
    return {name: taken[1:] for name, taken in times.items()}


def take_turns(made: Ways, name: str, setting: Setting) -> None:
    """A way, whenever a line comes; its seconds are printed."""
    if name == HANDED_BACK:
        shortgpt.measuring.batch_parts.keep_freed_memory = lambda: None
    way = made["score" if name == HANDED_BACK else name]
    for _ in sys.stdin:
        print(*rounds({name: way}, setting, warm=False)[name], flush=True)


def command_on(setting: Setting, *more: str) -> list[str]:
    """What runs this file on the same setting of the CPU."""
    names = ("dtype", "shape", "width", "blocks", "vocabulary", "intermediate", "heads", "kv_heads")
    flags = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(setting, name)))]
    return [sys.executable, __file__, "--device", "cpu", *flags, *more]


def row(setting: Setting, times: dict[str, list[float]], what: str, over: str, memory: float | None = None) -> Row:
    ratios = [a / b for a, b in zip(times[what], times[over], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(str(setting), what, over, middle, low, high, memory)


@contextmanager
def timed_tap(setting: Setting) -> Iterator[Callable[[], float]]:
    """Inside, the seconds that passes spend at their boundaries are counted; what it gives tells them afterwards."""
    clock = CLOCKS[setting.clock]
    spans: list[tuple[Any, Any]] = []

    def now() -> Any:
        if setting.device == "cpu":
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*arguments: Any) -> Any:
            begin = now()
            found = method(*arguments)
            spans.append((begin, now()))
            return found

        return run

    def spent() -> float:
        if setting.device == "cpu":
            return sum(end - begin for begin, end in spans)
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000

    methods = {name: getattr(batch_tap.BatchTap, name) for name in ("tap", "result")}
    for name, method in methods.items():
        setattr(batch_tap.BatchTap, name, timed(method))
    try:
        yield spent
    finally:
        for name, method in methods.items():
            setattr(batch_tap.BatchTap, name, method)


def peak(name: str, way: Callable[[], object], setting: Setting) -> int:
    """Bytes that a way takes at its peak beyond what was taken before."""
    if setting.device == "cpu":
        small = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        command = command_on(setting, "--peak-of", name)
        return int(subprocess.run(command, env=small, capture_output=True, text=True, check=True).stdout)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(way: Callable[[], object]) -> int:
    way()
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    way()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
