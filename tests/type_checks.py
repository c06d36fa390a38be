"""What works for a model type of transformers, tried on tiny models: the score, and removals of some sets of blocks.

    python -m tests.type_checks docs/architectures.md       all types, two at a time, and the table of what was found

Each removal is made in memory, compared with skipping, saved, opened again by the type's own loader, and its logits and
its cached generation compared; one of them is made on disk as well. Scores are compared with sums over the stream that
plain hooks see, in float64.
"""

from __future__ import annotations

import inspect
import math
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import shortgpt
from shortgpt.basics.inputs import OpenOptions
from shortgpt.basics.targets import load_target
from shortgpt.errors import SelectionError, VerificationError
from shortgpt.models.probing.expected_logits import expected_logits
from shortgpt.models.probing.logit_comparison import compare_logits
from shortgpt.models.recognition import recognise, resolve
from shortgpt.models.sequence import BlockSequence
from shortgpt.verification.fresh_process import Answer
from shortgpt.verification.judgement import judge
from shortgpt.verification.removal_on_disk import prune_checkpoint
from tests.tiny_types import MODEL_TYPES, tiny_batch, tiny_model, upstream_mended
from tests.type_compensation import try_compensation

DEPTHS, SEEDS = (6, 9), (0, 1)
REMOVALS: Mapping[str, Callable[[int], tuple[int, ...]]] = {
    "{2, 3}": lambda depth: (2, 3),
    "{0}": lambda depth: (0,),
    "{last}": lambda depth: (depth - 1,),
    "{1, 4}": lambda depth: (1, 4),
}
TOLERANCE = 1e-5


@dataclass
class Removal:
    """What came of one removal: verified, refused with a reason, wrong, or crashed in a stage."""

    verdict: str
    detail: str = ""
    excused: str = ""


