"""`shortgpt verify`: a pruned folder is checked again, with what it recorded when it was made, or with its original."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import shortgpt
from shortgpt import Plan, Verification, prune_checkpoint
from shortgpt.errors import ModelError, VerificationError
from shortgpt.models.probing.probes import probe
from shortgpt.verification import fresh_process as reloading
from shortgpt.verification import original as originals
from shortgpt.verification.record import verify_again
from tests.adapters.test_baichuan import tiny as tiny_baichuan
from tests.support import Ran, message_of, saved, skipped_by_hand, tiny

Run = Callable[..., Ran]
GONE = (1, 4)
IN_THIS_PROCESS = pytest.mark.usefixtures("same_process")


def here(command: list[str], **options: Any) -> Any:
    """What verification does in a fresh process, in this one."""
    try:
        reloading._child(command[-1])
    except Exception as error:  # as Python tells it last
        return SimpleNamespace(returncode=1, stderr=f"Traceback\n{type(error).__name__}: {error}")
    return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For speed; one test below does without."""
    monkeypatch.setattr(subprocess, "run", here)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A tiny Llama without two of its blocks, verified when it was made. Never written to."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", here)
        prune_checkpoint(llama_folder, out, GONE, device="cpu")
    return out


@pytest.fixture
def copy(pruned: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(pruned, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def check(run_cli: Run) -> Run:
    """The command, on the CPU."""
    return lambda *arguments: run_cli("verify", *arguments, "--device", "cpu")


def change(folder: Path, name: str, by: float) -> None:
    """Add to one number of a tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].flatten()[7] += by
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def recorded(folder: Path) -> Verification:
    found = Plan.read(folder).verification
    assert found is not None
    return found


def expected_logits() -> Tensor:
    """Those of the original, its blocks bypassed by a hook of the tests' own, on the tokens of the probe."""
    return skipped_by_hand(tiny("llama"), "model.layers", GONE, probe(257))


# -- what passes ----------------------------------------------------------------------------------------------


def test_what_was_just_pruned_passes_in_a_fresh_process(pruned: Path, llama_folder: Path, check: Run) -> None:
    ran = check(pruned)
    assert (ran.status, ran.err) == (0, "")
    first, second = ran.out.splitlines()
    assert first == f"{pruned}: made from {llama_folder}, 2 of 6 blocks removed"
    assert second.startswith("verified: logits differ by 0 ")
    assert second.endswith("8 tokens of cached generation equal uncached (float32 on cpu)")


@IN_THIS_PROCESS
def test_the_original_is_not_needed(llama_folder: Path, tmp_path: Path, check: Run) -> None:
    shutil.copytree(llama_folder, tmp_path / "in")
    prune_checkpoint(tmp_path / "in", tmp_path / "out", GONE, device="cpu")
    shutil.rmtree(tmp_path / "in")
    assert check(tmp_path / "out").status == 0


@IN_THIS_PROCESS
def test_as_json_it_is_the_verification(pruned: Path, check: Run, tmp_path: Path) -> None:
    alone = check(pruned, "--json", "-")
    found = Verification.from_json(alone.out)
    assert (found.verified, found.max_difference, found.generated, found.device) == (True, 0.0, 8, "cpu")
    assert (found.probe_ids, found.fingerprint) == (recorded(pruned).probe_ids, recorded(pruned).fingerprint)
    quiet = check(pruned, "--quiet", "--json", tmp_path / "found.json")
    assert len(quiet.out.splitlines()) == 1
    assert Verification.from_json((tmp_path / "found.json").read_text()) == found


def make_sharded(folder: Path) -> str:
    saved(tiny("llama"), folder, max_shard_size="40KB")
    return "float32"


def make_half(folder: Path) -> str:
    saved(tiny("llama").bfloat16(), folder)
    return "bfloat16"


def make_folded(folder: Path) -> str:
    saved(tiny("gpt2", scale_attn_by_inverse_layer_idx=True), folder)  # weights make up for a block's new place
    return "float32"


@pytest.mark.sampled("False-make_sharded", "True-make_half", "True-make_folded")
@IN_THIS_PROCESS
@pytest.mark.parametrize("make", [make_sharded, make_half, make_folded])
@pytest.mark.parametrize("with_original", [False, True])
def test_so_do_other_layouts_and_dtypes(
    make: Callable[[Path], str], with_original: bool, tmp_path: Path, check: Run
) -> None:
    dtype = make(tmp_path / "in")
    prune_checkpoint(tmp_path / "in", tmp_path / "out", GONE, device="cpu")
    ran = check(tmp_path / "out", *(("--original", tmp_path / "in") if with_original else ()))
    assert (ran.status, ran.err) == (0, "")
    # A record is of the model in float32: in half precision another machine's rounding would hide what is wrong.
    assert ran.out.rstrip().endswith(f"({dtype if with_original else 'float32'} on cpu)")


@IN_THIS_PROCESS
def test_what_was_written_as_another_architecture_is_opened_as_that(
    tmp_path: Path, check: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders: list[str] = []

    def noting(command: list[str], **options: Any) -> Any:
        loaders.append(json.loads(command[-1])["loader"])
        return here(command)

    monkeypatch.setattr(subprocess, "run", noting)
    tiny_baichuan("7B").save_pretrained(tmp_path / "in")
    prune_checkpoint(tmp_path / "in", tmp_path / "out", GONE, device="cpu", export_as="llama")
    loaders.clear()
    assert check(tmp_path / "out").status == 0
    assert loaders == ["shortgpt_adapters.transformers.loader:reload"]
    message = message_of(check(tmp_path / "out", "--original", tmp_path / "in"), 2)
    assert "it was written as llama; verify it by its record, without --original" in message
    edit(tmp_path / "out", "config.json", rms_norm_eps=0.5)
    assert check(tmp_path / "out").status == 1


@IN_THIS_PROCESS
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_that_is_one_file_is_checked_in_its_folder_or_by_its_name(tmp_path: Path, check: Run) -> None:
    pytest.importorskip("rwkv")
    from tests.adapters.test_rwkv_package import tensors_of

    torch.save(tensors_of("4"), tmp_path / "whole.pth")
    prune_checkpoint(tmp_path / "whole.pth", tmp_path / "out", [1], device="cpu")
    (file,) = (tmp_path / "out").glob("*.pth")
    assert check(tmp_path / "out").status == 0
    assert check(file).status == 0
    tensors = torch.load(file)
    tensors["blocks.2.att.output.weight"][0, 0] += 1
    torch.save(tensors, file)
    assert "out.pth: not the bytes that were written" in message_of(check(file), 1).replace(file.name, "out.pth")


# -- what it compares with ------------------------------------------------------------------------------------


def test_the_record_is_256_of_the_logits_of_the_original_at_fixed_places(pruned: Path) -> None:
    made = recorded(pruned)
    assert torch.equal(torch.tensor(made.probe_ids), probe(257))
    logits = expected_logits()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 2 * 32 * 257, (256,), generator=generator)
    assert torch.equal(torch.tensor(made.fingerprint), logits.flatten()[places])
    assert made.max_logit == pytest.approx(logits.abs().max().item())


@IN_THIS_PROCESS
@pytest.mark.parametrize("place", [0, 100, 255])
def test_a_record_that_differs_in_one_logit_does_not_pass(copy: Path, place: int) -> None:
    plan = Plan.read(copy)
    made = recorded(copy)
    changed = list(made.fingerprint)
    changed[place] += 0.01
    new = replace(plan, verification=replace(made, fingerprint=tuple(changed)))
    (copy / "shortgpt.json").write_text(new.to_json())
    with pytest.raises(VerificationError, match=r"^its logits differ by 0\.01 from those that were expected"):
        verify_again(copy)


@IN_THIS_PROCESS
def test_the_tokens_that_were_recorded_are_those_that_are_run(copy: Path) -> None:
    plan, made = Plan.read(copy), recorded(copy)
    other = tuple(tuple((token + 1) % 257 for token in row) for row in made.probe_ids)
    new = replace(plan, verification=replace(made, probe_ids=other))
    (copy / "shortgpt.json").write_text(new.to_json())
    with pytest.raises(VerificationError, match="its logits differ"):
        verify_again(copy)


@IN_THIS_PROCESS
def test_rounding_of_another_machine_is_allowed_and_a_thousandth_is_not(copy: Path) -> None:
    plan, made = Plan.read(copy), recorded(copy)
    largest = made.max_logit or 0.0
    for relative, passes in ((5e-5, True), (1e-3, False)):
        rounded = tuple(value + relative * largest for value in made.fingerprint)
        new = replace(plan, verification=replace(made, fingerprint=rounded))
        (copy / "shortgpt.json").write_text(new.to_json())
        if passes:
            found = verify_again(copy)[1]
            assert found.verified
            assert found.max_difference == pytest.approx(relative * largest, rel=1e-2)
        else:
            with pytest.raises(VerificationError):
                verify_again(copy)


# -- what does not pass ---------------------------------------------------------------------------------------


@IN_THIS_PROCESS
def test_one_changed_weight_is_noticed(copy: Path, check: Run) -> None:
    change(copy, "model.layers.2.mlp.down_proj.weight", 1e-5)  # less than another machine's sums would excuse
    message = message_of(check(copy), 1)
    assert "verification failed: model.safetensors: not the bytes that were written when it was made" in message
    assert "nothing was kept" not in message  # the folder stays as it is


@IN_THIS_PROCESS
def test_weights_that_are_loaded_otherwise_are_noticed_by_what_comes_out(
    copy: Path, check: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shortgpt_adapters.transformers.loader import ReloadedCausalLM

    logits = ReloadedCausalLM.logits
    monkeypatch.setattr(ReloadedCausalLM, "logits", lambda self, ids: logits(self, ids) * 1.01)
    message = message_of(check(copy), 1)
    assert message.startswith("shortgpt: verification failed: its logits differ by ")
    assert "from those that were expected when it was made" in message


@IN_THIS_PROCESS
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_so_it_is_with_the_original_at_hand(copy: Path, llama_folder: Path, check: Run, name: str) -> None:
    change(copy, name, 0.05)
    message = message_of(check(copy, "--original", llama_folder), 1)
    assert "the shorter model's logits differ by" in message
    assert "from the original's with these blocks skipped" in message


@IN_THIS_PROCESS
def test_with_the_original_a_rounding_is_too_much(copy: Path, llama_folder: Path, check: Run) -> None:
    change(copy, "lm_head.weight", 1e-5)  # what another machine's sums would excuse
    assert check(copy, "--original", llama_folder).status == 1


@IN_THIS_PROCESS
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rms_norm_eps": 0.01}, "its logits differ by"),
        ({"hidden_act": "relu"}, "its logits differ by"),
        ({"num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 1}, "its logits differ by"),
        ({"num_hidden_layers": 3}, "tensors (model.layers.3."),
        ({"num_hidden_layers": 5}, r"'missing_keys': ['model.layers.4."),
    ],
)
def test_an_edited_config_is_noticed(copy: Path, check: Run, fields: dict[str, Any], message: str) -> None:
    edit(copy, "config.json", **fields)
    assert message in message_of(check(copy), 1)


@IN_THIS_PROCESS
def test_a_tokenizer_that_is_gone_or_changed_is_noticed(copy: Path, check: Run) -> None:
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: not the bytes that were written when it was made" in message_of(check(copy), 1)
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json: gone since it was made" in message_of(check(copy), 1)


@IN_THIS_PROCESS
def test_a_config_that_is_gone_is_noticed(copy: Path, check: Run) -> None:
    (copy / "config.json").unlink()
    assert "config.json" in message_of(check(copy), 2)


@IN_THIS_PROCESS
def test_weights_that_are_gone_or_cut_off_are_noticed(copy: Path, check: Run, tmp_path: Path) -> None:
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    assert "model.safetensors: truncated or damaged" in message_of(check(copy), 2)
    file.unlink()
    assert "the folder holds no weights" in message_of(check(copy), 2)
    saved(tiny("llama"), tmp_path / "in", max_shard_size="40KB")
    prune_checkpoint(tmp_path / "in", tmp_path / "out", GONE, device="cpu")
    shard = next((tmp_path / "out").glob("*.safetensors"))
    shard.unlink()
    assert f"names 1 files that are missing ({shard.name}" in message_of(check(tmp_path / "out"), 2)


@IN_THIS_PROCESS
def test_a_cache_that_does_not_fit_is_noticed(copy: Path, check: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from shortgpt_adapters.transformers.loader import ReloadedCausalLM

    generate = ReloadedCausalLM.generate

    def drifting(self: Any, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        return generate(self, input_ids, new_tokens, cached=cached) + (0.1 if cached else 0.0)

    monkeypatch.setattr(ReloadedCausalLM, "generate", drifting)
    assert "cached generation differs from uncached at token 0" in message_of(check(copy), 1)


@IN_THIS_PROCESS
def test_another_original_than_the_true_one_is_noticed(pruned: Path, check: Run, tmp_path: Path) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[0, 0] += 0.05
    message = message_of(check(pruned, "--original", saved(model, tmp_path / "other")), 1)
    assert "the shorter model's logits differ by" in message


@IN_THIS_PROCESS
def test_blocks_1_and_4_of_the_original_are_compared_and_not_others(copy: Path, llama_folder: Path, check: Run) -> None:
    new = replace(Plan.read(copy), blocks=(1, 3))
    (copy / "shortgpt.json").write_text(new.to_json())
    assert "the shorter model's logits differ by" in message_of(check(copy, "--original", llama_folder), 1)


# -- where there is nothing to compare with -------------------------------------------------------------------


def test_a_folder_that_shortgpt_did_not_make_is_a_mistake_with_advice(llama_folder: Path, check: Run) -> None:
    message = message_of(check(llama_folder), 2)
    assert f"{llama_folder}: it holds no shortgpt.json; `shortgpt verify` checks what `shortgpt prune` wrote" in message


@IN_THIS_PROCESS
def test_one_that_was_not_verified_when_it_was_made_needs_its_original(
    tmp_path: Path, llama_folder: Path, check: Run
) -> None:
    prune_checkpoint(llama_folder, tmp_path / "disk", GONE, verify=False)
    shortgpt.remove(shortgpt.load(llama_folder, device="cpu"), GONE).save(tmp_path / "memory")
    for folder in (tmp_path / "disk", tmp_path / "memory"):
        message = message_of(check(folder), 2)
        assert "it was not verified when it was made" in message
        assert "(--original)" in message
        ran = check(folder, "--original", llama_folder)
        assert ran.status == 0
        assert "verified: logits differ by 0 " in ran.out


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a plan that shortgpt wrote"), ('{"model": "a", "outputs": 3}', "unknown keys ['outputs']")],
)
def test_a_damaged_record_is_a_mistake(copy: Path, check: Run, content: str, message: str) -> None:
    (copy / "shortgpt.json").write_text(content)
    assert message in message_of(check(copy), 2)


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path, check: Run) -> None:
    assert "no such file or folder" in message_of(check(tmp_path / "nowhere"), 2)


def test_the_library_raises_what_the_command_tells(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"it holds no shortgpt\.json"):
        verify_again(llama_folder)


def test_where_memory_is_short_it_could_not_be_verified_and_the_status_says_so(
    pruned: Path, check: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []

    def lacking(size: int, device: str) -> str:
        asked.append((size, device))
        return "it needs about 9.0 GiB on cpu, 1.0 GiB are free"

    monkeypatch.setattr(originals, "lacking_memory", lacking)
    message = message_of(check(pruned), 1)
    assert "it could not be opened to be verified: it needs about 9.0 GiB on cpu, 1.0 GiB are free" in message
    tensors = load_file(pruned / "model.safetensors")
    whole = sum(tensor.nbytes for tensor in tensors.values())
    block = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("model.layers.0."))
    assert asked == [(whole, "cpu"), (whole - 2 * block, "cpu")], "all four blocks, and two of them"


@IN_THIS_PROCESS
def test_an_original_of_another_depth_is_a_mistake(pruned: Path, check: Run, tmp_path: Path) -> None:
    message = message_of(check(pruned, "--original", saved(tiny("llama", 4), tmp_path / "other")), 2)
    assert "it was made from a llama of 6 blocks" in message
    assert "is a llama of 4" in message


def test_a_dtype_without_the_original_is_a_mistake(pruned: Path, check: Run) -> None:
    assert "--dtype goes with --original" in message_of(check(pruned, "--dtype", "bfloat16"), 2)
