"""A stranger's adapter for a container of its own: `{"hparams": ..., "params": ...}` in one torch file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import shortgpt
from shortgpt.testing import check_adapter
from tests.own_container import FILE, Vessel, make_model


@pytest.fixture(autouse=True)
def installed(plug: Callable[[str, str], str]) -> None:
    plug("vessel", "from tests.own_container import shortgpt_architectures")


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    held = check_adapter(lambda: shortgpt.wrap(make_model()), tmp_path)
    assert {"reload equals memory", "the disk road equals memory"} <= set(held)
    assert "cached generation equals uncached" not in held


def test_a_model_that_was_opened_is_saved_shorter(tmp_path: Path) -> None:
    file = tmp_path / FILE
    make_model().save(file)
    shortgpt.remove(shortgpt.load(file, device="cpu"), [1, 3]).save(tmp_path / "out")
    held = torch.load(tmp_path / "out" / FILE, weights_only=True)
    assert held["hparams"] == {"inner": [8, 8, 8], "note": "mine"}
    whole = make_model().state_dict()
    assert torch.equal(held["params"]["steps.1.0.weight"], whole["steps.2.0.weight"])


def test_it_is_pruned_on_disk_and_proven(tmp_path: Path) -> None:
    file = tmp_path / FILE
    make_model().save(file)
    plan = shortgpt.prune_checkpoint(file, tmp_path / "out", [1, 3], device="cpu")
    assert plan.verification is not None
    assert plan.verification.verified
    assert plan.parameters_after == sum(p.numel() for p in Vessel.load(tmp_path / "out" / FILE).parameters())
    held = torch.load(tmp_path / "out" / FILE, weights_only=True)
    assert held["hparams"] == {"inner": [8, 8, 8], "note": "mine"}
    assert shortgpt.verify(file, tmp_path / "out", [1, 3]).verified
