"""Blocks found by what runs: on modules written here, whose structure is known, and on types of transformers."""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from shortgpt_adapters.transformers.structural import list_in_files
from shortgpt_adapters.transformers.structure import Structure, find_structure, is_empty
from torch import Tensor, nn

import shortgpt
from shortgpt.errors import AdapterError, CheckpointError
from tests.tiny_types import tiny_model

WIDTH, VOCABULARY = 8, 11
IDS = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))


class Mix(nn.Module):
    """Mixes a token with those before it, through a layer of that size."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, size), nn.Linear(size, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)).cumsum(-2) / 4)


class Block(nn.Module):
    """Adds what a layer makes of the normalised stream."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), Mix(size)

    def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> Any:
        return x + self.mix(self.norm(x))


class Net(nn.Module):
    """Embeds, does with its parts what `run` says, and gives logits."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        for name, part in parts.items():
            self.add_module(name, part)
        with torch.no_grad():
            self.embed.weight.normal_(generator=torch.Generator().manual_seed(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.run(self, self.embed(input_ids)))


def blocks(count: int = 4, make: Callable[[], nn.Module] = Block) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(make() for _ in range(count))


def through(path: str, order: Any = None) -> Callable[[nn.Module, Tensor], Tensor]:
    """One block after another."""

    def run(net: nn.Module, x: Tensor) -> Tensor:
        found: Any = net.get_submodule(path)
        for index in range(len(found)) if order is None else order:
            x = found[index](x)
        return x

    return run


def after(*runs: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        for one in runs:
            x = one(net, x)
        return x

    return run


def logits(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(IDS)


# -- which list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["layers", "zebras", "zoo.zebras", "layers.0.zebras"])
def test_the_list_is_found_by_what_runs_whatever_it_is_called(path: str) -> None:
    owner, _, name = path.rpartition(".")
    part: nn.Module = blocks()
    if owner:
        part = nn.ModuleDict({name: part})
    if owner == "layers.0":
        part = nn.ModuleList([part])  # never called itself, so it is no block around the blocks
    net = Net(through(path), **{owner.split(".")[0] or path: part}, blocks=blocks(6))
    found = find_structure(net)
    assert (found.path, found.classes, found.complete) == (path, ("Block",) * 4, True)


ORDERS = {
    "backwards": [3, 2, 1, 0],
    "twice": [0, 1, 2, 3, 0, 1, 2, 3],
    "one of them twice": [0, 1, 1, 2, 3],
    "without the last": [0, 1, 2],
    "not at all": [],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_larger_list_that_does_not_run_in_order_each_once_is_not_the_blocks(order: list[int]) -> None:
    net = Net(after(through("layers", order), through("h")), layers=blocks(make=lambda: Block(64)), h=blocks())
    assert find_structure(net).path == "h"


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_without_another_list_the_error_says_what_ran(order: list[int]) -> None:
    ran = f"layers ran [{', '.join(map(str, order))}]" if order else "none runs at all"
    with pytest.raises(AdapterError, match="Net: no list of blocks runs in order, each once") as error:
        find_structure(Net(through("layers", order), layers=blocks()))
    assert ran in str(error.value)


class Expert(Block):
    """A block with lists of its own, which run in order and hold all its parameters but the norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(Mix(), Mix())
        self.experts = nn.ModuleList([Block(64), Block(64), Block(64)])

    def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> Tensor:
        x = super().forward(x) + self.row(x)
        for expert in self.experts:
            x = expert(x)
        return x


def test_lists_nested_in_the_blocks_are_not_the_blocks() -> None:
    assert find_structure(Net(through("layers"), layers=blocks(3, Expert))).path == "layers"


def test_nor_are_those_of_a_block_that_is_the_only_one_of_its_kind() -> None:
    layers = blocks(4)
    layers[2] = Expert()
    found = find_structure(Net(through("layers"), layers=layers))
    assert (found.path, found.classes) == ("layers", ("Block", "Block", "Expert", "Block"))


def side_by_side(net: Any, x: Tensor) -> Tensor:
    return x + sum(branch(x) for branch in net.branches)


def widening(net: Any, x: Tensor) -> Tensor:
    return net.mlp(x)


def test_a_chain_is_preferred_to_a_larger_list_whose_members_read_the_same() -> None:
    branches = blocks(make=lambda: Block(64))
    assert find_structure(Net(after(side_by_side, through("h")), h=blocks(), branches=branches)).path == "h"


