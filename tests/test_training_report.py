"""report/training.py: what a person reads of a run while it works, and at its end."""

import re
import shlex
import time
from types import SimpleNamespace

import pytest

import train
from helpers import ask, rewrite
from report import training
from report.training import Clock, tell_beginning, tell_end, tell_epoch
from run_helpers import BASE, SHORT, end, run
from support.run_folder import LogLine
from support.summary import Selection, Summary, SummaryRow


def said(capsys, *argv):
    """What train.py prints: standard output"""
    code, out, err = ask(capsys, train, *argv)
    assert code == 0, err
    return out


# ---- the beginning --------------------------------------------------------------------------


def test_model_data_and_labels_are_told_before_the_first_step(place, capsys):
    out = said(capsys, *SHORT, "--out", "run")
    lines = out.splitlines()
    assert lines[0] == f"model {place / 'm'}: 7,250 frozen parameters in float32 on cpu"
    assert lines[1] == f"data {place / 'd'}: 54 train, 6 hold-out, 12 dev texts"
    assert re.fullmatch(r"labels of train: 0 \d+, 1 \d+", lines[2])


def facts_of(init="sample"):
    """What tell_beginning reads of run.json"""
    settings = SimpleNamespace(model="m", data="d", dtype="float32", device="cpu", init=init)
    return SimpleNamespace(settings=settings, texts={"train": 1234})


class NoModel:
    def parameters(self):
        return []


def labelled(counts):
    """A data set with so many texts of each label"""
    return SimpleNamespace(label_counts=lambda: counts)


def test_of_many_labels_the_first_twenty_are_told(capsys):
    counts = {f"class {i}": 1000 + i for i in range(25)}
    tell_beginning(facts_of(), NoModel(), labelled(counts))
    out = capsys.readouterr().out
    assert "class 0 1,000" in out
    assert "class 19 1,019 and 5 more" in out
    assert "class 20" not in out


def test_an_init_that_is_a_text_is_told_as_one(capsys):
    """A slip of a file's name would be seen here."""
    tell_beginning(facts_of("promts/p2-s0"), NoModel(), labelled({}))
    assert "as the tokens of the text promts/p2-s0" in capsys.readouterr().out


def test_an_init_that_is_a_prompt_is_told_as_one(capsys, tmp_path):
    path = tmp_path / "prompt.safetensors"
    path.write_bytes(b"")
    tell_beginning(facts_of(str(path)), NoModel(), labelled({}))
    assert f"as the vectors of {path}" in capsys.readouterr().out


# ---- while it works -------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: clock[0] seconds"""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_time_gone_and_time_left_go_by_the_steps_of_this_start(clock):
    """A run that goes on from step 100 has made none of those in this process."""
    watch = Clock(100, 300)
    clock[0] += 50
    assert watch.sentence(200) == "2.0 steps/s, 0:00:50 gone, 0:00:50 left"
    clock[0] += 3600
    assert watch.sentence(300).endswith("1:00:50 gone, 0:00:00 left")


def a_trial(name, accuracy, loss=0.5):
    """What tell_epoch reads of a trial"""
    latest = {
        "train": LogLine(10, 1, name, "train", 0.61, 0.7 if accuracy else None),
        "hold-out": LogLine(10, 1, name, "hold-out", loss, accuracy),
    }
    best = Selection(accuracy, loss, 6, "hold-out")
    return SimpleNamespace(name=name, latest=latest, best=best)


def line_of(capsys, clock, trials, by="accuracy"):
    """The line of an epoch"""
    watch = Clock(0, 20)
    clock[0] += 10
    tell_epoch(3, watch, 10, trials, by)
    return capsys.readouterr().out


def test_the_line_of_an_epoch(capsys, clock):
    line = line_of(capsys, clock, [a_trial("p2-s0", 0.75)])
    assert line == (
        "epoch 3, 1.0 steps/s, 0:00:10 gone, 0:00:10 left, p2-s0: train loss 0.610 accuracy "
        "0.7000, hold-out loss 0.500 accuracy 0.7500, best 0.7500\n"
    )


