"""A model whose blocks are read one at a time gives the scores that it gives when it is in memory."""

import gc
import itertools
import json
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shortgpt_adapters.transformers import streaming as transformers_stream
from shortgpt_adapters.transformers.streaming import StreamedWeights
from torch import Tensor
from transformers import AutoModelForCausalLM, core_model_loading

import shortgpt
from shortgpt.basics.inputs import Source
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import AdapterError, CheckpointError, ModelError
from shortgpt.models.sequence import Cut
from shortgpt.torch_models.streaming import BlockWeights, trace_by_block
from shortgpt.torch_models.waiting_passes import Pass
from tests.support import Ran, ids_of, saved, skipped_by_hand, tiny
from tests.tiny_types import tiny_batch, tiny_model, upstream_mended

NAMED = ("llama", "mistral", "gpt2", "gpt2_postnorm", "openai-gpt", "mamba", "mamba2", "falcon_mamba", "rwkv")
FOUND = (
    "qwen3",  # windows in some blocks
    "gemma3_text",  # rotary frequencies by kind of block
    "bloom",  # ALiBi
    "opt",
    "gpt_oss",
    "mixtral",  # experts fused when they are loaded
    "deepseek_v3",
    "gemma4_text",  # blocks that read other blocks' keys and values
    "gemma3n_text",
    "zaya",  # a state beside the stream
    "lfm2",
)
WHOLE_ONLY = {"zamba2": "one tensor", "xlm": "adapter 'xlm'", "qwen4_exp_text": "all their values at once"}


def batches_of(count: int = 3) -> list[dict[str, Any]]:
    """Batches of unequal size, one of them padded."""
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, 17:] = 0
    return [{"input_ids": ids_of(rows=1 + seed % 2, seed=seed)} for seed in range(count)] + [
        {"input_ids": ids_of(seed=9), "attention_mask": mask}
    ]


def both_ways(folder: Path, batches: Any, **options: Any) -> tuple[shortgpt.Scores, shortgpt.Scores]:
    whole = shortgpt.score(shortgpt.load(folder, device="cpu", **options), batches)
    return whole, shortgpt.score(shortgpt.load(folder, device="cpu", stream=True, **options), batches)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shortgpt")]


@pytest.mark.parametrize("name", NAMED)
def test_streamed_scores_equal_those_of_the_model_in_memory_for_types_with_an_adapter(
    name: str, tmp_path: Path
) -> None:
    whole, streamed = both_ways(saved(tiny(name), tmp_path / name, tokenizer=False), batches_of())
    assert streamed == whole


@pytest.mark.sampled("gemma3_text", "opt", "zaya")
@pytest.mark.parametrize("name", FOUND)
def test_streamed_scores_equal_those_of_the_model_in_memory_for_types_whose_blocks_are_found(
    name: str, tmp_path: Path
) -> None:
    with upstream_mended():
        model = tiny_model(name)
        model.save_pretrained(tmp_path / name)
        whole, streamed = both_ways(tmp_path / name, [tiny_batch(name, model, seed=seed) for seed in range(3)])
    assert streamed == whole


def test_a_large_batch_is_taken_in_parts_in_memory_and_streamed_alike(tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "llama", tokenizer=False)
    mask = torch.ones(9, 300, dtype=torch.long)
    mask[::2, 120:] = 0
    large = {"input_ids": ids_of(rows=9, tokens=300), "attention_mask": mask}
    sizes: dict[bool, list[int]] = {}
    for stream in (False, True):
        model = shortgpt.load(folder, device="cpu", stream=stream)
        seen = sizes.setdefault(stream, [])
        model.blocks[0].register_forward_pre_hook(lambda block, args, seen=seen: seen.append(len(args[0])))
        scores = shortgpt.score(model, [large])
        parts = shortgpt.score(model, [{k: v[rows] for k, v in large.items()} for rows in (slice(0, 6), slice(6, 9))])
        assert scores.values == parts.values
    assert sizes[True] == sizes[False] == [6, 3, 6, 3]
    whole, streamed = both_ways(folder, [large, *batches_of()])
    assert streamed == whole


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_model_in_half_precision_twice_as_many_tokens_are_taken_at_a_time(
    stream: bool, llama_folder: Path
) -> None:
    model = shortgpt.load(llama_folder, device="cpu", dtype="bfloat16", stream=stream)
    sizes: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: sizes.append(len(args[0])))
    shortgpt.score(model, [{"input_ids": ids_of(rows=150, tokens=32)}])
    assert sizes == [128, 22]


