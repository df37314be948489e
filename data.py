"""Texts: from labelled texts to batches of token ids.

clean, hold_out, encode, collate, batches, in the order in which a text meets them.  The texts come
from support/dataset.py, the tokenizer from the base model's files.
"""

import random
import sys

import torch
from torch.nn.utils.rnn import pad_sequence

from support.phrases import Phrases, as_written, words_of
from support.terminal import say

# ---- texts -----------------------------------------------------------------------

TEXT_RULE = "strip"  # what `clean` does: stored with each prompt, and compared when it is read
LONGEST = 2**18  # characters of a text: 2 x 1,024 positions x 128 bytes, the longest token


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


# ---- a hold-out that shares no phrase with training -----------------------------------------


def hold_out(pairs, size, seed=0):
    """Split (text, label) pairs into (train, held out) so that no phrase stands on both sides.

    SST-2's training rows are phrases of one another: of 1,000 random ones 900 stand inside another
    row, and a score on them says nothing.  So `size` texts are drawn from those that stand in no
    other, and whatever stands in one of the drawn is dropped from training.  Texts are compared by
    `words_of`.  A text of the same words in another order, or in words of the same sense, is not
    seen, nor is one that shares a part with another.
    """
    # Twice: as it is written, and as it is compared.
    written = [as_written(text) for text, _ in pairs]
    spoken = [words_of(text) for text, _ in pairs]
    spoken_as = dict(zip(written, spoken, strict=True))
    candidates = Phrases(written).whole()
    phrases = Phrases(spoken)
    whole = phrases.whole()

    # The draw is among the texts that stand in no other as they are written, case and signs
    # included, as it has been from the first: so the split of SST-2 is still that of older runs.
    # Instead of one that but for case and signs stands in another, a further one is drawn.
    generator = random.Random(seed)
    size = min(size, len(whole) // 2)
    drawn = {spoken_as[words] for words in generator.sample(candidates, size)}
    drawn.intersection_update(whole)
    rest = [words for words in whole if words not in drawn]
    drawn.update(generator.sample(rest, size - len(drawn)))

    # Whatever stands in one of them, and so is known to whoever has read it, leaves training.
    dropped = set()
    for words in drawn:
        dropped.update(phrases.inside(words))
    train = [pair for words, pair in zip(spoken, pairs, strict=True) if words not in dropped]

    # From the end, so that of a text which comes twice the first label counts.
    held = {}
    for words, pair in zip(reversed(spoken), reversed(pairs), strict=True):
        if words in drawn:
            held[words] = pair
    return train, list(held.values())


# ---- batches --------------------------------------------------------------------------------


def encode(tokenizer, pairs, positions, longest):
    """[(text, label)] -> [(ids, label)], saying how many texts leave a prompt too little room.

    positions: of the model; longest: tokens of the longest prompt.
    """
    # Kept whole here: a shorter prompt of the same run has room for more of a text.
    room = positions - longest
    examples = []
    cut_texts = 0
    for text, label in pairs:
        ids = tokenizer.encode(text)[:positions]
        cut_texts += len(ids) > room
        examples.append((ids, label))
    if cut_texts:
        say(
            f"{cut_texts} of {len(pairs)} texts are cut to {room} tokens ({positions} positions - "
            f"{longest} of the prompt)",
            sys.stderr,
        )
    return examples


def collate(examples, device="cpu"):
    """[(ids, label)] -> ids int64 (B, T), padded on the right, lengths int64 (B,), labels (B,).

    Lengths travel with the batch; nothing ever guesses them from pad ids.  Integer labels come as
    int64, the labels of a regression as float32.
    """
    # Pads come after a text, where no real token looks, so any id would do.
    tokens = [torch.tensor(ids) for ids, _ in examples]  # B x (T,)
    lengths = [len(ids) for ids in tokens]
    labels = [label for _, label in examples]
    ids = pad_sequence(tokens, batch_first=True)  # (B, T)
    batch = [ids, torch.tensor(lengths), torch.tensor(labels)]
    return [part.to(device) for part in batch]


def cut(items, size):
    """A list in pieces of `size` items; the last may be smaller."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def batches(examples, size, seed=0):
    """All examples as a list of batches, each a list of indices: the same in every epoch.

    What is in a batch follows from the seed alone, so that the texts' keys and values can be kept.
    Near-equal lengths come together: the shuffled examples are sorted by length within pools of 50
    batches, then cut.
    """
    # Within a pool alone, so that a batch is still a mixture of the whole.
    shuffled = random.Random(seed).sample(range(len(examples)), len(examples))
    by_length = []
    for pool in cut(shuffled, 50 * size):
        by_length += sorted(pool, key=lambda i: len(examples[i][0]))
    return cut(by_length, size)


def epoch_order(count, epoch, seed=0):
    """The numbers of `count` batches in the order of an epoch; --seeds has no part in it."""
    return random.Random(f"{seed}/{epoch}").sample(range(count), count)
