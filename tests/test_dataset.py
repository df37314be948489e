"""Data sets as people have them: read rightly, or refused by a sentence with a way out."""

import builtins
import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import LONGEST, hold_out
from helpers import ROOT, SHARED, names_in
from hostile import EDITS, ODD, cases, mutate, peak, read, spliced
from servers import NOWHERE, archive, redirect, serve
from support import dataset
from support.dataset import open_dataset, read_split, resolve
from support.phrases import words_of
from support.table import is_table, lines_of, read_table

MEMORY = 64 * 2**20  # bytes that a test of hostile files may need above what was in use before


def rows_of(names, n=60, tag="t"):
    """n texts, none in another, with the names as their labels in turn"""
    return [(f"{tag}{i} film {tag}{i}", names[i % len(names)]) for i in range(n)]


def write(folder, split, rows, columns=("text", "label"), suffix=".csv", encoding="utf-8"):
    """A table of rows in a folder, which is made -> its path"""
    path = Path(folder, split + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO(newline="")
    if suffix.lower() == ".jsonl":
        for row in rows:
            out.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    elif suffix.lower() == ".tsv":
        for row in (columns, *rows):
            out.write("\t".join(map(str, row)) + "\n")
    else:
        csv.writer(out).writerows([columns, *rows])
    path.write_bytes(out.getvalue().encode(encoding))
    return path


def both(folder, names, **how):
    """train and dev of texts with these labels"""
    write(folder, "train", rows_of(names), **how)
    write(folder, "dev", rows_of(names, 12, "v"), **how)
    return folder


def refusal(act, *words, **how):
    """The one sentence by which act is refused"""
    with pytest.raises((ValueError, OSError)) as caught:
        act(*words, **how)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    return sentence


# ---- tables that are read -------------------------------------------------------------------

SAME = [('"it \'s" good , mostly', 1), ("dull, dull", 0)]
TWO_LINES = 'sentence\tlabel\n"it \'s" good , mostly \t1\ndull, dull\t0\n'
IN_QUOTES = 'text,label\n"""it \'s"" good , mostly ",1\n"dull, dull",0\n'
AS_JSON = '{"text": "\\"it \'s\\" good , mostly ", "label": 1}\n\n'


@pytest.mark.parametrize(
    "name,text",
    [
        ("dev.tsv", TWO_LINES),
        ("DEV.TSV", TWO_LINES),
        ("dev.Tsv", TWO_LINES.replace("\n", "\r\n")),
        (
            "dev.tsv",
            '\ufefflabel\tidx\tsentence\r\n1\t7\t"it \'s" good , mostly \r\n0\t8\tdull, dull\r\n',
        ),
        ("dev.csv", IN_QUOTES),
        ("validation.CSV", IN_QUOTES),
        ("val.csv", IN_QUOTES),
        ("valid.csv", IN_QUOTES),
        ("dev.csv", IN_QUOTES.replace("text,label", "text, label ")),
        ("dev.csv", IN_QUOTES.replace("text,label", " text,\tlabel")),
        (
            "dev.csv",
            '\ufefflabel,text,sentence\r\n\r\n1.0,no,"""it \'s"" good , mostly"\r\n'
            '0,no,"dull, dull"',
        ),
        ("dev.jsonl", AS_JSON + '{"sentence": "dull, dull", "label": "0"}\n'),
        ("dev.JSONL", AS_JSON + '{"sentence": "dull, dull", "label": "0"}\n'),
        (
            "dev.jsonl",
            '{"sentence": "\\"it \'s\\" good , mostly\u2028", "label": 1.0}\n'
            '{"text": "dull, dull", "label": 0}',
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_form_of_a_table_says_the_same(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(
        text.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding)
    )
    assert read_split(tmp_path, "dev") == SAME


PLAIN = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
CELLS = st.text(PLAIN, max_size=8)
GRIDS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=2, max_size=5)
)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(grid=GRIDS, end=st.sampled_from(["\n", "\r\n"]), mark=st.booleans())
def test_what_a_spreadsheet_writes_is_read_back(tmp_path_factory, grid, end, mark):
    path = tmp_path_factory.mktemp("grid") / "t.csv"
    encoding = "utf-8-sig" if mark else "utf-8"
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(grid)
    if not mark and path.read_bytes().startswith(b'"\xef\xbb\xbf'):
        return  # a mark that is quoted is none
    table = read_table(path)
    assert [table.columns, *table.cells] == grid
    assert (table.bom, table.suffix) == (mark, ".csv")
    if "\n" not in "".join(grid[0]):
        assert table.newline == end


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(rows=st.lists(st.dictionaries(CELLS, st.none() | st.booleans() | CELLS), min_size=1))
def test_objects_keep_their_types(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(path)
    assert table.rows == list(enumerate(rows, 1))
    assert table.columns == list(dict.fromkeys(key for row in rows for key in row))


def test_a_column_that_comes_twice_keeps_both_of_its_cells(tmp_path):
    table = read_table(write(tmp_path, "t", [("a", "b", "c")], columns=("x", "text", "x")))
    assert (table.columns, table.cells) == (["x", "text", "x"], [["a", "b", "c"]])
    assert table.texts() == [("b", None)]


@pytest.mark.parametrize(
    "columns", [("", "text", "label"), ("text", "label", ""), ("x", "text", "label")]
)
def test_a_column_that_nobody_asks_for_harms_nobody(tmp_path, columns):
    row = {"text": "fine", "label": "1", "": "0", "x": "0"}
    doubled = [*columns, "x", "x"]
    write(tmp_path, "dev", [[row[name] for name in doubled]], columns=doubled)
    assert read_split(tmp_path, "dev") == [("fine", 1)]


def test_who_asks_for_a_column_that_comes_twice_is_told(tmp_path):
    write(tmp_path, "dev", [("a", "1", "0")], columns=("text", "label", "label"))
    assert "has 2 columns label; rename one" in refusal(read_split, tmp_path, "dev")
    write(tmp_path, "dev", [("a", "b", "0")], columns=("text", "text", "label"))
    assert "has 2 columns text; rename one" in refusal(read_split, tmp_path, "dev")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_cell_may_be_as_long_as_a_text(tmp_path, suffix):
    write(tmp_path, "dev", [("a" * LONGEST, 1)], suffix=suffix)
    assert read_split(tmp_path, "dev") == [("a" * LONGEST, 1)]
    write(tmp_path, "dev", [("a" * (LONGEST + 1), 1)], suffix=suffix)
    said = refusal(read_split, tmp_path, "dev")
    assert "the row has a text that is too long: the text has 262145 characters" in said


@pytest.mark.parametrize("space", [" ", "\n", "\u3000", "a"])
def test_the_longest_texts_are_read_and_longer_ones_refused(tmp_path, space):
    """On a million spaces in a row the tokenizer's library panics."""
    text = "a" + space * (LONGEST - 2) + "b"
    for size, accepted in ((0, True), (1, False), (10**6, False)):
        row = text[:-1] + space * size + "b"
        write(tmp_path, "dev", [("a", 0), (row, 1)], suffix=".jsonl")
        naming = "dev.jsonl, line 2: the row has a text that is too long: the text has"
        found = read(read_split, tmp_path, "dev", naming=naming)
        assert found == ([("a", 0), (text, 1)] if accepted else None)


def test_a_file_is_read_once_and_hashed_as_it_was_read(tmp_path, monkeypatch):
    both(tmp_path, ["a", "b"])
    opened = []
    real = open

    def counted(path, *how, **more):
        opened.append(Path(path).name)
        return real(path, *how, **more)

    monkeypatch.setattr(builtins, "open", counted)
    monkeypatch.setattr(io, "open", counted)
    found = open_dataset(tmp_path)
    monkeypatch.undo()
    assert sorted(name for name in opened if name.endswith(".csv")) == ["dev.csv", "train.csv"]
    for split in ("train", "dev"):
        data = (tmp_path / f"{split}.csv").read_bytes()
        assert found.sha256[split] == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "dev.csv")
    said = []
    asking = threading.Thread(target=lambda: said.append(refusal(read_split, tmp_path, "dev")))
    asking.daemon = True
    asking.start()
    asking.join(10)
    assert said and "dev.csv is a folder, a pipe or a device" in said[0]


def test_a_nul_in_a_text_is_a_character_or_refused_by_its_line(tmp_path):
    """Python's csv takes it from 3.11 on."""
    write(tmp_path, "dev", [("a\0b", 1)], suffix=".tsv")
    if sys.version_info >= (3, 11):
        assert read_split(tmp_path, "dev") == [("a\0b", 1)]
    else:
        with pytest.raises(ValueError, match="line 2: line contains NUL"):
            read_split(tmp_path, "dev")


# ---- tables that are refused ----------------------------------------------------------------

NO_TEXT = "the row has no text in a column sentence or text (--text-column)"
NO_LABEL = "the row has no label in a column label (--label-column)"
NO_TEXTS = "has no column sentence or text (--text-column); its columns are "
NO_LABELS = "has no column label (--label-column); its columns are "
NOT_IN = "is not in 0 to 1 (--num-labels); numbers count from 0, or all are names"


@pytest.mark.parametrize(
    "name,content,named",
    [
        ("dev.tsv", "sentence\tlabel\nfine\t1\nbad\t2\n", f"line 3: label '2' {NOT_IN}"),
        ("dev.tsv", "sentence\tlabel\nfine\tgood\n", "line 2: label 'good'"),
        ("dev.tsv", "sentence\tlabel\nfine\t0.5\n", "line 2: label '0.5'"),
        ("dev.tsv", "sentence\tlabel\nfine\tnan\n", "line 2: label 'nan'"),
        (
            "dev.tsv",
            "sentence\tlabel\nfine\t-1\n",
            f"line 2: label '-1' {NOT_IN}; -1 marks test rows",
        ),
        ("dev.tsv", "sentence\tlabel\n \t1\n", "line 2: the row has a text that is blank"),
        ("dev.tsv", "text\tlabel\nfine\n", "line 2: 1 columns"),
        ("dev.tsv", "text\tlabel\na\t1\n\na\tb\t1\n", "line 4: 3 columns"),
        ("dev.tsv", "text\tlabel\na\rb\t1\n", "line 2: 1 columns"),
        ("dev.jsonl", '{"text": "\\ud800", "label": 1}', "that is not UTF-8"),
        ("dev.tsv", "phrase\tlabel\nfine\t1\n", f"{NO_TEXTS}phrase, label"),
        ("dev.tsv", "id\ttext\n0\tfine\n", f"{NO_LABELS}id, text"),
        ("dev.tsv", b"sentence\tlabel\ngood\t1\n\xff\xfe\t0\n", "line 3, is not UTF-8"),
        ("dev.tsv", "", " has no rows"),
        ("dev.tsv", "sentence\tlabel\n", " has no rows"),
        ("dev.jsonl", "\n", " has no rows"),
        ("dev.csv", 'text,label\nfine,1\n"open,1\nmore,0\n', "line 3: unexpected end"),
        ("dev.csv", 'text,label\n"two\nlines",1\nbad,9\n', "line 4: label '9'"),
        ("dev.csv", 'text,label\n"closed"too early,1\n', "line 2: "),
        ("dev.jsonl", '{"text": "a", "label": 1}\n\n{"text": \n', "line 3: Expecting value"),
        ("dev.jsonl", '"a"\n', "line 1: it is no object"),
        ("dev.jsonl", '{"text": 5, "label": 1}\n', f"line 1: {NO_TEXT}"),
        ("dev.jsonl", '{"text": "a", "label": [1]}\n', "line 1: label [1]"),
        ("dev.jsonl", '{"text": "a"}\n', f"{NO_LABELS}text"),
        ("dev.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', f"line 2: {NO_LABEL}"),
        ("dev.jsonl", '{"text": "a", "label": 1}\n{"label": 0}', f"line 2: {NO_TEXT}"),
        ("dev.jsonl", '{"text": "a", "label": true}', "label True is a boolean; write 0 and 1"),
        ("dev.jsonl", '{"text": "a", "label": "0_1"}', "label '0_1'"),
        ("dev.jsonl", f'{{"text": "a", "label": {"9" * 400}}}', "line 1: label 99"),
        ("dev.jsonl", f'{{"text": "a", "label": {"9" * 5000}}}', "line 1: Exc"),
    ],
)
def test_bad_data_is_refused_by_file_and_line(tmp_path, name, content, named):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    said = refusal(read_split, tmp_path, "dev")
    assert re.search(rf"{name}(,| has)", said)
    assert named in said


@pytest.mark.parametrize(
    "name,content,way",
    [
        ("dev.csv", "text;label\nfine;1\n", "separated by semicolons: save it with commas"),
        ("dev.csv", "text\tlabel\nfine\t1\n", "separated by tabs: name it .tsv"),
        ("dev.csv", "text|label\nfine|1\n", "separated by bars"),
        ("dev.csv", "text;label\na, b;1\n", "separated by semicolons"),
        ("dev.tsv", "text,label\nfine,1\n", "separated by commas: name it .csv"),
        ("dev.csv", "sep=,\ntext,label\nfine,1\n", "line 1 is a note of a spreadsheet program"),
        ("dev.csv", "sep=;\ntext;label\nfine;1\n", "line 1 is a note of a spreadsheet program"),
        ("dev.csv", "a fine and witty film,1\na,0\n", "line 1 looks like a row of data"),
        ("dev.tsv", "ham\tone\ttext that is data\n" * 2, "put a line of names before it"),
        ("dev.csv", "Text,Label\na,1\n", "its columns are Text, Label"),
        ("dev.csv", "my text,a\x1b[2J\na,1\n", r"its columns are my text, 'a\x1b[2J'"),
        ("dev.csv", ",".join(f"c{i}" for i in range(99)) + "\n" + "," * 98, "c11 and 87 more"),
        ("dev.csv", 'text,label\n"so \\"great\\", twice",1\n', "backslashes before them, as Spark"),
        ("dev.csv", 'text,label\n"so \\"great\\" twice",1\n', "option escape to '\"'"),
        ("dev.jsonl", '[{"text": "a", "label": 1}]', "it is a JSON array"),
        ("dev.jsonl", '[\n{"text": "a",\n"label": 1}]', "jq -c '.[]' data.json > data.jsonl"),
        ("dev.csv", "text,label\ncafé,1\n".encode("cp1252"), "it may be cp1252, as Excel"),
        ("dev.csv", "text,label\ncafé,1\n".encode("cp1252"), "iconv -f CP1252 -t UTF-8 dev.csv"),
        ("dev.csv", "text,label\nхороший фильм,1\n".encode("cp1251"), "of another alphabet"),
        ("dev.csv", "text,label\nfine,1\n".encode("utf-16-le"), "looks like UTF-16 without its"),
        ("dev.csv", "text,label\nfine,1\n".encode("utf-16")[:-1], "is not UTF-16"),
    ],
)
def test_a_refusal_says_what_the_table_looks_like_and_the_way_out(tmp_path, name, content, way):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    assert way in refusal(read_split, tmp_path, "dev")


OTHER_KINDS = {
    "t.json": "jq -c",
    "t.JSON": "jq -c",
    "t.ndjson": "rename it to .jsonl",
    "t.csv.gz": "unpack it first",
    "t.zip": "unpack it first",
    "t.parquet": "read_parquet",
    "t.xlsx": "save it in the spreadsheet program as CSV UTF-8",
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_tables_are_refused_by_name(tmp_path, name):
    assert OTHER_KINDS[name] in refusal(is_table, name)
    (tmp_path / name).write_bytes(gzip.compress(b"text,label\nfine,1\n"))
    assert OTHER_KINDS[name] in refusal(read_table, tmp_path / name)
    assert OTHER_KINDS[name] in refusal(open_dataset, tmp_path / name)


@pytest.mark.parametrize("name", ["train.json", "train.csv.gz", "train.parquet"])
def test_a_split_of_another_kind_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert "is no table that is read here" in refusal(open_dataset, tmp_path)


@pytest.mark.parametrize(
    "name,table", [("a.csv", True), ("a.TSV", True), ("a.txt", False), ("a", False)]
)
def test_a_table_is_known_by_its_name(name, table):
    assert is_table(name) is table


# ---- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(
    "names,stored",
    [
        (["positive", "negative"], ["negative", "positive"]),
        (["spam", "ham"], ["spam", "ham"]),
        (["so so", "bad", "good"], ["so so", "bad", "good"]),
        ([" good ", "bad "], ["good", "bad"]),
        (["خوب\u200cها", "👨\u200d👩\u200d👧"], ["خوب\u200cها", "👨\u200d👩\u200d👧"]),
        (["a\u2028b", "c"], ["a\u2028b", "c"]),
        ([0, 1], ["0", "1"]),
        (["0", "1.0"], ["0", "1"]),
    ],
)
def test_names_are_numbered_as_they_first_come(tmp_path, suffix, names, stored):
    """But negative before positive; numbers are numbers."""
    both(tmp_path, names, suffix=suffix)
    found = open_dataset(tmp_path)
    assert (found.labels, found.num_labels) == (stored, len(stored))
    numbers = [stored.index(str(name).strip().removesuffix(".0")) for name in names]
    assert [label for _, label in found.dev[: len(names)]] == numbers
    assert read_split(tmp_path, "dev", stored, len(stored)) == found.dev


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "\0", "\x1b[2J", "a,b", '"', "1_0", "\ufeff"])
def test_a_name_may_hold_any_character(tmp_path, name):
    both(tmp_path, [name, "other"], suffix=".jsonl")
    assert open_dataset(tmp_path).labels == [name, "other"]


def test_half_a_surrogate_pair_is_no_name(tmp_path):
    both(tmp_path, ["\ud800", "other"], suffix=".jsonl")
    said = refusal(open_dataset, tmp_path)
    assert "train.jsonl, line 1: label" in said and "is not UTF-8" in said


def test_labels_are_counted_by_name(tmp_path):
    both(tmp_path, ["spam", "ham", "ham"])
    found = open_dataset(tmp_path, select_on="dev")
    assert found.label_counts() == {"spam": 20, "ham": 40}


def test_a_known_data_set_has_names_for_its_numbers():
    found = open_dataset("reviews")
    assert found.labels == ["negative", "positive"]
    assert found.label_counts() == {"negative": 713, "positive": 725}
    assert (len(found.train), len(found.held), len(found.dev)) == (1438, 159, 399)


@pytest.mark.parametrize("odd", ["nan", "3", "inf", "-1", "1e3"])
def test_one_number_among_names_is_the_odd_one_out(tmp_path, odd):
    rows = rows_of(["bad", "good"])
    rows[40] = (rows[40][0], odd)
    write(tmp_path, "train", rows)
    said = refusal(open_dataset, tmp_path)
    assert (
        f"train.csv, line 42: label '{odd}' is a number, but others are names (bad, good)" in said
    )


@pytest.mark.parametrize("odd", ["good", "", "1,0"])
def test_one_name_among_numbers_is_the_odd_one_out(tmp_path, odd):
    rows = rows_of([0, 1])
    rows[40] = (rows[40][0], odd)
    write(tmp_path, "train", rows)
    assert f"train.csv, line 42: label '{odd}' {NOT_IN}" in refusal(open_dataset, tmp_path)


@pytest.mark.parametrize(
    "numbers,said",
    [
        ([-1, 1], "line 2: label '-1' is not in 0 to 1 (--num-labels); numbers count from 0"),
        ([-1, 1], ": write 0 for -1, 1 for 1"),
        ([1, 0, -1], ": write 0 for -1, 1 for 0, 2 for 1, with --num-labels 3"),
        ([1, 2, 3, 4, 5], "write 0 for 1, 1 for 2, 2 for 3, 3 for 4, 4 for 5, with --num-labels 5"),
        (["1.0", "2.0"], "line 3: label '2.0' "),
        ([0, 1, 2], "line 4: label '2' is not in 0 to 1 (--num-labels); numbers count from 0"),
        ([0, 1, 2], "these are 3: --num-labels 3"),
        ([-1], "; -1 marks test rows without labels: predict takes these"),
    ],
)
def test_numbers_that_do_not_count_from_0_get_a_mapping(tmp_path, numbers, said):
    both(tmp_path, numbers)
    assert said in refusal(open_dataset, tmp_path)


def test_a_number_of_classes_is_never_guessed(tmp_path):
    both(tmp_path, [0, 1, 2])
    assert open_dataset(tmp_path, num_labels=3).labels == ["0", "1", "2"]


@pytest.mark.parametrize(
    "train,dev,count,said",
    [
        (["yes", "no"], "maybe", None, "dev.jsonl, line 1: label 'maybe' is not one of yes, no"),
        (["yes", "no"], 1, None, "dev.jsonl, line 1: label 1 is not one of yes, no"),
        (["yes", "no"], "no", 3, "--num-labels 3, but .* has 2 names of labels"),
        (["yes", "no"], "no", 1, "--num-labels 1, but .* has 2 names of labels"),
        (["yes"], "yes", None, "the label 'yes' alone: nothing to tell apart"),
        ([True, False], True, None, "line 1: label True is a boolean; write 0 and 1"),
        ([1, 2], 1, None, "line 2: label 2 is not in 0 to 1 .*: write 0 for 1, 1 for 2"),
        (["0", "one"], 1, None, "line 2: label 'one' is not in 0 to 1"),
        (["yes", "no", None], "yes", None, "line 3: the row has no label"),
        (["yes", "no", ""], "yes", None, "line 3: label '' is not"),
        ([0, 1], 0, 99, "--num-labels 99 is more than .* has texts"),
    ],
)
def test_labels_that_cannot_be_are_refused_by_what_to_do(tmp_path, train, dev, count, said):
    write(tmp_path, "train", rows_of(train), suffix=".jsonl")
    write(tmp_path, "dev", [("other", dev)], suffix=".jsonl")
    assert re.search(said, refusal(open_dataset, tmp_path, num_labels=count))


@pytest.mark.parametrize(
    "one,other,count",
    [
        ("Positive", "positive", 3),
        ("POSITIVE", "positive", 3),
        ("so so", "so  so", 3),
        ("ｇood", "good", 3),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), 2),
    ],
)
def test_spellings_of_one_name_are_told(tmp_path, capsys, one, other, count):
    """NFC and NFD of a name are the same name."""
    both(tmp_path, [one, "else", other])
    assert open_dataset(tmp_path).num_labels == count
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and f"the labels {one}, " in err
    assert ("count as one label" in err) == (count == 2)


