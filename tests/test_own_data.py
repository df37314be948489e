"""Data as people have it: names for labels, other columns, other files; and tables that are answered."""

import csv
import json
import re
from pathlib import Path

import pytest
from conftest import BAD, GOOD, ask

import evaluate
import train
from data import label_names, read_split
from model import load_prompt

BASE = "--model m --dtype float32 --device cpu --batch-size 8 --steps 4 --prompt-tokens 2 --out run".split()
WORDS = {"neg": BAD, "pos": GOOD}


def write(folder, kind, rows, split="train", columns=("text", "label")):
    """A data set of (text, label) in one of the three kinds of file"""
    path = Path(folder, f"{split}.{kind}")
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(dict(zip(columns, row))) + "\n" for row in rows)
        elif kind == "csv":
            csv.writer(file).writerows([columns, *rows])
        else:
            file.writelines("\t".join(map(str, row)) + "\n" for row in (columns, *rows))
    return path


def rows_of(names, n=60, split="t"):
    """n rows, whose labels come as the names do"""
    vocabulary = [*BAD, *GOOD]
    return [(f"{vocabulary[i % len(names)]} {split}{i}", names[i % len(names)]) for i in range(n)]


def both(folder, kind, names, **more):
    write(folder, kind, rows_of(names), **more)
    write(folder, kind, rows_of(names, 12, "v"), "dev", **more)


# ---- labels that are names ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("names,stored", [
    (["positive", "negative"], ["negative", "positive"]), (["spam", "ham"], ["spam", "ham"]),
    (["so so", "bad", "good"], ["so so", "bad", "good"]), ([" good ", "bad\t"], ["good", "bad"]),
])  # fmt: skip
def test_names_are_numbered_stored_and_told(place, capsys, kind, names, stored):
    """In the order in which train has them, but negative before positive; every verb says them."""
    if kind == "tsv":
        names = [name.strip("\t") for name in names]
    both("own", kind, names)
    assert ask(capsys, train, *BASE, "--data", "own")[0] == 0
    info, summary = json.load(open("run/run.json")), json.load(open("run/summary.json"))
    assert info["labels"] == stored and info["settings"]["num_labels"] == len(stored)
    prompt, about = load_prompt("run/prompts/p2-s0/prompt.safetensors")
    assert about["labels"] == stored and len(prompt.head) == len(stored)

    # The numbers are those of the names: counted again, from the answers and the file.
    _, out, _ = ask(capsys, evaluate, "score", "run", "--json")
    found, rows = json.loads(out), rows_of(names, 12, "v")
    _, out, _ = ask(capsys, evaluate, "predict", "run", "--json", *[text for text, _ in rows])
    answers = [json.loads(line) for line in out.splitlines()]
    right = sum(answer["label_name"] == name.strip() for answer, (_, name) in zip(answers, rows, strict=True))
    assert found["n"] == 12 and found["accuracy"] == summary["prompts"][0]["accuracy"] == right / 12
    assert [sum(row) for row in found["confusion"]] == [sum(name.strip() == own for _, name in rows) for own in stored]
    _, out, _ = ask(capsys, evaluate, "score", "run")
    assert all(f"answered {name}" in out for name in stored)
    assert {name for name in stored if re.search(rf"^{name}\t", ask(capsys, evaluate, "predict", "run", "x")[1])}


def test_names_begin_a_prompt(place, capsys):
    """--init words takes the names, in the order of the labels."""
    both("own", "csv", ["dull", "warm"])
    assert ask(capsys, train, *BASE, "--data", "own", "--init", "words")[0] == 0
    classifier = evaluate.load("run", dtype="float32")
    assert classifier.metadata["init_ids"] == classifier.tokenizer.encode(" dull warm")[:2]


