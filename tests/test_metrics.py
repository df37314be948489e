"""metrics.py: what answers are worth, against plain counting and against scipy."""

import dataclasses
import math
import random

import pytest
import torch

import metrics
from metrics import (
    decide,
    logits_of,
    probabilities,
    score_of,
    standing,
    standing_of,
    truth_of,
)
from support.statistics import wilson

LOGITS = torch.tensor([[0.2, 1.0, -1.0], [2.0, 0.1, 0.3], [0.1, 0.2, 0.9], [0.5, 0.4, 0.3]])


def noise(n, N, seed=0):
    """Logits (n, N) that are right as often as wrong, and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, N, generator=generator)
    return logits, torch.randint(N, (n,), generator=generator)


def counted(logits, labels):
    """What a Score should say of logits (n, N) and labels, by plain counting."""
    n = len(labels)
    N = logits.shape[1]
    table = [[0] * N for _ in range(N)]
    loss = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        loss += math.log(sum(math.exp(x) for x in row)) - row[label]
        table[label][row.index(max(row))] += 1
    return n, table, loss / n


# ---- classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [2, 3, 7])
def test_a_score_equals_plain_counting(N):
    logits, labels = noise(200, N)
    n, table, loss = counted(logits, labels)
    score = score_of(logits, labels)
    right = [table[i][i] for i in range(N)]
    said = [sum(row[i] for row in table) for i in range(N)]
    there = [sum(row) for row in table]
    assert score.n == n
    assert score.confusion == table
    assert score.loss == pytest.approx(loss, abs=1e-5)
    assert score.accuracy == sum(right) / n
    assert score.ci95 == wilson(sum(right), n)
    assert score.majority == max(there) / n
    assert score.precision == [right[i] / said[i] for i in range(N)]
    assert score.recall == [right[i] / there[i] for i in range(N)]
    f1 = [2 * right[i] / (said[i] + there[i]) for i in range(N)]
    assert score.macro_f1 == pytest.approx(sum(f1) / N)
    assert (score.collapsed, score.broken, score.alarm) == (False, False, None)
    assert score.pearson is score.spearman is score.constant_loss is None


def test_macro_f1_leaves_out_a_label_that_nobody_names():
    logits = torch.tensor([[1.0, 0.0, -9.0], [0.0, 1.0, -9.0]])
    score = score_of(logits, torch.tensor([0, 0]))
    assert score.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert score.recall == [0.5, None, None]
    assert score.precision == [1.0, 0.0, None]


def test_one_answer_for_everything_is_called_collapsed():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 1])
    score = score_of(logits, labels)
    assert score.collapsed
    assert score.accuracy == 0.25 != score.majority
    assert score.precision == [0.25, None]
    assert score.recall == [1.0, 0.0]
    told = "0.2500 is the share of label 0: this model answers 0 for everything"
    assert score.alarm == told
    assert score_of(logits, labels, ["0", "1"]).alarm == told
    named = score_of(logits, labels, ["bad", "good"]).alarm
    assert named == "0.2500 is the share of 'bad': this model answers 'bad' for everything"


def test_one_text_alone_is_no_collapse():
    assert not score_of(LOGITS[:1], torch.tensor([0])).collapsed


def test_what_is_not_finite_is_no_answer_and_never_label_0():
    logits = LOGITS.clone()
    logits[1] = math.nan
    logits[2, 0] = math.inf
    labels = torch.tensor([1, 0, 2, 1])
    assert decide(logits).tolist() == [1, -1, -1, 0]
    score = score_of(logits, labels)
    assert score.broken
    assert score.loss is None
    assert score.accuracy == 0.25
    assert sum(map(sum, score.confusion)) == 2
    assert score.recall == [0.0, 0.5, 0.0]
    assert score.alarm == "2 of 4 texts have no answer: their logits are not finite"


def test_all_answers_lost_is_no_collapse():
    score = score_of(torch.full((4, 2), math.nan), torch.tensor([0, 1, 0, 1]))
    assert score.broken
    assert not score.collapsed
    assert score.accuracy == 0
    assert "4 of 4 texts" in score.alarm


def test_a_loss_that_overflows_is_broken():
    logits = torch.tensor([[3e38, -3e38], [0.0, 1.0]])
    score = score_of(logits, torch.tensor([1, 1]))
    assert score.broken
    assert score.loss is None


# ---- numbers --------------------------------------------------------------------------------


def test_a_regression_is_scored_by_its_error_and_correlations():
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(3)
    labels = [draw.choice([1.0, 2.0, 2.5, 5.0]) for _ in range(60)]
    answers = [round(label + draw.gauss(0, 1), 1) for label in labels]
    score = score_of(torch.tensor(answers)[:, None], torch.tensor(labels))
    errors = [(a - b) ** 2 for a, b in zip(answers, labels, strict=True)]
    mean = sum(labels) / 60
    assert score.loss == pytest.approx(sum(errors) / 60, rel=1e-5)
    assert score.constant_loss == pytest.approx(sum((b - mean) ** 2 for b in labels) / 60)
    assert score.pearson == pytest.approx(stats.pearsonr(answers, labels)[0], abs=1e-6)
    assert score.spearman == pytest.approx(stats.spearmanr(answers, labels)[0], abs=1e-6)
    assert score.accuracy is score.confusion is score.majority is score.alarm is None
    assert not score.collapsed
    assert not score.broken


def test_labels_0_and_1_of_one_column_have_an_accuracy_too():
    """Its argmax would be 0 for all; the threshold reads it, and the sentence says both."""
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    score = score_of(torch.tensor([[0.1], [0.9], [0.6], [0.7], [0.2]]), labels)
    assert score.confusion == [[1, 1], [1, 2]]
    assert score.accuracy == 0.6
    assert not score.collapsed
    assert score.loss == pytest.approx((0.01 + 0.01 + 0.16 + 0.49 + 0.64) / 5)
    assert "one column" in score.alarm
    assert "score 0.4000, the share of label 0" in score.alarm
    assert score.pearson is not None
    stuck = score_of(torch.full((5, 1), 0.8), labels)
    begin = "0.6000 is the share of label 1: this model answers 1 for everything; the head"
    assert stuck.alarm.startswith(begin)


def test_a_constant_answer_has_no_correlation():
    """Rounding of the mean must not make one up."""
    for value in (0.1, 0.3, 1e6 / 3):
        score = score_of(torch.full((7, 1), value), torch.arange(7.0))
        assert score.pearson is score.spearman is None
        assert not score.collapsed


def test_numbers_that_are_not_finite_are_broken():
    for value in (math.nan, math.inf):
        score = score_of(torch.tensor([[1.0], [value], [2.0]]), torch.tensor([1.0, 2.0, 3.0]))
        assert score.broken
        assert score.loss is score.pearson is score.spearman is None
        assert "1 of 3 texts have no answer" in score.alarm


def test_labels_are_classes_only_where_all_are_0_or_1():
    assert truth_of(torch.tensor([0.0, 1.0]), 1).tolist() == [0, 1]
    assert truth_of(torch.tensor([0.0, 0.9]), 1) is None
    assert truth_of(torch.tensor([2, 0]), 3).tolist() == [2, 0]


def test_probabilities_of_one_column_are_the_share_itself():
    found = probabilities(torch.tensor([[0.2], [1.3], [-1.0]])).tolist()
    assert found == [pytest.approx([0.8, 0.2]), [0.0, 1.0], [1.0, 0.0]]
    assert probabilities(LOGITS).tolist() == LOGITS.softmax(dim=1).tolist()


# ---- which is best --------------------------------------------------------------------------


def standing_score(**known):
    return dataclasses.replace(metrics.Score(n=9), **known)


def test_of_equal_accuracies_the_lower_loss_is_better():
    worse = standing_score(accuracy=0.5, loss=0.9)
    better = standing_score(accuracy=0.5, loss=0.1)
    assert standing(better) > standing(worse)
    assert standing(standing_score(accuracy=0.6, loss=3.0)) > standing(better)


def test_what_is_best_goes_by_what_is_asked():
    first = standing_score(accuracy=0.9, macro_f1=0.2, loss=0.5)
    second = standing_score(accuracy=0.8, macro_f1=0.7, loss=0.4)
    assert standing(first) > standing(second)
    assert standing(second, "macro-f1") > standing(first, "macro-f1")
    assert standing(second, "loss") > standing(first, "loss")


def test_a_regression_goes_by_its_loss():
    first = standing_score(accuracy=0.9, loss=0.5, constant_loss=0.2)
    second = standing_score(accuracy=0.8, loss=0.4, constant_loss=0.2)
    assert standing(second) > standing(first)


def test_a_loss_that_is_not_finite_is_last():
    good = standing_of(9e9, 0.0)
    for loss in (None, math.nan, math.inf):
        assert standing_of(loss, 1.0) < good
        assert standing_of(loss, 1.0, by="loss") < standing_of(9e9, by="loss")
    broken = score_of(torch.full((4, 2), math.nan), torch.tensor([0, 0, 0, 1]))
    assert standing(broken) < good


# ---- logits ---------------------------------------------------------------------------------


def test_logits_come_in_the_order_of_the_examples(monkeypatch):
    """Texts of near-equal length are read together, as many at once as asked."""
    read = []

    def classify(gpt2, prompts, ids, lengths):
        read.append(ids.shape)
        first = ids[:, :1].float()  # (B, 1)
        return torch.stack([first.expand(-1, 2), -first.expand(-1, 2)])

    monkeypatch.setattr(metrics, "classify", classify)
    gpt2 = torch.nn.Module()
    gpt2.wte = torch.nn.Embedding(3, 2)
    prompt = torch.nn.Module()
    prompt.head = torch.zeros(2, 4)
    lengths = [3, 1, 2, 9, 1]
    examples = [([i + 5] * length, 0) for i, length in enumerate(lengths)]
    logits = logits_of(gpt2, [prompt, prompt], examples, 2)
    assert logits[:, :, 0].tolist() == [[5, 6, 7, 8, 9], [-5, -6, -7, -8, -9]]
    assert read == [(2, 1), (2, 3), (1, 9)]
    assert logits_of(gpt2, [prompt], [], 2).shape == (1, 0, 2)
