"""Files of torch: they hold the tensors that stay, and not a byte of what went."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt.checkpoints import torch_files
from shortgpt.errors import CheckpointError
from tests.support import saved, tiny


def data_bytes(file: Path) -> int:
    """The bytes of all storages in a file, as its zip archive names them."""
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


def as_views(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as views of one storage, one behind the other."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}


def write(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    torch_files.save(tensors, file)
    found: dict[str, Tensor] = torch.load(file, weights_only=True)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
    return found


def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    write({"a": whole[10:20], "b": whole[990:].view(2, 5)}, tmp_path / "x.bin")
    assert data_bytes(tmp_path / "x.bin") == 20 * 4


def test_the_same_view_under_two_names_is_written_once_and_read_as_one(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    found = write({"a": whole[10:20], "b": whole[10:20]}, tmp_path / "x.bin")
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert data_bytes(tmp_path / "x.bin") == 10 * 4


def test_a_storage_that_is_used_to_its_last_byte_is_written_as_it_is(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    tensors = {"head": whole[:6], "tail": whole[4:], "turned": torch.arange(6.0).view(2, 3).t()}
    kept = torch_files.compact(tensors)
    assert all(kept[name] is tensor for name, tensor in tensors.items())
    found = write(tensors, tmp_path / "x.bin")
    assert found["head"].untyped_storage().data_ptr() == found["tail"].untyped_storage().data_ptr()
    assert data_bytes(tmp_path / "x.bin") == 18 * 4


@pytest.mark.parametrize(
    ("view", "elements"),
    [
        (lambda t: t[::2], 50),  # with gaps
        (lambda t: t.view(10, 10)[:, 3], 10),
        (lambda t: t.view(10, 10)[2:4].t(), 20),
        (lambda t: t[5:6].expand(40), 1),
        (lambda t: t[:7].view(7, 1).expand(7, 9), 7),
        (lambda t: t[3], 1),
        (lambda t: t[:0], 0),
    ],
)
def test_views_of_any_shape_hold_their_own_elements_only(tmp_path: Path, view: object, elements: int) -> None:
    write({"a": view(torch.arange(100.0))}, tmp_path / "x.bin")  # type: ignore[operator]
    assert data_bytes(tmp_path / "x.bin") == elements * 4


def test_removed_weights_are_not_in_a_file_whose_tensors_are_views_of_one_storage(
    tmp_path: Path, one_process: None
) -> None:
    model = tiny("gpt2")  # its head is tied
    folder = saved(model, tmp_path / "whole")
    (folder / "model.safetensors").unlink()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    views = as_views(tensors)
    views["lm_head.weight"] = views["transformer.wte.weight"]
    torch.save(views, folder / "pytorch_model.bin")
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "short", [1, 2], device="cpu")
    assert plan.verification is not None
    assert plan.verification.verified
    file = tmp_path / "short" / "pytorch_model.bin"
    kept = {name: t for name, t in tensors.items() if not name.startswith(("transformer.h.1.", "transformer.h.2."))}
    assert data_bytes(file) == sum(tensor.nbytes for tensor in kept.values())
    gone = tensors["transformer.h.1.mlp.c_fc.weight"].numpy().tobytes()
    assert gone in (folder / "pytorch_model.bin").read_bytes()
    assert gone not in file.read_bytes()
    found = torch.load(file, weights_only=True)
    assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()


def test_tensors_may_stand_under_one_key_among_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    settings: dict[str, object] = {"width": 2, "names": ["a", {"b": 1}]}
    settings["itself"] = settings
    torch.save({"params": {"a": torch.ones(2)}, "hparams": settings, "step": 7}, file)
    held = torch_files.contents(file)
    assert (held.key, held.beside["step"], list(held.tensors)) == ("params", 7, ["a"])
    torch_files.save({"b": torch.zeros(3)}, tmp_path / "y.pt", like=held)
    written = torch.load(tmp_path / "y.pt", weights_only=True)
    assert written["params"]["b"].tolist() == [0, 0, 0]
    assert written["hparams"]["names"] == settings["names"]


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"params": {"a": torch.ones(1)}, "average": {"a": torch.ones(1)}}, "under 'params' and under 'average'"),
        ({"params": {"a": torch.ones(1)}, "optimizer": {"state": {0: [torch.ones(1)]}}}, "and under 'optimizer'"),
        ({"params": {}, "step": 1}, "holds no plain mapping of names to tensors"),
        ([torch.ones(1)], "holds no plain mapping of names to tensors"),
    ],
)
def test_a_file_that_holds_other_tensors_too_is_refused(tmp_path: Path, held: object, told: str) -> None:
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=told):
        torch_files.load(tmp_path / "x.pt")
