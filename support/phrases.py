"""Phrases: texts as their words, and which of them stand in which."""

import functools
import itertools
import re
import sys
import unicodedata

from support.terminal import progress

# Scripts that put no space between words (Thai and its neighbours, Chinese, Japanese): there each
# character counts as a word.
ALONE = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)
WORDS_READ = 2**12  # of a text that are compared: more than a model of 1,024 positions reads


def as_written(text):
    """text -> tuple of its words, each with all of its signs."""
    return tuple(map(sys.intern, text.split()[:WORDS_READ]))  # equal words are one in memory


def words_of(text):
    """A text as it is compared with others -> tuple of its words: letters and digits, casefolded.

    Signs at a word or within it do not count, but a hyphen does, and a word of signs alone, as an
    emoji, is itself.  What Unicode's NFKC makes the same is the same.
    """
    # NFKC first: it makes letters of what is no letter by itself, such as the full-width forms.
    words = []
    text = unicodedata.normalize("NFKC", text).casefold()
    if not text.isascii():
        text = ALONE.sub(r" \g<0> ", text)
    for word in text.split():
        if word.isalnum():
            words.append(word)
        else:
            words.extend(parts_of(word))
    return tuple(map(sys.intern, words[:WORDS_READ]))


@functools.lru_cache(2**16)
def parts_of(word):
    """A word that has signs, without them: "don't" is one word, a dash or a slash makes two."""
    kept = []
    for character in word:
        # Marks are parts of letters, as the vowels of Hindi are.
        is_letter = character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")
        if is_letter or character in "-\u2010\u2011":
            kept.append(character)
        elif character not in "'\u2019\u2018`._":
            kept.append(" ")
    # All hyphens are one; a hyphen at an end of a word, such as a minus, joins nothing.
    parts = []
    for part in "".join(kept).replace("\u2010", "-").replace("\u2011", "-").split():
        if any(map(str.isalnum, part)):
            parts.append(part.strip("-"))
    return parts or [word]


class Phrases:
    """Phrases, each a tuple of words, and which of them stand in which.

    The time grows with the number of words, whatever the phrases begin with.
    """

    def __init__(self, phrases):
        self.phrases = dict.fromkeys(phrases)
        # To look for each length at each word would take the square.  So phrases are found by
        # their beginnings, in steps of twice the length: most pairs of words begin nothing.
        # The first 2, 4, 8 ... words of a phrase -> how many words the phrases have that begin so,
        # of those that have fewer than twice as many.
        self.begins = {}
        for phrase in self.phrases:
            width = 2
            while width <= len(phrase):
                start = phrase[:width]
                self.begins.setdefault(start, ())
                width *= 2
            if len(phrase) > 1 and len(phrase) not in self.begins[start]:
                self.begins[start] += (len(phrase),)

    def inside(self, words):
        """The set of the phrases that stand in these words."""
        found = self.phrases.keys() & zip(words)  # those of one word
        for i, lengths in enumerate(map(self.begins.get, itertools.pairwise(words))):
            width = 2
            while lengths is not None:
                for length in lengths:
                    part = words[i : i + length]
                    if part in self.phrases:
                        found.add(part)
                width *= 2
                if i + width > len(words):
                    break
                lengths = self.begins.get(words[i : i + width])  # None: none goes on like this
        return found

    def whole(self):
        """The phrases that stand in no other, in their order."""
        contained = set()
        # Longest first: what stands in a contained phrase was already found in the longer one.
        longest_first = sorted(self.phrases, key=len, reverse=True)
        for phrase in progress(longest_first, "texts"):
            if phrase not in contained:
                contained.update(self.inside(phrase))
                contained.discard(phrase)
        return [phrase for phrase in self.phrases if phrase not in contained]
