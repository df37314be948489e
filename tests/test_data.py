"""data.py: the text rule, token ids cut to the model, batches; the hold-out is in test_hold_out."""

import random

import pytest
import torch

from data import LONGEST, batches, clean, collate, cut, encode, epoch_order, readable
from helpers import TINY
from support.checkpoint import open_checkpoint

# ---- texts ----------------------------------------------------------------------------------


def test_clean_strips_both_ends_only():
    assert clean(" \t a  b .\u00a0\n") == "a  b ."
    assert clean(" a") == clean("a ") == "a"


def test_the_longest_text_is_clean_and_a_longer_one_is_refused():
    assert len(clean("a" * LONGEST)) == LONGEST
    with pytest.raises(ValueError, match=f"{LONGEST + 1} characters; cut it"):
        clean("a" + " " * LONGEST)


NOT_READABLE = [
    ("\ud83d", "is not UTF-8"),
    ("\u3000\n", "is blank"),
    ("a" * 10**6, "is too long: the text"),
]


@pytest.mark.parametrize("text,why", NOT_READABLE)
def test_what_cannot_be_read_is_told_why(text, why):
    found, problem = readable(text)
    assert found == ""
    assert problem.startswith(why)


def test_what_can_be_read_is_clean_and_has_no_problem():
    assert readable(" fine ") == ("fine", None)


# ---- token ids ------------------------------------------------------------------------------


def test_a_text_that_leaves_the_longest_prompt_too_little_room_is_told(capsys):
    """It is kept as long as the model: a shorter prompt of the run has room for more of it."""
    tokenizer = open_checkpoint(str(TINY)).tokenizer
    pairs = []
    for label, words in enumerate([40, 21, 20]):
        pairs.append((" ".join(["film"] * words), label))
    found = encode(tokenizer, pairs, positions=24, longest=4)
    assert [len(ids) for ids, _ in found] == [24, 21, 20]
    assert [label for _, label in found] == [0, 1, 2]
    said = capsys.readouterr().err
    assert said == "2 of 3 texts are cut to 20 tokens (24 positions - 4 of the prompt)\n"


def test_collate_pads_right_and_carries_lengths():
    batch = collate([([5, 6, 7], 1), ([8], 0)])
    ids, lengths, labels = batch
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]
    assert labels.tolist() == [1, 0]
    assert [part.dtype for part in batch] == [torch.int64] * 3


def test_labels_of_a_regression_are_float32():
    _, _, labels = collate([([5], 0.5), ([5], 1.0)])
    assert labels.dtype == torch.float32
    assert labels.tolist() == [0.5, 1.0]


# ---- batches --------------------------------------------------------------------------------


def of_lengths(lengths):
    """Examples of so many tokens"""
    return [([0] * length, 0) for length in lengths]


def test_cut_leaves_out_nothing():
    assert cut(list("abcde"), 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert cut([], 2) == []


@pytest.fixture(scope="module")
def lengths():
    draw = random.Random(0)
    return [draw.randint(1, 60) for _ in range(3001)]


def test_batches_hold_every_example_once(lengths):
    found = batches(of_lengths(lengths), 32)
    assert sorted(sum(found, [])) == list(range(3001))
    assert sorted(map(len, found)) == [3001 % 32] + [32] * 93


def test_batches_follow_from_the_seed_alone(lengths):
    examples = of_lengths(lengths)
    assert batches(examples, 32, seed=1) == batches(examples, 32, seed=1)
    assert sorted(batches(examples, 32)) != sorted(batches(examples, 32, seed=1))


def test_near_equal_lengths_come_together(lengths):
    spreads = []
    for batch in batches(of_lengths(lengths), 32):
        inside = [lengths[i] for i in batch]
        spreads.append(max(inside) - min(inside))
    assert sum(spreads) / len(spreads) < 4


def test_batches_are_cut_from_pools_of_fifty():
    """Of 400 lengths, none like another, a pool of 100 has every fourth.

    Closer together, and batches would not be random.
    """
    gaps = [abs(i - j) for i, j in batches(of_lengths(range(400)), 2, seed=1)]
    assert 3 < sum(gaps) / 200 < 5.3
    assert max(gaps) > 10


def in_order(epoch, seed=0):
    """Nine examples of one to three tokens, as an epoch meets them"""
    lengths = [1, 2, 3] * 3
    found = batches(of_lengths(lengths), 2, seed)
    return [found[i] for i in epoch_order(len(found), epoch, seed)]


def test_the_order_of_an_epoch_is_what_it_has_been_from_the_first():
    """In every process, too: and a stopped run of an older version goes on in it."""
    assert in_order(1) == [
        [5],
        [8, 2],
        [1, 7],
        [3, 4],
        [6, 0],
    ]
    assert in_order(2) == [
        [1, 7],
        [6, 0],
        [5],
        [3, 4],
        [8, 2],
    ]
    assert in_order(1, seed=7) == [
        [3, 0],
        [6, 4],
        [8],
        [5, 2],
        [7, 1],
    ]


def test_an_epoch_has_every_batch_once():
    for epoch in range(1, 50):
        assert sorted(epoch_order(94, epoch)) == list(range(94))
    assert epoch_order(94, 1) != epoch_order(94, 2)