def test_in_a_pack_the_prompt_that_leads_is_called_so(capsys, clock):
    trials = [a_trial("p2-s0", 0.5), a_trial("p2-s1", 0.75), a_trial("p2-s2", 0.6)]
    line = line_of(capsys, clock, trials)
    assert "leader p2-s1: " in line
    assert "best 0.7500" in line


def test_equal_accuracies_are_led_by_the_least_loss(capsys, clock):
    trials = [a_trial("p2-s0", 0.5, 0.9), a_trial("p2-s1", 0.5, 0.4)]
    assert "leader p2-s1: " in line_of(capsys, clock, trials)


def test_a_regression_is_told_by_its_loss_alone(capsys, clock):
    line = line_of(capsys, clock, [a_trial("p2-s0", None, 4.25)], "loss")
    assert "train loss 0.610, hold-out loss 4.250, best 4.2500" in line
    assert "accuracy" not in line


def test_a_loss_that_is_not_finite_is_told_in_words(capsys, clock):
    trial = a_trial("p2-s0", 0.75)
    trial.latest["train"] = LogLine(10, 1, "p2-s0", "train", None, 0.5)
    assert "train loss not finite accuracy 0.5000" in line_of(capsys, clock, [trial])


def test_of_an_epoch_that_no_prompt_survived_nothing_is_told(capsys, clock):
    assert line_of(capsys, clock, []) == ""


def test_every_epoch_has_its_line(place, capsys):
    out = said(capsys, *BASE, "--epochs", "3", "--seeds", "0", "1", "--out", "run")
    lines = re.findall(r"^epoch (\d+), .* gone, .* left, leader p10-s[01]: .*$", out, re.MULTILINE)
    assert lines == ["1", "2", "3"]


# ---- the end --------------------------------------------------------------------------------


def row(name, accuracy=0.8, collapsed=False, **more):
    """A row of a summary"""
    values = {
        "prompt_tokens": 2,
        "seed": 0,
        "lr": 0.03,
        "epoch": 2,
        "n": 10,
        "accuracy": accuracy,
        "loss": 0.4,
        "ci95": [0.5, 0.95],
        "collapsed": collapsed,
    }
    selection = Selection(accuracy, 0.5, 6, "hold-out")
    return SummaryRow(name, selection, **values | more)


def told_end(capsys, summary, path="/tmp/run", text="a fine film"):
    """What tell_end prints: (stdout, stderr)"""
    tell_end(summary, path, text)
    return capsys.readouterr()


def test_the_table_has_a_row_a_prompt_and_the_baselines(capsys):
    baselines = {"majority": 0.5, "untrained": 0.45}
    out, _ = told_end(capsys, Summary([row("p2-s0"), row("p2-s1", 0.9)], baselines))
    header, first, second, majority, untrained = out.splitlines()[:5]
    assert re.split("  +", header) == ["prompt", "lr", "epoch", "hold-out", "dev", "95 % interval"]
    cells = ["p2-s0", "0.03", "2", "0.8000", "0.8000", "0.500 to 0.950"]
    assert re.split("  +", first) == cells
    assert second.startswith("p2-s1")
    assert re.fullmatch("majority +0.5000 *", majority)
    assert re.fullmatch("untrained +0.4500 *", untrained)


def test_the_table_of_a_regression_shows_squared_errors(capsys):
    numbers = {"accuracy": None, "ci95": None, "loss": 1.25, "pearson": 0.5}
    selection = Selection(None, 1.5, 6, "hold-out")
    regression = SummaryRow("p2-s0", selection, lr=0.03, epoch=2, **numbers)
    summary = Summary([regression], {"constant": 2.0, "untrained": 3.5}, select_by="loss")
    out, _ = told_end(capsys, summary)
    header, first, constant, untrained = out.splitlines()[:4]
    assert "hold-out, squared error" in header
    assert "Pearson's r" in header
    assert re.split("  +", first) == ["p2-s0", "0.03", "2", "1.5000", "1.2500", "0.5000"]
    assert re.fullmatch("constant +2.0000 *", constant)
    assert re.fullmatch("untrained +3.5000 *", untrained)