def test_names_that_differ_are_not_told_of(tmp_path, capsys):
    both(tmp_path, ["good", "goods", "bad"])
    open_dataset(tmp_path)
    assert capsys.readouterr().err == ""


def test_labels_of_a_regression_are_numbers(tmp_path):
    write(tmp_path, "dev", [("a", -2.5), ("b", 1)])
    assert read_split(tmp_path, "dev", num_labels=1) == [("a", -2.5), ("b", 1.0)]


@pytest.mark.parametrize("label", ["nan", "-inf", "1e39", "much"])
def test_what_is_no_float32_is_no_label_of_a_regression(tmp_path, label):
    write(tmp_path, "dev", [("a", 1), ("b", label)])
    said = refusal(read_split, tmp_path, "dev", num_labels=1)
    assert f"line 3: label '{label}' is not a number of float32" in said


def test_a_regression_has_no_counts_of_labels(tmp_path):
    both(tmp_path, [0.5, 3, -7])
    found = open_dataset(tmp_path, num_labels=1)
    assert (found.num_labels, found.label_counts()) == (1, {})
    assert found.labels == ["0", "1"]


def test_numbers_are_taken_by_their_place_among_names_and_told(tmp_path, capsys):
    write(tmp_path, "dev", [("a", 0), ("b", 1)])
    assert read_split(tmp_path, "dev", ["spam", "ham"], 2) == [("a", 0), ("b", 1)]
    err = capsys.readouterr().err
    assert "dev.csv has numbers for labels; they are taken as 0 = spam, 1 = ham" in err


