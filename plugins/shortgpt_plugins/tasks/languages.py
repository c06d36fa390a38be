"""In what script and language a text is, by Unicode and by the commonest words of a source. No model, no table.

A source's profile is its scripts and the hundred commonest of its words. A text stays in its language where its letters
are of those scripts, and its words are as often among the commonest as half of what they are in the source itself.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

COMMONEST = 100
OF_SCRIPT = 0.9
"""The share of letters that are to be of the source's scripts."""
OF_SCRIPT_IN_SOURCE = 0.05
"""A script is one of the source's where it has this share of its letters."""
OF_RATE = 0.5
"""How often the commonest words are to come, relative to the source."""
FEWEST_LETTERS = 8
"""A text of fewer says nothing: it has not stayed."""
UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
"""Scripts without spaces between words: each of their signs counts as a word."""
WORD = re.compile(r"[^\W\d_]+")


@functools.cache
def script_of(letter: str) -> str:
    """The script of a letter: the first word of its name in Unicode, such as LATIN, CYRILLIC, CJK."""
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0].partition("-")[0]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; each sign of a script without spaces is one."""
    found: list[str] = []
    for word in WORD.findall(text.casefold()):
        if any(script_of(letter) in UNSPACED for letter in word):
            found += word
        else:
            found.append(word)
    return found


def scripts_of(text: str) -> Counter[str]:
    """How many letters a text has of each script."""
    return Counter(script_of(letter) for letter in text if letter.isalpha())


@dataclass(frozen=True)
class Profile:
    """What a language looks like.

    Attributes:
        scripts: that its letters are of.
        words: the commonest ones.
        rate: the share of the source's words that these are.
    """

    scripts: frozenset[str]
    words: frozenset[str]
    rate: float

    @classmethod
    def of(cls, texts: Iterable[str]) -> Profile:
        """The profile of a source."""
        letters: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for text in texts:
            letters.update(scripts_of(text))
            words.update(words_of(text))
        total = letters.total()
        scripts = frozenset(name for name, count in letters.items() if count >= OF_SCRIPT_IN_SOURCE * total)
        commonest = words.most_common(COMMONEST)
        rate = sum(count for _, count in commonest) / max(1, words.total())
        return cls(scripts, frozenset(word for word, _ in commonest), rate)

    def holds(self, text: str) -> bool:
        """Whether a text is in this language."""
        letters, words = scripts_of(text), words_of(text)
        total = letters.total()
        if total < FEWEST_LETTERS:
            return False
        own = sum(count for script, count in letters.items() if script in self.scripts)
        common = sum(word in self.words for word in words)
        return own >= OF_SCRIPT * total and common >= OF_RATE * self.rate * len(words)