def test_a_chain_is_preferred_to_a_larger_one_that_changes_the_width() -> None:
    mlp = nn.Sequential(nn.Linear(WIDTH, 999), nn.ReLU(), nn.Linear(999, WIDTH))
    assert find_structure(Net(after(through("h"), widening), h=blocks(), mlp=mlp)).path == "h"


@pytest.mark.parametrize("first", [True, False])
def test_of_two_chains_the_one_with_more_parameters_is_the_blocks(first: bool) -> None:
    runs = (through("encoder"), through("decoder"))
    net = Net(after(*(runs if first else runs[::-1])), encoder=blocks(8), decoder=blocks(4, lambda: Block(64)))
    assert find_structure(net).path == "decoder"


def interleaved(net: Any, x: Tensor) -> Tensor:
    for attention, mlp in zip(net.attention, net.mlp, strict=True):
        x = mlp(attention(x))
    return x


def test_a_block_that_is_spread_over_two_lists_is_in_neither() -> None:
    with pytest.raises(AdapterError, match=r"attention ran \[0, 1, 2, 3\]; mlp ran \[0, 1, 2, 3\]"):
        find_structure(Net(interleaved, attention=blocks(), mlp=blocks()))


@pytest.mark.parametrize("style", ["tensor", "tuple"])
def test_one_block_alone_is_a_chain_too(style: str) -> None:
    if style == "tensor":
        found = find_structure(Net(through("layers"), layers=blocks(1)))
    else:
        found = find_structure(styled(STYLES["the second argument, the first of a list"], count=1))
    assert (found.path, found.classes) == ("layers", ("Block" if style == "tensor" else "Styled",))
    assert (found.stream_in, found.stream_out) == ((0, None) if style == "tensor" else (1, 0))


@pytest.mark.parametrize("model_type", ["phi", "falcon"])
def test_all_blocks_but_one_can_go(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, 3)
    shorter = shortgpt.remove(shortgpt.wrap(model), [0, 2])
    assert len(shorter) == 1
    shorter.save(tmp_path / "out")
    assert len(shortgpt.load(tmp_path / "out", device="cpu")) == 1


def test_a_sequential_runs_its_members_itself() -> None:
    net = Net(lambda net, x: net.stack(x), stack=nn.Sequential(*blocks()))
    assert find_structure(net).path == "stack"


# -- the stream's place ---------------------------------------------------------------------------------------


class Handed(NamedTuple):
    weights: Tensor
    stream: Tensor


class Style(NamedTuple):
    """How a block is called and answers."""

    call: Callable[[Any, Tensor, Tensor], Any]
    answer: Callable[[Tensor, Tensor], Any]
    read: Callable[[Any], Tensor]
    stream_in: int | str
    stream_out: int | None


def _first(block: Any, x: Tensor, bias: Tensor) -> Any:
    return block(x, bias)


def _second(block: Any, x: Tensor, bias: Tensor) -> Any:
    return block(bias, x)


def _named(block: Any, x: Tensor, bias: Tensor) -> Any:
    return block(bias=bias, x=x)


STYLES = {
    "the first argument, a tensor": Style(_first, lambda y, w: y, lambda out: out, 0, None),
    "the second argument, a tensor": Style(_second, lambda y, w: y, lambda out: out, 1, None),
    "by keyword, a tensor": Style(_named, lambda y, w: y, lambda out: out, "x", None),
    "the first argument, a tuple of one": Style(_first, lambda y, w: (y,), lambda out: out[0], 0, 0),
    "the first argument, the second of a tuple": Style(_first, lambda y, w: (w, y), lambda out: out[1], 0, 1),
    "the second argument, the first of a list": Style(_second, lambda y, w: [y, w], lambda out: out[0], 1, 0),
    "by keyword, the last of a list": Style(_named, lambda y, w: [w, None, y], lambda out: out[2], "x", 2),
    "by keyword, a named tuple": Style(_named, lambda y, w: Handed(w, y), lambda out: out.stream, "x", 1),
}


