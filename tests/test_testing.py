"""The contract suite: it passes a right adapter, and finds each thing that can be wrong with one, by name and place."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.families.llama import Llama
from shortgpt_adapters.transformers.family import TransformersBlocks
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from torch import Tensor

import shortgpt
from shortgpt import BlockSequence, testing
from shortgpt.errors import AdapterError
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt.testing import CHECKS, boundaries, check_adapter
from tests.support import ids_of, tiny

BLOCKS = 4


def reference(model: Any, batch: TokenBatch) -> list[Tensor]:
    """The stream by Hugging Face's own `hidden_states`, and the last block's output by a hook."""
    last: list[Tensor] = []
    hook = model.model.model.layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
    with torch.no_grad():
        states = model.model(**batch, output_hidden_states=True, use_cache=False).hidden_states
    hook.remove()
    return [*states[:-1], last[0]]


def maker(sequence: type[TransformersBlocks]) -> Callable[[], BlockSequence]:
    """Gives fresh models of the same weights behind that adapter."""

    class Family(Llama):
        pass

    Family.sequence = sequence
    return lambda: Family().wrap(tiny("llama", blocks=BLOCKS), name="mine")


def broken(sequence: type[TransformersBlocks], folder: Path, *, independent: bool = True) -> str:
    """The message about a broken adapter."""
    with pytest.raises(AdapterError) as caught:
        check_adapter(maker(sequence), folder, reference=reference if independent else None)
    message = str(caught.value)
    assert message.startswith("llama: the contract is broken: ")
    return message.removeprefix("llama: the contract is broken: ")


# -- a right one ----------------------------------------------------------------------------------------------


def test_a_right_adapter_keeps_every_check(tmp_path: Path) -> None:
    held = check_adapter(lambda: shortgpt.wrap(tiny("llama", blocks=BLOCKS)), tmp_path, reference=reference)
    assert held == tuple(check.__name__.strip("_").replace("_", " ") for check in CHECKS)
    assert {"removal equals skipping", "reload equals memory", "nothing is left behind"} <= set(held)


def test_the_boundaries_are_copies_of_the_true_stream() -> None:
    model, batch = shortgpt.wrap(tiny("llama", blocks=BLOCKS)), {"input_ids": ids_of()}
    found, expected = boundaries(model, batch), reference(model, batch)
    assert len(found) == BLOCKS + 1
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


# -- the stream -----------------------------------------------------------------------------------------------


class LastBoundaryMissing(TransformersBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        super().trace(batch, lambda i, hidden: tap(i, hidden) if i < len(self) else None)


class FirstBoundaryTwice(TransformersBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        super().trace(batch, lambda i, hidden: [tap(0, hidden), tap(0, hidden)][0] if i == 0 else tap(i, hidden))


class Flattened(TransformersBlocks):
    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1)


class ResidualTwice(TransformersBlocks):
    """Boundary i holds x_i and once more what came in with x_{i-1}."""

    before: Tensor

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        seen = hidden if boundary == 0 else hidden + self.before
        self.before = hidden
        return seen


class FinalNormIncluded(TransformersBlocks):
    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return self.model.get_submodule("model.norm")(hidden) if boundary == len(self) else hidden


class OneBoundaryLate(TransformersBlocks):
    """Boundary i is what block i writes, not what it reads."""

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        seen: list[Tensor] = []
        super().trace(batch, lambda i, hidden: seen.append(hidden))
        for i in range(len(seen)):
            tap(i, seen[min(i + 1, len(self))])


@pytest.mark.parametrize(
    ("adapter", "place"),
    [
        (LastBoundaryMissing, "a model of 4 blocks has the boundaries [0, 1, 2, 3, 4], the tap saw [0, 1, 2, 3]"),
        (FirstBoundaryTwice, "the tap saw [0, 0, 1, 2, 3, 4]"),
        (Flattened, "a boundary is [batch, tokens, width], found (48, 32)"),
    ],
)
def test_a_wrong_number_or_shape_of_boundaries(tmp_path: Path, adapter: Any, place: str) -> None:
    message = broken(adapter, tmp_path)
    assert message.startswith("every boundary is seen once and in order: ")
    assert place in message


@pytest.mark.parametrize(
    ("adapter", "boundary"), [(ResidualTwice, 1), (FinalNormIncluded, BLOCKS), (OneBoundaryLate, 0)]
)
def test_a_wrong_stream_is_found_by_the_independent_tap(tmp_path: Path, adapter: Any, boundary: int) -> None:
    message = broken(adapter, tmp_path)
    assert message.startswith(
        f"the boundaries are those of an independent tap: boundary {boundary} differs from the reference by "
    )
    assert "is the residual in it exactly once, and no final norm?" in message


@pytest.mark.parametrize(
    ("adapter", "place"),
    [
        (ResidualTwice, "boundary 1 differs from boundary 0 of a plain pass"),
        (FinalNormIncluded, "boundary 4 differs from boundary 0 of a plain pass"),
        (OneBoundaryLate, "boundary 0 differs from boundary 0 of a plain pass"),
    ],
)
def test_it_is_found_without_an_independent_tap_too(tmp_path: Path, adapter: Any, place: str) -> None:
    message = broken(adapter, tmp_path, independent=False)
    assert message.startswith("a skipped block hands the stream on unchanged: with the blocks 0 to 3 skipped, ")
    assert place in message


# -- skipping and removing ------------------------------------------------------------------------------------


class SkippingScales(TransformersBlocks):
    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        norm = self.model.get_submodule("model.norm")
        with torch.no_grad(), super().skipping(blocks):
            norm.weight.mul_(1.01)
            yield


class RemovalForgetsOne(TransformersBlocks):
    def without(self, blocks: Iterable[int]) -> BlockSequence:
        return super().without(sorted(blocks)[:-1] or blocks)


class RemovalTakesTheNext(TransformersBlocks):
    def without(self, blocks: Iterable[int]) -> BlockSequence:
        return super().without([(i + 1) % BLOCKS for i in blocks])


class RemovalOfNothingRounds(TransformersBlocks):
    def without(self, blocks: Iterable[int]) -> BlockSequence:
        shorter: Any = super().without(blocks)
        if not blocks:
            shorter.model.lm_head.weight = torch.nn.Parameter(shorter.model.lm_head.weight.bfloat16().float())
        return shorter


class RemovalSpoilsTheOriginal(TransformersBlocks):
    def without(self, blocks: Iterable[int]) -> BlockSequence:
        shorter = super().without(blocks)
        if blocks:
            with torch.no_grad():
                self.model.get_submodule("model.norm").weight.mul_(2)  # shared with the shorter one
        return shorter


class SkippingDoesNothing(TransformersBlocks):
    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("adapter", "check", "place"),
    [
        (SkippingDoesNothing, "a skipped block hands the stream on unchanged", "with the blocks 0 to 3 skipped"),
        (SkippingScales, "skipping nothing changes no bit", "logits while nothing is skipped: differ by "),
        (RemovalOfNothingRounds, "removing nothing changes no bit", "differ by "),
        (RemovalForgetsOne, "removal equals skipping", "without (1, 2): 3 blocks are left"),
        (RemovalTakesTheNext, "removal equals skipping", "logits without the blocks (0,): differ by "),
        (RemovalSpoilsTheOriginal, "the original is untouched", "the original's logits after a removal: differ by "),
    ],
)
def test_wrong_skipping_and_wrong_removal(tmp_path: Path, adapter: Any, check: str, place: str) -> None:
    message = broken(adapter, tmp_path)
    assert message.startswith(f"{check}: ")
    assert place in message


# -- saving ---------------------------------------------------------------------------------------------------


class SavesSomethingElse(TransformersBlocks):
    def write(self, directory: Path) -> None:
        super().write(directory)
        tensors = load_file(directory / "model.safetensors")
        tensors["model.norm.weight"] += 1e-3
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


class SavingSpoilsTheModel(TransformersBlocks):
    def write(self, directory: Path) -> None:
        super().write(directory)
        with torch.no_grad():
            self.model.get_submodule("model.norm").weight.mul_(2)


class SavesTheOldDepth(TransformersBlocks):
    def write(self, directory: Path) -> None:
        self.model.config.num_hidden_layers = BLOCKS
        super().write(directory)


def test_a_reload_that_differs(tmp_path: Path) -> None:
    message = broken(SavesSomethingElse, tmp_path)
    assert message.startswith("reload equals memory: logits saved and reloaded without (): differ by ")


def test_a_model_that_saving_spoils(tmp_path: Path) -> None:
    message = broken(SavingSpoilsTheModel, tmp_path)
    assert message.startswith("reload equals memory: logits without () after it was saved: differ by ")


def test_a_config_left_at_the_old_depth(tmp_path: Path) -> None:
    message = broken(SavesTheOldDepth, tmp_path)
    assert message.startswith("reload equals memory: ")
    assert "missing keys (model.layers.3." in message


def test_a_disk_road_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Any = Llama.write_config

    def other_epsilon(family: Any, config: dict[str, Any], *places: Path) -> None:
        write(family, config | {"rms_norm_eps": 0.01}, *places)

    monkeypatch.setattr(Llama, "write_config", other_epsilon)
    message = broken(TransformersBlocks, tmp_path)
    assert message.startswith("the disk road equals memory: logits pruned on disk without (0,): differ by ")


def test_cached_generation_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate: Any = ReloadedCausalLM.generate

    def mixing(model: Any, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        logits = generate(model, ids, new_tokens, cached=cached)
        return logits.roll(1, -1) if cached else logits

    monkeypatch.setattr(ReloadedCausalLM, "generate", mixing)
    message = broken(TransformersBlocks, tmp_path)
    assert message.startswith("cached generation equals uncached: cached generation differs from uncached at token 0")


# -- scores ---------------------------------------------------------------------------------------------------


class SeesPadding(TransformersBlocks):
    """What stands at the end of a row moves what is before it."""

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return hidden + (1 + boundary) * hidden[:, -1:] if hidden.shape[1] < 24 else hidden


class SeesOtherRows(TransformersBlocks):
    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        return hidden + (1 + boundary) * hidden.mean(0, keepdim=True) if len(hidden) == 6 else hidden


def test_padding_that_moves_scores(tmp_path: Path) -> None:
    message = broken(SeesPadding, tmp_path)
    assert message.startswith("padding moves no score: padding on the right: block 0 scores ")


def test_padding_that_is_counted_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(model: BlockSequence, batches: list[TokenBatch]) -> shortgpt.Scores:
        return shortgpt.score(model, [{"input_ids": batch["input_ids"]} for batch in batches])

    monkeypatch.setattr(testing, "score", without_mask)
    message = broken(TransformersBlocks, tmp_path)
    assert message == "padding moves no score: padding on the right: 60 tokens were counted, 40 are real"


def test_rows_that_see_each_other(tmp_path: Path) -> None:
    message = broken(SeesOtherRows, tmp_path)
    assert message.startswith("batch size and order move no score: one row a batch, in reverse order: block 0 scores ")


# -- what is left behind --------------------------------------------------------------------------------------


class LeavesAHook(TransformersBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        self.blocks[2].register_forward_hook(lambda module, args, output: None)
        super().trace(batch, tap)


class LeavesOneHookForGood(TransformersBlocks):
    hooked = False

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        if not self.hooked:
            self.blocks[2].register_forward_pre_hook(lambda module, args: None)
            self.hooked = True
        super().trace(batch, tap)


class SkippingStays(TransformersBlocks):
    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        with super().skipping(blocks):
            try:
                yield
            except Exception:
                self.blocks[0].register_forward_hook(lambda module, args, output: args[0])
                raise


class SwallowsErrors(TransformersBlocks):
    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        def careful(boundary: int, hidden: Tensor) -> None:
            with suppress(Exception):
                tap(boundary, hidden)

        super().trace(batch, careful)


@pytest.mark.parametrize(
    ("adapter", "place"),
    [
        (LeavesAHook, "hooks are left on ['model.layers.2._forward_hooks']"),
        (LeavesOneHookForGood, "hooks are left on ['model.layers.2._forward_pre_hooks']"),
        (SkippingStays, "hooks are left on ['model.layers.0._forward_hooks']"),
        (SwallowsErrors, "an exception of the tap is swallowed by trace()"),
    ],
)
def test_hooks_that_stay_and_errors_that_vanish(tmp_path: Path, adapter: Any, place: str) -> None:
    assert broken(adapter, tmp_path) == f"nothing is left behind: {place}"


# -- generation -----------------------------------------------------------------------------------------------


class PromptsCutToOneLength(TransformersBlocks):
    def greedy(self, prompts: Any, new_tokens: int, stop: Any = None) -> list[list[int]]:
        shared = min(map(len, prompts))
        return super().greedy([prompt[-shared:] for prompt in prompts], new_tokens, stop)


class NeverAsksForTheEnd(TransformersBlocks):
    def greedy(self, prompts: Any, new_tokens: int, stop: Any = None) -> list[list[int]]:
        return super().greedy(prompts, new_tokens)


@pytest.mark.parametrize(
    ("adapter", "place"),
    [
        (PromptsCutToOneLength, r"prompt 0, without \(\): a token's logit is [\d.e-]+ too small"),
        (NeverAsksForTheEnd, r"6, 2 and 6 tokens were due, \[\[.* came"),
    ],
)
def test_text_that_is_not_the_likeliest(tmp_path: Path, adapter: Any, place: str) -> None:
    told = broken(adapter, tmp_path)
    assert re.fullmatch(f"generated tokens are the likeliest of the whole text: {place}", told)


# -- models that show nothing ---------------------------------------------------------------------------------


def test_weights_that_would_hide_a_mistake_are_refused(tmp_path: Path) -> None:
    def idle() -> BlockSequence:
        model = tiny("llama", blocks=BLOCKS)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        return shortgpt.wrap(model)

    with pytest.raises(AdapterError, match=r"skipping the blocks \(0,\) changes nothing; use other weights"):
        check_adapter(idle, tmp_path)


def test_a_model_of_too_few_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="needs a model with 3 removable blocks or more"):
        check_adapter(lambda: shortgpt.wrap(tiny("llama", blocks=2)), tmp_path)