def test_a_regression_is_told_so_from_the_command_line(place, capsys):
    for split, rows in (("train", 40), ("dev", 8)):
        lines = [f"{split} {i}\t{i % 5}.5\n" for i in range(rows)]
        (place / "d" / f"{split}.tsv").write_text("text\tlabel\n" + "".join(lines))
    out = said(capsys, *SHORT, "--num-labels", "1", "--out", "run")
    assert "squared error" in out
    assert "accuracy" not in out


ALARM = "0.8000 is the share of label 1: this model answers 1 for everything"


def test_a_prompt_with_one_answer_is_warned_of(capsys):
    summary = Summary([row("p2-s0"), row("p2-s1", collapsed=True, alarm=ALARM)])
    _, err = told_end(capsys, summary)
    assert err == f"warning: p2-s1: {ALARM}\n"


def test_a_command_to_try_is_told_with_a_text_of_dev(capsys):
    out, _ = told_end(capsys, Summary([row("p2-s0")]), "/tmp/my run", "it's fine")
    line = out.splitlines()[-1]
    words = shlex.split(line.removeprefix("try: "))
    assert words[0] == "python"
    assert words[1].endswith("evaluate.py")
    assert words[2:] == ["predict", "/tmp/my run", "it's fine"]


def test_a_text_that_begins_with_a_dash_is_no_flag_of_it(capsys):
    out, _ = told_end(capsys, Summary([row("p2-s0")]), "/tmp/run", "-great")
    words = shlex.split(out.splitlines()[-1])
    assert words[-2:] == ["--", "-great"]


def test_nothing_is_to_be_tried_where_the_best_has_one_answer(capsys):
    summary = Summary([row("p2-s0", 0.9, collapsed=True, alarm=ALARM), row("p2-s1", 0.7)])
    out, _ = told_end(capsys, summary)
    assert "try:" not in out


def test_the_command_to_try_works(place, monkeypatch, capsys):
    """Whatever the name of the folder is."""
    rewrite("d/dev.tsv", lambda data: data.replace(b"fine", b"-fine"))
    monkeypatch.setattr(training, "MANY", 1)
    summary = ["--lr", "0.3", "--head-lr", "0.3", "--epochs", "12", "--select-on", "dev"]
    out = said(capsys, *BASE, *summary, "--out=-my run's")
    commands = [line for line in out.splitlines() if line.startswith("try: ")]
    if not commands:
        pytest.skip("this prompt gives one answer to everything")
    import evaluate

    words = shlex.split(commands[0].removeprefix("try: "))
    code, told, err = ask(capsys, evaluate, *words[2:], "--device", "cpu")
    assert code == 0, err
    assert told


def test_of_several_processes_one_speaks(monkeypatch, capsys):
    monkeypatch.setattr("support.terminal.rank_and_world", lambda: (1, 2))
    tell_end(Summary([row("p2-s0")]), "/tmp/run", "a film")
    out, err = capsys.readouterr()
    assert out + err == ""


def test_a_stream_that_cannot_be_written_stops_no_training(place, monkeypatch):
    """A training is worth more than what is said of it."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert end(*SHORT, "--out", "run") in (0, 2)
    assert (place / "run" / "summary.json").exists()


def test_a_second_run_tells_the_same(place, capsys):
    run("--steps", 2, "--prompt-tokens", 2)
    first = capsys.readouterr().out.splitlines()[-4:]
    run("--steps", 2, "--prompt-tokens", 2, "--overwrite")
    assert capsys.readouterr().out.splitlines()[-4:] == first
