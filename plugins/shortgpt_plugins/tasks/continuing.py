"""What a model makes of the beginning of a held-out passage, greedily: does it repeat itself, does it stay in the
language?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from shortgpt.measuring.tasks.language_model import Generated, LanguageModel
from shortgpt.measuring.tasks.passages import Passages
from shortgpt.measuring.tasks.task import OwnTask, TaskOptions
from shortgpt.values.evaluation.outcomes import Outcome
from shortgpt_plugins.tasks.languages import Profile, scripts_of, words_of

CONTEXT, SPARE = 96, 96
NEW_TOKENS = 128
GRAM = 4


class Continuing(OwnTask):
    """A task on 128 greedy tokens behind 96 characters of a passage; they are generated once a model."""

    version = "1"
    default_items = 24

    def __init__(self, options: TaskOptions) -> None:
        self.passages = Passages(options, CONTEXT, SPARE)
        self.settings = self.passages.settings()

    def __len__(self) -> int:
        return len(self.passages)

    def group(self, item: int) -> int:
        return self.passages[item].document

    def continuations(self, model: LanguageModel, items: Sequence[int]) -> list[Generated]:
        """What the model makes of each passage."""
        known = model.memo.setdefault((Continuing, self.settings["text_hash"]), {})
        new = [item for item in items if item not in known]
        prompts = [model.encode(self.passages.context(item).rstrip()) for item in new]
        known.update(zip(new, model.generate(prompts, NEW_TOKENS), strict=True))
        return [known[item] for item in items]


class Repetition(Continuing):
    """The share of 4-grams of tokens that were there before in the same text: 0 where none repeats, near 1 in a loop. A
    sign of collapse, not a skill. (`1 − distinct / all`: Welleck et al. 2019, arXiv:1908.04319, "seq-rep-4".)"""

    name = "repetition"
    metric = "repeated 4-grams"
    lower_is_better = True
    kind = "collapse"

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        found = []
        for generated in self.continuations(model, items):
            grams = [generated.ids[at : at + GRAM] for at in range(len(generated.ids) - GRAM + 1)]
            found.append(Outcome(len(grams) - len(set(grams)), len(grams)))
        return found


FEWEST_WORDS = 2000
"""A document of fewer words takes its profile from all of its script."""


class Language(Continuing):
    """Whether what a model writes is in the language of the passage: by script and commonest words of its document, or,
    where that is short, of all documents of its script. It does not judge sense: a loop of common words stays."""

    name = "language"
    metric = "texts that stay"
    chance = 0.0

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        self.profiles: dict[int | str, Profile] = {}
        self.by_script: defaultdict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(self.passages.documents):
            self.by_script[_main_script(text)].append(number)

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        found = []
        for item, generated in zip(items, self.continuations(model, items), strict=True):
            stays = self.profile(self.passages[item].document).holds(generated.text)
            found.append(Outcome(float(stays), 1.0, ("stays" if stays else "leaves",), (stays,)))
        return found

    def profile(self, document: int) -> Profile:
        """That of a document's language."""
        documents = self.passages.documents
        text = documents[document]
        long = len(words_of(text)) >= FEWEST_WORDS
        key = document if long else _main_script(text)
        if key not in self.profiles:
            texts = [text] if long else [documents[number] for number in self.by_script[_main_script(text)]]
            self.profiles[key] = Profile.of(texts)
        return self.profiles[key]


SAMPLE = 4096
"""Characters that tell a document's script."""


def _main_script(text: str) -> str:
    common = scripts_of(text[:SAMPLE]).most_common(1)
    return common[0][0] if common else ""
