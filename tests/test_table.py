"""report/table.py: means over seeds beside the baselines, and whether two prompts differ."""

import json
import math
import re

import pytest
import torch

import evaluate
from desk import (
    EXACT,
    NAMES,
    Row,
    ask,
    changed,
    head,
    number_prompt,
    number_rows,
    told,
    write_run,
    write_split,
)
from metrics import score_of
from model import Prompt
from report import table
from support.statistics import mcnemar, wilson


def cells_of(out):
    """Lines of a Markdown table as lists of cells."""
    found = []
    for line in out.splitlines():
        if line.startswith("|"):
            parts = line.strip("|").split("|")
            found.append([part.strip() for part in parts])
    return found


def lines_told(capsys, *runs):
    """The lines of trained prompts, without baselines."""
    return [line for line in told(capsys, "table", *runs) if "seeds" in line]


# ---- means over seeds -----------------------------------------------------------------------


@pytest.fixture
def in_order(capsys, runs):
    """What the table tells of `runs`, line by line"""
    return told(capsys, "table", *runs)


def test_baselines_come_first(in_order):
    majority, untrained, *_ = in_order
    assert majority["train"] == "majority"
    assert majority["accuracy"] == 0.52
    assert untrained["train"] == "untrained"
    assert untrained["accuracy"] == pytest.approx(3 / 6)


def test_then_heads_and_then_prompts_by_length_and_rate(in_order):
    order = [(line["train"], line["prompt_tokens"], line["lr"]) for line in in_order[2:]]
    assert order == [
        ("head", 1, 0.03),
        ("head", 5, 0.03),
        ("prompt+head", 1, 0.03),
        ("prompt+head", 5, 0.01),
        ("prompt+head", 5, 0.03),
    ]


def test_a_line_is_a_mean_over_seeds(in_order):
    """Of 0.70 and 0.74 on dev, 0.71 and 0.69 on the hold-out, 0.50 and 0.48 untrained"""
    line = in_order[4]
    deviation = math.sqrt(2 * 0.02**2)
    assert line["seeds"] == 2
    assert line["accuracy"] == pytest.approx(0.72)
    assert line["sd"] == pytest.approx(deviation)
    assert line["selected"] == pytest.approx(0.70)
    assert line["untrained"] == pytest.approx(0.49)
    assert line["n"] == 400
    assert line["ci95"] == pytest.approx(wilson(288, 400))
    assert line["epoch"] == [2, 2]
    assert line["epochs"] == 3


def test_a_line_of_one_seed_has_no_deviation(in_order):
    slow, five = in_order[5:]
    assert slow["accuracy"] == 0.90
    assert slow["epoch"] == [3]
    assert five["sd"] is None


def test_the_best_of_the_table_is_best_on_selection(capsys, runs):
    """And no head alone."""
    _, out, _ = ask(capsys, "table", *runs)
    header, _, best, *_ = cells_of(out)
    assert header == ["model", "data", "batch size", "best accuracy", "token count"]
    assert best == ["tiny", "reviews", "16", "0.7000", "1"]


def test_a_person_reads_the_lines_in_the_same_order(capsys, runs):
    _, out, _ = ask(capsys, "table", *runs)
    lines = cells_of(out)[5:]
    trained = [cells[2:4] for cells in lines]
    dev = [cells[9] for cells in lines]
    assert trained == [
        ["majority", ""],
        ["untrained", ""],
        ["head", "1"],
        ["head", "5"],
        ["prompt+head", "1"],
        ["prompt+head", "5"],
        ["prompt+head", "5"],
    ]
    assert dev == ["0.5200", "0.5000", "0.5500", "0.6000", "0.7200", "0.9000", "0.8000"]


def test_a_person_reads_how_a_line_was_trained_and_what_it_scored(capsys, runs):
    _, out, _ = ask(capsys, "table", *runs)
    (line,) = [cells for cells in cells_of(out) if cells[2:4] == ["prompt+head", "1"]]
    low, high = wilson(288, 400)
    how = ["tiny", "reviews", "prompt+head", "1", "16", "0.03", "2", "2 2 of 3"]
    scores = ["0.7000", "0.7200", "0.0283", f"{low:.3f} to {high:.3f}"]
    assert line == how + scores