@dataclass
class Findings:
    """What was found for one type."""

    model_type: str
    adapter: str = ""
    blocks: str = ""
    influence_error: float = float("inf")
    removals: dict[tuple[str, int, int], Removal] = field(default_factory=dict)
    compensation: str = ""
    failure: str = ""
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What must not be: scores that are wrong, removals that are wrong or crash."""
        found = [self.failure] if self.failure else []
        if not self.influence_error <= TOLERANCE:
            found.append(f"score: Block Influence is off by {self.influence_error:.2g}")
        bad = {key: removal for key, removal in self.removals.items() if removal.verdict in ("wrong", "crashed")}
        told = (
            f"{name} of {depth} blocks, seed {seed}: {r.verdict} {r.detail}" for (name, depth, seed), r in bad.items()
        )
        return [*found, *told]

    def verified(self, name: str | None = None) -> bool:
        """Whether some removal, or the one of that name, was verified at every depth and seed, generation included."""
        names = REMOVALS if name is None else (name,)
        return any(
            all(r.verdict == "verified" and not r.excused for key, r in self.removals.items() if key[0] == one)
            for one in names
        )


def check_type(
    model_type: str, depths: Iterable[int] = DEPTHS, seeds: Iterable[int] = SEEDS, compensated: bool = True
) -> Findings:
    """Try one type. Whatever fails is told with its stage, never raised.

    Args:
        compensated: try as well, once, to make up for a removal.
    """
    torch.set_num_threads(1)
    found, begun, stage = Findings(model_type), time.monotonic(), "build"
    try:
        with upstream_mended(), tempfile.TemporaryDirectory() as folder:
            worst = 0.0
            for depth in depths:
                for seed in seeds:
                    stage = f"build ({depth} blocks, seed {seed})"
                    model = tiny_model(model_type, depth, seed)
                    batch = scoring_batch(model_type, model, seed)
                    stage = f"wrap ({depth} blocks, seed {seed})"
                    blocks = shortgpt.wrap(model)
                    found.adapter = blocks.architecture
                    found.blocks = blocks.block_names[0].rpartition(".")[0]
                    stage = f"score ({depth} blocks, seed {seed})"
                    worst = max(worst, influence_error(model_type, model, blocks, batch))
                    for name, choose in REMOVALS.items():
                        place = Path(folder) / f"{depth}-{seed}-{len(found.removals)}"
                        on_disk = name == "{2, 3}" and seed == 0
                        found.removals[name, depth, seed] = try_removal(blocks, batch, choose(depth), place, on_disk)
                    if compensated and not found.compensation:
                        stage = f"compensate ({depth} blocks, seed {seed})"
                        removals = [choose(depth) for choose in REMOVALS.values()]
                        found.compensation = try_compensation(blocks, batch, removals, Path(folder), verified)
            found.influence_error = worst
    except Exception as error:  # the whole point is to name the type and the stage
        found.failure = f"{model_type}: {stage}: {type(error).__name__}: {error}"
    found.seconds = time.monotonic() - begun
    return found


def try_removal(
    original: BlockSequence, batch: dict[str, Any], gone: tuple[int, ...], place: Path, on_disk: bool
) -> Removal:
    """Remove these blocks on every road, and compare."""
    stage = "in memory"
    try:
        shorter = shortgpt.remove(original, gone)
        stage = "skipping"
        with original.skipping(gone):
            expected = original.logits(batch)
        found = compare_logits(shorter.logits(batch), expected, max(TOLERANCE, getattr(shorter, "family").tolerance))  # noqa: B009
        assert found.equal, f"logits {found.told('those with these blocks skipped')}"
        stage = "saving"
        shorter.save(place)
        stage = "opening what was saved"
        outcome = verified(original, place, gone)
        if on_disk:
            stage = "on disk"
            whole, pruned = place.with_name(f"{place.name}-whole"), place.with_name(f"{place.name}-pruned")
            original.save(whole)
            prune_checkpoint(whole, pruned, gone, verify=False)
            stage = "opening what was pruned on disk"
            verified(original, pruned, gone)
    except SelectionError as error:
        return Removal("refused", str(error))
    except (VerificationError, AssertionError) as error:
        return Removal("wrong", f"{stage}: {error}")
    except Exception as error:  # told, with its stage
        return Removal("crashed", f"{stage}: {type(error).__name__}: {error}")
    return Removal("verified", excused=outcome.not_generated or "")


def verified(original: BlockSequence, place: Path, gone: tuple[int, ...]) -> Any:
    """What `shortgpt.verification.verify` says, without a process of its own."""
    family = recognise(resolve(place))
    expected = expected_logits(original, gone)
    reloaded = load_target(family.loader)(place, device="cpu", dtype="auto")
    answer = Answer.by(reloaded, expected.probe)
    return judge(answer, expected, family, OpenOptions(), folded=True)


# -- Block Influence by plain hooks ---------------------------------------------------------------------------

LISTS = {
    "model.decoder.layers": """bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody
        mvp opt pegasus plbart trocr whisper""",
    "transformer.h": "bloom codegen ctrl falcon gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj openai-gpt",
    "model.language_model.layers": """fuyu gemma3 gemma3n gemma4 gemma4_unified got_ocr2
        moss_transcribe_diarize""",
    "roberta.encoder.layer": "camembert roberta xlm-roberta xlm-roberta-xl xmod",
    "bert.encoder.layer": "bert bert-generation big_bird megatron-bert",
    "backbone.layers": "falcon_mamba mamba mamba2",
    "transformer.blocks": "dbrx mpt",
    "biogpt.layers": "biogpt",
    "model.global_transformer.layers": "blt",
    "cpmant.encoder.layers": "cpmant",
    "data2vec_text.encoder.layer": "data2vec-text",
    "electra.encoder.layer": "electra",
    "ernie.encoder.layer": "ernie",
    "git.encoder.layer": "git",
    "gpt_neox.layers": "gpt_neox",
    "gpt_neox_japanese.layers": "gpt_neox_japanese",
    "prophetnet.decoder.layers": "prophetnet",
    "reformer.encoder.layers": "reformer",
    "rembert.encoder.layer": "rembert",
    "roberta_prelayernorm.encoder.layer": "roberta-prelayernorm",
    "roc_bert.encoder.layer": "roc_bert",
    "roformer.encoder.layer": "roformer",
    "rwkv.blocks": "rwkv",
    "transformer.layer": "xlnet",
    "backbone.blocks": "xlstm",
}
"""Where the blocks are, as a reader of each type's code finds them; all others: model.layers."""
LIST_OF = {model_type: path for path, types in LISTS.items() for model_type in types.split()}


