"""mamba-ssm's models: the pair between blocks, the library's folder format, and transformers where it does not run."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig

import shortgpt
from shortgpt.errors import CheckpointError, ModelError
from shortgpt.testing import boundaries, check_adapter
from tests.mamba_ssm_on_cpu import mamba_ssm_missing, mamba_ssm_on_cpu
from tests.support import GROUPS, byte_tokenizer, ids_of

MAMBA2 = {"layer": "Mamba2", "headdim": 8, "d_state": 8, "ngroups": GROUPS, "chunk_size": 16, "use_mem_eff_path": False}
ATTENTION = {"num_heads": 4, "num_heads_kv": 2, "head_dim": 8, "rotary_emb_dim": 4, "d_conv": 4, "causal": True}
KINDS: dict[str, dict[str, Any]] = {
    "mamba 1": {},
    "mamba 1, unfused, LayerNorm": {"fused_add_norm": False, "rms_norm": False, "residual_in_fp32": False},
    "mamba 2": {"ssm_cfg": MAMBA2, "tie_embeddings": False},
    "hybrid": {"ssm_cfg": MAMBA2, "attn_layer_idx": [1, 3], "attn_cfg": ATTENTION, "d_intermediate": 24},
}
"""`use_mem_eff_path` would ask for causal-conv1d."""


@pytest.fixture
def library() -> Iterator[None]:
    """mamba_ssm can be imported, and runs on the CPU."""
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")
    with mamba_ssm_on_cpu():
        yield


def native(kind: str = "mamba 1", dtype: torch.dtype | None = None, device: str = "cpu", **config: Any) -> Any:
    """A small MambaLMHeadModel, of random weights that make every block turn the stream visibly."""
    from mamba_ssm.models.config_mamba import MambaConfig as Config
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    torch.manual_seed(0)
    settings = {"d_model": 16, "n_layer": 5, "vocab_size": 257} | KINDS[kind] | config
    model = MambaLMHeadModel(Config(**settings), dtype=dtype, device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def folder_of(layer: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder in mamba-ssm's format, made of a model of transformers by hand: the library is not asked for."""
    torch.manual_seed(0)
    common = {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 5, "expand": 2, "conv_kernel": 4}
    if layer == "Mamba2":
        described: Any = Mamba2Config(**common, state_size=8, num_heads=4, head_dim=8, n_groups=GROUPS, chunk_size=16)
        options: dict[str, Any] = MAMBA2
    else:
        described, options = MambaConfig(**common, state_size=16), {}
    model = AutoModelForCausalLM.from_config(described)
    tensors = {
        name.replace("embeddings", "embedding"): (tensor + 0.1 * torch.randn_like(tensor)).to(dtype)
        for name, tensor in model.state_dict().items()
    }
    if layer == "Mamba1":
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    config = {"d_model": 16, "n_layer": 5, "vocab_size": 257, "ssm_cfg": options, "tie_embeddings": layer == "Mamba1"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def edited(folder: Path, **config: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def block_by_block(blocks: Any, batch: Any) -> list[Tensor]:
    """The stream by calling the library's blocks one after another."""
    model = blocks.model
    hidden, residual = model.backbone.embedding(batch["input_ids"]), None
    stream = [hidden]
    with torch.no_grad():
        for block in model.backbone.layers:
            hidden, residual = block(hidden, residual)
            stream.append(hidden + residual)
    return stream


def by_hand(model: Any, ids: Tensor) -> list[Tensor]:
    """The stream of Mamba 1 with plain attention, in float64, from the papers' equations."""
    t = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def mamba(at: str, x: Tensor) -> Tensor:
        x, gate = (x @ t[f"{at}.in_proj.weight"].T).chunk(2, dim=-1)
        kernel = t[f"{at}.conv1d.weight"][:, 0]  # [channels, 4], the last for the token itself
        behind = F.pad(x, (0, 0, 3, 0))
        x = F.silu(sum(behind[:, k : k + x.shape[1]] * kernel[:, k] for k in range(4)) + t[f"{at}.conv1d.bias"])
        low, b, c = (x @ t[f"{at}.x_proj.weight"].T).split([1, 16, 16], dim=-1)
        step = F.softplus(low @ t[f"{at}.dt_proj.weight"].T + t[f"{at}.dt_proj.bias"])
        decay = -t[f"{at}.A_log"].exp()
        state, out = torch.zeros(len(x), *decay.shape, dtype=torch.float64), []
        for i in range(x.shape[1]):
            now = step[:, i, :, None]
            state = (now * decay).exp() * state + now * b[:, i, None] * x[:, i, :, None]
            out.append((state * c[:, i, None]).sum(-1) + t[f"{at}.D"] * x[:, i])
        return (torch.stack(out, dim=1) * F.silu(gate)) @ t[f"{at}.out_proj.weight"].T

    def attention(at: str, x: Tensor) -> Tensor:
        q, k, v = (x @ t[f"{at}.in_proj.weight"].T + t[f"{at}.in_proj.bias"]).unflatten(-1, (3, 2, 8)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        ahead = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(ahead, -torch.inf).softmax(-1), v)
        return mixed.flatten(2) @ t[f"{at}.out_proj.weight"].T + t[f"{at}.out_proj.bias"]

    stream = [t["backbone.embedding.weight"][ids]]
    for i in range(model.config.n_layer):
        x, at = stream[-1], f"backbone.layers.{i}"
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * t[f"{at}.norm.weight"]
        mixer = attention if i in model.config.attn_layer_idx else mamba
        stream.append(x + mixer(f"{at}.mixer", normed))
    return stream


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Relative to the largest value of b."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


# -- the library ----------------------------------------------------------------------------------------------


@pytest.mark.sampled("mamba 1", "hybrid")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("library")
def test_the_contract_holds(kind: str, tmp_path: Path) -> None:
    assert check_adapter(lambda: shortgpt.wrap(native(kind)), tmp_path, reference=block_by_block)


@pytest.mark.parametrize("attention", [[], [0, 3]])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.usefixtures("library")
def test_the_stream_is_the_one_computed_by_hand(attention: list[int], fused: bool) -> None:
    plain = {"num_heads": 2, "causal": True}
    model = native(attn_layer_idx=attention, attn_cfg=plain, fused_add_norm=fused)
    ids = ids_of(2, 12)
    mine = boundaries(shortgpt.wrap(model), {"input_ids": ids})
    theirs = by_hand(model, ids)
    assert len(mine) == len(theirs) == 6
    for boundary, expected in zip(mine, theirs, strict=True):
        assert largest_difference(boundary, expected) < 2e-6


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.usefixtures("library")
def test_blocks_are_left_out_and_boundaries_read_out_as_by_hand(fused: bool) -> None:
    model = native(fused_add_norm=fused)
    blocks, batch = shortgpt.wrap(model), {"input_ids": ids_of(2, 12)}
    scores = shortgpt.score(blocks, [batch], criteria=["perplexity", "kl-divergence"])
    assert scores.refused == {}
    for block, value in enumerate(scores.values):
        with blocks.skipping((block,)):
            logits = blocks.logits(batch).double()[:, :-1]
        expected = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten()).item()
        assert value == pytest.approx(expected, rel=1e-6)
    head = model.backbone.norm_f.weight.double(), model.lm_head.weight.double()

    def prediction(x: Tensor) -> Tensor:
        normed = x / (x.square().mean(-1, keepdim=True) + model.backbone.norm_f.eps).sqrt()
        return (normed * head[0] @ head[1].T).log_softmax(-1)

    with torch.no_grad():
        read = [prediction(x) for x in by_hand(model, batch["input_ids"])]
    divergences = [(q.exp() * (q - p)).sum(-1).mean().item() for p, q in pairwise(read)]
    assert scores.of("kl-divergence").values == pytest.approx(divergences, rel=1e-4)


@pytest.mark.parametrize("config", [{}, {"fused_add_norm": False}, {"residual_in_fp32": False}])
@pytest.mark.usefixtures("library")
def test_removal_equals_skipping_bit_by_bit_in_half_precision(config: dict[str, Any]) -> None:
    blocks = shortgpt.wrap(native("hybrid", torch.bfloat16, **config))
    batch = {"input_ids": ids_of()}
    for gone in ((0,), (0, 1), (2, 4), (1, 2, 3)):
        with blocks.skipping(gone):
            expected = blocks.logits(batch)
        assert torch.equal(blocks.without(gone).logits(batch), expected)


@pytest.mark.usefixtures("library")
def test_a_shorter_model_is_numbered_anew_throughout() -> None:
    shorter: Any = shortgpt.wrap(native("hybrid")).without((0, 2))
    layers = shorter.model.backbone.layers
    assert (shorter.model.config.n_layer, shorter.model.config.attn_layer_idx) == (3, [0, 1])
    assert [type(block.mixer).__name__ for block in layers] == ["MHA", "MHA", "Mamba2"]
    assert [block.layer_idx for block in layers] == [block.mixer.layer_idx for block in layers] == [0, 1, 2]


@pytest.mark.usefixtures("library")
def test_a_shorter_model_shares_its_tensors_and_has_the_buffers_that_no_checkpoint_holds() -> None:
    original = native("hybrid")
    shorter: Any = shortgpt.wrap(original).without((0, 2))
    mine, theirs = shorter.model.backbone.layers[1].mixer, original.backbone.layers[3].mixer
    assert mine.in_proj.weight.data_ptr() == theirs.in_proj.weight.data_ptr()
    assert mine.rotary_emb.inv_freq is theirs.rotary_emb.inv_freq
    assert shorter.model.lm_head.weight is shorter.model.backbone.embedding.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("library")
def test_what_is_saved_is_what_the_library_itself_would_save(kind: str, tmp_path: Path) -> None:
    from mamba_ssm import MambaLMHeadModel

    blocks: Any = shortgpt.wrap(native(kind)).without((2,))
    blocks.save(tmp_path / "mine")
    blocks.model.save_pretrained(tmp_path / "theirs")
    names = sorted(file.name for file in (tmp_path / "theirs").iterdir())
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == names == ["config.json", "pytorch_model.bin"]
    mine, theirs = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("mine", "theirs"))
    assert mine == theirs
    mine, theirs = (torch.load(tmp_path / side / "pytorch_model.bin") for side in ("mine", "theirs"))
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    ids = ids_of()
    with torch.no_grad():
        reloaded = MambaLMHeadModel.from_pretrained(str(tmp_path / "mine")).eval()(ids).logits
    assert torch.equal(reloaded, blocks.logits({"input_ids": ids}))