def test_numbers_of_a_sentiment_need_no_telling(tmp_path, capsys):
    write(tmp_path, "dev", [("a", 0), ("b", 1)])
    read_split(tmp_path, "dev", ["negative", "positive"], 2)
    assert capsys.readouterr().err == ""


def test_a_number_among_names_is_not_taken_by_its_place(tmp_path):
    write(tmp_path, "dev", [("a", "spam"), ("b", 1)])
    said = refusal(read_split, tmp_path, "dev", ["spam", "ham"], 2)
    assert "line 3: label '1' is not one of spam, ham" in said


def test_names_of_another_prompt_are_refused(tmp_path):
    write(tmp_path, "dev", [("dull a", "eggs")])
    assert "line 2: label 'eggs'" in refusal(read_split, tmp_path, "dev", ["spam", "ham"], 2)


# ---- columns --------------------------------------------------------------------------------


def test_other_columns_are_found_by_their_names(tmp_path):
    how = {"columns": ("review", "stars"), "suffix": ".jsonl"}
    both(tmp_path, ["pos", "neg"], **how)
    said = refusal(open_dataset, tmp_path, text_column="review")
    assert "train.jsonl has no column label (--label-column); its columns are review, stars" in said
    said = refusal(open_dataset, tmp_path, label_column="stars")
    assert "train.jsonl has no column sentence or text (--text-column)" in said
    found = open_dataset(tmp_path, "review", "stars")
    assert found.labels == ["pos", "neg"]
    assert read_split(tmp_path, "dev", found.labels, 2, "review", "stars") == found.dev