def test_streamed_scores_are_cosines_that_plain_hooks_see(tmp_path: Path) -> None:
    model = tiny("llama")
    ids = ids_of()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids)
    stream = [hidden.double() for hidden in seen]
    folder = saved(tiny("llama"), tmp_path / "llama", tokenizer=False)
    scores = shortgpt.score(shortgpt.load(folder, device="cpu", stream=True), [{"input_ids": ids}])
    for x, y, value in zip(stream, stream[1:], scores.values, strict=False):
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        assert value == pytest.approx((1 - cosine).mean().item(), rel=1e-9)


def test_shards_other_dtypes_and_tied_embeddings_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    sharded = saved(tiny("llama"), tmp_path / "sharded", tokenizer=False, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, streamed = both_ways(sharded, batches_of())
    assert streamed == whole
    whole, streamed = both_ways(sharded, batches_of(), dtype="bfloat16")
    assert streamed == whole
    assert streamed.dtype == "bfloat16"
    tied = saved(tiny("llama", tie_word_embeddings=True), tmp_path / "tied", tokenizer=False)
    whole, streamed = both_ways(tied, batches_of())
    assert streamed == whole


def test_names_without_the_models_prefix_are_found(tmp_path: Path) -> None:
    folder = saved(tiny("gpt2"), tmp_path / "gpt2", tokenizer=False)
    file = folder / "model.safetensors"
    save_file({name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}, file)
    whole, streamed = both_ways(folder, batches_of())
    assert streamed == whole


def test_a_streamed_model_is_scored_again_and_again(llama_folder: Path) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    assert shortgpt.score(model, batches_of()) == shortgpt.score(model, batches_of())


@pytest.mark.parametrize("chosen", [None, "0"])
def test_the_librarys_threads_are_left_as_they_were_chosen(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    variable = "HF_DEACTIVATE_ASYNC_LOAD"
    monkeypatch.delenv(variable, raising=False)
    if chosen is not None:
        monkeypatch.setenv(variable, chosen)
    model = shortgpt.load(llama_folder, stream=True)
    found: list[str | None] = []
    model.trace({"input_ids": ids_of(1, 8)}, lambda boundary, hidden: found.append(os.environ.get(variable)))
    assert set(found) == {"1"}
    assert os.environ.get(variable) == chosen


def test_no_more_than_two_blocks_are_in_memory_at_a_time(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    weights = model.weights
    loaded: list[weakref.ref[torch.Tensor]] = []
    most = 0
    load = type(weights).load

    def watched(self: Any, block: int) -> None:
        nonlocal most
        load(self, block)
        loaded.append(weakref.ref(model.blocks[block].mlp.up_proj.weight))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in loaded))

    monkeypatch.setattr(type(weights), "load", watched)
    shortgpt.score(model, batches_of())
    assert len(loaded) == 6
    assert most <= 2  # the reader may be later than the block before it
    gc.collect()
    assert not any(ref() is not None for ref in loaded)
    assert all(p.is_meta for block in model.blocks for p in block.parameters())
    assert model.model.lm_head.weight.is_meta
    assert not model.model.model.embed_tokens.weight.is_meta


def streams_held(shape: tuple[int, ...]) -> float:
    """The bytes of all float32 tensors of this shape that are alive, over those of one."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) is torch.Tensor and tensor.shape == shape and tensor.device.type == "cpu"
    }
    return sum(storages.values()) / (4 * math.prod(shape))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_stream_of_all_batches_is_held_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shortgpt.load(saved(tiny(name, blocks=4), tmp_path / name, tokenizer=False), device="cpu", stream=True)
    count, tokens = 16, 33  # no other tensor has as many rows
    shape = (1, tokens, model.model.get_input_embeddings().embedding_dim)
    held: list[float] = []
    calls, resume = itertools.count(1), Pass.resume

    def watched(pass_: Pass, output: object = None) -> None:
        resume(pass_, output)
        if next(calls) % 9 == 0:
            held.append(streams_held(shape) / count)

    monkeypatch.setattr(Pass, "resume", watched)
    shortgpt.score(model, [{"input_ids": ids_of(rows=1, tokens=tokens, seed=seed)} for seed in range(count)])
    assert len(held) == 4 * count // 9
    assert 1 <= max(held) < 1.3


class AddingBackWhatWasEmbedded(torch.nn.Module):
    """Blocks, each of which is given what was embedded as well, in place of nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.written = False

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = self.embed(input_ids)
        if self.written:
            embedded += 1
        hidden = embedded * 2
        for number, block in enumerate(self.blocks):
            hidden = block(hidden + embedded if number > 1 else hidden)
        return hidden


@pytest.mark.parametrize("written", [False, True])
def test_what_was_embedded_is_there_for_code_that_looks_at_it_later(written: bool) -> None:
    network = AddingBackWhatWasEmbedded()
    network.written = written
    batches = [{"input_ids": torch.arange(at, at + 6)[None]} for at in range(3)]
    expected: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, args: expected.append(args[0].clone()))
    with torch.no_grad():
        for batch in batches:
            network(**batch)
    found: list[tuple[int, int, Tensor]] = []
    taps = [lambda at, x, number=number: found.append((number, at, x.clone())) for number in range(3)]
    sequence = SimpleNamespace(
        model=network,
        forward=lambda batch: network(**batch),
        stream=lambda block, args, kwargs: args[0],
        stream_out=lambda block, output: output,
        observed=lambda boundary, hidden: hidden,
    )
    sequence = type("Sequence", (SimpleNamespace,), {"__len__": lambda self: 4})(**vars(sequence))
    weights = type("Here", (BlockWeights,), {"load": lambda self, part: None, "drop": lambda self, part: None})()
    weights.name, weights.device, weights.blocks = "here", torch.device("cpu"), list(network.blocks)
    weights.block_names = tuple(map(str, range(4)))
    trace_by_block(sequence, weights, batches, taps)
    before = [x for _, at, x in sorted(found, key=lambda one: one[:2]) if at < 4]
    assert len(before) == len(expected[:12]) == 12
    assert all(map(torch.equal, before, expected[:12]))


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_where_parts_do_not_fit_all_of_them_are_halved_and_no_sum_is_lost(
    fits: int, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [{"input_ids": ids_of(rows=rows, seed=rows)} for rows in (4, 1, 3)]
    whole = shortgpt.score(shortgpt.load(llama_folder, device="cpu"), batches)
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    sizes: list[int] = []
    forward = model.blocks[2].mlp.forward

    def small(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        if len(hidden) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(hidden)

    monkeypatch.setattr(model.blocks[2].mlp, "forward", small)
    found = shortgpt.score(model, batches)
    assert found.values == pytest.approx(whole.values, rel=1e-6)
    assert (found.tokens, found.counts) == (whole.tokens, whole.counts)
    assert sizes[-8 if fits == 1 else -5 :] == ([1] * 8 if fits == 1 else [2, 2, 1, 2, 1])
    assert our_threads() == []


def test_where_not_even_parts_of_one_sequence_fit_it_is_said(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.blocks[0].mlp, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        shortgpt.score(model, batches_of())
    assert our_threads() == []


def test_a_blocks_weights_are_read_once_however_many_batches_there_are(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {"tensor": [], "fetch": []}

    def watch(what: str) -> None:
        original: Callable[..., Any] = getattr(Weights, what)

        def watched(self: Weights, name: str) -> Any:
            seen[what].append(name)
            return original(self, name)

        monkeypatch.setattr(Weights, what, watched)

    for what in seen:
        watch(what)
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    shortgpt.score(model, batches_of(5))
    in_file = set(load_file(llama_folder / "model.safetensors"))
    assert sorted(seen["tensor"]) == sorted(in_file - {"lm_head.weight"})
    assert sorted(seen["fetch"]) == sorted(name for name in in_file if ".layers." in name)


def test_what_needs_the_whole_model_is_refused_and_says_what_can_be_done(llama_folder: Path, tmp_path: Path) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    for attempt in (
        lambda: list(model.ablated({"input_ids": ids_of()}, [Cut(1)])),
        lambda: shortgpt.remove(model, [1]),
        lambda: model.save(tmp_path / "out"),
    ):
        with pytest.raises(ModelError, match="still in their files"):
            attempt()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", WHOLE_ONLY)
def test_types_whose_blocks_do_not_stand_alone_are_refused_before_anything_is_scored(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=WHOLE_ONLY[name]):
        shortgpt.load(tmp_path, device="cpu", stream=True)


def test_adapters_that_cannot_stream_say_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 8, "n_layer": 2, "ssm_cfg": {}}))
    with pytest.raises(ModelError, match="'mamba-ssm' cannot be streamed"):
        shortgpt.load(tmp_path, device="cpu", stream=True)


@pytest.mark.parametrize(
    "name", ["rename_source_key", "convert_and_load_state_dict_in_model", "WeightConverter", "_load_pretrained_model"]
)
def test_a_name_that_transformers_lacks_is_told_when_streaming_is_asked_for_and_harms_nothing_else(
    name: str, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Ran]
) -> None:
    with monkeypatch.context() as patch:
        for module in [module for module in sys.modules if module.startswith("shortgpt_adapters")]:
            patch.delitem(sys.modules, module)
        if name in vars(transformers.PreTrainedModel):
            patch.delattr(transformers.PreTrainedModel, name)
        else:  # for those who import it; the library itself has it
            other = ModuleType("transformers.core_model_loading")
            vars(other).update({key: value for key, value in vars(core_model_loading).items() if key != name})
            patch.setitem(sys.modules, other.__name__, other)
            whole = shortgpt.load(llama_folder, device="cpu")
            assert len(shortgpt.score(whole, [{"input_ids": ids_of()}])) == 6
        inspected = run_cli("inspect", llama_folder)
        ran = run_cli("score", llama_folder, "--stream", "--device", "cpu")
        for module in [module for module in sys.modules if module.startswith("shortgpt_adapters")]:
            patch.delitem(sys.modules, module)
    assert inspected.status == 0, inspected
    assert (ran.status, ran.out) == (2, "")
    assert f"streaming needs a part of transformers that version {transformers.__version__} lacks" in ran.err
    assert name in ran.err
    assert "take transformers 5.17 to 5.23, or load the model whole (without --stream)" in ran.err