@pytest.mark.parametrize("kind", ["mamba 1", "mamba 2"])
@pytest.mark.usefixtures("library")
def test_generation_is_the_librarys_own(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_ssm import MambaLMHeadModel
    from shortgpt_adapters.mamba_ssm.loader import reload

    shortgpt.wrap(native(kind)).without((1, 2)).save(tmp_path / "out")
    ids = ids_of(1, 9)
    monkeypatch.setattr(torch.cuda, "Event", MagicMock())  # made by the library's loop even where it is not used
    model = MambaLMHeadModel.from_pretrained(str(tmp_path / "out")).eval()
    theirs = model.generate(ids, max_length=9 + 8, output_scores=True, return_dict_in_generate=True)
    expected = torch.cat(theirs.scores)
    reloaded = reload(tmp_path / "out", device="cpu", dtype="auto")
    with torch.no_grad():
        assert largest_difference(reloaded.generate(ids, 8, cached=True), expected) < 1e-6
        assert largest_difference(reloaded.generate(ids, 8, cached=False), expected) < 1e-4


@pytest.mark.parametrize("tokens", [3, 12])  # fewer than the convolution reaches back, and more
@pytest.mark.usefixtures("library")
def test_cached_attention_equals_uncached(tokens: int, tmp_path: Path) -> None:
    from shortgpt_adapters.mamba_ssm.loader import reload

    shortgpt.wrap(native("hybrid")).without((1,)).save(tmp_path / "out")
    reloaded = reload(tmp_path / "out", device="cpu", dtype="auto")
    ids = ids_of(1, tokens)
    with torch.no_grad():
        cached, uncached = (reloaded.generate(ids, 8, cached=cached) for cached in (True, False))
    assert largest_difference(cached, uncached) < 1e-5


@pytest.mark.parametrize(
    ("kind", "dtype", "compared"),
    [("hybrid", "float32", False), ("hybrid", "bfloat16", True), ("mamba 1", "float32", True)],
)
@pytest.mark.usefixtures("library")
def test_generation_is_not_compared_where_flash_attn_would_refuse_the_dtype(
    kind: str, dtype: str, compared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mamba_ssm.modules import mha
    from shortgpt_adapters.mamba_ssm.loader import reload

    shortgpt.wrap(native(kind)).save(tmp_path / "out")
    monkeypatch.setattr(mha, "flash_attn_with_kvcache", print)
    reason = reload(tmp_path / "out", device="cpu", dtype=dtype).cannot_generate
    assert reason is None if compared else reason is not None and "takes no float32" in reason


@pytest.mark.usefixtures("library")
def test_pruning_on_disk_is_verified_in_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shortgpt_adapters.mamba_ssm.family import MambaSsm

    monkeypatch.setattr(MambaSsm, "loader", "tests.mamba_ssm_on_cpu:reload")
    native("hybrid").save_pretrained(tmp_path / "in")
    plan = shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [0, 2], device="cpu")
    assert plan.verification is not None
    assert (plan.verification.verified, plan.verification.max_difference) == (True, 0.0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["n_layer"], config["attn_layer_idx"]) == (3, [0, 1])


@pytest.mark.usefixtures("library")
def test_padding_for_attention_that_looks_ahead_is_refused() -> None:
    blocks = shortgpt.wrap(native("hybrid", attn_cfg=ATTENTION | {"causal": False}))
    batch = {"input_ids": ids_of(), "attention_mask": torch.ones(2, 24, dtype=torch.long)}
    blocks.logits(batch)
    batch["attention_mask"][1, 20:] = 0
    with pytest.raises(ModelError, match=r"looks ahead .* sequences of one length"):
        blocks.logits(batch)


@pytest.mark.usefixtures("library")
def test_a_part_of_a_model_is_no_model() -> None:
    with pytest.raises(ModelError, match=r"a MixerModel is no language model; .* MambaLMHeadModel is"):
        shortgpt.wrap(native().backbone)


def test_the_library_on_the_cpu_is_gone_after_a_test() -> None:
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")

    def there() -> dict[str, Any]:
        packages = ("mamba_ssm", "triton", "selective_scan_cuda")
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}

    before = there()
    with mamba_ssm_on_cpu():
        inside = there()
        from mamba_ssm.modules.block import Block

        assert sys.modules["mamba_ssm.modules.block"].Block is Block
    assert inside
    assert not set(inside.values()) & set(there().values())
    assert there() == before