def test_the_column_that_is_asked_for_is_read_beside_the_usual_one(tmp_path):
    write(tmp_path, "dev", [("title", "body", 1)], columns=("text", "review", "label"))
    assert read_split(tmp_path, "dev", text_column="review") == [("body", 1)]
    assert read_table(tmp_path / "dev.csv").texts("review") == [("body", None)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_mistyped_column_is_refused_with_those_there_are(tmp_path, suffix):
    path = write(tmp_path, "in", [("7", "fine")], columns=("id", "text"), suffix=suffix)
    said = refusal(read_table(path).texts, "reveiw")
    assert "has no column reveiw (--text-column); its columns are id, text" in said


def test_rows_without_a_text_keep_their_places(tmp_path):
    path = write(tmp_path, "in", [(" a ",), (" ",), ("b",)], columns=("text",))
    found = read_table(path).texts()
    assert found == [("a", None), ("", "has a text that is blank"), ("b", None)]


def test_quotation_marks_of_a_spreadsheet_are_told_once(tmp_path, capsys):
    quoted = '"He said ""great"" film"'
    rows = [("plain", 0), (quoted, 1), ('"so', 0), (quoted, 1)]
    write(tmp_path, "dev", rows, suffix=".tsv")
    assert read_split(tmp_path, "dev")[1] == (quoted, 1)  # a quotation mark is a quotation mark
    err = capsys.readouterr().err
    assert err.count("warning") == 1 and "dev.tsv, line 3: " in err and "csv" in err


def test_quotation_marks_that_people_write_are_not_told_of(tmp_path, capsys):
    rows = [('"great" he said "', 0), ('""', 1), ('"', 1)]
    write(tmp_path, "dev", rows, suffix=".tsv")
    read_split(tmp_path, "dev")
    write(tmp_path / "c", "dev", [('"He said ""great"" film"', 1)])
    read_split(tmp_path / "c", "dev")
    assert capsys.readouterr().err == ""


# ---- splits ---------------------------------------------------------------------------------


def test_a_split_is_in_one_file_of_a_folder_that_there_is(tmp_path):
    (tmp_path / "train.tsv").write_text("x")
    said = refusal(read_split, tmp_path, "dev")
    assert "should hold one of dev.tsv, dev.csv, dev.jsonl, validation.tsv" in said
    assert said.endswith("it has train.tsv")
    for suffix in (".tsv", ".jsonl"):
        (tmp_path / f"dev{suffix}").write_text("x")
    assert "it has dev.jsonl and dev.tsv" in refusal(read_split, tmp_path, "dev")


def test_of_two_names_of_a_split_one_has_to_go(tmp_path):
    for name in ("dev", "validation"):
        write(tmp_path, name, [("a", 1)])
    assert "it has dev.csv and validation.csv" in refusal(read_split, tmp_path, "dev")


def test_an_empty_folder_and_none_are_told(tmp_path):
    assert refusal(read_split, tmp_path, "dev").endswith("it has nothing")
    said = refusal(read_split, tmp_path / "elsewhere", "dev")
    assert re.search("there is no data set .*elsewhere: name a folder, a table, reviews", said)


@pytest.mark.parametrize("name", ["test", "extra"])
def test_any_other_split_is_a_file_of_its_name(tmp_path, name):
    write(tmp_path, name, [("a", 1)])
    assert read_split(tmp_path, name) == [("a", 1)]


def test_what_is_held_out_comes_from_train_unless_dev_is_asked(tmp_path):
    both(tmp_path, ["a", "b"])
    found = open_dataset(tmp_path)
    assert (len(found.train), len(found.held), len(found.dev)) == (54, 6, 12)
    found = open_dataset(tmp_path, select_on="dev")
    assert (len(found.train), found.held) == (60, found.dev)


def test_too_few_texts_to_hold_some_out_are_told(tmp_path):
    write(tmp_path, "train", rows_of(["a", "b"], 9))
    write(tmp_path, "dev", rows_of(["a", "b"], 4, "v"))
    assert "use --select-on dev" in refusal(open_dataset, tmp_path)
    assert len(open_dataset(tmp_path, select_on="dev").train) == 9


@pytest.mark.parametrize("change", [str, str.upper, "A {}!".format, "  {} ".format])
def test_dev_texts_that_stand_in_train_are_told(tmp_path, capsys, change):
    rows = rows_of(["a", "b"])
    write(tmp_path, "train", [(change(text), label) for text, label in rows])
    write(tmp_path, "dev", [*rows[:7], ("another text", "a")])
    open_dataset(tmp_path)
    assert "7 of dev's 8 texts also stand in train" in capsys.readouterr().err


def test_a_dev_of_its_own_is_not_told_of(tmp_path, capsys):
    both(tmp_path, ["a", "b"])
    open_dataset(tmp_path)
    assert capsys.readouterr() == ("", "")


# ---- one table ------------------------------------------------------------------------------


@pytest.fixture(params=[".csv", ".tsv", ".jsonl", ".CSV"])
def one_table(tmp_path, request):
    rows = rows_of(["spam", "ham"], 200)
    rows += [(text.upper() + "!", label) for text, label in rows[:50]]
    return write(tmp_path, "mails", rows, suffix=request.param)


def test_one_table_is_split_and_the_split_is_told(one_table, capsys):
    found = open_dataset(one_table)
    assert len(found.dev) == 25
    out = capsys.readouterr().out
    assert f"{one_table}: of 250 rows 25 are held back as dev" in out
    assert found.labels == ["spam", "ham"]
    assert found.sha256["train"] == found.sha256["dev"]


def test_no_phrase_of_its_dev_stands_in_its_train(one_table):
    found = open_dataset(one_table)
    dev = {words_of(text) for text, _ in found.dev}
    assert dev.isdisjoint(words_of(text) for text, _ in found.train + found.held)


def test_the_same_parts_are_found_again(one_table):
    found = open_dataset(one_table)
    assert read_split(one_table, "dev", found.labels, 2) == found.dev
    pairs = [(f"t{i} film t{i}", i % 2) for i in range(200)]
    pairs += [(text.upper() + "!", label) for text, label in pairs[:50]]
    assert found.dev == hold_out(pairs, 25, seed=0)[1]
    whole = read_split(one_table, "train", found.labels, 2)
    assert set(found.train + found.held) <= set(whole)
    assert len(whole) + len(found.dev) <= 250
    assert open_dataset(one_table) == found


def test_one_table_has_no_other_split(one_table):
    said = refusal(read_split, one_table, "test")
    assert "is one table; its splits are train and dev" in said


def test_one_table_of_a_few_rows_is_refused(tmp_path):
    path = write(tmp_path, "few", [("a", 1)])
    assert "too few texts to hold some back as dev" in refusal(open_dataset, path)


def test_a_file_that_is_no_table_is_no_data_set(tmp_path):
    (tmp_path / "notes.txt").write_text("text,label\n")
    said = refusal(open_dataset, tmp_path / "notes.txt")
    assert "notes.txt is no table: its name should end in .tsv, .csv, .jsonl" in said


# ---- names of data sets ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["reviews", "reviews/", "./reviews", ROOT / "reviews", "tests/../reviews"]
)
def test_the_bundled_reviews_are_known_by_any_path(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    assert resolve(name) == "reviews"


def test_a_path_is_stored_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both("own", ["a", "b"])
    assert resolve("own") == resolve("own/") == resolve("./own") == str(tmp_path / "own")
    assert open_dataset("own").name == str(tmp_path / "own")


def test_a_known_word_means_the_known_and_a_path_what_lies_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    both("reviews", ["a", "b"])
    assert resolve("reviews") == "reviews"
    assert "the folder of this name is ./reviews" in capsys.readouterr().err
    assert resolve("reviews/") == resolve("./reviews") == str(tmp_path / "reviews")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["", "nowhere", "reviews/none", "sst3"])
