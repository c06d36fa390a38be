"""What reading the weights block by block costs in time and memory, beside holding the model in memory.

    python benchmarks/streaming.py [--width 2048] [--blocks 16] [--repeats 3]

Writes a Llama of random weights into a temporary folder, 3 to 4 gigabytes, and removes it afterwards. Each run is a
process of its own, the ways in turn:

    scoring       shortgpt.load and shortgpt.score, in memory and with stream=True; the scores must be equal
    verification  shortgpt.prune_checkpoint with its verification, in memory and with stream=True: the copying, the
                  original's logits, and in a process of its own the result's and 8 tokens with a cache and without;
                  both must find a difference of 0

Scoring is measured at two dtypes: the one of the files, of which the library maps the files into memory, and another,
which it must make a copy in. Seconds are those of loading and scoring, imports left out, with the page cache warm;
ratios are to the way in memory in the same round. Memory is what is resident at the peak, mapped files among it, and of
that what is the process's own and cannot be taken back (RssAnon); of verification, in the process that held most.
Libraries is what was resident behind the imports. The floor is the embedding, two blocks and the stream of all
sequences once; of verification the embedding, and two blocks or a block and the head.

Held is how often the stream of all sequences is in memory: what more sequences add to the peak of the process's own
memory, over the bytes of one boundary of those.

Both are also run once with a limit below the size of the files (RLIMIT_DATA: all private writable memory of a process,
mapped files among it).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from watching import MIB, Peak, memory

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}
WAYS = ("memory", "stream")
MORE_SEQUENCES = 124
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Of the model, and of what is scored."""

    width: int = 2048
    blocks: int = 16
    vocabulary: int = 8192
    sequences: int = 4
    tokens: int = 256
    batch: int = 1
    repeats: int = 3
    dtype: str = "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Sizes()).items():
        choices = sorted(OTHER) if name == "dtype" else None
        parser.add_argument(f"--{name}", type=type(value), default=value, choices=choices)
    parser.add_argument("--folder", help="where the temporary folder is made")
    chosen = vars(parser.parse_args())
    folder = chosen.pop("folder")
    for row in measure(folder, Sizes(**chosen)):
        if row["table"] == "held":
            print(f"held: {row['held']:.2f} times the stream of {row['sequences']} more sequences")
            continue
        if row["table"] == "limit":
            print(f"{row['what']} {row['way']}: {row['outcome']} with {row['limit_mib']:,.0f} MiB")
            continue
        seconds = f"{row['seconds']:.1f} s, {row['least']:.1f} to {row['greatest']:.1f}"
        print(
            f"{row['table']} {row['dtype']} {row['way']}: {row['ratio']:.2f} x the time in memory ({seconds}), "
            f"{row['resident_mib']:,.0f} MiB at the peak ({row['own_mib']:,.0f} of its own), of files of "
            f"{row['files_mib']:,.0f} MiB; floor {row['floor_mib']:,.0f}, libraries {row['libraries_mib']:,.0f}"
        )


def measure(folder: str | None = None, sizes: Sizes | None = None) -> list[Row]:
    """Rows of four tables ("scoring", "held", "verification", "limit"), by the key "table".

    Args:
        folder: where the temporary folder is made; it takes as much as the files, and once more.
    """
    sizes = sizes or Sizes()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shortgpt-streaming-", dir=folder) as temporary:
        model = Path(temporary) / "model"
        block = make(model, sizes)
        files = sum(file.stat().st_size for file in model.glob("*.safetensors")) / MIB
        for dtype in (sizes.dtype, OTHER[sizes.dtype]):
            size = 4 if dtype == "float32" else 2
            embedding, stream = (
                n * sizes.width * size / MIB for n in (sizes.vocabulary, sizes.sequences * sizes.tokens)
            )
            floor = embedding + 2 * block * size / MIB + stream
            rows += compare("scoring", model, dtype, sizes, files, floor)
        rows.append(held(model, sizes))
        size = 4 if sizes.dtype == "float32" else 2
        head = sizes.vocabulary * sizes.width * size / MIB
        floor = head + max(2 * block * size / MIB, block * size / MIB + head)
        rows += compare("verification", model, sizes.dtype, sizes, files, floor)
        for what in ("scoring", "verification"):
            for way in WAYS:
                limit = int(files * 0.6)
                done = run(what, way, model, sizes.dtype, sizes, limit)
                told = (done.stderr.strip().splitlines() or ["?"])[-1].replace(str(model), "MODEL")
                outcome = "done" if done.returncode == 0 else f"fails ({told})"
                rows.append(
                    {
                        "table": "limit",
                        "what": what,
                        "way": way,
                        "limit_mib": limit,
                        "files_mib": files,
                        "outcome": outcome,
                    }
                )
    return rows


