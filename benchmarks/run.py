"""All benchmarks in one process group, one after another; writes their tables to docs/performance.md.

    python benchmarks/run.py [scoring] [criteria] [ablation] [budgets] [streaming] [pruning] [--folder DIR]

Without names all are run, which takes about fifty minutes on two cores, and 12 GB of the disk for a while. Each writes
its own section, so one can be run again alone. Within each the ways are taken in turn; see the files for what they are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablation
import pruning
import psutil
import scoring
import streaming

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = """# Performance

What scoring, streaming and pruning cost beside their floors and beside other ways: ratios of runs taken in turn on one
machine, medians with their spread. `make bench` measures all of it again and writes this page; under each title stands
the command for that table alone. What the ways are is told at the head of each file in
[benchmarks/](../benchmarks/README.md). Seconds are a machine's own; the ratios are what travels.
"""

Cells = Sequence[object]


@dataclass(frozen=True)
class Section:
    """A part of the page: the rows of its table are measured when it is asked for.

    Attributes:
        rows: measures them, in so many rounds.
        most: rounds at most, where each takes long.
    """

    title: str
    about: str
    columns: tuple[str, ...]
    rows: Callable[[argparse.Namespace, int], Iterator[Cells]]
    most: int = sys.maxsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--folder", help="where temporary checkpoints are made, on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that can import mergekit")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for name in options.sections or SECTIONS:
        section = SECTIONS[name]
        print(f"{name}:", flush=True)
        lines = []
        rounds = min(options.rounds, section.most)
        for row in section.rows(options, rounds):
            lines.append("| " + " | ".join(map(str, row)) + " |")
            print(f"  {lines[-1]}", flush=True)
        put(name, section, lines, rounds)


def put(name: str, section: Section, lines: Sequence[str], rounds: int) -> None:
    """Write a section into the page, in the place of the one of that title."""
    command = f"`python benchmarks/run.py {name}`, {rounds} rounds; {machine(scoring.Setting().device)}."
    header = ["| " + " | ".join(section.columns) + " |", "|" + "---|" * len(section.columns)]
    made = "\n".join([f"## {section.title}", "", command, "", section.about, "", *header, *lines, ""])
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
    parts = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    kept = {title: f"## {title}\n{body.rstrip()}\n" for title, body in parts.items()} | {section.title: made}
    order = [one.title for one in SECTIONS.values()]
    PAGE.write_text("\n".join([HEAD, *(kept[title] for title in order if title in kept)]), encoding="utf-8")


def machine(device: str) -> str:
    """What this was measured on, in words."""
    names = ("torch", "transformers", "safetensors")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    processor = found[1].strip() if found else platform.machine()
    place = f"{os.cpu_count()} cores ({processor}), {psutil.virtual_memory().total / 2**30:.0f} GiB"
    if device == "cuda":
        place = f"{scoring.torch.cuda.get_device_name()}, {place}"
    return f"{place}; Python {platform.python_version()}, {versions}"


# -- the sections -----------------------------------------------------------------------------------------------


def of_scoring(rounds: int, **chosen: Any) -> Iterator[Cells]:
    for row in scoring.measure(rounds=rounds, **chosen):
        memory = "" if row.memory is None else f"{row.memory:+.1f}"
        yield row.setting, row.what, row.over, f"**{row.ratio:.3f}**", f"{row.low:.3f} to {row.high:.3f}", memory


def without_memory(rows: Iterator[Cells]) -> Iterator[Cells]:
    return (row[:-1] for row in rows)


def of_ablation(rounds: int) -> Iterator[Cells]:
    for blocks, vocabulary, shape in ((12, 32_000, "2x512"), (32, 4_000, "1x512")):
        for row in ablation.measure(shape, rounds=rounds, blocks=blocks, vocabulary=vocabulary):
            on = f"{row.setting}; {blocks} blocks, vocabulary {vocabulary:,}"
            yield on, row.what, row.over, f"**{row.ratio:.3f}**", f"{row.low:.3f} to {row.high:.3f}"


def of_streaming(options: argparse.Namespace, rounds: int) -> Iterator[Cells]:
    for row in streaming.measure(options.folder, streaming.Sizes(repeats=rounds)):
        if row["table"] == "limit":
            limit = f"limit {row['limit_mib']:,.0f} MiB of {row['files_mib']:,.0f}"
            yield f"{row['what']}, {limit}", row["way"], row["outcome"], *[""] * 5
            continue
        if row["table"] == "held":
            held = f"**{row['held']:.2f}** × one boundary"
            yield f"memory of {row['sequences']} more sequences, float32", "stream", held, *[""] * 5
            continue
        yield (
            f"{row['table']}, {row['dtype']}",
            row["way"],
            f"**{row['ratio']:.2f}**",
            f"{row['seconds']:.1f} ({row['least']:.1f} to {row['greatest']:.1f})",
            f"{row['resident_mib']:,.0f}",
            f"{row['own_mib']:,.0f}",
            f"{row['floor_mib']:,.0f}",
            f"{row['libraries_mib']:,.0f}",
        )


def of_pruning(options: argparse.Namespace, rounds: int) -> Iterator[Cells]:
    for row in pruning.measure(options.folder, rounds=rounds, mergekit=options.mergekit):
        ratio = f"**{row['ratio']:.2f}** × {row['over']}" if row["over"] else ""
        spread = f"{row['seconds']:.2f} ({row['least']:.2f} to {row['greatest']:.2f})"
        memory = (f"{row['own_mib']:.0f}", f"{row['mapped_mib']:,.0f}") if row["over"] else ("", "")
        to_cp = f"{row['to_cp']:.2f}" if row["over"] != "cp" and row["way"] != "cp" else ""
        yield row["way"], ratio, to_cp, spread, *memory, f"{row['fixed_seconds']:.1f}" if row["over"] else ""


RATIOS = ("on", "time of", "over that of", "ratio", "quartiles")
SECTIONS = {
    "scoring": Section(
        "Scoring in memory",
        "A Llama of 71 million parameters, 12 blocks. The trunk is the pass up to the last block, the floor; "
        "the tap is what scoring does beside it. Memory is beyond the trunk's, in boundaries of the batch. Each way "
        "has a process of its own, and these take turns: scoring lets the C library keep what is freed, from which "
        "others in its process gain, as the last ratio to the trunk shows.",
        (*RATIOS, "memory"),
        lambda options, rounds: of_scoring(rounds, parts=("ways", "tap")),
    ),
    "criteria": Section(
        "Many criteria, and all runs of blocks, in one pass",
        "Of the same model. PruneMe's and short-transformers' ways keep all hidden states, and are told by what they "
        "compute.",
        RATIOS,
        lambda options, rounds: without_memory(
            of_scoring(rounds, parts=("criteria", "spans"), dtypes=("float32",), shapes=("8x512",))
        ),
    ),
    "ablation": Section(
        "Leaving out every block in turn",
        "L ablations, with what comes before a block computed once: the blocks cost (L + 1) / 2 passes "
        "through them in place of L, the head L as ever. First the same model, whose head is 30% of a pass; then one "
        "of Llama-2-7B's proportions, 32 blocks and a head that is 2% of a pass.",
        RATIOS,
        lambda options, rounds: of_ablation(rounds),
    ),
    "budgets": Section(
        "Tokens at a time",
        "The time of scoring 16,384 tokens so many at a time, over that of 2,048, the default in float32 (in half "
        "precision it is 4,096). Of more, operations free more memory than the C library keeps for the next ones, and "
        "it is mapped and zeroed again.",
        RATIOS,
        lambda options, rounds: without_memory(of_scoring(rounds, parts=("budgets",), shapes=("8x512",))),
    ),
    "streaming": Section(
        "A model larger than memory",
        "Loading included, imports left out; ratios are to the way in memory. Memory is what is resident at the peak, "
        "MiB, mapped files among it, beside the floor (embedding, two blocks, the stream of all sequences) and what "
        "libraries take. Under the limit, all private memory of the process is held below the checkpoint's size.",
        ("what", "way", "ratio", "seconds", "memory", "own", "floor", "libraries"),
        of_streaming,
        most=3,
    ),
    "pruning": Section(
        "Pruning on disk",
        "A quarter of a bfloat16 Llama's 16 blocks goes. Memory: MiB beyond the imports', the process's own and mapped "
        "from files; fixed is what the same takes on a tiny model, imports for the most part, in seconds.",
        ("way", "ratio", "× cp", "seconds", "own memory", "mapped", "fixed"),
        of_pruning,
        most=5,
    ),
}


if __name__ == "__main__":
    main()