def test_a_name_of_nothing_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert "there is no data set" in refusal(resolve, name)


# ---- SST-2 ----------------------------------------------------------------------------------


@pytest.fixture
def glue():
    """A small archive in the shape of GLUE's, and its md5"""
    train = b"sentence\tlabel\na fine film \t1\n"
    members = [
        ("SST-2/train.tsv", train),
        ("SST-2/dev.tsv", b"sentence\tlabel\ndull \t0\n"),
        ("SST-2/original/extra.txt", b"not wanted"),
    ]
    content = archive(members)
    return content, hashlib.md5(content).hexdigest()


def test_sst2_is_fetched_once(glue, tmp_path, monkeypatch):
    content, md5 = glue
    with serve({"/SST-2.zip": content}) as (address, asked):
        redirect(monkeypatch, tmp_path, f"{address}/SST-2.zip", md5)
        assert read_split("sst2", "train") == [("a fine film", 1)]
        assert read_split("sst2", "dev") == [("dull", 0)]
    assert asked == ["GET /SST-2.zip"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dev.tsv", "sst2", "train.tsv"]


@pytest.mark.parametrize("found", [True, False])
def test_a_folder_of_the_users_beside_it_stays(glue, tmp_path, monkeypatch, found):
    content, md5 = glue
    (tmp_path / "sst2.part").mkdir()
    (tmp_path / "sst2.part" / "thesis.txt").write_text("mine")
    with serve({"/SST-2.zip": content}) as (address, _):
        redirect(monkeypatch, tmp_path, f"{address}/SST-2.zip" if found else NOWHERE, md5)
        read(read_split, "sst2", "dev", naming="could not fetch SST-2")
    assert (tmp_path / "sst2.part" / "thesis.txt").read_text() == "mine"
    assert names_in(tmp_path) == ["sst2"] * found + ["sst2.part"]


def test_a_split_of_sst2_that_the_user_has_put_there_is_read(glue, tmp_path, monkeypatch):
    content, md5 = glue
    with serve({"/SST-2.zip": content}) as (address, _):
        redirect(monkeypatch, tmp_path, f"{address}/SST-2.zip", md5)
        assert "it has dev.tsv, train.tsv" in refusal(read_split, "sst2", "test")
    (tmp_path / "sst2" / "test.tsv").write_text("sentence\tlabel\nwarm\t1\n")
    assert read_split("sst2", "test") == [("warm", 1)]
    (tmp_path / "sst2" / "test.tsv").write_text("index\tsentence\n0\twarm\n")
    assert NO_LABELS + "index, sentence" in refusal(read_split, "sst2", "test")


def test_a_folder_that_another_process_made_meanwhile_is_taken(glue, tmp_path, monkeypatch):
    content, md5 = glue
    fetch = dataset.tempfile.mkdtemp

    def slower(suffix, prefix, folder):
        assert folder == tmp_path  # on the same disk, so that it can be renamed
        write(tmp_path / "sst2", "dev", [("theirs", 1)], suffix=".tsv")
        return fetch(suffix, prefix, folder)

    monkeypatch.setattr(dataset.tempfile, "mkdtemp", slower)
    with serve({"/SST-2.zip": content}) as (address, _):
        redirect(monkeypatch, tmp_path, f"{address}/SST-2.zip", md5)
        assert read_split("sst2", "dev", text_column="text") == [("theirs", 1)]
    assert names_in(tmp_path) == ["sst2"]


TROUBLES = {
    "cut": "IncompleteRead|came damaged",
    "another": "SST-2.zip came damaged",
    "missing": "404",
    "no network": "refused|urlopen",
    "not a zip": "not a zip",
    "no dev.tsv": "SST-2/dev.tsv",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_failed_fetch_of_sst2_says_so_and_leaves_nothing(glue, tmp_path, monkeypatch, trouble):
    content, md5 = glue
    odd = {
        "not a zip": b"<html>sign in first</html>",
        "no dev.tsv": archive([("SST-2/train.tsv", b"sentence\tlabel\n")]),
    }
    if trouble in odd:
        content = odd[trouble]
        md5 = hashlib.md5(content).hexdigest()
    if trouble == "another":
        md5 = "0" * 32
    cut = ["/SST-2.zip"] if trouble == "cut" else []
    with serve({"/SST-2.zip": content}, cut=cut) as (address, _):
        places = {"no network": NOWHERE, "missing": f"{address}/other"}
        redirect(monkeypatch, tmp_path, places.get(trouble, f"{address}/SST-2.zip"), md5)
        said = f"could not fetch SST-2 .*({TROUBLES[trouble]}).*: check the network .* by hand"
        assert re.search(said, refusal(read_split, "sst2", "dev"))
    assert list(tmp_path.iterdir()) == []


# ---- lines of a stream ----------------------------------------------------------------------


def lines_in(data):
    """The lines of a stream that gives these bytes"""
    found = []
    for lines in lines_of(io.BufferedReader(io.BytesIO(data))):
        found += lines
    return found


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(text=st.text(PLAIN), mark=st.booleans())
def test_lines_come_as_they_are(text, mark):
    data = ("\ufeff" * mark + text).encode()
    expected = text if mark else text.removeprefix("\ufeff")
    found = lines_in(data)
    assert "\n".join(found) == expected.removesuffix("\n") or found == expected.split("\n")[:-1]


def test_bytes_that_are_no_utf8_come_as_surrogates():
    assert lines_in(b"caf\xe9\nb\xc3") == ["caf\udce9", "b\udcc3"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_lines_of_utf16_are_refused_by_name(encoding):
    data = "\ufeffa\nb".encode(encoding)
    assert "UTF-16: save them as UTF-8" in refusal(lines_in, data)


def test_of_a_line_without_end_a_part_is_kept():
    (line,) = lines_in(b"x" * 10**7)
    assert LONGEST < len(line) <= LONGEST + 2**17


# ---- hostile tables -------------------------------------------------------------------------

ROWS = [('it \'s "good" , mostly', 1), ("dull, dull", 0), ("naïve 🙂", 1)]
FILES = {
    ".tsv": "sentence\tlabel\n" + "".join(f"{text} \t{label}\n" for text, label in ROWS),
    ".csv": 'text,label\n"it \'s ""good"" , mostly",1\n"dull, dull",0\n"naïve 🙂",1\n',
    ".jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS),
}
CODINGS = st.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "cp1252"])
COUNTS = st.sampled_from([1, 2, 11])  # of labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings(max_examples=1, database=None)(given(st.text())(lambda text: None))()
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture
def bounded(folder, request):
    """A test that may need no more than MEMORY, and runs as many cases as it says."""
    peak()
    before = peak()
    yield folder
    assert peak() - before < MEMORY
    test = request.function
    assert getattr(test, "ran", 0) >= getattr(test, "asked", 0)


def fresh(folder, suffix, content):
    """A data set folder with content as its only split"""
    folder = folder / "set"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / f"dev{suffix}").write_bytes(content)
    return folder


