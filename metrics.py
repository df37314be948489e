"""What answers are worth: the logits of a set of texts, a Score of them, and which is the best.

logits_of, decide, Score, score, score_of, standing.
Letters as in model.py: K prompts, n texts, N labels.
"""

import math
from dataclasses import dataclass

import torch

from data import collate, cut
from model import choose, classify, losses
from support.processes import all_reduce, rank_and_world
from support.statistics import correlation, ranks, wilson
from support.terminal import progress

# ---- logits ---------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(gpt2, prompts, examples, batch_size):
    """Logits of every prompt for every example, float32 (K, n, N) on the CPU, in their order.

    examples: [(ids, label)].  Near-equal lengths are read together; processes share the batches.
    """
    device = gpt2.wte.weight.device
    rank, world = rank_and_world()
    logits = torch.zeros(len(prompts), len(examples), len(prompts[0].head), device=device)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    mine = cut(order, batch_size)[rank::world]
    for batch in progress(mine, "batches"):
        # In the place of its label each text brings its number, so that a GPU waits for no copy.
        numbered = [(examples[i][0], i) for i in batch]
        ids, lengths, numbers = collate(numbered, device)  # (B, T), (B,), (B,)
        logits[:, numbers] = classify(gpt2, prompts, ids, lengths).float()  # (K, B, N)
    # What a process did not read is zero there, so the sum over all of them is the whole.
    all_reduce([logits])
    return logits.cpu()


def decide(logits):
    """Labels of logits (n, N): int64 (n,); -1 where a logit is not finite, which is no answer.

    An argmax of NaN would be label 0, and right wherever that is the true one.
    """
    return choose(logits).where(logits.isfinite().all(dim=1), -1)


# ---- scores ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What a prompt is worth on n labelled texts; None is what is not known, or makes no sense.

    With one column (a regression) the loss is the mean squared error, and what counts right
    answers is known only where all true labels are 0 or 1: then an answer is 1 above 0.5.
    """

    n: int
    loss: float | None = None  # None where it is not finite
    accuracy: float | None = None
    ci95: list[float] | None = None  # of the accuracy, Wilson's interval
    macro_f1: float | None = None  # the mean of the labels' F1
    confusion: list[list[int]] | None = None  # row: true label, column: answer
    precision: list[float | None] | None = None  # of each label
    recall: list[float | None] | None = None
    majority: float | None = None  # the share of the commonest label: what reading nothing gets
    pearson: float | None = None  # of a regression: correlation of answers and labels
    spearman: float | None = None  # the same of their ranks
    constant_loss: float | None = None  # of a regression: what the best constant gets
    collapsed: bool = False  # one answer for all texts
    broken: bool = False  # a logit or the loss is not finite
    alarm: str | None = None  # a sentence on what is wrong with it


def score(gpt2, prompts, examples, batch_size, names=None):
    """What each prompt is worth on labelled examples [(ids, label)]: a list of K Scores."""
    labels = torch.tensor([label for _, label in examples])  # (n,)
    every = logits_of(gpt2, prompts, examples, batch_size)  # (K, n, N)
    return [score_of(logits, labels, names) for logits in every]


def score_of(logits, labels, names=None):
    """The Score of logits (n, N) beside true labels (n,).

    names: what the labels are called, for the alarm.
    """
    n, N = logits.shape
    loss = losses(logits[None], labels).item()
    # Numbers other than 0 and 1 are no classes: nothing is counted right or wrong then.
    truth = truth_of(labels, N)
    chosen = decide(logits)
    found = {} if truth is None else counts(chosen, truth, max(N, 2))
    alarms = []

    missing = int((chosen < 0).sum())
    if missing:
        alarms.append(f"{missing} of {n} texts have no answer: their logits are not finite")
    found["collapsed"] = n > 1 and missing == 0 and int(chosen.min()) == int(chosen.max())
    if N == 1:
        found |= fit_of(logits.squeeze(1), labels)
        found["collapsed"] &= truth is not None
    if found["collapsed"]:
        alarms.append(collapse(found["accuracy"], int(chosen[0]), names))
    # How .4908 came about: said wherever it could come about again.
    if N == 1 and truth is not None:
        zeros = 1 - truth.float().mean()
        alarms.append(
            "the head has one column, trained on the squared error: answers are 1 above 0.5; an "
            "argmax of one column would answer 0 for everything and score "
            f"{zeros:.4f}, the share of label 0"
        )
    found["broken"] = missing > 0 or not math.isfinite(loss)
    found["loss"] = None if found["broken"] else loss
    return Score(n=n, alarm="; ".join(alarms) or None, **found)


def truth_of(labels, N):
    """Labels (n,) as classes, int64 (n,): themselves, but with one column 0 and 1 alone are some.

    None where they are numbers, of which no answer is right or wrong.
    """
    if N > 1:
        return labels.long()
    if ((labels == 0) | (labels == 1)).all():
        return labels.long()
    return None


def counts(chosen, truth, N):
    """Right answers of chosen labels (n,), -1 for none, against the true ones (n,), by label."""
    n = len(truth)
    answered = chosen >= 0  # (n,)
    cells = torch.bincount(truth[answered] * N + chosen[answered], minlength=N * N)
    right = cells.view(N, N).diag().tolist()
    said = cells.view(N, N).sum(dim=0).tolist()  # of each label: how often it is the answer
    there = torch.bincount(truth, minlength=N).tolist()  # and how often it is true
    f1 = []
    for i in range(N):
        if said[i] + there[i] > 0:  # a label that nobody names says nothing
            f1.append(2 * right[i] / (said[i] + there[i]))
    return {
        "accuracy": sum(right) / n,
        "ci95": wilson(sum(right), n),
        "macro_f1": sum(f1) / len(f1),
        "confusion": cells.view(N, N).tolist(),
        "precision": shares(right, said),
        "recall": shares(right, there),
        "majority": max(there) / n,
    }


def shares(parts, wholes):
    """parts / wholes, one by one; None of nothing."""
    return [part / whole if whole else None for part, whole in zip(parts, wholes, strict=True)]


def fit_of(answers, labels):
    """How numbers (n,) follow the true ones (n,), beside the constant that fits these best."""
    answers = answers.double()
    labels = labels.double()
    pearson = correlation(answers, labels)
    spearman = None if pearson is None else correlation(ranks(answers), ranks(labels))
    constant_loss = labels.var(correction=0).item()
    return {"pearson": pearson, "spearman": spearman, "constant_loss": constant_loss}


def collapse(accuracy, label, names):
    """The alarm of a prompt that gives one answer to all texts."""
    name = str(label)
    share = f"label {label}"
    if names and names[label] != name:  # else names are the numbers themselves
        name = repr(names[label])
        share = name
    return f"{accuracy:.4f} is the share of {share}: this model answers {name} for everything"


# ---- which is best --------------------------------------------------------------------------


def standing(score, by="accuracy"):
    """How good something is that has accuracy, macro_f1 and loss: of two the better is greater.

    by: which of them decides; between equals, and where that one is not known, the loss does.  A
    loss that is None, or not finite, stands behind all that is.
    """
    finite = score.loss is not None and math.isfinite(score.loss)
    less = -score.loss if finite else -math.inf
    share = {"accuracy": score.accuracy, "macro-f1": score.macro_f1, "loss": None}[by]
    return (finite, less if share is None else share, less)
