"""Torch models that no library knows: a GPT as in nanoGPT, its stream computed by hand in float64; and simpler ones."""

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import shortgpt
from shortgpt.errors import ModelError, SelectionError, ShortGPTError, UnknownArchitectureError, VerificationError
from shortgpt.testing import boundaries
from tests.support import byte_tokenizer, ids_of

VOCABULARY, WIDTH, HEADS, WINDOW = 257, 32, 4, 64
IDS = ids_of(rows=3, tokens=20)
GONE = (1, 4)


class Attention(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.tril(torch.ones(WINDOW, WINDOW)))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        q, k, v = (part.view(rows, tokens, HEADS, -1).transpose(1, 2) for part in self.qkv(x).split(WIDTH, dim=2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        scores = scores.masked_fill(self.mask[:tokens, :tokens] == 0, float("-inf"))
        return self.out((functional.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(rows, tokens, WIDTH))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """As in nanoGPT: parts in a ModuleDict, the head tied to the embedding, logits and a loss."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "wpe": nn.Embedding(WINDOW, WIDTH),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(Layer() for _ in range(blocks)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        parts: Any = self.transformer
        x = parts.drop(parts.wte(idx) + parts.wpe(torch.arange(idx.shape[1], device=idx.device)))
        for block in parts.h:
            x = block(x)
        logits = self.lm_head(parts.ln_f(x))
        loss = None
        if targets is not None:
            loss = functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


@pytest.fixture
def gpt() -> Any:
    return randomised(GPT())


def randomised(model: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def norm_by_hand(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def by_hand(model: nn.Module, ids: Tensor, gone: tuple[int, ...] = ()) -> tuple[list[Tensor], Tensor]:
    """The stream of the model, and its logits, from its weights in float64; without some blocks."""
    w = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    tokens = ids.shape[1]
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:tokens]
    stream = [x]
    ahead = torch.arange(tokens)[None, :] > torch.arange(tokens)[:, None]
    for i in (i for i in range(6) if i not in gone):
        p = f"transformer.h.{i}."

        def linear(u: Tensor, name: str, prefix: str = p) -> Tensor:
            return u @ w[f"{prefix}{name}.weight"].T + w[f"{prefix}{name}.bias"]

        mixed = linear(norm_by_hand(x, w, p + "ln_1"), "attn.qkv")
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixed.chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).masked_fill(ahead, -math.inf).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), "attn.out")
        u = linear(norm_by_hand(x, w, p + "ln_2"), "mlp.0")
        x = x + linear(u * 0.5 * (1 + torch.erf(u / math.sqrt(2))), "mlp.2")
        stream.append(x)
    return stream, norm_by_hand(x, w, "transformer.ln_f") @ w["transformer.wte.weight"].T


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


# -- wrap and score -------------------------------------------------------------------------------------------


def test_a_gpt_in_memory_is_a_sequence_of_blocks(gpt: Any) -> None:
    model = shortgpt.wrap(gpt, name="mine")
    assert (model.name, model.architecture, model.norm_placement) == ("mine", "plain-torch", "pre")
    assert model.block_names == tuple(f"transformer.h.{i}" for i in range(6))
    assert model.vocab_size == VOCABULARY
    assert model.parameter_counts() == (sum(p.numel() for p in gpt.transformer.h[0].parameters()),) * 6
    assert model.total_parameters() == sum(p.numel() for p in gpt.parameters())  # the tied ones once


def test_the_stream_and_the_logits_are_those_of_the_formulas(gpt: Any) -> None:
    model = shortgpt.wrap(gpt)
    stream, logits = by_hand(gpt, IDS)
    for mine, theirs in zip(boundaries(model, {"input_ids": IDS}), stream, strict=True):
        assert relative(mine, theirs) < 1e-5
    assert relative(model.logits({"input_ids": IDS}), logits) < 1e-5


def test_scores_are_sums_over_the_stream_computed_by_hand(gpt: Any) -> None:
    stream, _ = by_hand(gpt, IDS)
    scores = shortgpt.score(shortgpt.wrap(gpt), [{"input_ids": IDS}])
    expected = [1 - torch.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(stream)]
    assert scores.values == pytest.approx(expected, rel=1e-5)
    assert scores.stream_norm == pytest.approx([x.norm(dim=-1).mean().item() for x in stream[:-1]], rel=1e-5)
    assert min(scores.values) > 1e-3  # every block does something


def test_it_is_scored_on_text_with_a_tokenizer_that_is_handed_over(gpt: Any) -> None:
    text = "".join(f"{i} squared is {i * i}\n" for i in range(99))
    model = shortgpt.wrap(gpt, tokenizer=byte_tokenizer())
    windows: dict[str, Any] = {"sequences": 4, "tokens": 32, "seed": 1}
    (batch,) = shortgpt.calibrate([text], model, **windows).batches
    assert all(bytes(row.tolist()).decode() in text for row in batch["input_ids"])
    stream, _ = by_hand(gpt, batch["input_ids"])
    expected = [1 - torch.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(stream)]
    assert shortgpt.score(model, [text], **windows).values == pytest.approx(expected, rel=1e-5)


# -- remove ---------------------------------------------------------------------------------------------------


def test_a_shorter_gpt_computes_what_the_formulas_give_without_these_blocks(gpt: Any) -> None:
    model = shortgpt.wrap(gpt)
    shorter = shortgpt.remove(model, GONE)
    assert len(shorter) == 4
    _, expected = by_hand(gpt, IDS, GONE)
    found = shorter.logits({"input_ids": IDS})
    assert relative(found, expected) < 1e-5
    with model.skipping(GONE):
        assert torch.equal(model.logits({"input_ids": IDS}), found)
    assert type(shorter.model) is GPT  # type: ignore[attr-defined]


def test_it_shares_its_tensors_and_keeps_its_head_tied(gpt: Any) -> None:
    shorter = shortgpt.remove(shortgpt.wrap(gpt), GONE).model  # type: ignore[attr-defined]
    assert shorter.lm_head.weight is shorter.transformer.wte.weight is gpt.lm_head.weight
    kept = [0, 2, 3, 5]
    for new, old in enumerate(kept):
        mine, theirs = shorter.transformer.h[new], gpt.transformer.h[old]
        assert mine is not theirs
        assert all(a is b for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
        assert mine.attn.mask is theirs.attn.mask


def test_the_original_is_left_alone(gpt: Any) -> None:
    before = deepcopy(gpt.state_dict())
    with torch.no_grad():
        expected = gpt.eval()(IDS)[0]
    shorter = shortgpt.remove(shortgpt.wrap(gpt), GONE).model  # type: ignore[attr-defined]
    shorter.train()
    shorter.transformer["drop"].p = 0.9
    assert len(gpt.transformer.h) == 6
    assert not any(module.training for module in gpt.modules())
    assert gpt.transformer["drop"].p == 0.1
    assert gpt.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt.state_dict().items())
    with torch.no_grad():
        assert torch.equal(gpt(IDS)[0], expected)


def test_a_shorter_one_can_be_made_shorter_again(gpt: Any) -> None:
    once = shortgpt.remove(shortgpt.wrap(gpt), [1])
    twice = shortgpt.remove(once, [3])  # number 4 of the original
    assert torch.equal(
        twice.logits({"input_ids": IDS}), shortgpt.remove(shortgpt.wrap(gpt), GONE).logits({"input_ids": IDS})
    )
    assert twice.plan is not None
    assert twice.plan.base == once.plan
    assert (twice.plan.parameters_before, twice.plan.parameters_after) == tuple(
        sum(p.numel() for p in gpt.parameters()) - n * sum(p.numel() for p in gpt.transformer.h[0].parameters())
        for n in (1, 2)
    )


def test_the_blocks_that_its_state_dict_holds_load_into_the_class_with_fewer_blocks(gpt: Any) -> None:
    """What the advice of `save` says."""
    shorter: Any = shortgpt.remove(shortgpt.wrap(gpt), GONE)
    built = GPT(blocks=len(shorter))
    built.load_state_dict(shorter.model.state_dict())
    with torch.no_grad():
        assert torch.equal(built.eval()(IDS)[0], shorter.logits({"input_ids": IDS}))


@pytest.mark.parametrize(("gone", "message"), [([6], "blocks 6 do not exist"), (range(6), "at least one must stay")])
def test_blocks_that_cannot_go_are_refused(gpt: Any, gone: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        shortgpt.remove(shortgpt.wrap(gpt), gone)


def test_it_is_not_saved_and_the_error_says_what_to_do_instead(gpt: Any, tmp_path: Path) -> None:
    shorter = shortgpt.remove(shortgpt.wrap(gpt), GONE)
    with pytest.raises(ModelError) as error:
        shorter.save(tmp_path / "out")
    told = str(error.value)
    assert "a plain torch model has no checkpoint format" in told
    assert "Keep `shorter.model.state_dict()` and build your class with 4 blocks" in told
    assert "docs/writing-an-adapter.md" in told
    assert list(tmp_path.iterdir()) == []


# -- other models ---------------------------------------------------------------------------------------------


class Row(nn.Module):
    """Its blocks are one nn.Sequential, which runs them itself; its forward gives logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.stack = nn.Embedding(VOCABULARY, WIDTH), nn.Sequential(*(Layer() for _ in range(5)))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.stack(self.embed(tokens)))


def test_blocks_in_a_sequential_stay_in_one() -> None:
    net = randomised(Row())
    model = shortgpt.wrap(net)
    assert model.block_names == tuple(f"stack.{i}" for i in range(5))
    shorter: Any = shortgpt.remove(model, [0, 3])
    assert type(shorter.model.stack) is nn.Sequential
    with torch.no_grad():
        x = net.embed(IDS)
        for i in (1, 2, 4):
            x = net.stack[i](x)
        assert torch.equal(shorter.logits({"input_ids": IDS}), net.head(x))


class Counting(GPT):
    """Runs as many blocks as it was told of when it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 6

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        parts: Any = self.transformer
        x = parts.wte(idx)
        for number in range(self.count):
            x = parts.h[number](x)
        return self.lm_head(parts.ln_f(x)), None


def test_of_a_class_that_counts_its_blocks_itself_no_shorter_copy_runs_and_that_is_said() -> None:
    net = randomised(Counting())
    model = shortgpt.wrap(net, name="mine")
    assert len(shortgpt.score(model, [{"input_ids": IDS}])) == 6
    with pytest.raises(
        ModelError, match=r"^mine: a copy with 4 blocks does not run; does its class keep their number\? .*index 4 is"
    ):
        shortgpt.remove(model, GONE)
    with model.skipping(GONE):  # the original is as it was
        assert model.logits({"input_ids": IDS}).isfinite().all()


class Scaling(GPT):
    """Changes the stream between the blocks."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        parts: Any = self.transformer
        x = parts.wte(idx)
        for block in parts.h:
            x = block(x) / 2
        return self.lm_head(x), None


class Numbered(Layer):
    """Is scaled by the number that the model gives it anew in each pass."""

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        return super().forward(x) / (1 + number)


class Numbering(GPT):
    def __init__(self) -> None:
        super().__init__()
        self.transformer["h"] = nn.ModuleList(Numbered() for _ in range(6))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        parts: Any = self.transformer
        x = parts.wte(idx)
        for number, block in enumerate(parts.h):
            x = block(x, number)
        return self.lm_head(x), None


def test_a_model_whose_blocks_depend_on_their_place_is_scored_and_its_removal_refused() -> None:
    net = randomised(Numbering())
    model = shortgpt.wrap(net)
    assert len(shortgpt.score(model, [{"input_ids": IDS}])) == 6
    message = r"without the blocks 1, 4 the logits differ by .* something depends on a block's place"
    with pytest.raises(VerificationError, match=message):
        shortgpt.remove(model, GONE)
    assert len(shortgpt.remove(model, [5])) == 5  # those before it keep their places


def test_a_stream_that_something_changes_between_the_blocks_is_no_chain_of_them() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"transformer\.h ran \[0, 1, 2, 3, 4, 5\]"):
        shortgpt.wrap(Scaling())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Linear(8, 8), r"a torch\.nn\.modules\.linear\.Linear: Linear cannot be run on 5 token ids"),
        (lambda: nn.Embedding(8, 8), "no list of blocks runs in order, each once .none runs at all"),
        (lambda: nn.LSTM(8, 8), "LSTM cannot be run on 5 token ids"),
    ],
)
def test_what_is_no_model_of_blocks_is_an_unknown_architecture(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=reason) as error:
        shortgpt.wrap(make())
    assert "Installed: " in str(error.value)
    assert "plain-torch" in str(error.value)