def influence_error(model_type: str, model: nn.Module, blocks: BlockSequence, batch: dict[str, Any]) -> float:
    """The largest relative difference between the scores and sums over what plain hooks see."""
    scores = shortgpt.score(blocks, [batch])
    with torch.no_grad():
        stream = STREAMS.get(model_type, plain_stream)(model_type, model, batch)
    assert len(stream) == len(blocks) + 1
    expected = [
        1 - nn.functional.cosine_similarity(x.double(), y.double(), dim=-1).mean().item() for x, y in pairwise(stream)
    ]
    return max(abs(a - b) / abs(b) for a, b in zip(scores.values, expected, strict=True))


def plain_stream(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """The first tensor that each block is given, and the first that the last one gives back."""
    return hooked(model, list(model.get_submodule(LIST_OF.get(model_type, "model.layers")).children()), batch)


def hooked(model: nn.Module, blocks: list[nn.Module], batch: dict[str, Any]) -> list[Tensor]:
    seen: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).clone())

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(blocks[-1].register_forward_hook(after).remove)
        run(model, batch)
    return seen


def run(model: nn.Module, batch: dict[str, Any]) -> None:
    """A forward without a cache."""
    taken = inspect.signature(model.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    given = {name: value for name, value in batch.items() if name in taken or open_ended}
    if "inputs_embeds" in given:
        given.pop("input_ids", None)
    model(**given | ({"use_cache": False} if "use_cache" in taken else {}))


def side_by_side(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """[batch, tokens, stream, width] → all streams of a token as one vector."""
    return [hidden.flatten(2) for hidden in plain_stream(model_type, model, batch)]


def streams_first(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """[stream, batch, tokens, width] → all streams of a token as one vector."""
    return [torch.cat(list(hidden), -1) for hidden in plain_stream(model_type, model, batch)]


def reversible(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """Both streams of a reversible pair side by side."""
    seen: list[Tensor] = []
    blocks = list(model.get_submodule(LIST_OF[model_type]).children())

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(torch.cat((kwargs["prev_attn_output"], kwargs["hidden_states"]), -1))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(torch.cat((output.attn_output, output.hidden_states), -1))

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(blocks[-1].register_forward_hook(after).remove)
        run(model, batch)
    return seen


def of_the_text(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """What stands in front of the text left out."""
    tokens = batch["input_ids"].shape[1]
    return [hidden[:, -tokens:] for hidden in plain_stream(model_type, model, batch)]


def ahead(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """A token's main vector and those of the tokens ahead as one."""
    tokens = batch["input_ids"].shape[1]
    return [torch.cat(hidden.split(tokens, 1), -1) for hidden in plain_stream(model_type, model, batch)]


def behind_the_first_norm(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """The first block normalises the embedding before anything else."""
    first, *others = plain_stream(model_type, model, batch)
    return [model.get_submodule(f"{LIST_OF[model_type]}.0.pre_ln")(first), *others]


def of_bytes(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """Each byte has the vector of its patch."""
    patches: list[Tensor] = []
    encoder = model.get_submodule("model.local_encoder")
    with encoder.register_forward_pre_hook(lambda m, a, kw: patches.append(kw["patch_ids"]), with_kwargs=True):
        stream = plain_stream(model_type, model, batch)
    return [torch.stack([row[ids] for row, ids in zip(hidden, patches[0], strict=True)]) for hidden in stream]


def four_lists(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """What each attention is given, and what the stack returns."""
    seen: list[Tensor] = []
    stack = model.get_submodule("transformer")
    with ExitStack() as hooks:
        for attention in stack.get_submodule("attentions").children():
            hooks.callback(attention.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone())).remove)
        hooks.callback(stack.register_forward_hook(lambda m, a, out: seen.append(out[0].clone())).remove)
        run(model, {"attention_mask": torch.ones_like(batch["input_ids"]), **batch})
    return seen


def finished_streams(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """The streams that groups of two blocks have finished, and the current one; zeros for those to come."""
    plain = plain_stream(model_type, model, batch)
    total = 1 + math.ceil((len(plain) - 1) / 2)
    stream = []
    for boundary, hidden in enumerate(plain):
        # Before block `boundary` runs, the blocks 0, 2, ... below it have each put their input away.
        streams = [*(plain[first] for first in range(0, boundary, 2)), hidden]
        stream.append(torch.cat([*streams, *[torch.zeros_like(hidden)] * (total - len(streams))], -1))
    return stream


def all_passes(model_type: str, model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """What stands before block i of both stacks in every pass, side by side."""
    depth = len(model.get_submodule("model.L_module.layers"))  # type: ignore[arg-type]
    passes: list[list[Tensor]] = [[] for _ in range(depth + 1)]
    with ExitStack() as hooks:
        for name in ("L_module", "H_module"):
            blocks = list(model.get_submodule(f"model.{name}.layers").children())
            for i, block in enumerate(blocks):
                hooks.callback(
                    block.register_forward_pre_hook(lambda m, a, i=i: passes[i].append(a[0].clone())).remove  # type: ignore[misc]
                )
            hooks.callback(blocks[-1].register_forward_hook(lambda m, a, out: passes[-1].append(out.clone())).remove)
        run(model, batch)
    return [torch.cat(hidden, -1) for hidden in passes]


STREAMS: dict[str, Callable[[str, nn.Module, dict[str, Any]], list[Tensor]]] = {
    **dict.fromkeys(("deepseek_v4", "hy_v4"), side_by_side),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), streams_first),
    **dict.fromkeys(("cpmant", "musicgen_melody"), of_the_text),
    "blt": of_bytes,
    "hrm_text": all_passes,
    "inkling2_text": finished_streams,
    "prophetnet": ahead,
    "reformer": reversible,
    "rwkv": behind_the_first_norm,
    "xlm": four_lists,
}
"""The types whose stream is laid out otherwise, each by its documented definition."""


def scoring_batch(model_type: str, model: nn.Module, seed: int) -> dict[str, Any]:
    """A batch as a user scores it: token ids, and what else the type cannot do without."""
    batch = tiny_batch(model_type, model, seed)
    if "input_ids" not in batch:
        batch["input_ids"] = torch.zeros(next(iter(batch.values())).shape[:2], dtype=torch.long)
    return batch


# -- all of them, and the table -------------------------------------------------------------------------------


INTRODUCTION = """# Architectures

What works for each of the {types} causal language models of transformers {version}, as tried by `make types` on tiny
models of random weights: 6 and 9 blocks, two seeds, four sets of blocks removed.

- *Scored*: Block Influence equals sums in float64 over what plain hooks see, to 1e-5.
- *Verified*: the shorter model equals skipping, loads again with the type's own loader without a missing or left over
  tensor, gives the same logits then, and generates with its cache what it generates without.
- *Refused*: nothing is written, and the reason is told.
- *Compensated by*: what `--compensate` changes in the block in front of a removed run: a linear *map* of what that
  block's last projection adds to the stream, or where no map passes through to the stream the *rows* of it or the
  *gain* of the norm behind it; proven as above, with a random map.

{scored} types are scored. {whole} have a removal that is verified at both depths and seeds, {middle} that of the
blocks 2 and 3. For {excused} others the library's own cached generation is broken or does not exist, with all blocks as
well; all else is verified for them.

An encoder-decoder's row is its decoder. Where a type carries several streams, or one in another layout, Block Influence
is one cosine a token over all that the token carries; the adapter's file says what that is. Any other model of
transformers takes the same road: `shortgpt inspect MODEL` shows what was found in it. A torch model that is not of
transformers can be scored and shortened in memory.
"""


def row(found: Findings) -> str:
    """One type as a row of the table."""
    scored = "yes" if found.influence_error <= TOLERANCE else "no"
    cells = [found.model_type, found.adapter, f"`{found.blocks}`", scored]
    cells += [cell(found, name) for name in REMOVALS]
    reasons = {plain(r.detail) for r in found.removals.values() if r.verdict == "refused"}
    excuses = {plain(r.excused) for r in found.removals.values() if r.excused}
    cells += [plain(found.compensation) or "-"]
    return "| " + " | ".join([*cells, "; ".join(sorted(reasons)), "; ".join(sorted(excuses))]) + " |"


def cell(found: Findings, name: str) -> str:
    """What came of one removal at each depth."""
    at: dict[int, set[str]] = {}
    for (one, depth, _), removal in found.removals.items():
        if one == name:
            at.setdefault(depth, set()).add(removal.verdict)
    told = {depth: " or ".join(sorted(verdicts)) for depth, verdicts in at.items()}
    if len(set(told.values())) <= 1:
        return next(iter(told.values()), "-")
    return ", ".join(f"{verdict} of {depth}" for depth, verdict in told.items())


def plain(reason: str) -> str:
    """A reason for a table: without numbers that depend on the depth, and in one line."""
    short = re.sub(r"; an adapter of its own could say how.*", "", reason.split("\n")[0])
    return re.sub(r"\s+", " ", short).replace("|", "/")


def all_types(types: Iterable[str] = MODEL_TYPES) -> Iterator[Findings]:
    """Each type in turn, two at a time."""
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=4) as pool:
        yield from pool.imap(check_type, types)


def table(findings: list[Findings]) -> str:
    """The page docs/architectures.md."""
    whole = sum(found.verified() for found in findings)
    middle = sum(found.verified("{2, 3}") for found in findings)
    scored = sum(found.influence_error <= TOLERANCE for found in findings)
    excused = sum(any(r.excused for r in found.removals.values()) for found in findings)
    head = [
        "type",
        "adapter",
        "blocks",
        "scored",
        *REMOVALS,
        "compensated by",
        "refused because",
        "generation not compared because",
    ]
    numbers = {"types": len(findings), "scored": scored, "whole": whole, "middle": middle, "excused": excused}
    lines = [
        INTRODUCTION.format(version=transformers.__version__, **numbers),
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *(row(found) for found in findings),
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Try all types, or those named after the file; write the table; say what is wrong."""
    findings, begun = [], time.monotonic()
    for found in all_types(arguments[1:] or MODEL_TYPES):
        findings.append(found)
        verdicts = " ".join(f"{name} {cell(found, name)}" for name in REMOVALS)
        print(f"{found.model_type}: {verdicts} ({found.seconds:.1f} s)", flush=True)
        for fault in found.faults:
            print(f"    WRONG: {fault[:400]}", flush=True)
    wrong = [fault for found in findings for fault in found.faults]
    print(f"{len(findings)} types, {len(wrong)} faults, {time.monotonic() - begun:.0f} s")
    if not arguments[1:]:
        page = Path(arguments[0])
        _, heading, behind = page.read_text(encoding="utf-8").partition("\n## ")  # the table of published configs
        page.write_text(table(findings) + heading + behind, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
