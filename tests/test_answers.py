"""support/answers.py: what predict writes, and what reads it again."""

import csv
import errno
import io
import json
import os
import random
import re
from types import SimpleNamespace

import pytest
import torch

import evaluate
from desk import EXACT, SHIPPED, ask, changed, number_prompt, told
from support import answers
from support.answers import Answer
from support.prompt_file import read_prompt
from support.table import read_table


class Fake:
    """A classifier of two labels that knows nothing, in no time."""

    def __init__(self, files, **how):
        self.files = files
        self.labels = files[0].labels

    def answers(self, lines):
        found = []
        for number, (text, problem) in enumerate(lines):
            shares = [1 / (number + 2), 1 - 1 / (number + 2)]
            name = self.labels[number % 2]
            answer = Answer(text, number % 2, name, [0.0, 1.0], shares)
            found.append(Answer(text, error=problem) if problem else answer)
        return found


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(evaluate, "Classifier", Fake)


def answer_table(capsys, source, out, *flags):
    """predict --input SOURCE --out OUT -> what it says"""
    code, said, err = ask(capsys, "predict", SHIPPED, "--input", source, "--out", out, *flags)
    assert code == 0, err
    return said


# ---- there and back -------------------------------------------------------------------------

ODD_CELLS = [
    "",
    " ",
    "a,b",
    'say "x"',
    "'",
    "a\rb",
    "a\nb",
    "a\r\nb",
    "\ttab",
    " x ",
    "\ufeffx",
    "NA",
]
ODD_CELLS += ["\u2028", "\x85", "\x0b", "é🙂", "\\", "\\n", "#", ";", "1e5", "007", '"', '""', "\r"]
ODD_NAMES = [
    "label",
    "probability",
    "predicted_label",
    "a,b",
    'q"',
    " x ",
    "é",
    "id",
    "1",
]


def random_table(draw, flat):
    """Columns and rows: a text, and odd cells; in a tsv none with a tab or a line break."""
    # Of one column alone a row in which nothing stands would be a blank line.
    columns = ["text", "other", *draw.sample(ODD_NAMES, draw.randint(0, 5))]
    draw.shuffle(columns)
    cells = [cell for cell in ODD_CELLS if not (flat and re.search("[\t\r\n]", cell))]
    rows = []
    for _ in range(draw.randint(1, 12)):
        row = {column: draw.choice(cells) for column in columns}
        row["text"] = draw.choice(["a film", "dull, long", *cells])
        rows.append(row)
    return columns, rows


