"""metrics.py: what answers are worth, against plain counting and against scipy."""

import dataclasses
import math
import random

import pytest
import torch

import metrics
from metrics import (
    Score,
    decide,
    logits_of,
    score_of,
    standing,
    truth_of,
)
from support.statistics import wilson

LOGITS = torch.tensor(
    [
        [0.2, 1.0, -1.0],
        [2.0, 0.1, 0.3],
        [0.1, 0.2, 0.9],
        [0.5, 0.4, 0.3],
    ]
)


def noise(n, N, seed=0):
    """Logits (n, N) that are right as often as wrong, and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, N, generator=generator)
    return logits, torch.randint(N, (n,), generator=generator)


@dataclasses.dataclass
class Counted:
    """Answers and true labels, counted by hand."""

    table: list  # row: true label, column: answer
    loss: float

    def __post_init__(self):
        labels = range(len(self.table))
        self.right = [self.table[i][i] for i in labels]
        self.said = [sum(row[i] for row in self.table) for i in labels]
        self.there = [sum(row) for row in self.table]


def counted(logits, labels):
    """What there is to count of logits (n, N) and labels (n,)"""
    N = logits.shape[1]
    table = [[0] * N for _ in range(N)]
    loss = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(number) for number in row)
        loss += math.log(total) - row[label]
        answer = row.index(max(row))
        table[label][answer] += 1
    return Counted(table, loss / len(labels))


# ---- classes --------------------------------------------------------------------------------

each_N = pytest.mark.parametrize("N", [2, 3, 7])


@each_N
def test_a_score_equals_plain_counting(N):
    logits, labels = noise(200, N)
    score = score_of(logits, labels)
    truth = counted(logits, labels)
    right = sum(truth.right)
    assert score.n == 200
    assert score.confusion == truth.table
    assert score.loss == pytest.approx(truth.loss, abs=1e-5)
    assert score.accuracy == right / 200
    assert score.ci95 == wilson(right, 200)
    assert score.majority == max(truth.there) / 200


@each_N
def test_precision_recall_and_f1_equal_plain_counting(N):
    logits, labels = noise(200, N)
    score = score_of(logits, labels)
    truth = counted(logits, labels)
    precision = []
    recall = []
    f1 = []
    for right, said, there in zip(truth.right, truth.said, truth.there, strict=True):
        precision.append(right / said)
        recall.append(right / there)
        f1.append(2 * right / (said + there))
    assert score.precision == precision
    assert score.recall == recall
    assert score.macro_f1 == pytest.approx(sum(f1) / N)


@each_N
def test_of_classes_no_correlation_is_told_and_nothing_is_wrong(N):
    logits, labels = noise(200, N)
    score = score_of(logits, labels)
    assert score.collapsed is False
    assert score.broken is False
    for name in ("alarm", "pearson", "spearman", "constant_loss"):
        assert getattr(score, name) is None, name


def test_macro_f1_leaves_out_a_label_that_nobody_names():
    logits = torch.tensor([[1.0, 0.0, -9.0], [0.0, 1.0, -9.0]])
    score = score_of(logits, torch.tensor([0, 0]))
    assert score.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert score.recall == [0.5, None, None]
    assert score.precision == [1.0, 0.0, None]


ALWAYS_0 = torch.tensor([[1.0, 0.0]]).repeat(4, 1)  # (4, 2)
ONCE_0 = torch.tensor([0, 1, 1, 1])


def test_one_answer_for_everything_is_called_collapsed():
    score = score_of(ALWAYS_0, ONCE_0)
    assert score.collapsed
    assert score.accuracy == 0.25
    assert score.majority == 0.75
    assert score.precision == [0.25, None]
    assert score.recall == [1.0, 0.0]


@pytest.mark.parametrize("names", [None, ["0", "1"]])
def test_the_alarm_of_one_answer_tells_the_label(names):
    alarm = score_of(ALWAYS_0, ONCE_0, names).alarm
    assert alarm == "0.2500 is the share of label 0: this model answers 0 for everything"


def test_the_alarm_of_one_answer_tells_the_labels_name():
    alarm = score_of(ALWAYS_0, ONCE_0, ["bad", "good"]).alarm
    assert alarm == "0.2500 is the share of 'bad': this model answers 'bad' for everything"


def test_one_text_alone_is_no_collapse():
    assert not score_of(LOGITS[:1], torch.tensor([0])).collapsed


def test_what_is_not_finite_is_no_answer_and_never_label_0():
    logits = LOGITS.clone()
    logits[1] = math.nan
    logits[2, 0] = math.inf
    assert decide(logits).tolist() == [1, -1, -1, 0]
    score = score_of(logits, torch.tensor([1, 0, 2, 1]))
    answered = sum(sum(row) for row in score.confusion)
    assert answered == 2
    assert score.broken
    assert score.loss is None
    assert score.accuracy == 0.25
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


@pytest.fixture
def numbers():
    """True labels, and answers near them: [float] and [float]"""
    draw = random.Random(3)
    labels = [draw.choice([1.0, 2.0, 2.5, 5.0]) for _ in range(60)]
    answers = [round(label + draw.gauss(0, 1), 1) for label in labels]
    return labels, answers


def score_of_numbers(answers, labels):
    """The Score of a regression: [float] beside [float]"""
    column = torch.tensor(answers).unsqueeze(1)  # (n, 1)
    return score_of(column, torch.tensor(labels))


def test_a_regression_is_scored_by_its_error(numbers):
    labels, answers = numbers
    mean = sum(labels) / 60
    errors = []
    of_the_mean = []
    for label, answer in zip(labels, answers, strict=True):
        errors.append((answer - label) ** 2)
        of_the_mean.append((mean - label) ** 2)
    score = score_of_numbers(answers, labels)
    assert score.loss == pytest.approx(sum(errors) / 60, rel=1e-5)
    assert score.constant_loss == pytest.approx(sum(of_the_mean) / 60)


def test_correlations_of_a_regression_equal_those_of_scipy(numbers):
    stats = pytest.importorskip("scipy.stats")
    labels, answers = numbers
    pearson, _ = stats.pearsonr(answers, labels)
    spearman, _ = stats.spearmanr(answers, labels)
    score = score_of_numbers(answers, labels)
    assert score.pearson == pytest.approx(pearson, abs=1e-6)
    assert score.spearman == pytest.approx(spearman, abs=1e-6)


def test_of_a_regression_nothing_is_counted_and_nothing_is_wrong(numbers):
    labels, answers = numbers
    score = score_of_numbers(answers, labels)
    for name in ("accuracy", "confusion", "majority", "alarm"):
        assert getattr(score, name) is None, name
    assert not score.collapsed
    assert not score.broken


ZEROS_AND_ONES = [0.0, 1.0, 1.0, 0.0, 1.0]


def test_labels_0_and_1_of_one_column_have_an_accuracy_too():
    """Its argmax would be 0 for all; the threshold reads it, and the sentence says both."""
    score = score_of_numbers([0.1, 0.9, 0.6, 0.7, 0.2], ZEROS_AND_ONES)
    errors = [0.01, 0.01, 0.16, 0.49, 0.64]
    assert score.confusion == [[1, 1], [1, 2]]
    assert score.accuracy == 0.6
    assert not score.collapsed
    assert score.loss == pytest.approx(sum(errors) / 5)
    assert score.pearson is not None
    assert "one column" in score.alarm
    assert "score 0.4000, the share of label 0" in score.alarm


def test_one_column_that_says_one_label_alone_is_called_collapsed():
    score = score_of_numbers([0.8] * 5, ZEROS_AND_ONES)
    begin = "0.6000 is the share of label 1: this model answers 1 for everything; the head"
    assert score.alarm.startswith(begin)


def test_a_constant_answer_has_no_correlation():
    """Rounding of the mean must not make one up."""
    for value in (0.1, 0.3, 1e6 / 3):
        score = score_of_numbers([value] * 7, [float(i) for i in range(7)])
        assert score.pearson is None
        assert score.spearman is None
        assert not score.collapsed


def test_numbers_that_are_not_finite_are_broken():
    for value in (math.nan, math.inf):
        score = score_of_numbers([1.0, value, 2.0], [1.0, 2.0, 3.0])
        assert score.broken
        for name in ("loss", "pearson", "spearman"):
            assert getattr(score, name) is None, name
        assert "1 of 3 texts have no answer" in score.alarm


def test_labels_are_classes_only_where_all_are_0_or_1():
    zero_or_one = torch.tensor([0.0, 1.0])
    between = torch.tensor([0.0, 0.9])
    classes = torch.tensor([2, 0])
    assert truth_of(zero_or_one, 1).tolist() == [0, 1]
    assert truth_of(between, 1) is None
    assert truth_of(classes, 3).tolist() == [2, 0]


# ---- which is best --------------------------------------------------------------------------


def test_of_equal_accuracies_the_lower_loss_is_better():
    worse = Score(n=9, accuracy=0.5, loss=0.9)
    better = Score(n=9, accuracy=0.5, loss=0.1)
    best = Score(n=9, accuracy=0.6, loss=3.0)
    assert standing(better) > standing(worse)
    assert standing(best) > standing(better)


def test_what_is_best_goes_by_what_is_asked():
    first = Score(n=9, accuracy=0.9, macro_f1=0.2, loss=0.5)
    second = Score(n=9, accuracy=0.8, macro_f1=0.7, loss=0.4)
    assert standing(first) > standing(second)
    assert standing(second, "macro-f1") > standing(first, "macro-f1")
    assert standing(second, "loss") > standing(first, "loss")


def test_where_nothing_else_is_known_the_loss_decides():
    first = Score(n=9, loss=0.5)
    second = Score(n=9, loss=0.4)
    assert standing(second) > standing(first)
    assert standing(second, "macro-f1") > standing(first, "macro-f1")


def test_a_loss_that_is_not_finite_is_last():
    good = Score(n=9, accuracy=0.0, loss=9e9)
    for loss in (None, math.nan, math.inf):
        bad = Score(n=9, accuracy=1.0, loss=loss)
        assert standing(bad) < standing(good)
        assert standing(bad, "loss") < standing(good, "loss")
    lost = torch.full((4, 2), math.nan)
    broken = score_of(lost, torch.tensor([0, 0, 0, 1]))
    assert standing(broken) < standing(good)


# ---- logits ---------------------------------------------------------------------------------


def test_logits_come_in_the_order_of_the_examples(monkeypatch):
    """Texts of near-equal length are read together, as many at once as asked."""
    read = []

    def classify(gpt2, prompts, ids, lengths):
        read.append(ids.shape)
        first = ids[:, :1].float().expand(-1, 2)  # (B, 2)
        return torch.stack([first, -first])

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