def held(model: Path, sizes: Sizes) -> Row:
    """How often a streamed pass holds the stream, in float32."""
    few, many = 4, 4 + MORE_SEQUENCES
    peaks = []
    for sequences in (few, many):
        done = run("scoring", "stream", model, "float32", replace(sizes, sequences=sequences))
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout.splitlines()[-1])["own"])
    stream = MORE_SEQUENCES * sizes.tokens * sizes.width * 4 / MIB
    return {"table": "held", "held": (peaks[1] - peaks[0]) / stream, "sequences": MORE_SEQUENCES}


def make(folder: Path, sizes: Sizes) -> int:
    """Write the checkpoint; the parameters of a block. Block after block, so that it takes little memory itself."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = getattr(torch, sizes.dtype)
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.width * 11 // 4,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.width // 64,
        num_key_value_heads=sizes.width // 64,
        vocab_size=sizes.vocabulary,
        dtype=sizes.dtype,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        shards.setdefault(name.split(".")[2] if ".layers." in name else "others", {})[name] = tensor
    places = {}
    torch.manual_seed(0)
    for number, shard in enumerate(shards.values(), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        drawn = {
            name: torch.randn(tensor.shape).mul_(tensor.shape[-1] ** -0.5).to(dtype)
            if tensor.dim() > 1
            else torch.ones(tensor.shape, dtype=dtype)
            for name, tensor in shard.items()
        }
        save_file(drawn, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(tensor.numel() for tensor in model.model.layers[0].parameters())


def compare(what: str, model: Path, dtype: str, sizes: Sizes, files: float, floor: float) -> list[Row]:
    """One row a way."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(sizes.repeats):
        for way, found in runs.items():
            done = run(what, way, model, dtype, sizes)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len({str(one["result"]) for found in runs.values() for one in found}) == 1, "the results differ"
    rows = []
    for way, found in runs.items():
        seconds = [one["seconds"] for one in found]
        rows.append(
            {
                "table": what,
                "dtype": dtype,
                "way": way,
                "ratio": statistics.median(a / b["seconds"] for a, b in zip(seconds, runs["memory"], strict=True)),
                "seconds": statistics.median(seconds),
                "least": min(seconds),
                "greatest": max(seconds),
                "own_mib": max(one["own"] for one in found),
                "resident_mib": max(one["resident"] for one in found),
                "libraries_mib": found[0]["libraries"],
                "floor_mib": floor,
                "files_mib": files,
            }
        )
    return rows


def run(what: str, way: str, model: Path, dtype: str, sizes: Sizes, limit: int = 0) -> subprocess.CompletedProcess[str]:
    chosen = json.dumps(vars(sizes) | {"model": str(model), "dtype": dtype, "stream": way == "stream", "limit": limit})
    command = [sys.executable, __file__, "--one", what, chosen]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def one(what: str, chosen: dict[str, Any]) -> None:
    """One way in this process; its figures as a line of JSON."""
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    import shortgpt.verification.verify  # noqa: F401

    if chosen["limit"]:
        resource.setrlimit(resource.RLIMIT_DATA, (chosen["limit"] * MIB, chosen["limit"] * MIB))
    ids = torch.randint(
        0, chosen["vocabulary"], (chosen["sequences"], chosen["tokens"]), generator=torch.Generator().manual_seed(0)
    )
    do: Callable[[], Any] = {"scoring": lambda: scored(chosen, ids), "verification": lambda: verified(chosen)}[what]
    libraries = sum(memory().values())
    with Peak() as peak:
        begin = time.perf_counter()
        result = do()
        seconds = time.perf_counter() - begin
    figures = {"seconds": seconds, "own": peak.own, "resident": peak.resident, "libraries": libraries}
    print(json.dumps(figures | {"result": result}))


def scored(chosen: dict[str, Any], ids: Any) -> Any:
    import shortgpt

    model = shortgpt.load(chosen["model"], device="cpu", dtype=chosen["dtype"], stream=chosen["stream"])
    return shortgpt.score(model, [{"input_ids": part} for part in ids.split(chosen["batch"])]).values


def verified(chosen: dict[str, Any]) -> Any:
    import shortgpt

    gone = range(chosen["blocks"] // 2, chosen["blocks"] // 2 + chosen["blocks"] // 4)
    output = Path(chosen["model"]).with_name("shorter")
    plan = shortgpt.prune_checkpoint(chosen["model"], output, gone, device="cpu", stream=chosen["stream"])
    shutil.rmtree(output)
    found = plan.verification
    if found is None or not found.verified or found.max_difference != 0 or found.streamed != chosen["stream"]:
        raise SystemExit(f"not as it should be: {found}")
    return found.fingerprint


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
