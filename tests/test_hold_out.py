"""hold_out of data.py: no phrase stands on both sides, whatever the texts are like."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import hold_out
from helpers import SHARED
from support.dataset import read_split
from support.phrases import Phrases, words_of


def stands_in(long, short):
    """By brute force, whether the words of one text stand in another, one after the other."""
    long = words_of(long)
    short = words_of(short)
    starts = range(len(long) - len(short) + 1)
    return any(long[i : i + len(short)] == short for i in starts)


def leaks(train, held):
    """The held-out texts that share a phrase with a text of train"""
    found = []
    for text, _ in held:
        for other, _ in train:
            if stands_in(other, text) or stands_in(text, other):
                found.append(text)
    return found


def phrases_of(seed):
    """Sentences of eight words, and phrases cut from them, as SST-2's are: (text, label) pairs"""
    draw = random.Random(seed)
    pairs = []
    for _ in range(60):
        words = draw.choices("abcdefgh", k=draw.randint(1, 9))
        for _ in range(3):
            start = draw.randrange(len(words))
            end = start + draw.randint(1, 5)
            pairs.append((" ".join(words[start:end]), draw.randint(0, 1)))
            pairs.append((" ".join(words), draw.randint(0, 1)))
    return pairs


@pytest.fixture(params=range(5))
def split(request):
    """(pairs, train, held) of phrases"""
    pairs = phrases_of(request.param)
    train, held = hold_out(pairs, 12, seed=request.param)
    return pairs, train, held


def test_as_many_texts_as_asked_are_held_out_each_once(split):
    pairs, _, held = split
    assert len({text for text, _ in held}) == len(held) == 12
    assert set(held) <= set(pairs)


def test_no_phrase_is_shared_with_train(split):
    _, train, held = split
    assert leaks(train, held) == []


def test_a_held_out_text_stands_in_no_other(split):
    pairs, _, held = split
    for text, _ in held:
        assert not any(stands_in(other, text) for other, _ in pairs if other != text)


def test_all_that_stands_in_no_held_out_text_is_trained_on(split):
    pairs, train, held = split
    clear = set()
    for pair in pairs:
        if not any(stands_in(text, pair[0]) for text, _ in held):
            clear.add(pair)
    assert set(train) == clear


def test_of_a_text_with_two_labels_the_first_counts(split):
    pairs, _, held = split
    first = dict(reversed(pairs))
    assert all(first[text] == label for text, label in held)


def test_the_seed_alone_decides(split):
    pairs, train, held = split
    assert hold_out(pairs, 12, seed=7) == hold_out(pairs, 12, seed=7)
    assert hold_out(pairs, 12, seed=7) != hold_out(pairs, 12, seed=8)


def test_the_draw_is_the_same_in_every_process():
    pairs = [(f"film {letter}", i) for i, letter in enumerate("abcdefghijk")]
    train, held = hold_out([*pairs, ("film", 11)], 4)
    assert held == [("film k", 10), ("film g", 6), ("film e", 4), ("film a", 0)]
    assert train == [pair for pair in pairs if pair not in held]


def test_half_of_the_texts_stay_at_least():
    pairs = [(f"film {letter}", 0) for letter in "abcdefghijk"]
    assert len(hold_out(pairs, 100)[1]) == 5
    assert hold_out([("one", 0)], 1) == ([("one", 0)], [])
    assert hold_out([], 3) == ([], [])