class Styled(Block):
    """A block that takes a bias, the same for all, and gives its weights."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.style = style

    def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> Any:
        bias = named["bias"] if named else given[0]
        if self.style.stream_in == 1:
            x, bias = bias, x
        y = x + self.mix(self.norm(x) + bias)
        return self.style.answer(y, y.softmax(-1))


def styled(style: Style, gone: tuple[int, ...] = (), count: int = 4) -> Net:
    """A model of such blocks that runs without some of them."""

    def run(net: Any, x: Tensor) -> Tensor:
        bias = x.mean(1, keepdim=True)
        for index, block in enumerate(net.layers):
            if index not in gone:
                x = style.read(style.call(block, x, bias))
        return x

    return Net(run, layers=blocks(count, lambda: Styled(style)))


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_streams_place_is_where_one_block_hands_it_to_the_next(style: Style) -> None:
    found = find_structure(styled(style))
    assert (found.stream_in, found.stream_out, found.layout) == (style.stream_in, style.stream_out, (0, 1, 2))
    assert found.side == ()


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_in_whatever_place_the_stream_is_skipping_and_removing_are_running_without(style: Style) -> None:
    expected = logits(styled(style, gone=(1, 3)))
    model = shortgpt.wrap(styled(style))
    with model.skipping([1, 3]):
        assert torch.equal(model.logits({"input_ids": IDS}), expected)
    assert torch.equal(shortgpt.remove(model, [1, 3]).logits({"input_ids": IDS}), expected)
    assert torch.equal(model.logits({"input_ids": IDS}), logits(styled(style)))


def test_a_place_is_told_in_words() -> None:
    told = str(find_structure(styled(STYLES["by keyword, a named tuple"])))
    assert told == "layers: comes in as argument 'x', goes out as output 1, [batch, tokens, width]"
    told = str(find_structure(styled(STYLES["the second argument, a tensor"])))
    assert told == "layers: comes in as argument 1, goes out as the output, [batch, tokens, width]"


# -- its axes -------------------------------------------------------------------------------------------------

STREAMS = torch.tensor([1.0, -2.0, 0.5])


class Laid(NamedTuple):
    """A layout of the stream: how to get there, back, and all that a token has in [batch, tokens, width]; its axes with
    batch and tokens first."""

    out: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    whole: Callable[[Tensor], Tensor]
    layout: tuple[int, ...]
    told: str


def swapped(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


LAYOUTS = {
    "[B, T, H]": Laid(lambda x: x, lambda x: x, lambda x: x, (0, 1, 2), "[batch, tokens, width]"),
    "[T, B, H]": Laid(swapped, swapped, swapped, (1, 0, 2), "[tokens, batch, width]"),
    "[B, T, A, H]": Laid(
        lambda x: x[:, :, None] * STREAMS[:, None],
        lambda x: x.sum(2),
        lambda x: torch.cat([x[:, :, a] for a in range(3)], -1),
        (0, 1, 2, 3),
        "[batch, tokens, stream, width]",
    ),
    "[A, B, T, H]": Laid(
        lambda x: x * STREAMS[:, None, None, None],
        lambda x: x.sum(0),
        lambda x: torch.cat([x[a] for a in range(3)], -1),
        (1, 2, 0, 3),
        "[stream, batch, tokens, width]",
    ),
    "[A, T, B, H]": Laid(
        lambda x: swapped(x) * STREAMS[:, None, None, None],
        lambda x: swapped(x.sum(0)),
        lambda x: torch.cat([swapped(x[a]) for a in range(3)], -1),
        (2, 1, 0, 3),
        "[stream, tokens, batch, width]",
    ),
}


def laid(form: Laid) -> Net:
    runs = (lambda net, x: form.out(x), through("layers"), lambda net, x: form.back(x))
    return Net(after(*runs), layers=blocks())


@pytest.mark.parametrize("form", LAYOUTS.values(), ids=LAYOUTS)
def test_the_axes_of_the_batch_and_the_tokens_are_found(form: Laid) -> None:
    found = find_structure(laid(form))
    assert found.layout == form.layout
    assert form.told in str(found)


@pytest.mark.parametrize("form", LAYOUTS.values(), ids=LAYOUTS)
def test_in_whatever_layout_a_score_is_over_all_that_a_token_has(form: Laid) -> None:
    net: Any = laid(form)
    with torch.no_grad():
        stream = [form.out(net.embed(IDS))]
        for block in net.layers:
            stream.append(block(stream[-1]))
    whole = [form.whole(x).double() for x in stream]
    expected = [1 - torch.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(whole)]
    assert shortgpt.score(shortgpt.wrap(net), [{"input_ids": IDS}]).values == pytest.approx(expected, rel=1e-5)


def flat(net: Any, x: Tensor) -> Tensor:
    return through("layers")(net, x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_a_stream_without_axes_for_batch_and_tokens_is_not_scored_and_its_shape_is_said() -> None:
    net = Net(flat, layers=blocks())
    found = find_structure(net)
    assert found.layout == ()
    assert "an axis of its own for the tokens" in str(found)
    with pytest.raises(AdapterError, match=r"a stream of the shape \(21, 8\) has no axes for the batch's rows and"):
        shortgpt.score(shortgpt.wrap(net), [{"input_ids": IDS}])


def test_its_blocks_can_be_removed_all_the_same() -> None:
    net = Net(flat, layers=blocks())
    expected = deepcopy(net)
    del expected.layers[1]  # type: ignore[operator, union-attr]
    assert torch.equal(shortgpt.remove(shortgpt.wrap(net), [1]).logits({"input_ids": IDS}), logits(expected))


# -- state beside the stream ----------------------------------------------------------------------------------


class Remembering(Block):
    """Hands a state on beside the stream."""

    def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
        state = named["state"] if named else given[0]
        return super().forward(x) * (1 + torch.sigmoid(state)), 0.5 * state + x.mean(-1, keepdim=True)


def remembering(by_name: bool, gone: tuple[int, ...] = ()) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        state = x.new_ones(*x.shape[:2], 1)
        for index, block in enumerate(net.layers):
            if index not in gone:
                x, state = block(x, state=state) if by_name else block(x, state)
        return x + state

    return Net(run, layers=blocks(4, Remembering))


@pytest.mark.parametrize("by_name", [True, False])
def test_a_state_that_is_handed_on_passes_a_skipped_block_by(by_name: bool) -> None:
    place = "state" if by_name else 1
    model = shortgpt.wrap(remembering(by_name))
    found = find_structure(remembering(by_name))
    assert (found.stream_in, found.stream_out, found.side) == (0, 0, ((1, place),))
    assert f"; beside it output 1 goes on as argument {place!r}" in str(found)
    for gone in ((0,), (1, 2), (3,)):
        with model.skipping(gone):
            skipped = model.logits({"input_ids": IDS})
        assert torch.equal(skipped, logits(remembering(by_name, gone)))


# -- where norms are ------------------------------------------------------------------------------------------


class OwnNorm(nn.Module):
    """Any class whose name ends so is a norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)