def check_rows(folder, suffix, content, count):
    """What read_split gives keeps its promises, and says the same when it is read again."""
    where = fresh(folder, suffix, content)
    found = read(read_split, where, "dev", (), count, naming=f"dev{suffix}")
    if found is None:
        return None
    assert 0 < len(found) <= len(re.split(rb"\r\n|\r|\n", content))
    for text, label in found:
        assert text and text == text.strip() and len(text) <= LONGEST and text.encode()
        if count == 1:
            assert type(label) is float and np.isfinite(np.float32(label))
        else:
            assert type(label) is int and 0 <= label < count
    lines = [json.dumps({"sentence": text, "label": label}) + "\n" for text, label in found]
    where = fresh(folder, ".jsonl", "".join(lines).encode())
    assert read_split(where, "dev", (), count) == found
    return found


@cases(300, suffix=st.sampled_from(sorted(FILES)), edits=EDITS, coding=CODINGS, count=COUNTS)
def test_mutated_tables_are_read_rightly_or_refused(bounded, suffix, edits, coding, count):
    content = FILES[suffix].encode(coding, "replace")
    check_rows(bounded, suffix, mutate(content, edits), count)


@cases(
    150,
    rows=st.lists(st.tuples(CELLS, st.integers(0, 10)), min_size=1, max_size=4),
    suffix=st.sampled_from([".csv", ".tsv"]),
)
def test_whatever_a_text_holds_is_given_back(bounded, rows, suffix):
    """A tsv cannot hold what ends a cell or a line."""
    path = write(bounded, "any", rows, suffix=suffix)
    found = check_rows(bounded, suffix, path.read_bytes(), 11)
    broken = suffix == ".tsv" and any(re.search("[\t\r\n]", text) for text, _ in rows)
    if not broken and all(text.strip() for text, _ in rows):
        assert found == [(text.strip(), label) for text, label in rows]
    elif not broken:
        assert found is None