# -- transformers in its place --------------------------------------------------------------------------------


@pytest.mark.sampled("Mamba2")
@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_the_contract_holds_through_transformers(layer: str, tmp_path: Path) -> None:
    folder = folder_of(layer, tmp_path / "in")
    (tmp_path / "checks").mkdir()
    assert check_adapter(lambda: shortgpt.load(folder, device="cpu"), tmp_path / "checks")


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("mamba 1", {}),
        ("mamba 1", {"residual_in_fp32": False, "tie_embeddings": False, "pad_vocab_size_multiple": 16}),
        (
            "mamba 1",
            {"ssm_cfg": {"d_state": 4, "d_conv": 3, "expand": 3, "dt_rank": 5, "conv_bias": False, "bias": True}},
        ),
        ("mamba 2", {}),
        ("mamba 2", {"ssm_cfg": MAMBA2 | {"expand": 3, "d_conv": 3, "conv_bias": False, "bias": True}}),
        ("mamba 2", {"ssm_cfg": MAMBA2 | {"dt_limit": [0.5, 0.7]}}),
        ("mamba 2", {"ssm_cfg": {"layer": "Mamba2", "use_mem_eff_path": False}, "d_model": 64}),
    ],
)
@pytest.mark.usefixtures("library")
def test_transformers_computes_the_same(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    model, batch = native(kind, **config), {"input_ids": ids_of()}
    model.save_pretrained(tmp_path / "in")
    with mamba_ssm_missing():
        outside: Any = shortgpt.load(tmp_path / "in", device="cpu")
    assert type(outside.model).__name__ in ("MambaForCausalLM", "Mamba2ForCausalLM")
    assert outside.model.config.residual_in_fp32 == model.config.residual_in_fp32  # the same in float32
    inside = shortgpt.wrap(model)
    assert largest_difference(outside.logits(batch), inside.logits(batch)) < 2e-6
    for mine, theirs in zip(boundaries(outside, batch), boundaries(inside, batch), strict=True):
        assert largest_difference(mine, theirs) < 2e-6


@pytest.mark.usefixtures("library")
def test_what_is_saved_through_transformers_is_the_librarys_format(tmp_path: Path) -> None:
    from mamba_ssm import MambaLMHeadModel

    with mamba_ssm_missing():
        shorter = shortgpt.load(folder_of("Mamba1", tmp_path / "in"), device="cpu").without((0, 3))
        shorter.save(tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "pytorch_model.bin"]
    model = MambaLMHeadModel.from_pretrained(str(tmp_path / "out")).eval()
    assert (len(model.backbone.layers), model.config.vocab_size) == (3, 257)
    ids = ids_of()
    with torch.no_grad():
        assert largest_difference(model(ids).logits, shorter.logits({"input_ids": ids})) < 1e-5


def test_pruning_on_disk_is_verified_through_transformers(tmp_path: Path) -> None:
    folder = folder_of("Mamba2", tmp_path / "in")
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "out", [1, 3], device="cpu")
    assert plan.verification is not None
    assert (plan.verification.verified, plan.verification.max_difference) == (True, 0.0)
    before, after = (torch.load(side / "pytorch_model.bin") for side in (folder, tmp_path / "out"))
    assert torch.equal(after["backbone.layers.2.mixer.A_log"], before["backbone.layers.4.mixer.A_log"])
    assert "model_type" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_library_whose_kernels_are_missing_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("Mamba1", tmp_path / "in")
    (tmp_path / "site" / "mamba_ssm").mkdir(parents=True)
    (tmp_path / "site" / "mamba_ssm" / "__init__.py").write_text("raise OSError('selective_scan_cuda.so: no symbol')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    assert type(shortgpt.load(folder, device="cpu").model).__name__ == "MambaForCausalLM"
    edited(folder, rms_norm=False)
    with pytest.raises(
        ModelError, match=r"selective_scan_cuda.so: no symbol\), and transformers' Mamba has no LayerNorm"
    ):
        shortgpt.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rms_norm": False}, "no LayerNorm (rms_norm=False)"),
        ({"d_intermediate": 64}, "no MLP (d_intermediate=64)"),
        ({"attn_layer_idx": [1], "attn_cfg": {"num_heads": 2}}, "no attention blocks (attn_layer_idx=[1])"),
        ({"ssm_cfg": MAMBA2 | {"D_has_hdim": True}}, "no ssm_cfg D_has_hdim=True"),
        ({"ssm_cfg": MAMBA2 | {"rmsnorm": False}}, "no ssm_cfg rmsnorm=False"),
        ({"ssm_cfg": MAMBA2 | {"norm_before_gate": True}}, "no ssm_cfg norm_before_gate=True"),
        ({"ssm_cfg": MAMBA2 | {"d_ssm": 16}}, "no ssm_cfg d_ssm=16"),
        ({"ssm_cfg": {"expand": 1.5}}, "no ssm_cfg expand=1.5"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "no ssm_cfg layer='Mamba3'"),
        ({"ssm_cfg": {"headdim": 8}}, "no ssm_cfg headdim=8"),
        ({"rms_norm": False, "d_intermediate": 64}, "no MLP (d_intermediate=64), no LayerNorm (rms_norm=False)"),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_name(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = edited(folder_of("Mamba1", tmp_path / "in"), **config)
    with mamba_ssm_missing(), pytest.raises(ModelError) as caught:
        shortgpt.load(folder, device="cpu")
    assert named in str(caught.value)
    assert "pip install 'shortgpt-blocks[mamba]'" in str(caught.value)
    shortgpt.prune_checkpoint(folder, tmp_path / "out", [2], verify=False)  # takes no running


def test_kernels_that_refuse_the_cpu_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mamba import modeling_mamba

    def on_cuda_only(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("Expected u.is_cuda() to be true")

    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", on_cuda_only)
    folder = folder_of("Mamba1", tmp_path / "in")
    with pytest.raises(ModelError, match=r"does not run on cpu .* fails there too \(RuntimeError: Expected u.is_cuda"):
        shortgpt.load(folder, device="cpu")


def test_a_model_of_transformers_is_not_taken_for_the_librarys() -> None:
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(ModelError, match="a MambaForCausalLM is a model of transformers"):
        shortgpt.wrap(model, architecture="mamba-ssm")


# -- folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", [True, False])
def test_auto_is_the_dtype_of_the_stored_tensors(here: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = folder_of("Mamba1", tmp_path / "in", torch.bfloat16)
    if here:
        request.getfixturevalue("library")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        blocks: Any = shortgpt.load(folder, device="cpu", dtype=dtype)
        assert blocks.model.backbone.layers[0].mixer.in_proj.weight.dtype == expected
        assert torch.isfinite(blocks.logits({"input_ids": ids_of(1, 5)})).all()


def test_a_tokenizer_is_taken_where_there_is_one_and_comes_along(tmp_path: Path) -> None:
    folder = folder_of("Mamba1", tmp_path / "in")
    assert shortgpt.load(folder, device="cpu").tokenizer is None
    byte_tokenizer().save_pretrained(folder)
    blocks = shortgpt.load(folder, device="cpu")
    assert blocks.tokenizer("abc")["input_ids"] == [97, 98, 99]
    blocks.without((1,)).save(tmp_path / "memory")
    shortgpt.prune_checkpoint(folder, tmp_path / "disk", [1], verify=False)
    for out in (tmp_path / "memory", tmp_path / "disk"):
        assert shortgpt.load(out, device="cpu").tokenizer("abc")["input_ids"] == [97, 98, 99]


def without_tensor(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = torch.load(folder / "pytorch_model.bin")
        torch.save({key: value for key, value in tensors.items() if key != name}, folder / "pytorch_model.bin")

    return damage


def truncated(folder: Path) -> None:
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], Any], type[ModelError], str]] = {
    "weights only": (lambda folder: (folder / "config.json").unlink(), ModelError, "holds no config.json"),
    "config only": (lambda folder: (folder / "pytorch_model.bin").unlink(), CheckpointError, "holds no weights"),
    "truncated": (truncated, CheckpointError, "cannot be read as a torch checkpoint"),
    "a block's tensor is missing": (
        without_tensor("backbone.layers.3.mixer.A_log"),
        CheckpointError,
        r"lacks 1 tensors \(backbone.layers.3.mixer.A_log",
    ),
    "the norm is missing": (
        without_tensor("backbone.norm_f.weight"),
        CheckpointError,
        "lacks .*backbone.norm_f.weight",
    ),
    "too few blocks": (
        lambda folder: edited(folder, n_layer=6),
        CheckpointError,
        "counts 6 blocks, but backbone.layers.5 has no tensors",
    ),
    "too many blocks": (
        lambda folder: edited(folder, n_layer=4),
        CheckpointError,
        "counts 4 blocks, but there are tensors of backbone.layers.4",
    ),
    "a field of another program": (
        lambda folder: edited(folder, n_head=4),
        CheckpointError,
        r"fields that mamba-ssm does not know \(n_head\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_told_in_one_message(damage: str, tmp_path: Path) -> None:
    folder = folder_of("Mamba1", tmp_path / "in")
    do, error, message = DAMAGES[damage]
    do(folder)
    for read in (
        lambda: shortgpt.load(folder, device="cpu"),
        lambda: shortgpt.prune_checkpoint(folder, tmp_path / "out", [1], verify=False),
    ):
        with pytest.raises(error, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("here", [True, False])
def test_tensors_of_other_shapes_are_told(here: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = edited(folder_of("Mamba1", tmp_path / "in"), vocab_size=300)
    if here:
        request.getfixturevalue("library")
    with pytest.raises(CheckpointError, match=r"size mismatch .*embedding"):
        shortgpt.load(folder, device="cpu")


def test_another_weight_format_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = folder_of("Mamba2", tmp_path / "in")
    save_file(torch.load(folder / "pytorch_model.bin"), folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"mamba-ssm reads pytorch_model.bin, found model.safetensors"):
        shortgpt.load(folder, device="cpu")


def test_groups_that_transformers_norms_as_one_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from shortgpt_adapters.mamba_ssm.loader import DEFAULTS, not_in_transformers
    from transformers.models.mamba2 import modeling_mamba2

    monkeypatch.setattr(modeling_mamba2, "MambaRMSNormGated", lambda hidden_size, eps: None)
    one, eight = ({"ssm_cfg": {"layer": "Mamba2", "ngroups": groups}} for groups in (1, 8))
    assert not_in_transformers(DEFAULTS | one) == []
    assert not_in_transformers(DEFAULTS | eight) == ["norm by group (ssm_cfg ngroups=8), which newer versions have"]


# -- the real kernels -----------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> str:
    """The library as it is installed, on a device that it has kernels for."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("selective_scan_cuda")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("attention", [[], [0, 3]])
def test_the_kernels_give_the_stream_computed_by_hand(attention: list[int], cuda: str) -> None:
    model = native(device=cuda, attn_layer_idx=attention, attn_cfg={"num_heads": 2, "causal": True})
    ids = ids_of(2, 12)
    mine = boundaries(shortgpt.wrap(model), {"input_ids": ids})
    for boundary, expected in zip(mine, by_hand(model.cpu(), ids), strict=True):
        assert largest_difference(boundary.cpu(), expected) < 1e-3  # matrix products in TF32, fast exponentials


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, MAMBA2 | {"headdim": 16, "d_state": 16}])
def test_the_kernels_remove_as_they_skip(
    options: dict[str, Any], dtype: torch.dtype, cuda: str, tmp_path: Path
) -> None:
    model = native(
        device=cuda,
        dtype=dtype,
        d_model=64,
        ssm_cfg=options,
        attn_layer_idx=[2],
        attn_cfg={"num_heads": 4, "causal": True},
    )
    blocks, batch = shortgpt.wrap(model), {"input_ids": ids_of()}
    for gone in ((0,), (1, 2), (4,)):
        with blocks.skipping(gone):
            expected = blocks.logits(batch)
        assert torch.equal(blocks.without(gone).logits(batch), expected)
    blocks.save(tmp_path / "in")
    plan = shortgpt.prune_checkpoint(tmp_path / "in", tmp_path / "out", [1, 3], device=cuda)
    assert plan.verification is not None
    assert plan.verification.verified