class Normed(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (make() for _ in range(4))
        self.mix, self.mlp = Mix(), Mix()


class Pre(Normed):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.a(x))
        return x + self.mlp(self.b(x))


class Post(Normed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x + self.mix(x))
        return self.b(x + self.mlp(x))


class Sandwich(Normed):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.mix(self.a(x)))
        return x + self.d(self.mlp(self.c(x)))


class Parallel(Normed):
    def forward(self, x: Tensor) -> Tensor:
        u = self.a(x)
        return x + self.mix(u) + self.mlp(u)


class ParallelWithTwoNorms(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.a(x)) + self.mlp(self.b(x))


class BehindTheBranches(Normed):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(self.mix(x))
        return x + self.b(self.mlp(x))


class Without(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x + self.mix(x))


PLACEMENTS = {
    Pre: "pre",
    Post: "post",
    Sandwich: "sandwich",
    Parallel: "parallel",
    ParallelWithTwoNorms: "parallel",
    BehindTheBranches: "unknown",
    Without: "unknown",
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "RMSNorm": lambda: nn.RMSNorm(WIDTH),
    "a class written here": OwnNorm,
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize(("kind", "placement"), PLACEMENTS.items())
def test_the_norms_place_is_told_by_what_they_read_and_what_reads_them(
    kind: type[Normed], placement: str, norm: Callable[[], nn.Module]
) -> None:
    net = Net(through("layers"), layers=blocks(3, lambda: kind(norm)))
    assert find_structure(net).norm_placement == placement
    assert shortgpt.wrap(net).norm_placement == placement


# -- the types of transformers, with weights and without -------------------------------------------------------

TYPES = {
    "falcon": Structure("transformer.h", ("FalconDecoderLayer",) * 6, 0, 0, norm_placement="parallel"),
    "gemma3": Structure("model.language_model.layers", ("Gemma3DecoderLayer",) * 6, norm_placement="sandwich"),
    "gpt_neox": Structure("gpt_neox.layers", ("GPTNeoXLayer",) * 6, norm_placement="parallel"),
    "jamba": Structure(
        "model.layers",
        tuple(f"Jamba{kind}DecoderLayer" for kind in ("Mamba", "Attention", "Mamba") * 2),
        norm_placement="pre",
    ),
    "mixtral": Structure("model.layers", ("MixtralDecoderLayer",) * 6, norm_placement="pre"),
    "opt": Structure("model.decoder.layers", ("OPTDecoderLayer",) * 6, norm_placement="pre"),
    "qwen3_moe": Structure("model.layers", ("Qwen3MoeDecoderLayer",) * 6, norm_placement="pre"),
    "roberta": Structure("roberta.encoder.layer", ("RobertaLayer",) * 6, norm_placement="post"),
}


@pytest.mark.parametrize(("model_type", "expected"), TYPES.items())
def test_a_type_has_the_same_structure_with_weights_and_on_the_meta_device(
    model_type: str, expected: Structure
) -> None:
    model = tiny_model(model_type)
    with torch.device("meta"):
        empty = type(model)._from_config(model.config).to(torch.bfloat16)
    assert is_empty(empty)
    assert not is_empty(model)
    assert find_structure(model) == expected
    assert find_structure(empty) == expected


def test_transposed_and_stacked_streams_of_types_are_read_right() -> None:
    assert find_structure(tiny_model("xlnet")).layout == (1, 0, 2)
    assert find_structure(tiny_model("deepseek_v4")).layout == (0, 1, 2, 3)


class Stumbling(Block):
    """Asks for values, which the meta device cannot give."""

    def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> Tensor:
        return super().forward(x) * float(x.detach().numpy().std() > 0)


def test_a_pass_that_breaks_off_on_the_meta_device_shows_which_list_began_to_run() -> None:
    layers = blocks(5)
    layers[2] = Stumbling()
    net = Net(after(through("neck"), through("layers")), neck=blocks(4, lambda: Block(4)), layers=layers)
    whole, begun = find_structure(net), find_structure(deepcopy(net).to("meta"))
    assert whole.complete
    assert (begun.path, begun.classes, begun.complete) == (whole.path, whole.classes, False)
    assert (begun.norm_placement, str(begun)) == ("unknown", "layers; the rest is found when the model runs")


def test_where_it_breaks_off_and_another_list_is_as_long_neither_is_taken_for_the_blocks() -> None:
    layers = blocks(5)
    layers[2] = Stumbling()
    net = Net(after(through("layers"), through("tail")), layers=layers, tail=blocks(5, lambda: Block(64)))
    assert find_structure(net).path == "tail"
    with pytest.raises(AdapterError, match=r"layers or tail\? A pass without weights breaks off"):
        find_structure(deepcopy(net).to("meta"))


# -- the model is left as it was ------------------------------------------------------------------------------


def state_of(net: nn.Module) -> list[Any]:
    """What a look could leave behind in a module."""
    kept: list[Any] = []
    for name, module in net.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs)
        kept.append((name, module.training, [len(table) for table in hooks]))
        kept += [
            (parameter.requires_grad, parameter.grad is None, parameter.detach().clone().tolist())
            for parameter in module.parameters(recurse=False)
        ]
    return kept


