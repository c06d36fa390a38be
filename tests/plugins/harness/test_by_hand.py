"""Models that the library cannot open, held to logits that are computed without ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from shortgpt_plugins.harness.lm import BlocksLM
from torch import Tensor

import shortgpt
from tests.adapters import test_mamba_ssm as mamba_ssm
from tests.adapters.test_mamba_ssm import library as library
from tests.adapters.test_rwkv_package import by_formula, tensors_of
from tests.support import byte_tokenizer

PAIRS = [("the cat", " sat"), ("a", " b"), ("of this", " old garden")]


def check(lm: BlocksLM, logits_of: Callable[[Tensor], Tensor]) -> None:
    """Log-likelihoods of continuations, and whether they are greedy, beside logits [tokens, vocabulary] of ids."""
    requests = [Instance("loglikelihood", {}, pair, 0, ("task", place, 1)) for place, pair in enumerate(PAIRS)]
    for (context, continuation), (found, greedy) in zip(PAIRS, lm.loglikelihood(requests), strict=True):
        ids = torch.tensor(list((context + continuation).encode()))
        logs = logits_of(ids).double().log_softmax(-1)[len(context) - 1 : -1]
        came = ids[len(context) :]
        assert found == pytest.approx(logs.gather(-1, came[:, None]).sum().item(), rel=1e-5)
        assert greedy == bool((logs.argmax(-1) == came).all())


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_a_continuation_of_rwkv_has_the_log_likelihood_of_the_formulas(version: str, tmp_path: Path) -> None:
    tensors = tensors_of(version, vocabulary=256)
    torch.save(tensors, tmp_path / "model.pth")
    lm = BlocksLM(str(tmp_path / "model.pth"), device="cpu", batch_size=2)
    check(lm, lambda ids: by_formula(tensors, version, ids)[1])


def test_a_continuation_of_mamba_ssm_has_the_log_likelihood_of_the_equations(library: None) -> None:
    model = mamba_ssm.native(attn_layer_idx=[1], attn_cfg={"num_heads": 2, "causal": True})
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def logits_of(ids: Tensor) -> Tensor:
        last = mamba_ssm.by_hand(model, ids[None])[-1][0]
        normed = last / (last.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["backbone.norm_f.weight"]
        return normed @ weights["lm_head.weight"].T

    check(BlocksLM(shortgpt.wrap(model, tokenizer=byte_tokenizer(), name="mamba"), batch_size=2), logits_of)
