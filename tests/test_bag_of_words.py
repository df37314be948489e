"""bench/bag_of_words.py against the plain definition."""

import math

import bag_of_words
import pytest
import torch


def test_tf_idf_and_an_optimum():
    train = [("good good film", 1), ("bad film", 0), ("a good one", 1), ("bad , bad", 0), ("film", 0)]
    bags = [bag_of_words.words_of(text, 1) for text, _ in train]
    idf = {word: 1 + math.log(6 / (1 + sum(word in bag for bag in bags))) for bag in bags for word in bag}
    places, starts, weights = bag_of_words.tf_idf(bags, idf)
    first = weights[: starts[1]].tolist()
    good, film = 2 * (1 + math.log(6 / 3)), 1 + math.log(6 / 4)
    assert first == pytest.approx([good / math.hypot(good, film), film / math.hypot(good, film)])
    labels = torch.tensor([float(label) for _, label in train], dtype=torch.float64)
    values, bias = bag_of_words.fit(places, starts, weights, labels, len(idf))
    dense = torch.zeros(5, len(idf), dtype=torch.float64)
    for i, (begin, end) in enumerate(zip(starts, [*starts[1:], len(places)])):
        dense[i, places[begin:end]] = weights[begin:end]
    error = (dense @ values + bias)[:, 0].sigmoid() - labels  # (n,): the gradient is zero at the optimum
    assert (dense.T @ error + values[:, 0]).abs().max() < 1e-4 and error.sum().abs() < 1e-4
    answers, V = bag_of_words.answer(train, ["a bad film", "good", "unheard"])
    assert answers.tolist()[:2] == [0, 1] and V == 5


def test_runs_of_words():
    assert bag_of_words.words_of("It's fine, fine!", 2) == {"it": 1, "s": 1, "fine": 2, "it s": 1, "s fine": 1, "fine fine": 1}


def test_it_beats_the_majority_on_reviews(capsys):
    bag_of_words.main([])
    out = capsys.readouterr().out
    assert float(out.split("accuracy ")[1].split()[0]) > 0.65 and "1,599 texts" in out