WORDS = st.sampled_from(
    ["a", "A", "b.", "b", "é", "e\u0301", "-", "...", "好", "的吗", "don't", "dont"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(texts=st.lists(TEXTS, min_size=2, max_size=14), size=st.integers(1, 5))
def test_no_words_in_any_spelling_stand_on_both_sides(texts, size):
    pairs = [(text, i) for i, text in enumerate(texts)]
    train, held = hold_out(pairs, size)
    assert leaks(train, held) == []
    for text, _ in held:
        others = [other for other in texts if words_of(other) != words_of(text)]
        assert not any(stands_in(other, text) for other in others)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(texts=st.lists(st.text("ab", min_size=1, max_size=20), min_size=1, max_size=12))
def test_phrases_of_few_words_are_found_wherever_they_stand(texts):
    phrases = Phrases(tuple(text) for text in texts)
    for text in texts:
        inside = {"".join(part) for part in phrases.inside(tuple(text))}
        assert inside == {other for other in texts if other in text}
    kept = ["".join(phrase) for phrase in phrases.whole()]
    others = dict.fromkeys(texts)
    assert kept == [t for t in others if not any(t in o for o in others if o != t)]


@pytest.mark.parametrize(
    "one,other",
    [
        ("A fine film.", "a FINE film"),
        ("“Don’t go!”", "don't go"),
        ("good—not great", "Good, not great"),
        ("and/or", "and or"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("ｆｕｌｌ", "full"),
        ("_really_ *good*", "really good"),
        ("well\u2011made", "well-made"),
    ],
)
def test_case_and_signs_make_no_other_text(one, other):
    assert words_of(one) == words_of(other)


@pytest.mark.parametrize(
    "one,other",
    [
        ("fine film", "fine films"),
        ("a b", "ab"),
        ("🙂", "🙁"),
        ("कि", "की"),
        ("hm ...", "hm"),
        ("!", "?"),
    ],
)
def test_other_letters_make_another_text(one, other):
    assert words_of(one) != words_of(other)


@pytest.mark.parametrize("sentence,part", [("我不喜欢这部电影。", "喜欢这部"), ("หนังดีมาก", "ดีมาก")])
def test_where_words_have_no_spaces_each_character_is_one(sentence, part):
    assert stands_in(sentence, part)
    assert not stands_in(part, sentence)


def test_a_text_that_stands_in_another_but_for_its_case_is_not_drawn():
    """A short one would take all that hold it out of training."""
    pairs = [(f"Good {i}.", 0) for i in range(30)] + [("good", 1)]
    for seed in range(20):
        train, held = hold_out(pairs, 15, seed)
        assert len(held) == 15
        assert "good" not in dict(held)


@pytest.mark.parametrize("data,size,train", [("SST-2", 872, 57_549), ("reviews", 159, 1_438)])
def test_the_documented_hold_outs(data, size, train):
    if not (SHARED / data).exists():
        pytest.skip("this data set is not beside this checkout")
    pairs = read_split(SHARED / data, "train")
    rest, held = hold_out(pairs, size)
    assert (len(held), len(rest)) == (size, train)


@pytest.mark.skipif(not (SHARED / "SST-2").exists(), reason="SST-2 is not beside this checkout")
def test_of_sst2_nine_texts_in_ten_stand_in_another():
    pairs = read_split(SHARED / "SST-2", "train")
    texts = [f" {' '.join(text.split())} " for text, _ in pairs]
    all_of_them = "\n".join(dict.fromkeys(texts))
    drawn = random.Random(0).sample(texts, 1000)
    assert sum(all_of_them.count(text) > 1 for text in drawn) == 900


MANY_WORDS = [f"w{i}" for i in range(3000)]


def beginning_alike(draw):
    return "Tweet text : " + " ".join(draw.choices(MANY_WORDS, k=25)) + " Label :"


def of_two_words(draw):
    return " ".join(draw.choices("01", k=40))


def of_one_character(draw):
    return "哈" * 9000 + str(draw.random())


@pytest.mark.parametrize(
    "make,number", [(beginning_alike, 3000), (of_two_words, 3000), (of_one_character, 6)]
)
def test_twice_as_many_texts_take_about_twice_as_long(make, number):
    draw = random.Random(0)
    pairs = [(make(draw), i % 2) for i in range(2 * number)]
    seconds = []
    for part in (pairs[:number], pairs):
        start = time.process_time()
        hold_out(part, number // 10)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 3 * seconds[0] + 0.3
    assert seconds[1] < 5
