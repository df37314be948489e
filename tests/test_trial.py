"""support/trial.py: the best is kept, what is broken is stopped, and all of it can be put back."""

import json
import math

import pytest
import torch

from metrics import Score
from model import Prompt
from run_helpers import prompt_path, run
from support.prompt_file import read_prompt
from support.settings import Settings
from support.summary import Selection
from support.trial import Trial, start_trials


def a_trial():
    """A trial of two vectors and two labels"""
    prompt = Prompt(torch.ones(2, 4), torch.ones(2, 4))
    return Trial("p2-s0", 0, 0.1, prompt, [5, 6], "hold-out")


def considered(scores, by="accuracy"):
    """What becomes of a trial in epochs of (accuracy, loss) -> (trial, whether each was kept)"""
    trial = a_trial()
    kept = []
    for epoch, (accuracy, loss) in enumerate(scores, 1):
        trial.prompt.vectors.data.fill_(epoch)
        selection = Selection(accuracy, loss, 6, "hold-out")
        kept.append(trial.consider(selection, epoch, by))
    return trial, kept


EPOCHS = [(0.5, 0.7), (0.6, 0.9), (0.6, 0.8), (0.6, 0.8), (0.4, 0.1), (0.6, 0.81)]


def test_the_best_only_ever_improves():
    """Equal accuracies go by the loss; what is equal in both is no better."""
    trial, kept = considered(EPOCHS)
    assert kept == [True, True, True, False, False, False]
    assert (trial.best.accuracy, trial.best.loss) == (0.6, 0.8)
    assert trial.best_epoch == 3
    assert trial.epochs_since_best == 3


def test_the_vectors_of_the_best_epoch_are_kept():
    trial, _ = considered(EPOCHS)
    assert torch.equal(trial.best_prompt.vectors, torch.full((2, 4), 3.0))
    assert torch.equal(trial.prompt.vectors, torch.full((2, 4), 6.0))
    assert torch.equal(trial.initial.vectors, torch.ones(2, 4))


def test_by_loss_the_accuracy_says_nothing():
    _, kept = considered([(0.9, 0.7), (0.1, 0.6), (1.0, 0.65)], "loss")
    assert kept == [True, True, False]


def test_of_a_regression_the_least_loss_is_best():
    trial, kept = considered([(None, 4.9), (None, 4.99), (None, 4.8)], "loss")
    assert kept == [True, False, True]
    assert trial.best_epoch == 3


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_what_has_no_finite_loss_is_never_better_than_what_has(loss):
    _, kept = considered([(0.1, 0.7), (1.0, loss)])
    assert kept == [True, False]


def test_a_prompt_that_is_stopped_is_told_of_with_advice(capsys):
    trial = a_trial()
    trial.stop(20)
    assert trial.broke_at == 20
    told = "p2-s0 stopped: not finite by step 20; try a lower --lr"
    assert told in capsys.readouterr().err


def test_a_regression_that_is_stopped_is_told_of_its_labels_too(capsys):
    """No rate helps where the square of a label is no number of float32."""
    prompt = Prompt(torch.ones(2, 4), torch.ones(1, 4))
    Trial("p2-s0", 0, 0.1, prompt, [5, 6], "hold-out").stop(20)
    told = "try a lower --lr, or divide labels that are far from 0 by a constant"
    assert told in capsys.readouterr().err


def test_a_trial_that_is_put_back_is_what_it_was():
    trial, _ = considered(EPOCHS)
    trial.broke_at = 30
    state = json.loads(json.dumps(trial.state_dict(), default=list_of))
    for part in ("now", "kept"):
        state[part] = {name: torch.tensor(rows) for name, rows in state[part].items()}
    other = a_trial()
    other.load_state_dict(state)
    for name in ("best", "best_epoch", "epochs_since_best", "broke_at"):
        assert getattr(other, name) == getattr(trial, name)
    assert torch.equal(other.prompt.vectors, trial.prompt.vectors)
    assert torch.equal(other.best_prompt.vectors, trial.best_prompt.vectors)