def write_table(path, columns, rows):
    """By Python's own writers, which are not ours."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([[row[column] for column in columns] for row in rows])
        else:
            lines = [columns, *[[row[column] for column in columns] for row in rows]]
            file.write("".join("\t".join(line) + "\n" for line in lines))


def by_our_reader(path):
    return [row for _, row in read_table(path).rows]


def by_python(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, **how))


def by_pandas(path):
    pandas = pytest.importorskip("pandas")
    if path.suffix == ".jsonl":
        frame = pandas.read_json(path, lines=True, dtype=False).astype(object)
        return frame.where(frame.notna(), None).to_dict("records")
    how = {"sep": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    how |= {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    return pandas.read_csv(path, **how).to_dict("records")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("seed", range(25))
def test_a_table_comes_back_with_two_columns_more(capsys, fake, tmp_path, kind, seed):
    draw = random.Random(f"{kind}/{seed}")
    columns, rows = random_table(draw, flat=kind == "tsv")
    came = draw.choice(["csv", "jsonl"] + ["tsv"] * (kind == "tsv"))
    source = tmp_path / f"in.{came}"
    out = tmp_path / f"out.{kind}"
    write_table(source, columns, rows)
    answer_table(capsys, source, out)
    for reader in (by_our_reader, by_python, by_pandas):
        found = reader(out)
        assert len(found) == len(rows), reader
        for before, after in zip(rows, found, strict=True):
            added = [name for name in after if name not in before]
            assert len(added) == 2
            assert {name: after[name] for name in before} == before, reader
            assert list(after)[-2:] == added
            label = after[added[0]]
            assert label in ("negative", "positive", "", None)
            if label:
                assert 0 <= float(after[added[1]]) <= 1


def test_a_first_name_that_begins_with_a_mark_keeps_it(capsys, fake, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"\ufeffz": "a", "text": "b"}) + "\n")
    answer_table(capsys, source, tmp_path / "o.csv")
    for reader in (by_our_reader, by_python):
        assert list(reader(tmp_path / "o.csv")[0])[:2] == ["\ufeffz", "text"]


def test_values_of_jsonl_stay_json(capsys, fake, tmp_path):
    rows = [{"text": "x", "n": 3, "big": 2**70, "list": [1, {"a": None}], "no": None, "b": True}]
    rows += [{"text": "y", "extra": 0.1}, {"text": "z"}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer_table(capsys, source, tmp_path / "o.jsonl")
    for before, after in zip(rows, by_python(tmp_path / "o.jsonl"), strict=True):
        assert list(after) == [*before, "label", "probability"]
        assert {name: after[name] for name in before} == before
    answer_table(capsys, source, tmp_path / "o.csv")
    first, second, _ = by_python(tmp_path / "o.csv")
    assert json.loads(first["list"]) == [1, {"a": None}]
    assert (first["n"], first["b"], first["no"], first["extra"]) == ("3", "true", "", "")
    assert json.loads(first["big"]) == 2**70
    assert second["extra"] == "0.1"


def test_half_a_surrogate_pair_is_escaped_and_told(capsys, fake, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text":"fine","id":"\\udfff"}\n{"text":"dull","id":"\\udfff\\n"}\n')
    out = tmp_path / "o.csv"
    code, _, err = ask(capsys, "predict", SHIPPED, "--input", source, "--out", out)
    assert code == 0
    assert "line 1, column 'id'" in err
    assert "2 cells" in err
    assert [row["id"] for row in by_python(out)] == ["\\udfff", "\\udfff\n"]
    assert [row["label"] for row in by_python(out)] == ["negative", "positive"]
    answer_table(capsys, source, tmp_path / "o.jsonl")
    assert [row["id"] for row in by_python(tmp_path / "o.jsonl")] == ["\udfff", "\udfff\n"]


def test_the_mark_and_the_line_ends_of_a_table_are_kept(capsys, fake, tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        for end in (b"\n", b"\r\n"):
            source = tmp_path / "in.csv"
            source.write_bytes(mark + b"text" + end + "un café".encode() + end)
            out = tmp_path / f"o{len(mark)}{len(end)}.csv"
            answer_table(capsys, source, out)
            data = out.read_bytes()
            assert data.startswith(mark + b"text,label")
            assert data.count(end) == data.count(b"\n") == 2


@pytest.mark.parametrize(
    "columns,added",
    [
        (["text"], ["label", "probability"]),
        (["text", "label"], ["predicted_label", "probability"]),
        (["text", "probability"], ["label", "predicted_probability"]),
        (["text", "label", "predicted_label"], ["predicted_label_2", "probability"]),
        (
            ["predicted_label_2", "label", "text", "predicted_label", "probability"],
            ["predicted_label_3", "predicted_probability"],
        ),
    ],
)
def test_nobodys_columns_are_replaced(capsys, fake, tmp_path, columns, added):
    source = tmp_path / "in.csv"
    source.write_text(",".join(columns) + "\n" + ",".join(["mine"] * len(columns)) + "\n")
    answer_table(capsys, source, tmp_path / "o.csv")
    (row,) = by_python(tmp_path / "o.csv")
    assert list(row) == columns + added
    assert {row[name] for name in columns} == {"mine"}


def test_a_name_that_comes_twice_stays_twice(capsys, fake, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,note,note,\nfine,a,b,c\n")
    answer_table(capsys, source, tmp_path / "o.csv")
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert lines[0] == "text,note,note,,label,probability"
    assert lines[1].startswith("fine,a,b,c,negative,")
    code, _, err = ask(capsys, "predict", SHIPPED, "--input", source, "--out", tmp_path / "o.jsonl")
    assert code == 2
    assert "two columns 'note'" in err


def test_names_of_columns_are_one_decision_for_the_whole_table(capsys, fake, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text":"fine a"}\n{"text":"dull b","label":1}\n')
    answer_table(capsys, source, tmp_path / "o.jsonl")
    first, second = by_python(tmp_path / "o.jsonl")
    assert "label" not in first
    assert second["label"] == 1
    assert (first["predicted_label"], second["predicted_label"]) == ("negative", "positive")


def test_a_regression_adds_its_number(capsys, desk, tmp_path):
    path = number_prompt(desk, tmp_path)
    source = tmp_path / "in.csv"
    source.write_text('text\ntin nose\n" "\nrose\n')
    argv = ["predict", path, "--input", source, *EXACT]
    assert ask(capsys, *argv, "--out", tmp_path / "o.csv")[0] == 0
    rows = by_python(tmp_path / "o.csv")
    numbers = [one["label"] for one in told(capsys, *argv)]
    assert [list(row) for row in rows] == [["text", "label"]] * 3
    assert rows[1]["label"] == ""
    assert [float(rows[i]["label"]) for i in (0, 2)] == [numbers[0], numbers[2]]


# ---- refused before the work ----------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *how: pytest.fail("work was done"))


@pytest.mark.parametrize(
    "name", ["o.xlsx", "o", "o.csv.gz", "o.json", "nowhere/o.csv", "in.csv/o.csv"]
)
def test_what_cannot_be_written_is_told_before_the_work(capsys, no_work, tmp_path, name):
    source = tmp_path / "in.csv"
    source.write_text("text\nfine\n")
    argv = ["predict", SHIPPED, "--input", source, "--out", tmp_path / name]
    code, out, err = ask(capsys, *argv)
    assert code == 2
    assert str(tmp_path / name) in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize("kind", ["csv", "glue"])
def test_what_is_there_is_told_before_the_work(capsys, no_work, tmp_path, kind):
    source = tmp_path / "in.tsv"
    source.write_text("index\tsentence\n0\tfine\n")
    there = tmp_path / "there.csv"
    there.write_text("a day's work\n")
    flag = "--out" if kind == "csv" else "--glue"
    for target in (there, tmp_path):
        code, _, err = ask(capsys, "predict", SHIPPED, "--input", source, flag, target)
        assert code == 2
        assert str(target) in err
    assert there.read_text() == "a day's work\n"


@pytest.mark.parametrize("cell", ["a\tb", "a\nb", "a\rb"])
def test_a_tsv_holds_no_tab_and_no_line_break(capsys, no_work, tmp_path, cell):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": "x"}) + "\n" + json.dumps({"text": "y", "n": cell}))
    code, _, err = ask(capsys, "predict", SHIPPED, "--input", source, "--out", tmp_path / "o.tsv")
    assert code == 2
    assert "line 2, column 'n'" in err
    assert ".jsonl" in err


def test_a_label_that_a_tsv_cannot_hold_is_told(capsys, desk, no_work, tmp_path):
    path = changed(tmp_path, desk.a, labels=["bad\tone", "fair", "good"])
    source = tmp_path / "in.csv"
    source.write_text("text\nfine\n")
    code, _, err = ask(capsys, "predict", path, "--input", source, "--out", tmp_path / "o.tsv")
    assert code == 2
    assert "label" in err


def test_a_disk_without_hard_links_serves_as_well(capsys, fake, monkeypatch, tmp_path):
    def link(a, b, **_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(a), None, str(b))

    monkeypatch.setattr(os, "link", link)
    source = tmp_path / "in.csv"
    source.write_text("text\nfine\n")
    answer_table(capsys, source, tmp_path / "o.csv")
    assert len(by_python(tmp_path / "o.csv")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "o.csv"]


def test_what_is_put_there_during_the_work_stays(capsys, fake, monkeypatch, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text\nfine\n")
    out = tmp_path / "o.csv"
    real = Fake.answers

    def slow(self, lines):
        out.write_text("somebody's\n")
        return real(self, lines)

    monkeypatch.setattr(Fake, "answers", slow)
    assert ask(capsys, "predict", SHIPPED, "--input", source, "--out", out)[0] == 2
    assert out.read_text() == "somebody's\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "o.csv"]


def test_an_error_during_the_work_leaves_nothing(capsys, fake, monkeypatch, tmp_path):
    def fail(self, lines):
        raise OSError(errno.EIO, "Input/output error", "model")

    monkeypatch.setattr(Fake, "answers", fail)
    source = tmp_path / "in.csv"
    source.write_text("text\nfine\n")
    code, _, err = ask(capsys, "predict", SHIPPED, "--input", source, "--out", tmp_path / "o.csv")
    assert code == 2
    assert "model" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


# ---- GLUE -----------------------------------------------------------------------------------


def test_glue_takes_the_file(capsys, desk, tmp_path):
    """Its texts end in a space, which would change answers; the index is what the file says."""
    texts = [text for text, _ in desk.data["d", "dev"]]
    plain = desk.logits("a", texts).argmax(dim=1).tolist()
    spaced = desk.logits("a", [text + " " for text in texts]).argmax(dim=1).tolist()
    assert sum(a != b for a, b in zip(plain, spaced, strict=True)) >= 5
    rows = [f"{7 * i % 50 + 100}\t{text} \n" for i, text in enumerate(texts)]
    (tmp_path / "test.tsv").write_text("index\tsentence\n" + "".join(rows))
    glue = tmp_path / "SST-2.tsv"
    argv = ["predict", desk.a, "--input", tmp_path / "test.tsv", "--glue", glue, *EXACT]
    assert ask(capsys, *argv) == (0, f"50 predictions in {glue}\n", "")
    truth = "".join(f"{7 * i % 50 + 100}\t{label}\n" for i, label in enumerate(plain))
    assert glue.read_text() == "index\tprediction\n" + truth
    glue.unlink()
    assert told(capsys, *argv) == [{"file": str(glue), "n": 50}]


@pytest.mark.parametrize(
    "rows,named",
    [
        ("index\tsentence\n0\t \n", "line 2"),
        ("sentence\tlabel\nx\t1\n", "line 2"),
        ("index\tsentence\n", "no rows"),
        ("index\tsentence\n0\tx\n-1\tx\n", "line 3"),
    ],
)
def test_what_glue_would_not_take_is_told_before_the_work(capsys, no_work, tmp_path, rows, named):
    (tmp_path / "test.tsv").write_text(rows)
    argv = ["predict", SHIPPED, "--input", tmp_path / "test.tsv", "--glue", tmp_path / "x.tsv"]
    code, _, err = ask(capsys, *argv)
    assert code == 2
    assert named in err
    assert not (tmp_path / "x.tsv").exists()


# ---- parts ----------------------------------------------------------------------------------


def test_cells_are_quoted_where_a_reader_needs_it():
    for text in ODD_CELLS:
        for end in ("\n", "\r\n"):
            line = ",".join(map(answers.quoted, [text, "next"])) + end
            rows = list(csv.reader(io.StringIO(line, newline="")))
            assert rows == [[text, "next"]]


def test_answers_are_printed_in_their_order(capsys):
    found = [Answer("a\nb", 1, "good", [0.0, 1.0], [0.25, 0.75]), Answer("", error="is blank")]
    answers.emit_answers(found, as_json=False)
    assert capsys.readouterr().out == "good\t0.750\ta\\nb\n-\t-\t\n"
    answers.emit_answers([Answer("x", 2.5, logits=[2.5])], as_json=False, numbers=True)
    assert capsys.readouterr().out == "2.500\tx\n"


def test_lines_of_a_stream_are_numbered_from_the_first(capsys, monkeypatch):
    monkeypatch.setattr(answers, "lines_of", lambda stream: iter([["a", ""], [" ", "b"]]))
    classifier = Fake([read_prompt(SHIPPED / "prompt.safetensors")])
    answers.answer_lines(SimpleNamespace(), classifier, as_json=True)
    out, err = capsys.readouterr()
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a", "", "", "b"]
    assert err == "line 2 is blank\nline 3 is blank\n"
    assert torch.is_grad_enabled()
