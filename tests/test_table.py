"""report/table.py: means over seeds beside the baselines, and whether two prompts differ."""

import json
import math

import pytest
import torch

from desk import (
    EXACT,
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
from report import table
from support.prompt_file import read_prompt
from support.statistics import mcnemar, wilson


def cells_of(out):
    """Lines of a Markdown table as lists of cells."""
    lines = [line for line in out.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def lines_told(capsys, *runs):
    """The lines of trained prompts, without baselines."""
    return [line for line in told(capsys, "table", *runs) if "seeds" in line]


# ---- means over seeds -----------------------------------------------------------------------


def test_the_table_against_plain_counting(capsys, runs):
    majority, untrained, low, high, one, slow, five = told(capsys, "table", *runs)
    assert (majority["train"], majority["accuracy"]) == ("majority", 0.52)
    assert untrained["train"] == "untrained"
    assert untrained["accuracy"] == pytest.approx(3 / 6)
    assert low["train"] == high["train"] == "head"
    assert one["accuracy"] == pytest.approx(0.72)
    assert one["sd"] == pytest.approx(math.sqrt(2 * 0.02**2))
    assert one["selected"] == pytest.approx(0.70)
    assert one["untrained"] == pytest.approx(0.49)
    assert (one["seeds"], one["n"]) == (2, 400)
    assert one["ci95"] == pytest.approx(wilson(288, 400))
    assert (one["epoch"], one["epochs"]) == ([2, 2], 3)
    assert five["prompt_tokens"] == 5
    assert five["sd"] is None
    assert (slow["lr"], slow["accuracy"], slow["epoch"]) == (0.01, 0.90, [3])


def test_the_table_that_a_person_reads(capsys, runs):
    """Rates come in order; the best of the first table is best on selection, and no head alone."""
    cells = cells_of(ask(capsys, "table", *runs)[1])
    assert cells[0] == ["model", "data", "batch size", "best accuracy", "token count"]
    assert cells[2] == ["tiny", "reviews", "16", "0.7000", "1"]
    assert [row[2:4] + row[9:10] for row in cells[5:]] == [
        ["majority", "", "0.5200"],
        ["untrained", "", "0.5000"],
        ["head", "1", "0.5500"],
        ["head", "5", "0.6000"],
        ["prompt+head", "1", "0.7200"],
        ["prompt+head", "5", "0.9000"],
        ["prompt+head", "5", "0.8000"],
    ]
    (one,) = [row for row in cells if row[2:4] == ["prompt+head", "1"]]
    low, high = wilson(288, 400)
    start = ["tiny", "reviews", "prompt+head", "1", "16", "0.03", "2", "2 2 of 3"]
    assert one == [*start, "0.7000", "0.7200", "0.0283", f"{low:.3f} to {high:.3f}"]


def test_each_data_set_has_baselines_of_its_own(capsys, runs, tmp_path):
    row = Row("g", 3, 0, 0.51, 0.99, 0.9, recipe={"data": "sst2"})
    other = write_run(tmp_path / "other", row)
    lines = told(capsys, "table", *runs, other)[-3:]
    assert [line["data"] for line in lines] == ["sst2"] * 3
    cells = cells_of(ask(capsys, "table", *runs, other)[1])
    assert [row[1:4:2] for row in cells[2:4]] == [["reviews", "0.7000"], ["sst2", "0.5100"]]


OTHERS = {"data": "sst2", "train": "head", "batch_size": 8, "epochs": 2, "select_on": "dev"}
OTHERS |= {"lr": 0.01, "head_lr": 0.1, "steps": 7, "max_examples": 5, "patience": 1}
OTHERS |= {"dtype": "bfloat16", "text_column": "x", "label_column": "y", "select_by": "loss"}


@pytest.mark.parametrize("key", OTHERS)
def test_prompts_that_differ_in_more_than_the_seed_are_lines_of_their_own(capsys, tmp_path, key):
    """Or a mean would be taken over unlike things."""
    first = write_run(tmp_path / "first", Row("a", seed=0), Row("b", seed=1))
    same = write_run(tmp_path / "same", Row("c", seed=2))
    assert [line["seeds"] for line in lines_told(capsys, first, same)] == [3]
    other = write_run(tmp_path / "other", Row("c", seed=2, recipe={key: OTHERS[key]}))
    lines = lines_told(capsys, first, other)
    assert sorted((line["seeds"], line[key] == OTHERS[key]) for line in lines) == [
        (1, True),
        (2, False),
    ]


def test_first_vectors_and_lengths_tell_prompts_apart_too(capsys, tmp_path):
    first = write_run(tmp_path / "first", Row("a"))
    for more in ({"fields": {"init": "words"}}, {"P": 2}):
        other = write_run(tmp_path / str(len(more) + len(str(more))), Row("c", seed=2, **more))
        assert [line["seeds"] for line in lines_told(capsys, first, other)] == [1, 1]


def test_what_lines_differ_in_is_told(capsys, tmp_path):
    first = write_run(tmp_path / "first", Row("a"))
    row = Row("b", recipe={"patience": 4}, fields={"init": "words"})
    second = write_run(tmp_path / "second", row)
    cells = cells_of(ask(capsys, "table", first, second)[1])
    assert cells[3][-1] == "differs in"
    assert {row[-1] for row in cells[7:]} == {
        "init sample, patience None",
        "init words, patience 4",
    }


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
    run = write_run(tmp_path / "run", Row("a", epoch=22, recipe={"steps": 200, "epochs": 6}))
    cells = cells_of(ask(capsys, "table", run)[1])
    assert "22" in cells[-1]
    assert not [cell for cell in cells[-1] if "of 6" in cell]


def test_a_prompt_without_its_scores_is_in_no_table(capsys, desk, tmp_path):
    for change in ({"scores": {"accuracy": None, "loss": None}}, {"recipe": {"lr": None}}):
        path = changed(tmp_path, desk.a, **change)
        code, out, err = ask(capsys, "table", path)
        assert code == 2
        assert "p.safetensors goes without its scores" in err
        assert not out


# ---- which is best --------------------------------------------------------------------------


def best_told(capsys, *runs):
    """The row of the first table: best accuracy on dev and length."""
    return cells_of(ask(capsys, "table", *runs)[1])[2][3:]


def test_of_equal_accuracies_the_lower_loss_is_best(capsys, tmp_path):
    first = Row("a", 1, 0, 0.7, 0.8, selected_loss=0.9)
    second = Row("b", 2, 0, 0.6, 0.8, selected_loss=0.1)
    assert best_told(capsys, write_run(tmp_path / "run", first, second)) == ["0.6000", "2"]


def test_prompts_that_were_chosen_by_loss_are_compared_by_it(capsys, tmp_path):
    how = {"recipe": {"select_by": "loss"}}
    first = Row("a", 1, 0, 0.7, 0.9, selected_loss=0.9, **how)
    second = Row("b", 2, 0, 0.6, 0.8, selected_loss=0.1, **how)
    assert best_told(capsys, write_run(tmp_path / "run", first, second)) == ["0.6000", "2"]


def test_older_files_go_by_accuracy(capsys, tmp_path):
    """Which say no loss; beside them nobody gains from one."""
    first = Row("a", 1, 0, 0.7, 0.9, selected_loss=None)
    second = Row("b", 2, 0, 0.6, 0.8, selected_loss=0.1)
    assert best_told(capsys, write_run(tmp_path / "run", second, first)) == ["0.7000", "1"]


def test_a_head_alone_is_best_only_where_nothing_else_is(capsys, tmp_path):
    (alone,) = head(Row("a", 1, 0, 0.7, 0.9))
    run = write_run(tmp_path / "run", alone)
    assert best_told(capsys, run) == ["0.7000", "1"]
    run = write_run(tmp_path / "both", alone, Row("b", 2, 0, 0.6, 0.5))
    assert best_told(capsys, run) == ["0.6000", "2"]


# ---- numbers --------------------------------------------------------------------------------


def test_a_regression_is_told_by_its_squared_error(capsys, desk, tmp_path):
    run = write_run(tmp_path / "run", *number_rows(desk, tmp_path))
    constant, untrained, line = told(capsys, "table", run)
    assert (constant["train"], constant["loss"]) == ("constant", 2.5)
    assert (untrained["train"], untrained["loss"]) == ("untrained", 3.5)
    assert (line["loss"], line["selected_loss"], line["pearson"]) == (1.5, 2.5, 0.5)
    assert line["sd"] == pytest.approx(math.sqrt(2 * 0.25**2))
    assert line["accuracy"] is line["ci95"] is None
    out = ask(capsys, "table", run)[1]
    cells = cells_of(out)
    assert cells[2][3:] == ["1.2500", "3"]  # of the lower loss on selection
    assert cells[-1][8:11] == ["2.5000", "1.5000", "0.3536"]
    assert "squared errors" in out


# ---- another split --------------------------------------------------------------------------


def test_prompts_are_scored_on_what_is_asked(capsys, desk):
    for argv, key in (
        (["--data", desk.e], ("e", "dev")),
        (["--split", "other"], ("d", "other")),
        (["--data", desk.e, "--split", "other"], ("e", "other")),
    ):
        texts, labels = zip(*desk.data[key], strict=True)
        lines = lines_told(capsys, desk.run, *argv, *EXACT)
        assert [line["prompt_tokens"] for line in lines] == [2, 3, 5]
        for name, line in zip("bac", lines, strict=True):
            truth = score_of(desk.logits(name, texts), torch.tensor(labels))
            assert line["accuracy"] == truth.accuracy
            assert line["macro_f1"] == pytest.approx(truth.macro_f1)
            assert line["n"] == truth.n
            assert line["ci95"] == pytest.approx(truth.ci95)
        majority = told(capsys, "table", desk.run, *argv, *EXACT)[0]
        assert majority["accuracy"] == truth.majority
        out = ask(capsys, "table", desk.run, *argv, *EXACT)[1]
        assert f"here {getattr(desk, key[0])} {key[1]}" in out


def test_texts_are_read_once_for_all_prompts_of_a_model(capsys, desk, monkeypatch):
    import evaluate

    asked = []
    real = evaluate.logits_of

    def logits_of(gpt2, prompts, examples, size):
        asked.append(len(prompts))
        return real(gpt2, prompts, examples, size)

    monkeypatch.setattr(evaluate, "logits_of", logits_of)
    ask(capsys, "table", desk.run, "--data", desk.e)
    assert asked == [3]


# ---- whether two differ ---------------------------------------------------------------------


def test_two_prompts_are_compared_on_the_split_that_both_answer(capsys, desk):
    for argv, key in (([], ("d", "dev")), (["--data", desk.e, "--split", "other"], ("e", "other"))):
        texts, labels = zip(*desk.data[key], strict=True)
        right = []
        for name in "ac":
            right.append(desk.logits(name, texts).argmax(dim=1) == torch.tensor(labels))
        wanted = mcnemar(*right)
        test = told(capsys, "table", desk.a, desk.c, *argv, *EXACT)[-1]["mcnemar"]
        assert test == vars(wanted) | {"prompts": [str(desk.a), str(desk.c)]}
        assert 0 not in test["only_right"]
        line = ask(capsys, "table", desk.a, desk.c, *argv, *EXACT)[1].splitlines()[-1]
        assert line == (
            f"McNemar's test, {wanted.n} texts: {wanted.only_right[0]} only the first gets right, "
            f"{wanted.only_right[1]} only the second; p = {wanted.p:.4f}, exact and two-sided"
        )


def test_only_two_prompts_are_compared(capsys, desk, tmp_path):
    two = write_run(tmp_path / "two", Row("a"), Row("b", seed=1))
    for argv in ([desk.a], [desk.a, desk.b, desk.c], [two]):
        assert "McNemar" not in ask(capsys, "table", *argv)[1]


def test_unlike_data_is_told_beside_the_table(capsys, desk, tmp_path):
    other = changed(tmp_path, desk.a, recipe={"data": str(desk.e)})
    code, out, err = ask(capsys, "table", other, desk.a)
    assert code == 0
    assert "different data" in err
    assert "--data" in err
    assert str(desk.a) in err
    assert out
    assert "McNemar" not in out
    assert "McNemar" in ask(capsys, "table", other, desk.a, "--data", desk.d)[1]


def test_other_columns_of_a_table_are_unlike_data(capsys, desk, tmp_path):
    for name in ("dev", "train"):
        rows = "sentence,plot,label,stars\nfine,dull,0,1\nawful,grand,1,1\n"
        (tmp_path / f"{name}.csv").write_text(rows)
    paths = []
    for i, columns in enumerate(
        ({"text_column": "plot"}, {"label_column": "stars"}, {}, {"seed": 7})
    ):
        folder = tmp_path / str(i)
        paths.append(changed(folder, desk.a, recipe={"data": str(tmp_path)} | columns))
    for second, differ in ((0, True), (1, True), (3, False)):
        code, out, err = ask(capsys, "table", paths[2], paths[second])
        assert code == 0
        assert ("different data" in err) == differ
        assert ("McNemar" in out) != differ


def test_labels_are_compared_by_their_names(capsys, desk, tmp_path):
    """Two prompts may number the same labels in another way."""
    file = read_prompt(desk.a)
    file.prompt.head.data[:] = file.prompt.head.data.flip(0)
    more = {"prompt": file.prompt, "labels": ["good", "fair", "bad"]}
    turned = changed(tmp_path, desk.a, recipe={"seed": 9}, **more)
    names = ["bad", "fair", "good"]
    rows = [(text, names[label]) for text, label in desk.data["d", "dev"]]
    write_split(tmp_path / "n", "dev", rows)
    test = told(capsys, "table", desk.a, turned, "--data", tmp_path / "n", *EXACT)
    assert test[-1]["mcnemar"]["only_right"] == [0, 0]


def test_numbers_are_neither_right_nor_wrong(capsys, desk, tmp_path):
    rows = [(text, label * 1.5) for text, label in desk.data["d", "dev"]]
    write_split(tmp_path / "n", "dev", rows)
    number_prompt(desk, tmp_path)
    paths = []
    for seed in (1, 2):
        recipe = {"seed": seed, "data": str(tmp_path / "n")}
        source = tmp_path / "number.safetensors"
        paths.append(
            changed(tmp_path / str(seed), source, recipe=recipe, scores={"n": 9, "loss": 1.0})
        )
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
    out = ask(capsys, "table", *runs, "--json")[1]
    assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
