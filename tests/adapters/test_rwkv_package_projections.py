"""What a block of the rwkv package adds last, held against the float64 formulas; and compensated `.pth` files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt.measuring.compensation import fit as fitting
from shortgpt.measuring.compensation.compensate import compensated
from shortgpt.models.projections import Change, Projection

pytest.importorskip("rwkv")

from tests.adapters.test_rwkv_package import WIDTH, by_formula, tensors_of, tokens

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
BLOCK = 2
VALUE = "blocks.{}.ffn.value.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pth")
    for version in ("5.2", "7"):
        torch.save(tensors_of(version), folder / f"{version}.pth")
    return {version: folder / f"{version}.pth" for version in ("5.2", "7")}


@pytest.fixture
def every_change_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "worth_it", lambda gain, stderr: True)
    monkeypatch.setattr(fitting, "RIDGES", (0.01,))


def numbers(form: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (WIDTH, WIDTH) if form == "map" else (WIDTH,)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("version", "form"), [("5.2", "scale"), ("7", "map")])
def test_a_change_is_one_of_the_files_rows(version: str, form: str, files: dict[str, Path]) -> None:
    blocks, raw, ids = shortgpt.load(files[version]), tensors_of(version), tokens()
    projection = blocks.projection(BLOCK)
    assert isinstance(projection, Projection)
    assert (projection.form, dict(projection.tensors)) == (form, {"ffn.value.weight": -2})
    without = {**raw, VALUE.format(BLOCK): torch.zeros_like(raw[VALUE.format(BLOCK)])}
    found = blocks.addition({"input_ids": ids}, projection)
    for row, (behind, added) in enumerate(zip(*found, strict=True)):
        expected, rest = (by_formula(w, version, ids[row])[0][BLOCK + 1] for w in (raw, without))
        torch.testing.assert_close(behind.double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(added.double(), expected - rest, atol=1e-4, rtol=1e-4)
    change, before = Change(projection, numbers(form)), blocks.logits({"input_ids": ids})
    value = raw[VALUE.format(BLOCK)].double()
    new = change.numbers @ value if form == "map" else change.numbers[:, None] * value
    changed = {**raw, VALUE.format(BLOCK): new.float()}
    with blocks.changing((change,)):
        logits = blocks.logits({"input_ids": ids})
    for row in range(len(ids)):
        torch.testing.assert_close(
            logits[row].double(), by_formula(changed, version, ids[row])[1], atol=1e-3, rtol=1e-3
        )
    assert torch.equal(blocks.logits({"input_ids": ids}), before)


@pytest.mark.sampled("7")
@pytest.mark.parametrize("version", ["5.2", "7"])
def test_a_compensated_file_is_proven_and_saving_it_from_memory_gives_the_same(
    version: str, files: dict[str, Path], tmp_path: Path, every_change_is_made: None, one_process: None
) -> None:
    blocks = shortgpt.load(files[version])
    data = shortgpt.calibrate([{"input_ids": tokens(rows=4)}], blocks)
    fitted = fitting.fit(blocks, (3, 4), data)
    plan = shortgpt.prune_checkpoint(files[version], tmp_path / "disk", (3, 4), fitted=fitted)
    assert plan.verification is not None
    assert plan.verification.verified
    shorter = compensated(shortgpt.remove(blocks, (3, 4)), fitted)
    shorter.save(tmp_path / "memory")
    written, same = (torch.load(tmp_path / name / f"{version}.pth") for name in ("disk", "memory"))
    assert all(torch.equal(written[name], same[name]) for name in written)
    assert not torch.equal(written[VALUE.format(BLOCK)], tensors_of(version)[VALUE.format(BLOCK)])
    again = shorter.without((0,)) if version == "5.2" else shorter.without((3,))
    again.save(tmp_path / "again")
    kept = torch.load(tmp_path / "again" / f"{version}.pth")
    place = BLOCK - 1 if version == "5.2" else BLOCK
    assert torch.equal(kept[VALUE.format(place)], written[VALUE.format(BLOCK)])