class Failing(Block):
    def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> Tensor:
        raise ValueError("it needs a pixel")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_training_flag_hooks_and_weights_are_as_they_were_even_after_a_failure(training: bool, fails: bool) -> None:
    layers = blocks()
    if fails:
        layers[3] = Failing()
    net = Net(through("layers"), layers=layers).train(training)
    net.head.requires_grad_(False)
    hook = layers[0].register_forward_hook(lambda module, args, output: None)
    before = state_of(net)
    if fails:
        with pytest.raises(AdapterError):
            find_structure(net)
    else:
        find_structure(net)
    assert state_of(net) == before
    hook.remove()


def test_the_look_is_without_dropout() -> None:
    """Its random numbers would be missing elsewhere."""
    net = Net(through("layers"), layers=blocks(4, lambda: nn.Sequential(Block(), nn.Dropout(0.5)))).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    find_structure(net)
    assert torch.equal(torch.rand(4), expected)


def test_a_model_that_cannot_run_says_so_with_its_reason() -> None:
    layers = blocks()
    layers[3] = Failing()
    with pytest.raises(AdapterError, match=r"^Net cannot be run on 5 token ids: it needs a pixel$"):
        find_structure(Net(through("layers"), layers=layers))


def test_what_a_model_needs_beside_token_ids_can_be_given() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        if len(x) != 3:
            raise ValueError("it takes three rows")
        return through("layers")(net, x)

    net = Net(run, layers=blocks())
    with pytest.raises(AdapterError, match="it takes three rows"):
        find_structure(net)
    assert find_structure(net, {"input_ids": IDS}).layout == (0, 1, 2)


