"""The tokenizer: a text to token ids, and back."""

import re

import tiktoken


class Tokenizer:
    """GPT-2's byte-level BPE: a text to token ids, and back.

    Which tokens there are, and their ids, stands in files of the checkpoint: support/vocabulary.py
    reads them.
    """

    # Contractions; words, numbers and signs, each with the space before it; the other white space.
    PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def __init__(self, tokens, ids=None, special=None, added=None):
        """tokens: bytes of each, first the 256 single ones, then one a merge, in that order.

        ids: the id of each, int; None: its place in the list.  special: {text: id} of tokens that
        no text is made into, such as <|endoftext|>.  added: {text: id} of tokens that are cut out
        of a text before anything else is looked at.
        """
        self.tokens = tokens
        self.ids = ids or list(range(len(tokens)))
        self.special = special or {}
        self.added = added or {}
        self.end_of_text = self.special.get("<|endoftext|>")  # None where the model has none

        # tiktoken joins in the order of the numbers it is given, and answers with these numbers.
        # Where the ids rise with the merges they serve as such; else they are looked up afterwards.
        merged = self.ids[256:]
        self.in_order = merged == sorted(merged)
        numbers = self.ids if self.in_order else range(len(tokens))
        ranks = dict(zip(tokens, numbers, strict=True))
        self.bpe = tiktoken.Encoding(
            "gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

        # The longest first: of two that begin alike the longer one is meant.
        longest_first = sorted(self.added, key=len, reverse=True)
        self.cut_out = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

        self.bytes_of = dict(zip(self.ids, tokens, strict=True))
        for text, number in {**self.special, **self.added}.items():
            self.bytes_of[number] = text.encode()
        self.size = max(self.bytes_of) + 1  # rows of the table of vectors that are a token's

    def encode(self, text):
        """str -> list of ids; a special token in the text is ordinary characters."""
        if not self.added:
            return self.encode_part(text)
        ids = []
        for part in self.cut_out.split(text):
            if part in self.added:
                ids.append(self.added[part])
            else:
                ids += self.encode_part(part)
        return ids

    def encode_part(self, text):
        """The ids of a text in which no added token stands."""
        numbers = self.bpe.encode_ordinary(text)
        return numbers if self.in_order else [self.ids[number] for number in numbers]

    def decode(self, ids, errors="replace"):
        """Ids -> str, where an id of no token is nothing.

        errors: as in bytes.decode, for half a character at either end.
        """
        return b"".join(self.bytes_of.get(number, b"") for number in ids).decode("utf-8", errors)

    def ordinary_ids(self):
        """The ids of tokens of several bytes, in the order of their merges, as a list."""
        others = {*self.special.values(), *self.added.values()}
        return [number for number in self.ids[256:] if number not in others]