@pytest.mark.parametrize("train_rows,dev_rows,flags,said", [
    ([("a", "yes"), ("b", "no")] * 6, [("c", "maybe")], (), "dev.jsonl, line 1: label 'maybe' is not one of yes, no"),
    ([("a", "yes"), ("b", "no")] * 6, [("c", 1)], (), "dev.jsonl, line 1: label 1 is not one of yes, no"),
    ([("a", "yes"), ("b", "no")] * 6, [("c", "no")], ("--num-labels", 3), "own has 2 names"),
    ([("a", "yes"), ("b", "no")] * 6, [("c", "no")], ("--num-labels", 1), "own has 2 names"),
    ([("a", "yes")] * 6, [("c", "yes")], (), "label 'yes' alone"),
    ([("a", True), ("b", False)] * 6, [("c", True)], (), "line 1: label True is a boolean; write 0 and 1"),
    ([("a", 1), ("b", 2)] * 6, [("c", 1)], (), "line 2: label 2 is not in 0 to 1 (--num-labels); numbers count from 0"),
    ([("a", "0"), ("b", "one")] * 6, [("c", 1)], (), "line 2: label 'one' is not in 0 to 1"),
    ([("a", "yes"), ("d", "no"), ("b", None)] * 6, [("c", "yes")], (), "line 3: the row has no label"),
    ([("a", "yes"), ("b", "no"), ("d", "")] * 6, [("c", "yes")], (), "line 3: label '' is not"),
])  # fmt: skip
def test_labels_that_cannot_be_are_refused_by_what_to_do(place, capsys, train_rows, dev_rows, flags, said):
    write("own", "jsonl", train_rows)
    write("own", "jsonl", dev_rows, "dev")
    code, _, err = ask(capsys, train, *BASE, "--data", "own", *flags)
    assert code == 2 and said in err and err.count("\n") == 1 and not Path("run").exists(), err


def test_numbers_stay_numbers(place, capsys):
    """Two of them by themselves, --num-labels of them otherwise: a number of classes is never guessed."""
    assert label_names("d") == [] and label_names("reviews") == []
    both("own", "csv", [0, 1, 2])
    code, _, err = ask(capsys, train, *BASE, "--data", "own")
    assert code == 2 and "label '2' is not in 0 to 1 (--num-labels)" in err
    assert ask(capsys, train, *BASE, "--data", "own", "--num-labels", 3)[0] == 0
    assert json.load(open("run/run.json"))["labels"] == ["0", "1", "2"]


def test_a_run_with_names_goes_on_and_a_prompt_with_names_meets_numbers(place, capsys):
    both("own", "csv", ["spam", "ham"])
    assert ask(capsys, train, *BASE, "--data", "own")[0] == 0
    before = Path("run/summary.json").read_bytes()
    assert ask(capsys, train, "--resume", "run")[0] == 0 and Path("run/summary.json").read_bytes() == before
    write("numbers", "csv", [("dull a", 0), ("warm b", 1)], "dev")
    assert ask(capsys, evaluate, "score", "run", "--data", "numbers")[0] == 0
    write("other", "csv", [("dull a", "eggs")], "dev")
    code, _, err = ask(capsys, evaluate, "score", "run", "--data", "other")
    assert code == 2 and "line 2: label 'eggs'" in err


# ---- files and columns ----------------------------------------------------------------------


def test_other_columns_and_validation(place, capsys):
    """They are part of the recipe: score finds them again."""
    for split in ("train", "validation"):
        write("own", "jsonl", rows_of(["pos", "neg"]), split, ("review", "sentiment"))
    code, _, err = ask(capsys, train, *BASE, "--data", "own", "--text-column", "review")
    assert code == 2 and "train.jsonl, line 1: the row has no label in a column label (--label-column)" in err
    code, _, err = ask(capsys, train, *BASE, "--data", "own", "--label-column", "sentiment")
    assert code == 2 and "train.jsonl, line 1: the row has no text in a column sentence or text (--text-column)" in err
    columns = ["--text-column", "review", "--label-column", "sentiment"]
    assert ask(capsys, train, *BASE, "--data", "own", *columns)[0] == 0
    assert ask(capsys, evaluate, "score", "run")[1].startswith("run/prompts/p2-s0/prompt.safetensors on ")
    write("usual", "csv", rows_of(["pos", "neg"]), "dev")
    assert ask(capsys, evaluate, "score", "run", "--data", "usual")[0] == 2  # it has no column review
    flags = ["--text-column", "text", "--label-column", "label"]
    assert ask(capsys, evaluate, "score", "run", "--data", "usual", *flags)[0] == 0
    write("own", "csv", rows_of(["pos", "neg"]), "dev")
    code, _, err = ask(capsys, evaluate, "score", "run")
    assert code == 2 and "dev.csv and validation.jsonl" in err  # one of them has to go