# -- the block list as a checkpoint names it ------------------------------------------------------------------


def names_of(**lists: int) -> list[str]:
    """Tensor names: lists with so many entries (`__` for a dot), and some beside them."""
    numbered = [
        f"{path.replace('__', '.')}.{i}.{part}.weight"
        for path, count in lists.items()
        for i in range(count)
        for part in ("norm", "experts.0.up", "experts.1.up")
    ]
    return ["embed.weight", *numbered, "lm_head.weight"]


LISTED: dict[str, tuple[list[str], str, str]] = {
    "as the model has it": (names_of(model__layers=4), "model.layers", "model.layers"),
    "the prefix is missing": (names_of(h=4), "transformer.h", "h"),
    "another prefix is there": (names_of(model__decoder__layers=4), "decoder.layers", "model.decoder.layers"),
    "an old layout, beside a tower of the same depth": (
        names_of(language_model__model__layers=4, vision_tower__vision_model__encoder__layers=4),
        "model.language_model.layers",
        "language_model.model.layers",
    ),
    "a tower of another depth": (
        names_of(vision_tower__layers=7, text__layers=4),
        "model.language_model.layers",
        "text.layers",
    ),
    "a list of another name": (names_of(blocks=4, layers=4), "model.layers", "layers"),
    "renamed by the library, beside a tower": (
        names_of(language_model__model__blocks=4, vision_tower__encoder__blocks=4),
        "model.language_model.layers",
        "language_model.model.blocks",
    ),
    "the name itself, whatever else there is": (
        names_of(model__layers=4, layers=4, old__model__layers=4),
        "model.layers",
        "model.layers",
    ),
}


@pytest.mark.parametrize(("names", "path", "expected"), LISTED.values(), ids=LISTED)
def test_the_block_list_is_found_under_the_name_that_a_checkpoint_gives_it(
    names: list[str], path: str, expected: str
) -> None:
    assert list_in_files(names, path, 4) == expected
    assert list_in_files(reversed(names), path, 4) == expected


UNLISTED: dict[str, tuple[list[str], str]] = {
    "two that are equally like it": (names_of(a__layers=4, b__layers=4), "a.layers (4), b.layers (4)"),
    "another number of blocks": (names_of(text__layers=5), "text.layers (5)"),
    "a number that is left out": ([n for n in names_of(text__layers=4) if ".2." not in n], "text.layers (3)"),
    "nothing but the number of blocks": (names_of(vision__blocks=4), "vision.blocks (4)"),
    "another name, and another number": (names_of(model__blocks=5), "model.blocks (5)"),
    "no list at all": (["embed.weight", "lm_head.weight"], "none"),
}


@pytest.mark.parametrize(("names", "told"), UNLISTED.values(), ids=UNLISTED)
def test_where_it_is_not_certain_the_error_names_the_lists_that_are_there(names: list[str], told: str) -> None:
    with pytest.raises(CheckpointError) as error:
        list_in_files(names, "model.layers", 4)
    expected = f"no list of tensors is the model's 4 blocks 'model.layers'; numbered lists: {told}"
    assert str(error.value) == expected


# -- what misled it once --------------------------------------------------------------------------------------


class Separate(nn.Module):
    """Calls the layers of its attention itself, all on the same normalised stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2, self.mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x)
        x = x + nn.functional.scaled_dot_product_attention(self.q(u), self.k(u), self.v(u), is_causal=True)
        return x + self.mlp(self.norm2(x))


def test_layers_of_one_attention_are_no_parallel_parts() -> None:
    assert find_structure(Net(through("layers"), layers=blocks(make=Separate))).norm_placement == "pre"


def test_a_norm_whose_class_ends_in_more_than_norm_is_one() -> None:
    assert shortgpt.wrap(tiny_model("nemotron")).norm_placement == "pre"  # NemotronLayerNorm1P


def test_parts_that_do_not_train_do_not_train_afterwards() -> None:
    net = Net(through("layers"), layers=blocks()).train()
    frozen = net.get_submodule("layers.0").eval()
    find_structure(net)
    assert not frozen.training
    assert net.training


def test_a_chain_is_preferred_to_a_larger_part_in_a_list_of_its_own() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.neck[0](through("layers")(net, x))

    net = Net(run, layers=blocks(), neck=nn.ModuleList([Block(size=999)]))
    assert find_structure(net).path == "layers"
