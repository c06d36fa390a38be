"""What makes up for a removal: fitted run by run, chosen on text that was not fitted."""

import copy
import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import shortgpt
from shortgpt.errors import CalibrationError
from shortgpt.measuring.compensation import fit as fitting
from shortgpt.measuring.compensation.fit import fit, runs_of, split
from shortgpt.models.sequence import BlockSequence
from tests.support import ids_of, skipped_by_hand, tiny


def batches(count: int = 4, tokens: int = 24) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids_of(2, tokens, seed=seed)} for seed in range(count)]


def linear_llama() -> PreTrainedModel:
    """A Llama whose block 3 adds a linear map of what block 2's MLP added before it: it can be made up for exactly."""
    model = tiny("llama")
    layers = model.model.layers
    seen: list[Tensor] = []
    layers[2].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    matrix = 0.5 * torch.randn(32, 32, generator=torch.Generator().manual_seed(5)) / 32**0.5
    layers[3].forward = lambda hidden_states, **kwargs: hidden_states + seen.pop() @ matrix.T
    return model


def test_neighbours_are_one_run() -> None:
    assert runs_of((7, 2, 3, 9, 8)) == ((2, 3), (7, 8, 9))


def test_the_last_quarter_of_the_sequences_chooses() -> None:
    blocks = shortgpt.wrap(tiny("llama"))
    data = shortgpt.calibrate(batches(), blocks)
    first, last = split(data)
    together = torch.cat([batch["input_ids"] for part in (first, last) for batch in part.batches])
    assert torch.equal(together, torch.cat([batch["input_ids"] for batch in data.batches]))
    assert (first.info.sequences, last.info.sequences) == (6, 2)


def test_one_sequence_is_too_few() -> None:
    blocks = shortgpt.wrap(tiny("llama"))
    with pytest.raises(CalibrationError, match="found one; give two or more"):
        fit(blocks, (3,), shortgpt.calibrate([{"input_ids": ids_of(1)}], blocks))


def test_a_run_at_block_0_is_told() -> None:
    blocks = shortgpt.wrap(tiny("llama"))
    fitted = fit(blocks, (0, 3), shortgpt.calibrate(batches(), blocks))
    first, second = fitted.record.runs
    assert (first.kept, first.block) == (False, None)
    assert "begins at block 0" in str(first)
    assert second.block == 2


def test_earlier_runs_are_gone_and_changed_when_a_later_one_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream in front of the second run is that of a model by hand: blocks bypassed, the weight multiplied."""
    model = tiny("llama")
    blocks = shortgpt.wrap(model)
    seen: list[Tensor] = []
    add = fitting.NormalEquations.add

    def noted(self: object, addition: object, whole: Tensor, mask: Tensor | None) -> None:
        seen.append(addition.behind)  # type: ignore[attr-defined]
        add(self, addition, whole, mask)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting.NormalEquations, "add", noted)
    monkeypatch.setattr(fitting, "worth_it", lambda gain, stderr: True)
    data, chosen = shortgpt.calibrate(batches(1), blocks), shortgpt.calibrate(batches(2)[1:], blocks)
    fitted = fit(blocks, (2, 5), data, chosen)
    assert [change.projection.block for change in fitted.changes] == [1, 4]
    by_hand = copy.deepcopy(model)
    down = by_hand.model.layers[1].mlp.down_proj
    down.weight.data = (fitted.changes[0].numbers @ down.weight.data.double()).float()
    found: list[Tensor] = []
    by_hand.model.layers[4].register_forward_hook(lambda module, args, output: found.append(output))
    skipped_by_hand(by_hand, "model.layers", (2, 5), data.batches[0]["input_ids"])
    torch.testing.assert_close(seen[1], found[0], atol=1e-5, rtol=1e-5)


def test_the_shorter_model_is_the_whole_one_changed_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "worth_it", lambda gain, stderr: True)
    blocks = shortgpt.wrap(tiny("llama"))
    data = shortgpt.calibrate(batches(), blocks)
    fitted = fit(blocks, (2, 3), data)
    shorter = shortgpt.compensate(blocks, (2, 3), batches())
    with fitted.on(blocks), blocks.skipping((2, 3)):
        expected = blocks.logits(data.batches[0])
    torch.testing.assert_close(shorter.logits(data.batches[0]), expected, atol=1e-5, rtol=1e-5)
    assert len(fitted.changes) == 1
    assert shorter.plan is not None
    assert shorter.plan.compensation == fitted.record
    assert shorter.total_parameters() == shortgpt.remove(blocks, (2, 3)).total_parameters()


def test_a_change_that_does_not_help_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "worth_it", lambda gain, stderr: False)
    blocks = shortgpt.wrap(tiny("llama"))
    fitted = fit(blocks, (3,), shortgpt.calibrate(batches(), blocks))
    assert fitted.changes == ()
    assert "not compensated, the best change moves log-perplexity" in str(fitted.record.runs[0])


@pytest.mark.parametrize(("gain", "stderr", "kept"), [(0.2, 0.1, True), (0.1, 0.2, False), (-0.2, 0.1, False)])
def test_a_change_must_be_worth_more_than_its_error(gain: float, stderr: float, kept: bool) -> None:
    assert fitting.worth_it(gain, stderr) == kept
    assert fitting.worth_it(gain, float("nan")) == (gain > 0)


def test_what_can_be_made_up_for_is(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = shortgpt.wrap(linear_llama())
    monkeypatch.setattr(fitting, "RIDGES", (1e-10,))
    monkeypatch.setattr(fitting, "worth_it", lambda gain, stderr: True)
    data = batches(8)
    found = fit(blocks, (3,), shortgpt.calibrate(data, blocks))
    (run,) = found.record.runs
    assert run.error_before is not None
    assert run.error_after is not None
    assert run.error_after < 1e-3 * run.error_before
    whole = blocks.logits(data[0])
    with found.on(blocks), blocks.skipping((3,)):
        torch.testing.assert_close(blocks.logits(data[0]), whole, atol=1e-3, rtol=1e-3)
    assert math.isfinite(run.gain_stderr or 0)


def test_shared_passes_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held and resumed, or every pass from its beginning: the same fit, to the bit."""
    data = [{"input_ids": ids_of(2, 24, seed=seed), "attention_mask": torch.ones(2, 24)} for seed in range(4)]
    for batch in data:
        batch["attention_mask"][1, 18:] = 0
    for gone in ((2, 3, 5), (0, 2, 4)):
        blocks = shortgpt.wrap(tiny("llama"))
        shared = fit(blocks, gone, shortgpt.calibrate(data, blocks))
        with monkeypatch.context() as plainly:
            plainly.setattr(type(blocks), "resuming", BlockSequence.resuming)
            plain = fit(blocks, gone, shortgpt.calibrate(data, blocks))
        assert shared.record == plain.record
