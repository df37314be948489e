"""bench/bag_of_words.py against the plain definition."""

import math

import pytest
import torch

import bag_of_words

TRAIN = [
    ("good good film", 1),
    ("bad film", 0),
    ("a good one", 1),
    ("bad , bad", 0),
    ("film", 0),
]


def test_tf_idf_and_an_optimum():
    bags = [bag_of_words.words_of(text, 1) for text, _ in TRAIN]
    idf = {}
    for word in [word for bag in bags for word in bag]:
        idf[word] = 1 + math.log(6 / (1 + sum(word in bag for bag in bags)))
    found = bag_of_words.tf_idf(bags, idf)

    # The first text has "good" twice and "film" once; its weights have length 1.
    good = 2 * (1 + math.log(6 / 3))
    film = 1 + math.log(6 / 4)
    length = math.hypot(good, film)
    first = found.weights[: found.starts[1]].tolist()
    assert first == pytest.approx([good / length, film / length])

    labels = torch.tensor([float(label) for _, label in TRAIN], dtype=torch.float64)
    values, bias = bag_of_words.fit(found, labels, len(idf))
    dense = torch.zeros(5, len(idf), dtype=torch.float64)
    ends = [*found.starts[1:].tolist(), len(found.places)]
    for i, (begin, end) in enumerate(zip(found.starts.tolist(), ends, strict=True)):
        dense[i, found.places[begin:end]] = found.weights[begin:end]
    # The gradient is zero at the optimum.
    error = (dense @ values + bias)[:, 0].sigmoid() - labels  # (n,)
    assert (dense.T @ error + values[:, 0]).abs().max() < 1e-4
    assert error.sum().abs() < 1e-4


def test_answers_also_where_no_word_is_known():
    answers, V = bag_of_words.answer(TRAIN, ["a bad film", "good", "unheard"])
    assert answers.tolist()[:2] == [0, 1]
    assert len(answers) == 3
    assert V == 5


def test_runs_of_words():
    counts = bag_of_words.words_of("It's fine, fine!", 2)
    assert counts == {"it": 1, "s": 1, "fine": 2, "it s": 1, "s fine": 1, "fine fine": 1}


def test_it_beats_the_majority_on_reviews(capsys):
    bag_of_words.main([])
    out = capsys.readouterr().out
    assert float(out.split("accuracy ")[1].split()[0]) > 0.65
    assert "1,599 texts" in out


@pytest.mark.parametrize("words", [["--n-grams", "0"], ["--data", "nowhere"], ["--n-gram", "2"]])
def test_it_refuses_in_one_sentence(capsys, words):
    with pytest.raises(SystemExit) as end:
        bag_of_words.main(words)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