def test_each_data_set_has_baselines_of_its_own(capsys, runs, tmp_path):
    row = Row("g", 3, 0, 0.51, 0.99, 0.9, recipe={"data": "sst2"})
    other = write_run(tmp_path / "other", row)
    lines = told(capsys, "table", *runs, other)[-3:]
    assert [line["data"] for line in lines] == ["sst2"] * 3


def test_each_data_set_has_a_best_of_its_own(capsys, runs, tmp_path):
    row = Row("g", 3, 0, 0.51, 0.99, 0.9, recipe={"data": "sst2"})
    other = write_run(tmp_path / "other", row)
    _, out, _ = ask(capsys, "table", *runs, other)
    _, _, first, second, *_ = cells_of(out)
    assert first[1] == "reviews"
    assert first[3] == "0.7000"
    assert second[1] == "sst2"
    assert second[3] == "0.5100"


OTHERS = {"data": "sst2", "train": "head", "batch_size": 8, "epochs": 2, "select_on": "dev"}
OTHERS |= {"lr": 0.01, "head_lr": 0.1, "steps": 7, "max_examples": 5, "patience": 1}
OTHERS |= {"dtype": "bfloat16", "text_column": "x", "label_column": "y", "select_by": "loss"}


@pytest.mark.parametrize("key", OTHERS)
def test_prompts_that_differ_in_more_than_the_seed_are_lines_of_their_own(capsys, tmp_path, key):
    """Or a mean would be taken over unlike things."""
    value = OTHERS[key]
    first = write_run(tmp_path / "first", Row("a", seed=0), Row("b", seed=1))
    other = write_run(tmp_path / "other", Row("c", seed=2, recipe={key: value}))
    lines = lines_told(capsys, first, other)
    by_seeds = sorted(lines, key=lambda line: line["seeds"])
    alone, pair = by_seeds
    assert alone["seeds"] == 1
    assert alone[key] == value
    assert pair["seeds"] == 2
    assert pair[key] != value


def test_prompts_of_two_runs_that_differ_in_the_seed_are_one_line(capsys, tmp_path):
    first = write_run(tmp_path / "first", Row("a", seed=0), Row("b", seed=1))
    second = write_run(tmp_path / "second", Row("c", seed=2))
    (line,) = lines_told(capsys, first, second)
    assert line["seeds"] == 3


@pytest.mark.parametrize("more", [{"fields": {"init": "words"}}, {"P": 2}], ids=str)
def test_first_vectors_and_lengths_tell_prompts_apart_too(capsys, tmp_path, more):
    first = write_run(tmp_path / "first", Row("a"))
    other = write_run(tmp_path / "other", Row("c", seed=2, **more))
    lines = lines_told(capsys, first, other)
    assert [line["seeds"] for line in lines] == [1, 1]


def test_what_lines_differ_in_is_told(capsys, tmp_path):
    first = write_run(tmp_path / "first", Row("a"))
    row = Row("b", recipe={"patience": 4}, fields={"init": "words"})
    second = write_run(tmp_path / "second", row)
    _, out, _ = ask(capsys, "table", first, second)
    last = [cells[-1] for cells in cells_of(out)]
    assert last[3] == "differs in"
    assert set(last[7:]) == {"init sample, patience None", "init words, patience 4"}


def test_a_prompt_that_is_named_twice_is_one(capsys, runs, monkeypatch):
    monkeypatch.chdir(runs[0].parent)
    once = told(capsys, "table", "full")
    path = runs[0] / "prompts/p1-s0-a"
    names = ["full", "./full", runs[0], path, path / "prompt.safetensors"]
    assert told(capsys, "table", *names) == once


def test_two_prompts_of_one_seed_are_refused_by_their_names(capsys, tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, Row("a"))
    code, out, err = ask(capsys, "table", tmp_path / "one", tmp_path / "two")
    assert code == 2
    assert str(tmp_path / "one") in err
    assert str(tmp_path / "two") in err
    assert "seed" in err


