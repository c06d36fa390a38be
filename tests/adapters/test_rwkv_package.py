"""RWKV `.pth` files run by the rwkv package, held against a float64 forward pass written here from the formulas."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import shortgpt
from shortgpt import testing
from shortgpt.errors import AdapterError, CheckpointError, ModelError, SelectionError
from shortgpt.models.sequence import BlockSequence, Cut
from tests.fresh_processes import run_python
from tests.support import perplexity

pytest.importorskip("rwkv")

from shortgpt_adapters.rwkv_package import blocks as rwkv_package
from shortgpt_adapters.rwkv_package import runtime as rwkv_package_runtime

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

VERSIONS = ("4", "5.0", "5.1", "5.2", "6", "7")
DEPTH, WIDTH, HEADS, SIZE, FFN, VOCABULARY = 6, 32, 4, 8, 64, 48


# -- checkpoints ----------------------------------------------------------------------------------------------


def tensors_of(version: str, *, depth: int = DEPTH, vocabulary: int = VOCABULARY) -> dict[str, Tensor]:
    """Random raw tensors, named and ordered as those of the published files."""
    generator = torch.Generator().manual_seed(VERSIONS.index(version))
    w: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, scale: float = 0.3, mean: float = 0.0) -> None:
        w[name] = torch.randn(*shape, generator=generator) * scale + mean

    def norm(name: str) -> None:
        normal(f"{name}.weight", WIDTH, mean=1.0)
        normal(f"{name}.bias", WIDTH)

    def mix(name: str) -> None:
        w[name] = torch.rand(1, 1, WIDTH, generator=generator)

    normal("emb.weight", vocabulary, WIDTH, scale=1.0)
    for i in range(depth):
        b, att, ffn = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
        for name in ("ln1", "ln2", *(("ln0",) if i == 0 else ())):
            norm(f"{b}.{name}")
        if version == "7":
            for letter in "rwkvag":
                mix(f"{att}.x_{letter}")
            for letter in "wav":
                normal(f"{att}.{letter}0", 1, 1, WIDTH)
                normal(f"{att}.{letter}1", WIDTH, 4)
                normal(f"{att}.{letter}2", 4, WIDTH)
            normal(f"{att}.g1", WIDTH, 4)
            normal(f"{att}.g2", 4, WIDTH)
            normal(f"{att}.k_k", 1, 1, WIDTH, mean=1.0)
            normal(f"{att}.k_a", 1, 1, WIDTH, mean=1.0)
            normal(f"{att}.r_k", HEADS, SIZE)
            mix(f"{ffn}.x_k")
        elif version == "6":
            for letter in "xwkvrg":
                mix(f"{att}.time_maa_{letter}")
            normal(f"{att}.time_maa_w1", WIDTH, 5 * 4)
            normal(f"{att}.time_maa_w2", 5, 4, WIDTH)
            normal(f"{att}.time_decay", 1, 1, WIDTH, mean=-1.0)
            normal(f"{att}.time_decay_w1", WIDTH, 4)
            normal(f"{att}.time_decay_w2", 4, WIDTH)
            normal(f"{att}.time_faaaa", HEADS, SIZE)
            mix(f"{ffn}.time_maa_k")
            mix(f"{ffn}.time_maa_r")
        else:
            shape = {"4": (WIDTH,), "5.2": (HEADS, SIZE)}.get(version, (HEADS,))
            normal(f"{att}.time_decay", *shape)
            normal(f"{att}.time_faaaa" if version == "5.2" else f"{att}.time_first", *shape)
            for letter in "kvrg" if version in ("5.1", "5.2") else "kvr":
                mix(f"{att}.time_mix_{letter}")
            mix(f"{ffn}.time_mix_k")
            mix(f"{ffn}.time_mix_r")
        for name in ("receptance", "key", "value", "output", *(("gate",) if version in ("5.1", "5.2", "6") else ())):
            normal(f"{att}.{name}.weight", WIDTH, WIDTH)
        if version != "4":
            norm(f"{att}.ln_x")
        normal(f"{ffn}.key.weight", FFN, WIDTH)
        normal(f"{ffn}.value.weight", WIDTH, FFN)
        if version != "7":
            normal(f"{ffn}.receptance.weight", WIDTH, WIDTH)
    norm("ln_out")
    normal("head.weight", vocabulary, WIDTH)
    return w


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every version. Never written to."""
    folder = tmp_path_factory.mktemp("rwkv")
    paths = {version: folder / f"rwkv-{version}.pth" for version in VERSIONS}
    for version, path in paths.items():
        torch.save(tensors_of(version), path)
    return paths


@pytest.fixture
def fresh_package() -> Iterator[None]:
    """The package is loaded anew, with the settings of the test, and again after it."""
    rwkv_package_runtime.package.cache_clear()
    yield
    rwkv_package_runtime.package.cache_clear()


