"""bench/alternatives.py, few_examples.py and answering.py: who is compared, and what is chosen."""

import dataclasses
import json
import random
import re

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("sklearn")

import alternatives
import answering
import few_examples
from helpers import ROOT, write_reviews
from metrics import score_of
from support.dataset import open_dataset

FILMS = [("good good film", 1), ("bad film", 0), ("a good one", 1), ("bad , bad", 0)]


def score_with(accuracy):
    """The Score of so many right answers out of twenty."""
    right = round(20 * accuracy)
    labels = torch.tensor([0, 1] * 10)
    logits = torch.nn.functional.one_hot(labels, 2).float()
    logits[right:] = logits[right:].flip(1)
    return score_of(logits, labels)


def outcome(rate, seed, held, asked):
    """An Outcome with these accuracies."""
    return alternatives.Outcome(seed, rate, score_with(held), score_with(asked), 1.0, 5)


# ---- what is compared -----------------------------------------------------------------------


def test_the_texts_are_those_of_train_py():
    whole = open_dataset("reviews")
    task = alternatives.open_task("reviews", "dev", max_examples=50)
    assert task.texts.train == random.Random(0).sample(whole.train, 50)
    assert task.texts.held == whole.held
    assert task.asked == whole.dev


def test_the_majority_is_that_of_train_on_every_split():
    task = alternatives.open_task("reviews", "dev")
    found = alternatives.majority(task, 0.0, 0)
    labels = [label for _, label in task.texts.train]
    commonest = int(sum(labels) * 2 > len(labels))
    wanted = sum(label == commonest for _, label in task.asked) / len(task.asked)
    assert found.asked.accuracy == wanted
    assert found.trained == 0


def test_of_numbers_the_majority_is_their_mean():
    texts = open_dataset("reviews", num_labels=1)
    task = alternatives.Task("reviews", None, 1, texts, "dev", texts.dev)
    found = alternatives.majority(task, 0.0, 0)
    mean = sum(label for _, label in texts.train) / len(texts.train)
    wanted = sum((label - mean) ** 2 for _, label in texts.dev) / len(texts.dev)
    assert found.asked.loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_words_learn_what_a_word_says(num_labels):
    answer, size = alternatives.learn_words(FILMS, 100.0, num_labels)
    logits = answer(["good", "bad", "unheard"])
    assert logits.shape == (3, num_labels)
    good, bad, _ = logits[:, -1].tolist()
    assert good > bad
    assert size > 6  # words and pairs of words, and a bias


def test_the_command_that_readme_names_is_understood():
    readme = (ROOT / "README.md").read_text()
    [words] = re.findall(r"`python bench/alternatives.py (.+?)`", readme)
    args = alternatives.parse_args(words.split())
    assert args.only == ["words"]
    assert args.data == "FOLDER"


# ---- what is chosen -------------------------------------------------------------------------


def test_the_hold_out_chooses_the_rate_with_the_first_seed_alone(monkeypatch):
    """The split that is looked at once has another favourite, and so has the second seed."""
    held = {0.01: 0.5, 0.03: 0.8, 0.1: 0.7}
    asked = {0.01: 0.9, 0.03: 0.6, 0.1: 0.7}
    trained = []

    def training_of(name, task, rate, seed):
        trained.append((rate, seed))
        return outcome(rate, seed, held[rate] if seed == 3 else 0.1, asked[rate])

    monkeypatch.setattr(alternatives, "training_of", training_of)
    monkeypatch.setattr(alternatives, "step_bytes", lambda name, task: 1)
    task = dataclasses.replace(alternatives.open_task("reviews", "dev"), split="test")
    row = alternatives.row_of("prompt-10", task, [3, 4, 5])
    assert row["rate"] == 0.03
    assert trained == [(0.01, 3), (0.03, 3), (0.1, 3), (0.03, 4), (0.03, 5)]
    assert [score["accuracy"] for score in row["asked"]] == [0.6, 0.6, 0.6]


def test_a_run_is_kept_as_a_record(tmp_path, capsys):
    path = tmp_path / "record.json"
    words = ["--only", "majority", "words", "--json", str(path)]
    alternatives.main(words)
    record = json.loads(path.read_text())
    assert record["command"] == "python bench/alternatives.py --only majority words"
    assert {"commit", "date", "machine", "versions"} <= record.keys()
    assert [row["way"] for row in record["rows"]] == ["majority", "words"]
    assert record["rows"][1]["asked"][0]["accuracy"] > 0.7
    assert record["sizes"] == {"train": 1438, "hold-out": 159, "dev": 399}
    shown = f"{record['rows'][1]['asked'][0]['accuracy']:.4f}"
    assert shown in capsys.readouterr().out


# ---- few texts ------------------------------------------------------------------------------


def test_a_draw_has_every_label_and_comes_again():
    pairs = [(f"text {i}", int(i == 0)) for i in range(50)]
    drawn = few_examples.draw(pairs, 16, 2)
    assert len(drawn) == 16
    assert {label for _, label in drawn} == {0, 1}
    assert drawn == few_examples.draw(pairs, 16, 2)
    assert drawn != few_examples.draw(pairs, 16, 3)


def test_few_texts_take_as_many_steps_as_are_said(tmp_path, monkeypatch):
    """Of 16 texts one batch an epoch: 128 of them."""
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps({"rows": [{"way": "head", "rate": 0.01}]}))
    asked = []

    def fit(way, train_set, held_set, epochs):
        asked.append((len(train_set), held_set, epochs))

    monkeypatch.setattr(few_examples.ways, "fit", fit)
    data = write_reviews(tmp_path / "films", train=200, dev=20)
    words = ["--data", str(data), "--rates", str(rates), "--sizes", "16", "100"]
    words += ["--draws", "2", "--only", "head"]
    figures = few_examples.main(words)
    assert asked == [(16, None, 128)] * 2 + [(100, None, 19)] * 2
    assert [row["texts"] for row in figures["rows"]] == [16, 100]
    assert [len(row["accuracy"]) for row in figures["rows"]] == [2, 2]


# ---- answering ------------------------------------------------------------------------------


def test_both_answer_the_same_texts(monkeypatch, tmp_path):
    monkeypatch.setattr(answering, "SIZES", {"tiny": None})
    path = tmp_path / "record.json"
    figures = answering.main(["--texts", "16", "--rounds", "1", "--json", str(path)])
    assert figures["texts"] == 16
    assert len(figures["texts_a_second"]["tiny"]) == 3
    assert all(speed > 0 for speed in figures["texts_a_second"]["tiny"].values())
    assert json.loads(path.read_text()) == figures