def test_epochs_are_never_more_than_there_were(capsys, tmp_path):
    """Older files of runs with --steps tell how many epochs there would have been."""
    row = Row("a", epoch=22, recipe={"steps": 200, "epochs": 6})
    run = write_run(tmp_path / "run", row)
    _, out, _ = ask(capsys, "table", run)
    line = cells_of(out)[-1]
    assert "22" in line
    assert not any("of 6" in cell for cell in line)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"accuracy": None, "loss": None}},
        {"recipe": {"lr": None}},
    ],
    ids=str,
)
def test_a_prompt_without_its_scores_is_in_no_table(capsys, desk, tmp_path, change):
    path = changed(tmp_path, desk.a, **change)
    code, out, err = ask(capsys, "table", path)
    assert code == 2
    assert "p.safetensors goes without its scores" in err
    assert not out


# ---- which is best --------------------------------------------------------------------------


def best_told(capsys, *runs):
    """The row of the first table: best accuracy on dev and length."""
    _, out, _ = ask(capsys, "table", *runs)
    best = cells_of(out)[2]
    return best[3:]


def test_of_equal_accuracies_the_lower_loss_is_best(capsys, tmp_path):
    worse = Row("a", P=1, accuracy=0.7, selected=0.8, selected_loss=0.9)
    better = Row("b", P=2, accuracy=0.6, selected=0.8, selected_loss=0.1)
    run = write_run(tmp_path / "run", worse, better)
    assert best_told(capsys, run) == ["0.6000", "2"]


def test_prompts_that_were_chosen_by_loss_are_compared_by_it(capsys, tmp_path):
    how = {"select_by": "loss"}
    worse = Row("a", P=1, accuracy=0.7, selected=0.9, selected_loss=0.9, recipe=how)
    better = Row("b", P=2, accuracy=0.6, selected=0.8, selected_loss=0.1, recipe=how)
    run = write_run(tmp_path / "run", worse, better)
    assert best_told(capsys, run) == ["0.6000", "2"]


def test_older_files_go_by_accuracy(capsys, tmp_path):
    """Which say no loss; beside them nobody gains from one."""
    better = Row("a", P=1, accuracy=0.7, selected=0.9, selected_loss=None)
    worse = Row("b", P=2, accuracy=0.6, selected=0.8, selected_loss=0.1)
    run = write_run(tmp_path / "run", worse, better)
    assert best_told(capsys, run) == ["0.7000", "1"]


def test_a_head_alone_is_best_only_where_nothing_else_is(capsys, tmp_path):
    (alone,) = head(Row("a", P=1, accuracy=0.7, selected=0.9))
    prompt = Row("b", P=2, accuracy=0.6, selected=0.5)
    run = write_run(tmp_path / "run", alone)
    assert best_told(capsys, run) == ["0.7000", "1"]
    run = write_run(tmp_path / "both", alone, prompt)
    assert best_told(capsys, run) == ["0.6000", "2"]


# ---- numbers --------------------------------------------------------------------------------


@pytest.fixture
def regression(desk, tmp_path):
    """A run of two seeds, whose losses on dev are 1.25 and 1.75"""
    return write_run(tmp_path / "run", *number_rows(desk, tmp_path))


def test_a_regression_is_told_by_its_squared_error(capsys, regression):
    constant, untrained, line = told(capsys, "table", regression)
    deviation = math.sqrt(2 * 0.25**2)
    assert constant["train"] == "constant"
    assert constant["loss"] == 2.5
    assert untrained["train"] == "untrained"
    assert untrained["loss"] == 3.5
    assert line["loss"] == 1.5
    assert line["selected_loss"] == 2.5
    assert line["pearson"] == 0.5
    assert line["sd"] == pytest.approx(deviation)
    assert line["accuracy"] is None
    assert line["ci95"] is None