def tokens(rows: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def perplexity_of(blocks: BlockSequence, ids: Tensor) -> float:
    return perplexity(blocks.logits({"input_ids": ids}), ids)


# -- the formulas, in float64, token by token -------------------------------------------------------------------


def by_formula(w: dict[str, Tensor], version: str, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """The boundaries, each [tokens, width], and the logits of one sequence, from the raw tensors of a file."""
    w = {name: tensor.double().squeeze() for name, tensor in w.items()}
    hidden = _norm(w, "blocks.0.ln0", w["emb.weight"][ids])
    seen, first = [hidden], torch.empty(0)
    while f"blocks.{len(seen) - 1}.ln1.weight" in w:
        block = f"blocks.{len(seen) - 1}"
        p = {name.removeprefix(f"{block}.att."): t for name, t in w.items() if name.startswith(f"{block}.att.")}
        x = _norm(w, f"{block}.ln1", hidden)
        if version == "7":
            change, first = _attention_7(p, x, first)
        else:
            change = _attention_4(p, x) if version == "4" else _attention_5_and_6(p, x)
        hidden = hidden + change
        hidden = hidden + _ffn(w, f"{block}.ffn", _norm(w, f"{block}.ln2", hidden))
        seen.append(hidden)
    return seen, _norm(w, "ln_out", hidden) @ w["head.weight"].T


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _before(x: Tensor) -> Tensor:
    """Each token's predecessor; zeros before the first."""
    return torch.cat((torch.zeros_like(x[:1]), x[:-1]))


def _ffn(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    p = {key.removeprefix(f"{name}."): t for key, t in w.items() if key.startswith(f"{name}.")}
    if "x_k" in p:
        return (x + (_before(x) - x) * p["x_k"]).matmul(p["key.weight"].T).relu().square() @ p["value.weight"].T
    if "time_maa_k" in p:
        k, r = (x + (_before(x) - x) * p[f"time_maa_{letter}"] for letter in "kr")
    else:
        k, r = (x * p[f"time_mix_{letter}"] + _before(x) * (1 - p[f"time_mix_{letter}"]) for letter in "kr")
    return torch.sigmoid(r @ p["receptance.weight"].T) * ((k @ p["key.weight"].T).relu().square() @ p["value.weight"].T)


def _attention_4(p: dict[str, Tensor], x: Tensor) -> Tensor:
    k, v, r = (x * p[f"time_mix_{letter}"] + _before(x) * (1 - p[f"time_mix_{letter}"]) for letter in "kvr")
    k, v, r = k @ p["key.weight"].T, v @ p["value.weight"].T, torch.sigmoid(r @ p["receptance.weight"].T)
    above, below, out = torch.zeros_like(k[0]), torch.zeros_like(k[0]), []
    for t in range(len(x)):
        now = torch.exp(p["time_first"] + k[t])
        out.append((above + now * v[t]) / (below + now))
        fading = torch.exp(-torch.exp(p["time_decay"]))
        above, below = fading * above + k[t].exp() * v[t], fading * below + k[t].exp()
    return (r * torch.stack(out)) @ p["output.weight"].T


def _attention_5_and_6(p: dict[str, Tensor], x: Tensor) -> Tensor:
    shift = _before(x) - x
    if "time_maa_x" in p:
        low = torch.tanh((x + shift * p["time_maa_x"]) @ p["time_maa_w1"]).view(len(x), 5, -1)
        more = torch.einsum("tjr,jrc->jtc", low, p["time_maa_w2"])
        mixed = {c: x + shift * (p[f"time_maa_{c}"] + more[j]) for j, c in enumerate("wkvrg")}
        decay = p["time_decay"] + torch.tanh(mixed["w"] @ p["time_decay_w1"]) @ p["time_decay_w2"]
    else:
        mixed = {c: x + shift * (1 - p[f"time_mix_{c}"]) for c in "kvrg" if f"time_mix_{c}" in p}
        decay = p["time_decay"].reshape(HEADS, -1).expand(HEADS, SIZE).expand(len(x), HEADS, SIZE)
    r, k, v = (
        (mixed[c] @ p[f"{name}.weight"].T).view(len(x), HEADS, SIZE)
        for c, name in (("r", "receptance"), ("k", "key"), ("v", "value"))
    )
    bonus = p["time_faaaa"] if "time_faaaa" in p else p["time_first"].exp()
    bonus, fading = bonus.reshape(HEADS, -1, 1), torch.exp(-torch.exp(decay)).reshape(len(x), HEADS, SIZE, 1)
    state, out = torch.zeros(HEADS, SIZE, SIZE, dtype=x.dtype), []
    for t in range(len(x)):
        now = k[t][:, :, None] * v[t][:, None, :]
        out.append(torch.einsum("hk,hkv->hv", r[t], bonus * now + state))
        state = now + fading[t] * state
    y = F.group_norm(torch.stack(out).view(len(x), -1), HEADS, p["ln_x.weight"], p["ln_x.bias"], eps=64e-5)
    if "gate.weight" in p:
        y = y * F.silu(mixed["g"] @ p["gate.weight"].T)
    return y @ p["output.weight"].T


def _attention_7(p: dict[str, Tensor], x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    mixed = {c: x + (_before(x) - x) * p[f"x_{c}"] for c in "rwkvag"}
    r, k, v = mixed["r"] @ p["receptance.weight"].T, mixed["k"] @ p["key.weight"].T, mixed["v"] @ p["value.weight"].T
    fading = torch.exp(-torch.sigmoid(p["w0"] + torch.tanh(mixed["w"] @ p["w1"]) @ p["w2"]) / torch.e**0.5)
    rate = torch.sigmoid(p["a0"] + mixed["a"] @ p["a1"] @ p["a2"])
    if first.numel():
        v = v + (first - v) * torch.sigmoid(p["v0"] + mixed["v"] @ p["v1"] @ p["v2"])
    else:
        first = v
    removed = F.normalize((k * p["k_k"]).view(len(x), HEADS, SIZE), dim=-1)
    k = k * (1 + (rate - 1) * p["k_a"])
    r, k, v, rate, fading = (z.view(len(x), HEADS, SIZE) for z in (r, k, v, rate, fading))
    state, out = torch.zeros(HEADS, SIZE, SIZE, dtype=x.dtype), []
    for t in range(len(x)):
        read = torch.einsum("hvk,hk->hv", state, removed[t])
        state = state * fading[t][:, None, :] - read[:, :, None] * (removed[t] * rate[t])[:, None, :]
        state = state + v[t][:, :, None] * k[t][:, None, :]
        out.append(torch.einsum("hvk,hk->hv", state, r[t]))
    y = F.group_norm(torch.stack(out).view(len(x), -1), HEADS, p["ln_x.weight"], p["ln_x.bias"], eps=64e-5)
    y = y + ((r * k * p["r_k"]).sum(-1, keepdim=True) * v).flatten(1)
    gate = torch.sigmoid(mixed["g"] @ p["g1"]) @ p["g2"]
    return (y * gate) @ p["output.weight"].T, first


# -- what the tap sees, and what comes out ----------------------------------------------------------------------


@pytest.mark.sampled("4", "7")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_contract_holds_and_the_boundaries_are_those_of_the_formulas(
    version: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_package: None
) -> None:
    if version != "5.2":
        monkeypatch.setenv("RWKV_JIT_ON", "0")  # compiling takes longer than all the rest; RWKV 7 does it anyway
    raw = torch.load(files[version])

    def reference(blocks: BlockSequence, batch: Any) -> list[Tensor]:
        rows = [by_formula(raw, version, row)[0] for row in batch["input_ids"]]
        return [torch.stack(boundary) for boundary in zip(*rows, strict=True)]

    held = testing.check_adapter(lambda: shortgpt.load(files[version]), tmp_path, reference=reference)

    assert len(held) == len(testing.CHECKS)


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_are_those_of_the_formulas_and_bit_for_bit_those_of_the_package(
    version: str, files: dict[str, Path]
) -> None:
    blocks, ids = shortgpt.load(files[version]), tokens(rows=1)
    logits = blocks.logits({"input_ids": ids})

    expected = by_formula(torch.load(files[version]), version, ids[0])[1]
    assert (logits[0].double() - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert torch.equal(logits[0], blocks.model.forward(ids[0].tolist(), None, full_output=True)[0].float())
    assert blocks.config["version"] == version


@pytest.mark.parametrize("version", ["5.2", "7"])
def test_a_skipped_block_is_one_whose_projections_are_zero(
    version: str, files: dict[str, Path], tmp_path: Path
) -> None:
    raw, ids = torch.load(files[version]), tokens()
    for name in ("blocks.0.att.output.weight", "blocks.0.ffn.value.weight", "blocks.3.att.output.weight"):
        raw[name].zero_()
    raw["blocks.3.ffn.value.weight"].zero_()
    torch.save(raw, tmp_path / "zeroed.pth")
    blocks, zeroed = shortgpt.load(files[version]), shortgpt.load(tmp_path / "zeroed.pth")

    with blocks.skipping([0]), blocks.skipping([3]):  # of RWKV 7's block 0, the others still read the values
        assert torch.equal(blocks.logits({"input_ids": ids}), zeroed.logits({"input_ids": ids}))
    assert not torch.equal(blocks.logits({"input_ids": ids}), zeroed.logits({"input_ids": ids}))
    with pytest.raises(SelectionError, match="do not exist"), blocks.skipping([DEPTH]):
        pass


@pytest.mark.parametrize("version", VERSIONS)
def test_what_comes_before_a_block_that_is_left_out_is_run_once_and_changes_no_bit(
    version: str, files: dict[str, Path]
) -> None:
    blocks: Any = shortgpt.load(files[version], device="cpu")
    batch = {"input_ids": tokens()}
    step, run = blocks.steps.block, []

    def counted(index: int, row: Any, *, skipped: bool) -> Any:
        run.append(index)
        return step(index, row, skipped=skipped)

    for removed in ((), (4, 2)):
        cuts = [block for block in range(DEPTH) if block not in removed]
        expected = []
        for cut in cuts:
            with blocks.skipping((*removed, cut)):
                expected.append(blocks.logits(batch))
        run.clear()
        blocks.steps.block = counted
        found = list(blocks.ablated(batch, [Cut(cut) for cut in cuts], removed))
        blocks.steps.block = step
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
        assert len(run) == 2 * (DEPTH + sum(DEPTH - cut for cut in cuts))  # two sequences
    assert blocks.skipped == frozenset()
    with pytest.raises(ModelError):
        list(blocks.ablated(batch, [Cut(0, "mlp")]))


@pytest.mark.parametrize("version", VERSIONS)
def test_boundaries_are_read_out_through_the_final_norm_and_the_head(version: str, files: dict[str, Path]) -> None:
    blocks = shortgpt.load(files[version], device="cpu")
    raw, ids = tensors_of(version), tokens(rows=1)
    w = {name: tensor.double() for name, tensor in raw.items()}
    seen, _ = by_formula(raw, version, ids[0])
    assert blocks.refuse_readouts() is None
    for found, boundary in zip(blocks.readouts({"input_ids": ids}), seen, strict=True):
        expected = _norm(w, "ln_out", boundary) @ w["head.weight"].T
        assert ((found[0] - expected).abs().max() / expected.abs().max()).item() < 5e-5


@pytest.mark.parametrize("version", ["5.2", "7"])
def test_padding_is_not_run_on_either_side(version: str, files: dict[str, Path]) -> None:
    blocks, ids = shortgpt.load(files[version]), tokens(rows=3, length=12)
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, :5] = 0, 0
    padded = [*testing.boundaries(blocks, {"input_ids": ids, "attention_mask": mask})]
    padded.append(blocks.logits({"input_ids": ids, "attention_mask": mask}))

    for row, real in enumerate(mask.bool()):
        alone = {"input_ids": ids[row][real][None]}
        for mine, theirs in zip([*testing.boundaries(blocks, alone), blocks.logits(alone)], padded, strict=True):
            assert torch.equal(mine[0], theirs[row][real])
            assert not theirs[row][~real].any()


@pytest.mark.parametrize("version", ["4", "5.2", "7"])
def test_a_single_token_is_a_sequence(version: str, files: dict[str, Path]) -> None:
    blocks, ids = shortgpt.load(files[version]), tokens(length=2)

    for row, logits in zip(ids, blocks.logits({"input_ids": ids[:, :1]}), strict=True):
        expected = by_formula(torch.load(files[version]), version, row[:1])[1]
        assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()  # group norm amplifies rounding here


@pytest.mark.parametrize("version", ["6", "7"])
def test_everything_is_seen_under_a_callers_inference_mode(version: str, files: dict[str, Path]) -> None:
    batch = {"input_ids": tokens()}
    expected = testing.boundaries(shortgpt.load(files[version]), batch)
    with torch.inference_mode():
        blocks = shortgpt.load(files[version])
        inside = testing.boundaries(blocks, batch)
        shortgpt.score(blocks, [batch])

    for found in (inside, testing.boundaries(blocks, batch)):
        assert len(found) == DEPTH + 1
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_halving_of_the_stream_is_undone(files: dict[str, Path], package: Any) -> None:
    batch = {"input_ids": tokens()}
    plain = shortgpt.load(files["6"])
    halved = shortgpt.wrap(package("6", RWKV_RESCALE_LAYER="2").RWKV(str(files["6"]), "cpu fp32", verbose=False))

    assert halved.model.RESCALE_LAYER == 2
    for mine, expected in zip(testing.boundaries(halved, batch), testing.boundaries(plain, batch), strict=True):
        assert (mine - expected).abs().max() <= 1e-3 * expected.abs().max()  # halved, a norm's epsilon weighs more
    shorter = halved.without([1, 2])  # the blocks behind them are halved once less: 3 → 1, 4 → 2, 5 → 3
    with halved.skipping([1, 2]):
        expected = halved.logits(batch)
    assert (shorter.logits(batch) - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_trained_initial_state_is_used(files: dict[str, Path], tmp_path: Path) -> None:
    raw, ids = torch.load(files["6"]), tokens(rows=1)
    raw |= {f"blocks.{i}.att.time_state": torch.randn(HEADS, SIZE, SIZE) for i in range(DEPTH)}
    torch.save(raw, tmp_path / "tuned.pth")
    tuned = shortgpt.load(tmp_path / "tuned.pth")

    logits = tuned.logits({"input_ids": ids})[0]
    assert torch.equal(logits, tuned.model.forward(ids[0].tolist(), None, full_output=True)[0])
    assert not torch.allclose(logits, shortgpt.load(files["6"]).logits({"input_ids": ids})[0], atol=1e-3)


def test_a_package_that_no_longer_works_this_way_is_reported(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = shortgpt.load(files["4"])
    monkeypatch.setattr(type(blocks.model), "forward", lambda self, tokens, state, full_output: (tokens, state))

    with pytest.raises(AdapterError, match="ran block 0 without its ffn"):
        blocks.trace({"input_ids": tokens()}, lambda boundary, hidden: None)


# -- several at once, and nothing left behind ---------------------------------------------------------------------


def test_versions_and_dtypes_share_one_process(files: dict[str, Path]) -> None:
    ids = tokens(rows=1)
    wanted = (("7", "bfloat16"), ("6", "float32"), ("7", "float32"), ("5.2", "bfloat16"), ("4", "float32"))
    opened = [(version, dtype, shortgpt.load(files[version], dtype=dtype)) for version, dtype in wanted]

    for version, dtype, blocks in opened:
        expected = by_formula(torch.load(files[version]), version, ids[0])[1]
        difference = (blocks.logits({"input_ids": ids})[0] - expected).abs().max() / expected.abs().max()
        assert difference < (1e-4 if dtype == "float32" else 0.1)
        stock = blocks.model.forward(ids[0].tolist(), None, full_output=True)[0].float()  # reads the module's globals
        assert torch.equal(blocks.logits({"input_ids": ids})[0], stock)
        assert testing.boundaries(blocks, {"input_ids": ids})[0].dtype == getattr(torch, dtype)


@pytest.mark.parametrize("setting", ["0", "1", None])
def test_the_file_tells_the_version_and_no_setting_does(
    setting: str | None,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fresh_package: None,
) -> None:
    for name in ("RWKV_V7_ON", "RWKV_JIT_ON", "RWKV_CUDA_ON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RWKV_RESCALE_LAYER", "2")  # for fp16, and only there
    if setting is not None:
        monkeypatch.setenv("RWKV_V7_ON", setting)
    before = dict(os.environ)
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32

    for version in ("5.2", "7"):
        blocks = shortgpt.load(files[version])
        blocks.logits({"input_ids": tokens()})
        assert blocks.config["version"] == version
        assert getattr(blocks.model, "RESCALE_LAYER", 0) == 0
    assert dict(os.environ) == before
    assert flags == (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
    )
    assert capfd.readouterr().out == ""


# -- wrapping the package's own objects -----------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`package(version, **settings)`: `rwkv.model`, imported as a user imports it. Forgotten after the test."""

    def imported(version: str, **settings: str) -> Any:
        settings = {"RWKV_V7_ON": str(int(version == "7")), "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"} | settings
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        sys.modules.pop("rwkv.model", None)
        monkeypatch.setattr(gc, "collect", lambda: 0)  # which it does after every block
        with rwkv_package_runtime._backend_flags():
            return importlib.import_module("rwkv.model")

    yield imported
    sys.modules.pop("rwkv.model", None)


@pytest.mark.parametrize(("version", "jit"), [("5.2", "0"), ("5.2", "1"), ("7", "1")])
def test_a_model_of_the_package_can_be_wrapped(
    version: str, jit: str, files: dict[str, Path], package: Any, tmp_path: Path
) -> None:
    batch = {"input_ids": tokens()}
    model = package(version, RWKV_JIT_ON=jit).RWKV(str(files[version].with_suffix("")), "cpu fp32")
    blocks, loaded = shortgpt.wrap(model, name="mine"), shortgpt.load(files[version])

    assert (blocks.name, blocks.architecture, blocks.config) == ("mine", "rwkv-package", loaded.config)
    assert torch.allclose(blocks.logits(batch), loaded.logits(batch), rtol=0, atol=1e-5)
    assert blocks.parameter_counts() == loaded.parameter_counts()
    shorter = blocks.without([2, 4]).without([1])
    with blocks.skipping([1, 2, 4]):
        assert torch.equal(shorter.logits(batch), blocks.logits(batch))
    shorter.save(tmp_path / "out")  # from the file that the object remembers
    saved = shortgpt.load(tmp_path / "out" / files[version].name)
    assert torch.allclose(saved.logits(batch), shorter.logits(batch), rtol=0, atol=1e-5)


def test_eight_bit_weights_are_scored_and_shortened(files: dict[str, Path], package: Any) -> None:
    batch = {"input_ids": tokens()}
    model = package("4", RWKV_RESCALE_LAYER="2").RWKV(str(files["4"]), "cpu fp32i8", verbose=False)
    blocks = shortgpt.wrap(model)

    shorter = blocks.without([0, 1])
    with blocks.skipping([0, 1]):
        expected = blocks.logits(batch)
    assert (shorter.logits(batch) - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert (testing.boundaries(blocks, batch)[-1] - testing.boundaries(shorter, batch)[-1]).abs().max() > 0.1


def test_a_model_whose_file_is_gone_is_scored_but_not_saved(files: dict[str, Path], tmp_path: Path) -> None:
    torch.save(torch.load(files["4"]), tmp_path / "gone.pth")
    model = shortgpt.load(tmp_path / "gone.pth").model
    (tmp_path / "gone.pth").unlink()
    blocks = shortgpt.wrap(model)

    assert len(shortgpt.score(blocks, [{"input_ids": tokens()}]).values) == DEPTH
    with pytest.raises(ModelError, match="the file that it was loaded from is gone"):
        blocks.without([1]).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- removal --------------------------------------------------------------------------------------------------------


def test_what_is_saved_are_the_files_own_tensors_renumbered(files: dict[str, Path], tmp_path: Path) -> None:
    raw = {name: tensor.bfloat16() for name, tensor in torch.load(files["6"]).items()}
    torch.save(raw, tmp_path / "half.pth")
    blocks = shortgpt.load(tmp_path / "half.pth", dtype="float32").without([0, 3])
    blocks.save(tmp_path / "memory")
    shortgpt.prune_checkpoint(tmp_path / "half.pth", tmp_path / "disk", [0, 3], verify=False)

    expected = {name: tensor for name, tensor in raw.items() if not name.startswith("blocks.")}
    expected |= {name: tensor for name, tensor in raw.items() if ".ln0." in name}
    for new, old in enumerate((1, 2, 4, 5)):
        expected |= {n.replace(f".{old}.", f".{new}.", 1): t for n, t in raw.items() if n.startswith(f"blocks.{old}.")}
    for folder in (tmp_path / "memory", tmp_path / "disk"):
        written = torch.load(folder / "half.pth")
        assert written.keys() == expected.keys()
        assert all(t.dtype == torch.bfloat16 and torch.equal(t, expected[name]) for name, t in written.items())
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"half.pth", "README.md", "shortgpt.json"}
    assert blocks.total_parameters() == sum(tensor.numel() for tensor in expected.values())
    plan = json.loads((tmp_path / "disk" / "shortgpt.json").read_text())
    assert plan["parameters_after"] == blocks.total_parameters()


def test_removed_weights_are_not_saved_where_a_files_tensors_are_views_of_one_storage(tmp_path: Path) -> None:
    raw = tensors_of("4")
    flat = torch.cat([tensor.flatten() for tensor in raw.values()])
    parts = flat.split([tensor.numel() for tensor in raw.values()])
    torch.save({name: part.view(raw[name].shape) for name, part in zip(raw, parts, strict=True)}, tmp_path / "x.pth")
    shortgpt.load(tmp_path / "x.pth", device="cpu").without([1]).save(tmp_path / "out")
    gone = raw["blocks.1.ffn.key.weight"].numpy().tobytes()
    assert gone in (tmp_path / "x.pth").read_bytes()
    assert gone not in (tmp_path / "out" / "x.pth").read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_one_block_alone_is_loaded_by_the_package(version: str, files: dict[str, Path], tmp_path: Path) -> None:
    ids, gone = tokens(), tuple(range(1, DEPTH))
    shortgpt.prune_checkpoint(files[version], tmp_path / "one", gone, verify=False)
    reloaded = rwkv_package.reload(tmp_path / "one", device="cpu", dtype="float32")

    with (blocks := shortgpt.load(files[version])).skipping(gone):
        assert torch.equal(reloaded.logits(ids), blocks.logits({"input_ids": ids}))


def test_a_removal_on_disk_is_verified_exactly(files: dict[str, Path], tmp_path: Path) -> None:
    plan = shortgpt.prune_checkpoint(files["7"], tmp_path / "out", [2, 5], dtype="bfloat16")

    assert plan.verification is not None
    assert (plan.verification.verified, plan.verification.max_difference) == (True, 0.0)
    assert plan.verification.dtype == "bfloat16"


@pytest.mark.parametrize("version", ["5.2", "7"])
def test_a_shorter_model_shares_its_tensors_and_is_the_packages_own(version: str, files: dict[str, Path]) -> None:
    blocks, ids = shortgpt.load(files[version]), tokens(rows=1)
    shorter = blocks.without([1, 4])

    mine, theirs = (rwkv_package_runtime.weights_of(b.model) for b in (blocks, shorter))
    places = {tensor.data_ptr() for tensor in mine.values()}
    assert all(tensor.data_ptr() in places for tensor in theirs.values())
    assert isinstance(shorter.model, type(blocks.model))
    logits = shorter.model.forward(ids[0].tolist(), None, full_output=True)[0]
    assert torch.equal(shorter.logits({"input_ids": ids})[0], logits)


def test_block_0_of_rwkv_7_is_pinned_and_of_others_is_not(files: dict[str, Path], tmp_path: Path) -> None:
    for attempt in (
        lambda: shortgpt.load(files["7"]).without([0]),
        lambda: shortgpt.prune_checkpoint(files["7"], tmp_path / "out", [0]),
    ):
        with pytest.raises(SelectionError, match="block 0: its values are mixed into those of every other block"):
            attempt()
    assert list(shortgpt.load(files["7"]).pinned) == [0]
    assert not shortgpt.load(files["6"]).pinned


def test_the_card_says_how_the_package_loads_it(files: dict[str, Path], tmp_path: Path) -> None:
    shorter = shortgpt.remove(shortgpt.load(files["7"]), [3])
    shorter.save(tmp_path / "out")
    lines = shorter.load_example.replace("DIR", str(tmp_path / "out"))

    assert shorter.load_example in (tmp_path / "out" / "README.md").read_text()
    ran = run_python("-c", f"{lines}\nprint(model.n_layer)")
    assert ran.stdout.split()[-1] == str(DEPTH - 1), ran.stderr


# -- trained models -------------------------------------------------------------------------------------------------


@pytest.mark.sampled("rwkv-7v0-834K")
@pytest.mark.parametrize("name", ["rwkv-5v2-730K", "rwkv-7v0-834K"])
def test_trained_models_have_the_known_scores_and_perplexities(name: str, real: Path, tmp_path: Path) -> None:
    file, truth = real / name / f"{name}.pth", json.loads((real / name / "bi_truth.json").read_text())
    run = truth["runs"]["wikitext2_valid"]
    ids, blocks = torch.tensor(run["token_ids"]), shortgpt.load(file)

    scores = shortgpt.score(blocks, [{"input_ids": ids}])
    assert scores.values == pytest.approx(run["bi"], abs=2e-5)
    assert scores.least_influential(3) == tuple(sorted(run["lowest_bi"]))
    assert perplexity_of(blocks, ids) == pytest.approx(run["ppl_full"], rel=1e-4)
    for block in (1, 11):
        expected = pytest.approx(run["ppl_without_block"][block], rel=1e-4)
        with blocks.skipping([block]):
            assert perplexity_of(blocks, ids) == expected
    assert perplexity_of(blocks.without([11]), ids) == expected
    shortgpt.prune_checkpoint(file, tmp_path / "out", [11], verify=False)
    assert perplexity_of(shortgpt.load(tmp_path / "out" / file.name), ids) == expected


# -- tokenizers -----------------------------------------------------------------------------------------------------


def saved(folder: Path, version: str = "4", **changes: int) -> Path:
    file = folder / "model.pth"
    torch.save(tensors_of(version, **changes), file)
    return file


def test_a_vocabulary_of_256_is_bytes(tmp_path: Path) -> None:
    tokenizer = shortgpt.load(saved(tmp_path, depth=2, vocabulary=256)).tokenizer

    assert tokenizer("aé\n")["input_ids"] == [97, 195, 169, 10]
    assert tokenizer("aé\n", truncation=True, max_length=2) == {"input_ids": [97, 195]}
    assert tokenizer.decode([97, 195, 169, 10]) == "aé\n"
    assert tokenizer.decode([97, 195]) == "a\ufffd"


def test_a_vocabulary_of_65536_is_the_packages_world(tmp_path: Path) -> None:
    tokenizer = shortgpt.load(saved(tmp_path, depth=2, vocabulary=65536)).tokenizer

    assert tokenizer("Hello world")["input_ids"] == [33155, 40213]
    assert tokenizer("Hello world", truncation=True, max_length=1)["input_ids"] == [33155]
    assert tokenizer.decode([33155, 0, 65535, 40213]) == "Hello world"  # 0 ends a text, 65535 is no word


def test_a_vocabulary_of_50277_needs_its_file_and_takes_it_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    (tmp_path / "in").mkdir()
    file = saved(tmp_path / "in", depth=4, vocabulary=50277)
    assert shortgpt.load(file).tokenizer is None

    words = Tokenizer(models.WordLevel({"a": 3, "b": 5, "?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(file.with_name("20B_tokenizer.json")))
    assert shortgpt.load(file).tokenizer("b a a", truncation=True, max_length=2)["input_ids"] == [5, 3]
    assert shortgpt.load(file).tokenizer.decode([5, 3]) == "b a"
    shortgpt.prune_checkpoint(file, tmp_path / "out", [1], verify=False)
    assert shortgpt.load(tmp_path / "out" / "model.pth").tokenizer("b")["input_ids"] == [5]


# -- what cannot be used, each in one message -------------------------------------------------------------------------


def without(raw: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in raw.items() if pattern not in name}


def mixed() -> dict[str, Tensor]:
    other = {name: tensor for name, tensor in tensors_of("6").items() if name.startswith("blocks.4.")}
    return without(tensors_of("4"), "blocks.4.") | other


FAULTY: dict[str, tuple[Any, type[Exception], str]] = {
    "no RWKV": ({"layer.weight": torch.ones(2)}, ModelError, "no RWKV model: .*layer.weight"),
    "no mapping of tensors": ({"model": {"emb.weight": torch.ones(2)}}, CheckpointError, "no plain mapping"),
    "a list": ([torch.ones(2)], CheckpointError, "no plain mapping"),
    "converted": (tensors_of("4") | {"_strategy": "cpu fp32"}, CheckpointError, "converted it for .*'cpu fp32'"),
    "mixed": (mixed(), CheckpointError, r"mixes versions \(RWKV 4: blocks 0-3, 5; RWKV 6: blocks 4\)"),
    "a block missing": (without(tensors_of("6"), "blocks.2."), CheckpointError, "block 2 of 6 is missing"),
    "a tensor missing": (
        without(tensors_of("7"), "blocks.3.att.w2"),
        CheckpointError,
        r"blocks\.3\.att\.w2 of RWKV 7 is missing",
    ),
    "no head": (without(tensors_of("5.2"), "head"), CheckpointError, r"head\.weight is missing"),
    "no ln0": (without(tensors_of("5.2"), ".ln0.bias"), CheckpointError, r"blocks\.0\.ln0\.bias is missing"),
    "more than is run": (
        tensors_of("7") | {"blocks.0.ffn.s_emb.weight": torch.ones(2)},
        CheckpointError,
        r"holds blocks\.0\.ffn\.s_emb\.weight, which the rwkv package's RWKV 7 does not read",
    ),
    "a wrong shape": (tensors_of("7") | {"emb.weight": torch.ones(4, 5)}, CheckpointError, "package cannot load it"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_file_is_refused_in_one_message(fault: str, tmp_path: Path) -> None:
    content, error, message = FAULTY[fault]
    torch.save(content, tmp_path / "faulty.pth")

    with pytest.raises(error, match=message) as raised:
        shortgpt.load(tmp_path / "faulty.pth")
    assert "faulty.pth" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(error, match=message):
        shortgpt.prune_checkpoint(tmp_path / "faulty.pth", tmp_path / "out", [1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_a_truncated_file_is_refused_in_one_message(length: int, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(files["5.2"].read_bytes()[:length])

    for attempt in (
        lambda: shortgpt.load(tmp_path / "cut.pth"),
        lambda: shortgpt.prune_checkpoint(tmp_path / "cut.pth", tmp_path / "out", [1]),
    ):
        with pytest.raises(CheckpointError, match=r"cut\.pth: cannot be read as a torch checkpoint: it is truncated"):
            attempt()


def test_a_missing_package_is_named_with_its_extra(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, fresh_package: None
) -> None:
    monkeypatch.setitem(sys.modules, "rwkv", None)

    with pytest.raises(ModelError, match=r"pip install 'shortgpt-blocks\[rwkv\]'"):
        shortgpt.load(files["4"])


def test_float16_on_the_cpu_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="does not run float16 on the CPU; take float32 or bfloat16"):
        shortgpt.load(files["4"], dtype="float16", device="cpu")


def test_a_folder_means_its_only_file(files: dict[str, Path], tmp_path: Path) -> None:
    shortgpt.prune_checkpoint(files["4"], tmp_path / "out", [2], verify=False)
    assert len(shortgpt.load(tmp_path / "out", architecture="rwkv-package")) == DEPTH - 1

    (tmp_path / "out" / "second.pth").write_bytes(files["5.0"].read_bytes())
    with pytest.raises(ModelError, match=r"holds 2 checkpoint files \(rwkv-4\.pth, second\.pth\); name the one"):
        shortgpt.load(tmp_path / "out")