def list_of(tensor):
    return tensor.tolist()


def test_a_trial_without_a_best_is_put_back_too():
    other = a_trial()
    other.load_state_dict(a_trial().state_dict())
    assert other.best is None
    assert other.best_epoch == 0


def test_the_state_of_the_first_version_is_read():
    """It kept all of a result, the confusion too, and the epoch with it."""
    best = {"accuracy": 0.5, "loss": 0.7, "n": 6, "epoch": 4, "confusion": [[1, 2], [3, 0]]}
    best |= {"ci95": [0.2, 0.8], "precision": [None, 0.5], "alarm": None, "collapsed": False}
    tensors = Prompt(torch.zeros(2, 4), torch.zeros(2, 4)).state_dict()
    state = {"best": best, "waited": 2, "broke": 0, "now": tensors, "kept": tensors}
    trial = a_trial()
    trial.load_state_dict(state)
    assert trial.best == Selection(0.5, 0.7, 6, "hold-out")
    assert trial.best_epoch == 4
    assert trial.epochs_since_best == 2


class Drawn:
    """Stands for FirstVectors: a prompt of P vectors, all of them the seed."""

    def draw(self, P, seed):
        return Prompt(torch.full((P, 4), float(seed)), torch.zeros(2, 4)), [7] * P


def started(**settings):
    """The trials of a run with these settings"""
    return start_trials(Settings(**settings), Drawn(), torch.device("cpu"))


def test_there_is_a_trial_for_every_length_seed_and_rate():
    trials = started(prompt_tokens=[1, 3], seeds=[0, 5], lr=[0.1, 0.2])
    names = [trial.name for trial in trials]
    assert names == [
        "p1-s0-lr0.1",
        "p1-s0-lr0.2",
        "p1-s5-lr0.1",
        "p1-s5-lr0.2",
        "p3-s0-lr0.1",
        "p3-s0-lr0.2",
        "p3-s5-lr0.1",
        "p3-s5-lr0.2",
    ]
    last = trials[-1]
    assert (last.seed, last.lr, last.init_ids) == (5, 0.2, [7, 7, 7])
    assert last.prompt.vectors.shape == (3, 4)


def test_a_single_rate_is_no_part_of_a_name():
    assert [trial.name for trial in started(lr=[0.5])] == ["p10-s0"]


@pytest.mark.parametrize("train,moves", [("head", False), ("prompt+head", True)])
def test_the_baseline_trains_the_head_alone(train, moves):
    [trial] = started(train=train)
    assert trial.prompt.vectors.requires_grad is moves
    assert trial.prompt.head.requires_grad


def test_a_row_of_the_summary_says_how_it_began_and_ended():
    trial, _ = considered(EPOCHS)
    result = Score(n=12, loss=0.4, accuracy=0.75, ci95=[0.5, 0.9], macro_f1=0.7)
    start = Score(n=12, loss=0.9, accuracy=0.5)
    row = trial.row(result, start)
    assert (row.name, row.prompt_tokens, row.epoch) == ("p2-s0", 2, 3)
    assert (row.accuracy, row.loss, row.macro_f1) == (0.75, 0.4, 0.7)
    assert (row.untrained, row.untrained_loss) == (0.5, 0.9)
    assert row.selection.accuracy == 0.6
    assert row.folder == "prompts/p2-s0"


def test_a_prompt_file_before_dev_was_asked_has_what_was_chosen_by(place):
    """While a run goes on its prompts can be used already."""
    run("--prompt-tokens", 2, "--epochs", 1)
    scores = read_prompt(prompt_path("p2-s0")).scores
    assert scores.n == 12  # of dev, in the end
    assert 0 <= scores.selected <= 1
    assert scores.selected_loss > 0
    assert scores.untrained_loss > 0