def test_a_person_reads_that_these_are_squared_errors(capsys, regression):
    _, out, _ = ask(capsys, "table", regression)
    _, _, best, *_, line = cells_of(out)
    assert best[3:] == ["1.2500", "3"]  # of the lower loss on selection
    assert line[8:11] == ["2.5000", "1.5000", "0.3536"]
    assert "squared errors" in out


# ---- another split --------------------------------------------------------------------------


def elsewhere(desk, data, split):
    """The flags that name a split of the desk: none of those that name its own"""
    flags = []
    if data != "d":
        flags += ["--data", desk.home / data]
    if split != "dev":
        flags += ["--split", split]
    return flags


def texts_and_labels(desk, data, split):
    """A split of the desk: its texts, and its labels (n,)"""
    rows = desk.data[data, split]
    labels = [label for _, label in rows]
    return [text for text, _ in rows], torch.tensor(labels)


each_other_split = pytest.mark.parametrize(
    "data,split",
    [
        ("e", "dev"),
        ("d", "other"),
        ("e", "other"),
    ],
)


@each_other_split
def test_prompts_are_scored_on_what_is_asked(capsys, desk, data, split):
    texts, labels = texts_and_labels(desk, data, split)
    lines = lines_told(capsys, desk.run, *elsewhere(desk, data, split), *EXACT)
    assert [line["prompt_tokens"] for line in lines] == [2, 3, 5]
    for name, line in zip("bac", lines, strict=True):
        logits = desk.logits(name, texts)
        truth = score_of(logits, labels)
        assert line["accuracy"] == truth.accuracy
        assert line["macro_f1"] == pytest.approx(truth.macro_f1)
        assert line["n"] == truth.n
        assert line["ci95"] == pytest.approx(truth.ci95)


@each_other_split
def test_the_majority_is_that_of_what_is_asked(capsys, desk, data, split):
    _, labels = texts_and_labels(desk, data, split)
    most = labels.bincount().max().item()
    majority, *_ = told(capsys, "table", desk.run, *elsewhere(desk, data, split), *EXACT)
    assert majority["accuracy"] == most / len(labels)


@each_other_split
def test_a_person_reads_on_what_prompts_were_scored(capsys, desk, data, split):
    _, out, _ = ask(capsys, "table", desk.run, *elsewhere(desk, data, split), *EXACT)
    assert f"here {desk.home / data} {split}" in out


def test_texts_are_read_once_for_all_prompts_of_a_model(capsys, desk, monkeypatch):
    asked = []
    real = evaluate.logits_of

    def logits_of(gpt2, prompts, examples, size):
        asked.append(len(prompts))
        return real(gpt2, prompts, examples, size)

    monkeypatch.setattr(evaluate, "logits_of", logits_of)
    ask(capsys, "table", desk.run, "--data", desk.e)
    assert asked == [3]


# ---- whether two differ ---------------------------------------------------------------------


@pytest.mark.parametrize("data,split", [("d", "dev"), ("e", "other")])
def test_two_prompts_are_compared_on_the_split_that_both_answer(capsys, desk, data, split):
    texts, labels = texts_and_labels(desk, data, split)
    first = desk.logits("a", texts).argmax(dim=1) == labels  # (n,)
    second = desk.logits("c", texts).argmax(dim=1) == labels
    test = mcnemar(first, second)
    assert 0 not in test.only_right
    pair = [desk.a, desk.c, *elsewhere(desk, data, split), *EXACT]

    *_, last = told(capsys, "table", *pair)
    found = last["mcnemar"]
    assert found.pop("prompts") == [str(desk.a), str(desk.c)]
    assert found == vars(test)

    _, out, _ = ask(capsys, "table", *pair)
    left, right = test.only_right
    assert out.splitlines()[-1] == (
        f"McNemar's test, {test.n} texts: {left} only the first gets right, "
        f"{right} only the second; p = {test.p:.4f}, exact and two-sided"
    )


def test_only_two_prompts_are_compared(capsys, desk, tmp_path):
    two = write_run(tmp_path / "two", Row("a"), Row("b", seed=1))
    for paths in ([desk.a], [desk.a, desk.b, desk.c], [two]):
        _, out, _ = ask(capsys, "table", *paths)
        assert "McNemar" not in out


