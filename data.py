"""Texts: from a file to batches of token ids.

Tokenizer, clean, read_split, label_names, hold_out, encode, collate, batches, in the order in which
a text meets them.  Whatever is wrong with a file ends in a ValueError or OSError whose one sentence
names it.
"""

import random
import sys

import tiktoken
import torch
from torch.nn.utils.rnn import pad_sequence

from support import checks, fetch, files

# ---- tokenizer ------------------------------------------------------------------------------


class Tokenizer:
    """GPT-2's byte-level BPE.  merges.txt is all it takes: the order of the merges gives the ids.

    Ids 0 to 255 are the bytes in GPT-2's order, then one id a merge, then <|endoftext|>.
    """

    # Contractions; words, numbers and signs, each with the space before it; the other white space.
    PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def __init__(self, path, rows=2**24):
        """path: a merges.txt; ValueError, naming the line, when it is not one.

        rows: of the table of vectors, which no token may go beyond.
        """
        # The file spells every byte as a visible character: bytes that are one in Latin-1 stand for
        # themselves and come first, the others are numbered from 256 on.
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = visible + [byte for byte in range(256) if byte not in visible]
        spelled = [*visible, *range(256, 512)]  # more than enough
        byte_of = dict(zip(map(chr, spelled), order))

        # A merge joins two tokens that are known, and is the next token itself.
        known = {character: i for i, character in enumerate(byte_of)}
        lines = files.read_text(path, limit=2**24).removesuffix("\n").split("\n")
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith("#version"):
                continue
            left, _, right = line[:1000].partition(" ")
            if left not in known or right not in known or left + right in known:
                raise ValueError(f"{path}, line {number}: {line[:40]!r} merges no two known tokens")
            known[left + right] = len(known)

        self.end_of_text = len(known)
        self.size = len(known) + 1
        checks.vocabulary(path, self.size, rows)
        ranks = {bytes(map(byte_of.get, token)): i for token, i in known.items()}
        special = {"<|endoftext|>": self.end_of_text}
        self.bpe = tiktoken.Encoding(
            "gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        self.encode = self.bpe.encode_ordinary  # str -> ids; <|endoftext|> is ordinary characters
        self.decode = self.bpe.decode  # ids -> str


# ---- texts and labels -----------------------------------------------------------------------

TEXT_RULE = "strip"
LONGEST = 2**18  # characters of a text, twice what 1,024 tokens of 128 bytes, the longest, can hold


def clean(text):
    """The one text rule, for training and predicting: no white space at either end.

    Every sentence of SST-2 ends in a space, which would become a token of its own, the very one
    that the prompt follows.  ValueError for what the tokenizer would garble or break on.
    """
    if len(text) > LONGEST:
        raise ValueError(f"the text has {len(text)} characters; cut it, {LONGEST} are the limit")
    text.encode()  # fails on half a surrogate pair, which JSON and a shell let through
    return text.strip()


def readable(text):
    """(a text, cleaned, None), or ("", why it cannot be read)."""
    try:
        text = clean(text)
    except UnicodeEncodeError:
        return "", "is not UTF-8"
    except ValueError as error:
        return "", f"is too long: {error}"
    return text, None if text else "is blank"


def value_in(row, column, *known):
    """What a row says in this column, or, where none was asked for, in the first known one it has."""
    names = [column] if column else [name for name in known if name in row]
    return row.get(names[0]) if names else None


def text_in(row, column=None):
    """(the text of a row, None), or ("", why it has none)."""
    text = value_in(row, column, "sentence", "text")
    if not isinstance(text, str):
        return "", f"has no text in a column {column or 'sentence or text'} (--text-column)"
    text, problem = readable(text)
    return text, problem and f"has a text that {problem}"


def read_split(data, split, num_labels=2, names=(), columns=(None, None)):
    """One split as a list of (text, label), cleaned and checked; ValueError names file and line.

    columns: of the text (`sentence` or `text`) and of the `label`: one of the names, or 0 to
    num_labels - 1, or any number where num_labels is 1 (regression).
    """
    path, examples, quoted = fetch.split_file(data, split), [], 0
    for number, row in files.rows_of(path):
        (text, problem), label = text_in(row, columns[0]), value_in(row, columns[1], "label")
        if label is None:
            problem = f"has no label in a column {columns[1] or 'label'} (--label-column)"
        try:
            if problem:
                raise ValueError(f"the row {problem}")
            examples.append((text, checks.label(label, num_labels, names)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if path.suffix == ".tsv" and text[0] == text[-1] == '"' and '""' in text[1:-1]:
            quoted = quoted or number
    if not examples:
        raise ValueError(f"{path} has no rows")
    if quoted:
        print(
            f"warning: {path}, line {quoted}: quotation marks as a spreadsheet writes them, but "
            "in a tsv they belong to the text, as in GLUE's; save it as csv",
            file=sys.stderr,
        )
    return examples


def label_names(data, column=None):
    """What the labels of train are called, in the order of their first appearance (but negative
    before positive); none where they are numbers."""
    words = {}
    for _, row in files.rows_of(fetch.split_file(data, "train")):
        value = value_in(row, column, "label")
        if checks.is_number(value):
            return []  # as a rule at the first row: read_split says what is wrong with the others
        if isinstance(value, str) and value.strip():
            words[value.strip()] = None
    names = list(words)
    return checks.KNOWN if sorted(names) == checks.KNOWN else names


def hold_out(examples, size, seed=0):
    """Split (text, label) pairs into (train, held out) so that no phrase stands on both sides.

    SST-2's training rows are phrases of one another: of 1,000 random ones 900 stand inside another
    row, and a score on them says nothing.  So `size` texts are drawn from those contained in no
    other, and whatever is contained in one of the drawn is dropped from training.  Containment is
    by whole words.
    """
    words = {text: text.split() for text, _ in examples}
    begins = {}  # the first three words, or fewer where there are no more -> texts that begin so
    for text, its in words.items():
        begins.setdefault(tuple(its[:3]), []).append(text)

    def inside(text):
        """Yield all texts that stand in this one, itself included."""
        its = words[text]
        for i in range(len(its)):
            for width in (1, 2, 3):
                for other in begins.get(tuple(its[i : i + width]), ()):
                    if its[i : i + len(words[other])] == words[other]:
                        yield other

    # Longest first: what stands in a contained text was already found in the longer one.
    contained = set()
    for text in sorted(words, key=lambda text: (-len(words[text]), text)):
        if text not in contained:
            contained |= {*inside(text)} - {text}

    whole = [text for text in words if text not in contained]
    drawn = set(random.Random(seed).sample(whole, min(size, len(whole) // 2)))
    dropped = set().union(*map(inside, drawn))
    train = [pair for pair in examples if pair[0] not in dropped]
    # From the end, so that of a text which comes twice the first label counts.
    held = {text: label for text, label in reversed(examples) if text in drawn}
    return train, list(held.items())


# ---- batches --------------------------------------------------------------------------------


def encode(tokenizer, pairs, positions, longest):
    """[(text, label)] -> [(ids, label)], telling how many texts leave a prompt too little room."""
    examples = [(tokenizer.encode(text)[:positions], label) for text, label in pairs]
    room = positions - longest
    if longer := sum(len(ids) > room for ids, _ in examples):
        print(
            f"{longer} of {len(pairs)} texts are cut to {room} tokens ({positions} positions - "
            f"{longest} of the prompt)",
            file=sys.stderr,
        )
    return examples


def collate(examples, device="cpu"):
    """[(ids, label)] -> ids int64 (B, T), padded on the right, lengths int64 (B,), labels (B,).

    Lengths travel with the batch; nothing ever guesses them from pad ids.  Integer labels come as
    int64, the labels of a regression as float32.
    """
    tokens, labels = zip(*examples)
    ids = pad_sequence([*map(torch.tensor, tokens)], batch_first=True)  # (B, T)
    batch = ids, torch.tensor([*map(len, tokens)]), torch.tensor(labels)
    return [part.to(device) for part in batch]


def cut(items, size):
    """A list in pieces of `size` items; the last may be smaller."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def batches(examples, size, epoch, seed=0):
    """One epoch as a list of lists of indices: the same batches in every epoch, in a new order.

    What is in a batch follows from the seed alone, so that what was read of it can be kept; the
    order follows from seed and epoch.  Near-equal lengths come together: the shuffled examples
    are sorted by length within pools of 50 batches, then cut.
    """
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    in_pools = []
    for pool in cut(order, 50 * size):
        in_pools += sorted(pool, key=lambda i: len(examples[i][0]))
    plan = cut(in_pools, size)
    return random.Random(f"{seed}/{epoch}").sample(plan, len(plan))
