"""Our own tasks: what they ask, and how they judge, against rules written out here."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from shortgpt_plugins.tasks.continuing import Language, Repetition
from shortgpt_plugins.tasks.exercises import Arithmetic, Brackets, Copy, Exercise
from shortgpt_plugins.tasks.languages import Profile, script_of
from shortgpt_plugins.tasks.reading import BitsPerByte, Cloze, NextToken, TaskPerplexity

import shortgpt
from shortgpt.errors import CalibrationError
from shortgpt.measuring.tasks.language_model import Generated, LanguageModel
from shortgpt.measuring.tasks.task import TaskOptions
from tests.support import byte_tokenizer, tiny

DRAW = random.Random(0)
WORDS = ["the", "a", "of", "to", "and", *("".join(DRAW.choices("abdegiklmnorstu", k=6)) for _ in range(60))]
TEXTS = tuple(" ".join(DRAW.choices(WORDS, k=150)) for _ in range(6))
OPTIONS = TaskOptions(text=TEXTS)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", blocks=3, max_position_embeddings=256)


@pytest.fixture(scope="module")
def lm(model: Any) -> LanguageModel:
    return LanguageModel(shortgpt.wrap(model, tokenizer=byte_tokenizer()))


# -- reading --------------------------------------------------------------------------------------------------


def losses(model: Any, text: str, start: int) -> tuple[list[float], list[bool]]:
    """−log p of each byte from `start` on, and whether it is the likeliest: windows of 256 bytes, each read behind 64
    bytes or more of what comes before."""
    ids = list(text.encode())
    found: list[float] = []
    right: list[bool] = []
    for first in range(start, len(ids), 192):
        end = min(first + 192, len(ids))
        begin = max(0, end - 257)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[begin : end - 1]]), use_cache=False).logits[0].double()
        for at in range(first, end):
            row = logits[at - 1 - begin]
            found.append(float(row.logsumexp(0) - row[ids[at]]))
            right.append(int(row.argmax()) == ids[at])
    return found, right


def test_reading_tasks_are_sums_over_the_passages(model: Any, lm: LanguageModel) -> None:
    bits, perplexity, token = BitsPerByte(OPTIONS), TaskPerplexity(OPTIONS), NextToken(OPTIONS)
    items = [0, 2]
    for item, by_bits, by_loss, by_token in zip(
        items, bits.outcomes(lm, items), perplexity.outcomes(lm, items), token.outcomes(lm, items), strict=True
    ):
        context, continuation = bits.passages.context(item), bits.passages.continuation(item)
        text = context + continuation
        found, right = losses(model, text, len(context.rstrip()))
        assert len(text) > 257, "longer than the window"
        assert by_bits.weight == len(found) == by_loss.weight == by_token.weight
        assert by_bits.score == pytest.approx(sum(found) / math.log(2), rel=1e-6)
        assert by_loss.score == pytest.approx(sum(found), rel=1e-6)
        assert by_token.score == sum(right)
        assert by_token.right == tuple(right)
    assert lm.truncated == 0, "all of a passage is judged, in parts"


def test_a_passage_is_read_once_a_model(lm: LanguageModel) -> None:
    asked: list[int] = []

    class Counting(LanguageModel):
        def likelihoods(self, requests: Sequence[Any], progress: Any = None) -> Any:
            asked.append(len(requests))
            return super().likelihoods(requests, progress)

    counting = Counting(lm.model)
    for task in (BitsPerByte(OPTIONS), TaskPerplexity(OPTIONS), NextToken(OPTIONS)):
        task.outcomes(counting, [1])
    assert [count for count in asked if count] == asked[:1]


def test_the_cloze_takes_the_likeliest_continuation_per_byte(model: Any, lm: LanguageModel) -> None:
    task = Cloze(OPTIONS)
    (outcome,) = task.outcomes(lm, [3])
    context, choices = task.passages.context(3), task.choices(3)
    assert choices[0] == task.passages.continuation(3)
    assert len(set(choices)) == 4
    values = []
    for choice in choices:
        ids = torch.tensor([list((context + choice).encode())])
        with torch.no_grad():
            logs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        places = range(len(context), ids.shape[1])
        values.append(sum(float(logs[at - 1, ids[0, at]]) for at in places) / len(choice.encode()))
    answer = max(range(4), key=values.__getitem__)
    assert outcome.answers == (str(answer),)
    assert outcome.right == (answer == 0,)


def test_the_other_continuations_are_of_other_documents_and_the_same_for_every_run() -> None:
    task, again = Cloze(OPTIONS), Cloze(TaskOptions(text=TEXTS))
    of = {task.passages.continuation(at): passage.document for at, passage in enumerate(task.passages)}
    for item in range(len(task)):
        right, *others = task.choices(item)
        assert of[right] not in {of[other] for other in others}
        assert again.choices(item) == [right, *others]
    assert Cloze(TaskOptions(text=TEXTS, seed=1)).choices(0) != task.choices(0)


def test_a_cloze_of_too_few_passages_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the cloze takes 4 passages, it gives 1"):
        Cloze(TaskOptions(text=(TEXTS[0][:120],)))


# -- exercises ------------------------------------------------------------------------------------------------


class Scripted(LanguageModel):
    """Answers each prompt by a rule."""

    def __init__(self, model: Any, rule: Callable[[str], str]) -> None:
        super().__init__(model)
        self.rule = rule

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, *args: Any, **options: Any
    ) -> list[Generated]:
        texts = [self.rule(self.decode(prompt)) for prompt in prompts]
        return [Generated(tuple(text.encode()[:new_tokens]), text) for text in texts]


def last_line(prompt: str) -> str:
    return prompt.rpartition("\n")[2]


def copied(prompt: str) -> str:
    return " " + prompt.split("\n")[-2].removeprefix("words: ")


def closed(prompt: str) -> str:
    opened = last_line(prompt).removeprefix("open: ").removesuffix(" close:").split()
    return "".join({"(": ")", "[": "]", "{": "}", "<": ">"}[sign] for sign in opened[::-1])


def added(prompt: str) -> str:
    first, _, second = last_line(prompt).removesuffix(" =").partition(" + ")
    return f" {int(first) + int(second)}, as everybody knows"


@pytest.mark.parametrize(("kind", "rule"), [(Copy, copied), (Brackets, closed), (Arithmetic, added)])
def test_who_follows_the_rule_is_right_and_who_does_not_is_wrong(
    kind: type[Exercise], rule: Callable[[str], str], lm: LanguageModel
) -> None:
    task = kind(TaskOptions())
    items = list(range(24))
    assert all(one.right == (True,) for one in task.outcomes(Scripted(lm.model, rule), items))
    assert all(one.score == 0 for one in task.outcomes(Scripted(lm.model, lambda prompt: " 7 ) cat"), items))
    # the answers of the worked examples are the rule's too
    for item in items:
        lines = task.prompt(item).asked.split("\n")
        step = 2 if kind is Copy else 1
        for at in range(0, len(lines) - step, step):
            asked, _, answer = "\n".join(lines[at : at + step]).rpartition(
                {Copy: ":", Brackets: ":", Arithmetic: "="}[kind]
            )
            assert task.read(answer) == task.read(rule(asked + {Copy: ":", Brackets: ":", Arithmetic: " ="}[kind][-1]))


def test_an_item_is_of_the_seed_and_its_number_alone() -> None:
    one, other = Arithmetic(TaskOptions()), Arithmetic(TaskOptions(items=3))
    assert [one.prompt(item) for item in (5, 6)] == [other.prompt(item) for item in (5, 6)]
    assert one.prompt(5) != Arithmetic(TaskOptions(seed=1)).prompt(5)
    assert {len(one.prompt(item).asked.rpartition("\n")[2].split()[0]) for item in range(3, 6)} == {1, 2, 3}
    assert Arithmetic(TaskOptions(shots=0)).prompt(5).asked.count("\n") == 0


# -- what is written freely -----------------------------------------------------------------------------------


def test_repetition_is_the_share_of_4_grams_that_were_there_before(lm: LanguageModel) -> None:
    task = Repetition(OPTIONS)
    (outcome,) = task.outcomes(Scripted(lm.model, lambda prompt: "abcabcabc"), [0])
    grams = ["abca", "bcab", "cabc", "abca", "bcab", "cabc"]
    assert (outcome.score, outcome.weight) == (len(grams) - len(set(grams)), len(grams))
    (none,) = task.outcomes(Scripted(lm.model, lambda prompt: "ab"), [1])
    assert (none.score, none.weight) == (0, 0)


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("the lion of the moon and to a river the end of a day", True),
        ("quux zyzzyva pfft krk hmph grault fnord wibble xyzzy plugh", False),
        ("эта строка написана на другом языке и другими буквами", False),
        ("", False),
        ("12345 67890 !!! ???", False),
    ],
)
def test_a_text_stays_by_its_script_and_the_commonest_words_of_the_source(
    text: str, stays: bool, lm: LanguageModel
) -> None:
    task = Language(OPTIONS)
    known = " ".join(WORDS[:12])
    (outcome,) = task.outcomes(Scripted(lm.model, lambda prompt: text and f"{text} {known if stays else ''}"), [0])
    assert outcome.right == (stays,)


def test_the_profile_is_of_the_script_of_the_passage() -> None:
    russian = "и в не на что он как это она но из за так все вы мы ты его ее было " * 30
    task = Language(TaskOptions(text=(*TEXTS, russian)))
    assert task.profile(6).scripts == {"CYRILLIC"}
    assert task.profile(0).scripts == {"LATIN"}
    assert task.profile(6).holds("он и она не так как мы это было")
    assert not task.profile(6).holds(TEXTS[0])


def test_scripts_without_spaces_are_read_sign_by_sign() -> None:
    profile = Profile.of(["私は日本語を話します。" * 20, "これは日本の本です。" * 20])
    assert {script_of("私"), script_of("は"), script_of("a")} == {"CJK", "HIRAGANA", "LATIN"}
    assert profile.holds("私は本を話します。日本です。")
    assert not profile.holds("wholly another script in here")


def test_a_tokenizer_that_cannot_decode_is_told(model: Any) -> None:
    class Bytes:
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

    silent = LanguageModel(shortgpt.wrap(model, tokenizer=cast(Any, Bytes())))
    with pytest.raises(CalibrationError, match="cannot decode, so what it generates cannot be judged"):
        Copy(TaskOptions()).outcomes(silent, [0])