def test_a_model_that_writes_into_its_blocks_weights_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny("rwkv", rescale_every=2).half(), tmp_path / "rwkv", tokenizer=False)
    model = shortgpt.load(folder, device="cpu", stream=True)  # in fp16 the library divides weights in place
    with pytest.raises(ModelError, match=r"writes into the weights of rwkv\.blocks"):
        shortgpt.score(model, batches_of())


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "llama", tokenizer=False)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin; streaming reads safetensors"):
        shortgpt.load(folder, device="cpu", stream=True)


@pytest.mark.parametrize("damage", ["missing", "shape", "truncated"])
def test_a_damaged_checkpoint_is_told_before_anything_is_scored(tmp_path: Path, damage: str) -> None:
    folder = saved(tiny("llama"), tmp_path / "llama", tokenizer=False)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if damage == "missing":
        del tensors["model.layers.3.mlp.up_proj.weight"]
        save_file(tensors, file)
    elif damage == "shape":
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(5, 7)
        save_file(tensors, file)
    else:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        shortgpt.load(folder, device="cpu", stream=True)


def test_an_error_in_a_block_ends_every_waiting_pass(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ArithmeticError("no")

    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[2].mlp, "forward", broken)
        with pytest.raises(ArithmeticError):
            shortgpt.score(model, batches_of())
    assert our_threads() == []
    assert not any("forward" in vars(block) for block in model.blocks)
    whole = shortgpt.score(shortgpt.load(llama_folder, device="cpu"), batches_of())
    assert shortgpt.score(model, batches_of()) == whole


