"""What scoring block by block costs in time and memory, beside scoring the model in memory.

    python benchmarks/streaming.py [--width 2048] [--blocks 12] [--repeats 3]

Writes a Llama of random weights into a temporary folder, some gigabytes, and removes it afterwards. Each way runs in
processes of its own, in turn:

    memory   shortgpt.load, shortgpt.score
    stream   shortgpt.load(stream=True), shortgpt.score

at two dtypes: the one of the files, of which the library maps the files into memory, and another, which it must make a
copy in. Reported are medians: the seconds of loading and scoring, the peak of anonymous memory (RssAnon), which the
machine cannot take back, and of what is resident together with mapped files. The floor is the embedding, two blocks,
and the stream of all sequences once. Both ways also run once with a limit of less than the files (RLIMIT_DATA: all
private writable memory of a process, mapped files among it). The scores must be equal.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1 << 20
OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 2048, "blocks": 12, "vocabulary": 8192, "sequences": 4, "tokens": 256, "batch": 1, "repeats": 3}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=sorted(OTHER), default="float32", help="of the files")
    chosen = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="shortgpt-streaming-") as folder:
        block = make(Path(folder), chosen)
        files = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / MIB
        size = 4 if chosen.dtype == "float32" else 2
        embedding = chosen.vocabulary * chosen.width * size / MIB
        stream = chosen.sequences * chosen.tokens * chosen.width * size / MIB
        print(f"{files:,.0f} MiB of {chosen.dtype}: {chosen.blocks} blocks of {block * size / MIB:,.0f} MiB")
        print(f"floor: embedding {embedding:,.0f} + 2 blocks {2 * block * size / MIB:,.0f} + stream {stream:,.0f} MiB")
        compare(folder, chosen.dtype, chosen)
        limited(folder, files, chosen)
        compare(folder, OTHER[chosen.dtype], chosen)


def make(folder: Path, chosen: argparse.Namespace) -> int:
    """Write the checkpoint; the parameters of a block. Block after block, so that it takes little memory itself."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=chosen.width,
        intermediate_size=chosen.width * 11 // 4,
        num_hidden_layers=chosen.blocks,
        num_attention_heads=chosen.width // 64,
        num_key_value_heads=chosen.width // 64,
        vocab_size=chosen.vocabulary,
        dtype=chosen.dtype,
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
            name: torch.randn(tensor.shape).mul_(tensor.shape[-1] ** -0.5).to(getattr(torch, chosen.dtype))
            if tensor.dim() > 1
            else torch.ones(tensor.shape, dtype=getattr(torch, chosen.dtype))
            for name, tensor in shard.items()
        }
        save_file(drawn, folder / file)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(tensor.numel() for tensor in model.model.layers[0].parameters())


def compare(folder: str, dtype: str, chosen: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {"memory": [], "stream": []}
    for _ in range(chosen.repeats):
        for way, found in runs.items():
            done = run(way, folder, dtype, chosen)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len({str(one["values"]) for found in runs.values() for one in found}) == 1, "the scores differ"
    base = statistics.median(one["seconds"] for one in runs["memory"])
    print(f"\n{dtype}, scores equal")
    for way, found in runs.items():
        seconds, anonymous, resident = (
            statistics.median(one[key] for one in found) for key in ("seconds", "anonymous", "resident")
        )
        spread = ", ".join(f"{one['seconds']:.1f}" for one in found)
        print(
            f"{way:>8}: {seconds / base:.2f} x the time ({spread} s), {anonymous:,.0f} MiB anonymous at the peak "
            f"({anonymous - found[0]['libraries']:,.0f} above the libraries' {found[0]['libraries']:,.0f}), "
            f"{resident:,.0f} MiB resident"
        )


def limited(folder: str, files: float, chosen: argparse.Namespace) -> None:
    limit = int(files * 0.6)
    print(f"\nwith RLIMIT_DATA = {limit:,} MiB, {limit / files:.0%} of the files:")
    for way in ("memory", "stream"):
        done = run(way, folder, chosen.dtype, chosen, limit)
        told = (done.stderr.strip().splitlines() or ["?"])[-1][:120]
        print(f"{way:>8}: " + ("done" if done.returncode == 0 else f"fails ({told})"))


def run(
    way: str, folder: str, dtype: str, chosen: argparse.Namespace, limit: int = 0
) -> subprocess.CompletedProcess[str]:
    sizes = [str(size) for size in (chosen.vocabulary, chosen.sequences, chosen.tokens, chosen.batch, limit)]
    command = [sys.executable, __file__, "--one", way, folder, dtype, *sizes]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def one(way: str, folder: str, dtype: str, *sizes: str) -> None:
    """One way in this process; its figures as a line of JSON."""
    vocabulary, sequences, tokens, batch, limit = (int(size) for size in sizes)
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    import shortgpt

    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit * MIB, limit * MIB))
    ids = torch.randint(0, vocabulary, (sequences, tokens), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part} for part in ids.split(batch)]
    libraries = memory()["RssAnon"]
    peaks = {"RssAnon": 0.0, "VmRSS": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for key, value in memory().items():
                peaks[key] = max(peaks[key], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        begin = time.perf_counter()
        scores = shortgpt.score(shortgpt.load(folder, device="cpu", dtype=dtype, stream=way == "stream"), batches)
        seconds = time.perf_counter() - begin
    finally:
        done.set()
        watcher.join()
    figures = {"seconds": seconds, "anonymous": peaks["RssAnon"], "resident": peaks["VmRSS"], "libraries": libraries}
    print(json.dumps(figures | {"values": scores.values}))


def memory() -> dict[str, float]:
    """This process's memory, MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("RssAnon", "VmRSS"))}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