@cases(250, key=st.sampled_from(["text", "label", "sentence"]), odd=ODD, count=COUNTS)
def test_odd_values_are_read_rightly_or_refused(bounded, key, odd, count):
    last = spliced({"text": "fine", "label": 1}, key, odd)
    content = FILES[".jsonl"].encode() + last + b"\n"
    found = check_rows(bounded, ".jsonl", content, count)
    if found:
        row = json.loads(content.split(b"\n")[3])
        text = row.get("sentence", row["text"])
        assert found[:3] == ROWS
        assert found[3] == (text.strip(), float(row["label"]))
        assert row["label"] is not True


def test_a_large_table_takes_no_more_than_some_times_its_size(bounded):
    rows = [(f"a film with number {i} and more words", i % 2) for i in range(20_000)]
    write(bounded / "large", "dev", rows)
    assert len(read_split(bounded / "large", "dev")) == 20_000


SHARED_SETS = ["SST-2", "SUBJ", "TREC"]


@pytest.mark.parametrize("name", SHARED_SETS)
def test_real_data_sets_are_read_whole(name):
    if not (SHARED / name).exists():
        pytest.skip("this data set is not beside this checkout")
    found = open_dataset(SHARED / name, select_on="dev")
    lines = (SHARED / name / found_file(SHARED / name)).read_bytes().count(b"\n")
    assert len(found.train) == lines - 1


def found_file(folder):
    (path,) = folder.glob("train.*")
    return path.name