def test_an_error_before_the_blocks_is_the_callers(llama_folder: Path) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    with pytest.raises(IndexError):
        model.trace({"input_ids": ids_of() + 10_000}, lambda boundary, hidden: None)
    assert our_threads() == []


def test_blocks_that_run_out_of_order_are_an_error(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    monkeypatch.setattr(type(model.weights), "load", lambda self, block: None)
    model.model.model.layers = torch.nn.ModuleList([*model.blocks[1:], model.blocks[0]])
    with pytest.raises(AdapterError, match="one after another"):
        shortgpt.score(model, batches_of())
    assert our_threads() == []


# -- logits ---------------------------------------------------------------------------------------------------

READ_THOUGH_SKIPPED = (
    "bloom",
    "gemma4_text",
    "zaya",
)  # ALiBi beside a list, keys for others, a state beside the stream


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts that are read: blocks, and as the last one the head."""
    parts: list[int] = []
    load = StreamedWeights.load

    def watched(self: StreamedWeights, part: int) -> None:
        parts.append(part)
        load(self, part)

    monkeypatch.setattr(StreamedWeights, "load", watched)
    return parts


@pytest.mark.parametrize(("name", "path"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_streamed_logits_are_those_of_the_library_with_these_blocks_bypassed(
    name: str, path: str, tmp_path: Path
) -> None:
    folder = saved(tiny(name), tmp_path / name, tokenizer=False)
    whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = shortgpt.load(folder, device="cpu", stream=True)
    for gone in ((), (1, 4), (0, 5), (0, 1, 2, 3, 4)):
        with model.skipping(gone):
            logits = model.logits({"input_ids": ids_of()})
        assert torch.equal(logits, skipped_by_hand(whole, path, gone, ids_of()))
    assert not model.skipped
    assert all(p.is_meta for block in model.blocks for p in block.parameters())
    assert model.model.get_output_embeddings().weight.is_meta == (name == "llama")  # gpt2's is the embedding


@pytest.mark.sampled("rwkv", "gemma3_text", "opt", "zaya", "recurrent_gemma")
@pytest.mark.parametrize("name", ["mamba", "rwkv", *FOUND, "recurrent_gemma"])
def test_streamed_logits_equal_those_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    with upstream_mended():
        model = tiny(name) if name in NAMED else tiny_model(name)
        model.save_pretrained(tmp_path / name)
        batch = {"input_ids": ids_of() % 90}
        found = []
        for stream in (False, True):
            opened = shortgpt.load(tmp_path / name, device="cpu", stream=stream)
            with opened.skipping((2, 3)):
                found.append(opened.logits(batch))
    assert torch.equal(*found)


def test_under_autocast_the_head_is_run_as_the_blocks_are(llama_folder: Path) -> None:
    models = [shortgpt.load(llama_folder, device="cpu", stream=stream) for stream in (False, True)]
    with torch.autocast("cpu", torch.bfloat16):
        whole, streamed = (model.logits({"input_ids": ids_of()}) for model in models)
    assert streamed.dtype == whole.dtype == torch.bfloat16
    assert torch.equal(streamed, whole)


def test_a_tensor_that_a_full_device_cannot_take_is_lack_of_memory(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    told = SimpleNamespace(conversion_errors={"model.layers.0.mlp": "torch.OutOfMemoryError: CUDA out of memory"})
    monkeypatch.setattr(transformers_stream, "convert_and_load_state_dict_in_model", lambda *args: (told, None))
    with pytest.raises(torch.OutOfMemoryError, match=r"model.layers.0 does not fit into the memory of cpu"):
        model.logits({"input_ids": ids_of()})


def test_a_skipped_block_is_not_read_and_what_is_left_once(llama_folder: Path, read: list[int]) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    with model.skipping((2, 3, 5)):
        model.logits({"input_ids": ids_of()})
    assert read == [0, 1, 4, 6]


def test_of_the_first_block_alone_the_form_of_an_output_is_not_known_so_it_is_read(
    llama_folder: Path, read: list[int]
) -> None:
    model = shortgpt.load(llama_folder, device="cpu", stream=True)
    with model.skipping((0, 1)):
        model.logits({"input_ids": ids_of()})
    assert sorted(read) == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", READ_THOUGH_SKIPPED)
def test_a_skipped_block_that_may_do_more_than_hand_the_stream_on_is_read(
    name: str, tmp_path: Path, read: list[int]
) -> None:
    with upstream_mended():
        tiny_model(name).save_pretrained(tmp_path)
        model = shortgpt.load(tmp_path, device="cpu", stream=True)
        with model.skipping((2, 3)):
            model.logits({"input_ids": ids_of() % 90})
    assert sorted(read) == [0, 1, 2, 3, 4, 5, 6]


def test_a_tensor_is_mapped_by_itself_and_stands_where_it_would_stand_in_a_mapped_file(tmp_path: Path) -> None:
    shapes = {"a": (3,), "b": (5, 7), "c": (), "d": (64,), "e": (0, 2)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {"f": torch.arange(9, dtype=torch.int8), "g": torch.randn(4, 3).bfloat16(), "h": torch.zeros(9000)}
    save_file(tensors, tmp_path / "some.safetensors")
    before = (tmp_path / "some.safetensors").read_bytes()
    weights = Weights(Source("some", tmp_path / "some.safetensors"))
    for name, tensor in tensors.items():
        weights.fetch(name)
        found = weights.tensor(name)
        assert torch.equal(found, tensor)
        assert found.dtype == tensor.dtype
        assert found.data_ptr() % 64 == weights.entry(name).begin % 64 or not found.numel()
        assert found.untyped_storage().nbytes() <= tensor.nbytes + 4096
        found.zero_()
    assert (tmp_path / "some.safetensors").read_bytes() == before, "what is written into it stays in memory"


def test_a_file_that_was_cut_off_since_is_told(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    save_file({"a": torch.randn(5000)}, file)
    weights = Weights(Source("some", file))
    file.write_bytes(file.read_bytes()[:5000])
    weights.fetch("a")  # advice to the system, which does not mind
    with pytest.raises(CheckpointError, match="ended in the middle of a; fetch the model again"):
        weights.tensor("a")


def test_hooks_on_a_block_see_the_stream_that_they_see_in_memory(llama_folder: Path) -> None:
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for stream in seen:
        model = shortgpt.load(llama_folder, device="cpu", stream=stream)
        model.blocks[3].register_forward_hook(lambda m, args, output, into=seen[stream]: into.append(output))
        model.trace({"input_ids": ids_of()}, lambda boundary, hidden: None)
    assert torch.equal(seen[True][0], seen[False][0])


def test_the_command_prints_the_same_table_with_stream(llama_folder: Path, run_cli: Callable[..., Ran]) -> None:
    command = ("score", llama_folder, "--sequences", 3, "--tokens", 16, "--batch-size", 2, "--device", "cpu")
    whole, streamed = run_cli(*command), run_cli(*command, "--stream")
    assert streamed.status == 0
    assert streamed.out == whole.out


def test_prune_chooses_the_same_blocks_with_stream(
    llama_folder: Path, tmp_path: Path, run_cli: Callable[..., Ran]
) -> None:
    files = []
    for extra in ((), ("--stream",)):
        out = tmp_path / f"out{len(extra)}"
        options = ("--blocks", 2, "--sequences", 3, "--tokens", 16, "--device", "cpu", "--no-verify", *extra)
        ran = run_cli("prune", llama_folder, "--output", out, *options)
        assert ran.status == 0, ran.err
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    ran = run_cli("prune", llama_folder, "--output", tmp_path / "no", "--remove", "1", "--stream", "--no-verify")
    assert ran.status == 2
    assert "--stream: nothing is scored" in ran.err


def test_passes_take_turns_so_that_one_thread_runs_at_a_time() -> None:
    order: list[str] = []

    def forward(name: str) -> None:
        order.append(f"{name} begins")
        Pass.current.it.call((0, name))
        order.append(f"{name} ends")

    passes = [Pass(lambda name=name: forward(name)) for name in "ab"]
    assert order == []
    for pass_ in passes:
        pass_.resume()
    assert [pass_.take()[1] for pass_ in passes] == ["a", "b"]
    passes[0].resume()
    assert not passes[0].waits
    passes[1].stop()
    assert order == ["a begins", "b begins", "a ends"]