def test_quotation_marks_of_a_spreadsheet_are_told_once(place, capsys):
    quoted = '"He said ""great"" film"'
    write("own", "tsv", [("plain", 0), (quoted, 1), ('"so', 0), (quoted, 1)], "dev")
    assert read_split("own", "dev")[1] == (quoted, 1)  # a quotation mark is a quotation mark
    err = capsys.readouterr().err
    assert err.count("warning") == 1 and "dev.tsv, line 3: " in err and "csv" in err
    write("own", "tsv", [('"great" he said "', 0), ('""', 1), ('"', 1)], "dev")
    read_split("own", "dev")
    assert capsys.readouterr().err == ""


# ---- tables that are answered -----------------------------------------------------------------


@pytest.fixture
def named(place, capsys):
    both("own", "csv", ["spam", "ham"])
    assert ask(capsys, train, *BASE, "--data", "own")[0] == 0
    return place


ROWS = [{"id": "7", "text": "warm, a film", "who": 'x "y"'}, {"id": "8", "text": " ", "who": ""},
        {"id": "9", "text": "dull\nand cold", "who": "z"}]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_rows_of_a_table_are_answered_in_their_place(named, capsys, kind):
    """By their column of texts; written back with all of their columns, or printed as lines are."""
    rows = ROWS if kind != "tsv" else [row | {"text": row["text"].replace("\n", " ")} for row in ROWS]
    path = write(".", kind, [row.values() for row in rows], "in", rows[0])
    texts = [rows[0]["text"], rows[2]["text"]]
    first, last = evaluate.load("run", dtype="float32").predict(texts)
    argv = ["predict", "run", "--input", path, "--dtype", "float32"]
    code, out, err = ask(capsys, evaluate, *argv, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == "row 2 has a text that is blank\n" and [found[0], found[2]] == [first, last]
    assert found[1] == dict.fromkeys(first) | {"text": "", "error": "has a text that is blank"}

    assert ask(capsys, evaluate, *argv, "--out", "answers.csv")[1] == "3 predictions in answers.csv\n"
    written = [*csv.DictReader(open("answers.csv", newline=""))]
    assert [{key: row[key] for key in rows[0]} for row in written] == rows and [*written[0]] == [*rows[0], "label", "probability"]
    assert [row["label"] for row in written] == [first["label_name"], "", last["label_name"]]
    assert float(written[0]["probability"]) == pytest.approx(max(first["probabilities"])) and written[1]["probability"] == ""


def test_a_column_of_labels_stays_and_nothing_is_written_over(named, capsys):
    write(".", "csv", [("warm", "eggs", "yes")], "in", ("review", "label", "probability"))
    argv = ["predict", "run", "--input", "in.csv", "--text-column", "review"]
    assert ask(capsys, evaluate, *argv, "--out", "answers.csv")[0] == 0
    (row,) = csv.DictReader(open("answers.csv"))
    assert row["label"] == "eggs" and row["predicted_label"] in ("spam", "ham") and [*row][:2] == ["review", "label"]
    before = Path("answers.csv").read_bytes()
    for flags, said in ((("--out", "answers.csv"), "answers.csv is there already"), (("--out", "in.csv"), "in.csv is there"),
                        (("--glue", "in.csv"), "in.csv is there"), (("--out", "run"), "run is there")):  # fmt: skip
        code, out, err = ask(capsys, evaluate, *argv, *flags)
        assert code == 2 and said in err and not out
    assert Path("answers.csv").read_bytes() == before
    code, _, err = ask(capsys, evaluate, "predict", "run", "--input", "in.csv")
    assert code == 0 and err == "row 1 has no text in a column sentence or text (--text-column)\n"
    Path("plain.txt").write_text("warm\n")
    for flags in (("--out", "x.csv"), ("--glue", "x.tsv"), ("--text-column", "text")):
        code, _, err = ask(capsys, evaluate, "predict", "run", "--input", "plain.txt", *flags)
        assert code == 2 and "need a table as --input" in err and not Path("x.csv").exists()
