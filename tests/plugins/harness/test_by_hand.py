"""Models that the library cannot open, held to logits that are computed without ours."""

from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from shortgpt_plugins.harness.lm import BlocksLM

from tests.adapters.test_rwkv_package import by_formula, tensors_of


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_a_continuation_of_rwkv_has_the_log_likelihood_of_the_formulas(version: str, tmp_path: Path) -> None:
    tensors = tensors_of(version, vocabulary=256)
    torch.save(tensors, tmp_path / "model.pth")
    lm = BlocksLM(str(tmp_path / "model.pth"), device="cpu", batch_size=2)
    pairs = [("the cat", " sat"), ("a", " b"), ("of this", " old garden")]
    requests = [Instance("loglikelihood", {}, pair, 0, ("task", place, 1)) for place, pair in enumerate(pairs)]
    for (context, continuation), (found, greedy) in zip(pairs, lm.loglikelihood(requests), strict=True):
        ids = torch.tensor(list((context + continuation).encode()))
        logs = by_formula(tensors, version, ids)[1].double().log_softmax(-1)[len(context) - 1 : -1]
        came = ids[len(context) :]
        assert found == pytest.approx(logs.gather(-1, came[:, None]).sum().item(), rel=1e-5)
        assert greedy == bool((logs.argmax(-1) == came).all())