def test_unlike_data_is_told_beside_the_table(capsys, desk, tmp_path):
    other = changed(tmp_path, desk.a, recipe={"data": str(desk.e)})
    code, out, err = ask(capsys, "table", other, desk.a)
    assert code == 0
    [places] = re.findall(r"different data \((.+); (.+)\); name one", err)
    assert str(desk.e) in places[0]
    assert str(desk.e) not in places[1]
    assert "--data" in err
    assert str(desk.a) in err
    assert out
    assert "McNemar" not in out


def test_where_one_is_named_unlike_data_is_compared_on_it(capsys, desk, tmp_path):
    other = changed(tmp_path, desk.a, recipe={"data": str(desk.e)})
    _, out, _ = ask(capsys, "table", other, desk.a, "--data", desk.d)
    assert "McNemar" in out


@pytest.mark.parametrize(
    "differ,recipe",
    [
        (True, {"text_column": "plot"}),
        (True, {"label_column": "stars"}),
        (False, {"seed": 7}),
    ],
    ids=str,
)
def test_other_columns_of_a_table_are_unlike_data(capsys, desk, tmp_path, differ, recipe):
    for name in ("dev", "train"):
        rows = "sentence,plot,label,stars\nfine,dull,0,1\nawful,grand,1,1\n"
        (tmp_path / f"{name}.csv").write_text(rows)
    data = {"data": str(tmp_path)}
    first = changed(tmp_path / "first", desk.a, recipe=data)
    second = changed(tmp_path / "second", desk.a, recipe=data | recipe)
    code, out, err = ask(capsys, "table", first, second)
    assert code == 0
    assert ("different data" in err) == differ
    assert ("McNemar" in out) != differ


def test_labels_are_compared_by_their_names(capsys, desk, tmp_path):
    """Two prompts may number the same labels in another way."""
    old = desk.prompts["a"]
    turned = Prompt(old.vectors, old.head.flip(0))
    more = {"prompt": turned, "labels": NAMES[::-1]}
    other = changed(tmp_path, desk.a, recipe={"seed": 9}, **more)
    rows = [(text, NAMES[label]) for text, label in desk.data["d", "dev"]]
    write_split(tmp_path / "n", "dev", rows)
    *_, last = told(capsys, "table", desk.a, other, "--data", tmp_path / "n", *EXACT)
    assert last["mcnemar"]["only_right"] == [0, 0]


def test_numbers_are_neither_right_nor_wrong(capsys, desk, tmp_path):
    rows = [(text, label * 1.5) for text, label in desk.data["d", "dev"]]
    write_split(tmp_path / "n", "dev", rows)
    source = number_prompt(desk, tmp_path)
    scores = {"n": 9, "loss": 1.0}
    paths = []
    for seed in (1, 2):
        recipe = {"seed": seed, "data": str(tmp_path / "n")}
        folder = tmp_path / str(seed)
        paths.append(changed(folder, source, recipe=recipe, scores=scores))
    code, out, err = ask(capsys, "table", *paths)
    assert code == 0, err
    assert "answers with numbers" in err
    assert "McNemar" not in out


def test_a_prompt_that_does_not_say_its_data_is_compared_with_none(capsys, desk, tmp_path):
    lost = changed(tmp_path, desk.a, recipe={"data": None})
    code, out, err = ask(capsys, "table", lost, desk.a)
    assert code == 0
    assert "no McNemar's test" in err


@pytest.mark.parametrize(
    "p,shown",
    [
        (1.0, "= 1.0000"),
        (0.0312, "= 0.0312"),
        (0.001, "= 0.0010"),
        (2.5e-7, "= 2.5e-07"),
        (0.0, "< 1e-300"),
    ],
)
def test_a_probability_is_never_shown_as_nothing(p, shown):
    assert table.probability(p) == shown


def test_json_is_an_object_a_line(capsys, runs):
    _, out, _ = ask(capsys, "table", *runs, "--json")
    for line in out.splitlines():
        assert isinstance(json.loads(line), dict)