class Continuous(nn.Module):
    """Takes token ids, and has no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.one_hot(ids, WIDTH).float()
        for block in self.h:
            x = block(x)
        return x


def test_a_model_without_an_embedding_has_no_vocabulary_and_that_is_said() -> None:
    with pytest.raises(ModelError, match=r"a Continuous has no torch\.nn\.Embedding that takes token ids"):
        shortgpt.wrap(Continuous())


def test_files_are_not_opened_as_a_plain_torch_model(llama_folder: Path) -> None:
    with pytest.raises(ShortGPTError, match=r"not opened from files; pass it to shortgpt\.wrap\(model\)"):
        shortgpt.load(llama_folder, device="cpu", architecture="plain-torch")


@pytest.mark.parametrize("window", [16, 48])
def test_where_positions_end_before_the_usual_probe_or_window_it_is_shortened(window: int) -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(window, WIDTH)
            self.layers, self.head = nn.ModuleList(Layer() for _ in range(4)), nn.Linear(WIDTH, VOCABULARY)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    torch.manual_seed(0)
    blocks = shortgpt.wrap(Short().eval(), tokenizer=byte_tokenizer())
    assert len(shortgpt.remove(blocks, [1])) == 3
    assert shortgpt.score(blocks, ["a text " * 999]).tokens
