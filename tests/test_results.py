"""docs/: its tables are those of the records; bench/results.py, tables.py and record.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import record
import results
import tables
from helpers import ROOT, environment, write_reviews

RECORDS = sorted((ROOT / "docs" / "records").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_where_it_comes_from(path):
    found = json.loads(path.read_text())
    for key in ("command", "commit", "date", "machine", "versions"):
        assert found[key]
    assert found["command"].startswith("python ")
    assert "/" not in found["command"].replace("bench/", "").replace("docs/records/", "")


def test_every_table_is_that_of_its_records():
    assert tables.main(["--check"]) == []


def test_every_record_stands_behind_a_table_or_a_sentence():
    used = set()
    real = tables.kept
    try:
        tables.kept = lambda name: used.add(name) or real(name)
        for make in tables.TABLES.values():
            make()
        for _, _, figure in tables.SENTENCES:
            figure()
    finally:
        tables.kept = real
    assert {path.stem for path in RECORDS} == used


def test_a_table_that_was_changed_is_noticed_and_made_anew(tmp_path, monkeypatch):
    page = "Before.\n<!-- table few -->\n\n| old |\n\n<!-- end -->\nAfter.\n"
    (tmp_path / "page.md").write_text(page)
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    assert tables.main(["--check"]) == ["page.md"]
    assert (tmp_path / "page.md").read_text() == page
    assert tables.main([]) == ["page.md"]
    made = (tmp_path / "page.md").read_text()
    assert made.startswith("Before.\n<!-- table few -->\n\n| texts |")
    assert made.endswith("|\n\n<!-- end -->\nAfter.\n")
    assert tables.main(["--check"]) == []


def test_a_row_is_the_mean_of_its_seeds():
    held = [{"accuracy": 0.2}, {"accuracy": 0.4}]
    asked = [{"accuracy": 0.5, "n": 100}, {"accuracy": 0.7, "n": 100}]
    row = {"way": "head", "rate": 0.005, "held": held, "asked": asked, "trained": 1500}
    row |= {"bytes": 6000, "cpu_seconds": 7.6, "step_bytes": 3 * 2**20}
    header, [cells] = tables.ways_rows({"split": "test", "rows": [row]})
    assert header[2:4] == ["hold-out", "test"]
    assert cells[:5] == ["head alone", "0.005", "0.3000", "0.6000", "0.1414"]
    assert cells[5] == "0.502 to 0.691"  # Wilson's, of 60 of 100
    assert cells[6:] == ["1,500", "6", "8", "3"]


def test_a_row_of_a_regression_has_its_errors():
    asked = [{"loss": 1.5, "pearson": 0.7}, {"loss": 2.5, "pearson": 0.8}]
    row = {"way": "words", "rate": 10.0, "held": asked, "asked": asked, "trained": 5}
    row |= {"bytes": 20, "cpu_seconds": 0.1, "step_bytes": None}
    _, [cells] = tables.ways_rows({"split": "dev", "rows": [row]})
    assert cells[:5] == ["tf-idf, ridge regression", "10", "2.0000", "2.0000", "0.7071"]
    assert cells[5:] == ["Pearson's r 0.750", "5", "0", "0", ""]


def test_what_the_hold_out_chose_is_what_is_best_there():
    record = json.loads((ROOT / "docs" / "records" / "sst2-lengths.json").read_text())
    rows = record["summary"]["prompts"]
    best = max(row["selection"]["accuracy"] for row in rows)
    chosen = tables.chosen_row(record, "sst2-lengths")
    assert chosen.selection.accuracy == best
    [row] = [row for row in rows if row["name"] == chosen.name]
    assert chosen.accuracy == row["accuracy"] < max(row["accuracy"] for row in rows)


@pytest.mark.parametrize("place", range(len(tables.SENTENCES)))
def test_a_figure_in_a_sentence_is_that_of_its_record(place):
    page, sentence, figure = tables.SENTENCES[place]
    wanted = sentence.format(figure())
    assert wanted in " ".join((ROOT / page).read_text().split())


# ---- records --------------------------------------------------------------------------------


def test_a_command_is_kept_without_the_file_it_writes(tmp_path):
    path = tmp_path / "record.json"
    words = ["python", "bench/x.py", "--a", "two words", "--json", str(path)]
    figures = record.keep(words, path, lambda: {"figure": 1})
    assert json.loads(path.read_text()) == figures
    assert figures["command"] == "python bench/x.py --a 'two words'"
    assert figures["figure"] == 1
    assert figures["versions"]["torch"]


def test_the_file_may_stand_anywhere_in_the_command():
    words = ["python", "bench/x.py", "--json", "record.json", "--data", "SST-2"]
    assert record.without(words, "--json") == ["python", "bench/x.py", "--data", "SST-2"]
    assert record.without(words, "--out") == words


def test_the_chip_is_named_with_what_matters_of_it(monkeypatch):
    info = "model name\t: A chip\nflags\t: fpu avx2 avx512_bf16x\n"
    monkeypatch.setattr(record.processes, "cpu_flags", lambda: info)
    assert record.chip_of(torch.device("cpu")) == "A chip avx2"


def test_a_file_that_is_there_is_refused_before_the_work(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("mine")
    with pytest.raises(OSError, match="is there already"):
        record.keep(["python"], path, lambda: pytest.fail("it worked before it looked"))
    assert path.read_text() == "mine"


# ---- runs -----------------------------------------------------------------------------------


def test_without_being_asked_nothing_official_is_trained(monkeypatch, tmp_path):
    """That takes a GPU, hours and the hub."""
    begun = []
    monkeypatch.setattr(results.record, "keep", lambda words, path, work: begun.append(path.stem))
    results.main([str(tmp_path)])
    assert "reviews-lengths" in begun
    assert "sst2-lengths" in begun
    assert not [name for name in begun if name.startswith("official")]


FEW = "--epochs 1 --prompt-tokens 2 --seeds 0 1 --lr 0.01 --model tiny --device cpu"


def trial_of(name, tmp_path, **rows):
    """What results.py is told for a short trial of a run, and where its record is."""
    data = write_reviews(tmp_path / "films", **rows)
    words = [str(tmp_path), "--runs", str(tmp_path / "runs"), "--only", name]
    words += ["--flags", f"{FEW} --data {data}"]
    return words, tmp_path / f"{name}.json"


@pytest.fixture
def trial(tmp_path):
    """A trial with 24 texts, and no test split."""
    return trial_of("reviews-lengths", tmp_path, train=24, dev=20)


def test_a_run_is_recorded_and_not_trained_again(trial, capsys):
    words, path = trial
    results.main(words)
    found = json.loads(path.read_text())
    assert found["command"].startswith("python train.py --seeds 0 1 2 --dtype float32")
    rows = found["summary"]["prompts"]
    assert [row["name"] for row in rows] == ["p2-s0", "p2-s1"]
    assert set(found["together"]) == {"all"}  # there is no prompt of twenty tokens
    assert found["together"]["all"]["n"] == 20
    assert found["test"] is None
    before = path.read_bytes()
    results.main(words)
    assert path.read_bytes() == before
    assert "is there" in capsys.readouterr().out


def test_a_finished_run_is_recorded_without_training(trial, monkeypatch):
    words, path = trial
    results.main(words)
    before = json.loads(path.read_text())
    path.unlink()
    monkeypatch.setattr(results.train, "main", lambda argv: pytest.fail("trained again"))
    results.main(words)
    after = json.loads(path.read_text())
    assert after["summary"] == before["summary"]


def test_a_run_that_was_stopped_goes_on(trial, monkeypatch, tmp_path):
    words, path = trial
    real = results.train.main
    asked = []

    def main(argv):
        asked.append(argv)
        return real(argv)

    monkeypatch.setattr(results.train, "main", main)
    results.main(words)
    path.unlink()
    run = tmp_path / "runs" / "reviews-lengths"
    (run / "summary.json").unlink()
    results.main(words)
    assert asked[1] == ["--resume", str(run)]
    assert path.exists()


def test_the_best_prompt_is_scored_on_a_test_split_that_is_there(tmp_path):
    words, path = trial_of("reviews-head", tmp_path, train=24, dev=20, test=30)
    results.main(words)
    assert json.loads(path.read_text())["test"]["n"] == 30


def test_a_test_split_without_labels_is_told_and_left_out(tmp_path, capsys):
    """As GLUE gives it out: the run was trained, and is kept."""
    words, path = trial_of("reviews-head", tmp_path, train=24, dev=20)
    (tmp_path / "films" / "test.tsv").write_text("index\tsentence\n0\ta fine film\n")
    results.main(words)
    assert json.loads(path.read_text())["test"] is None
    assert "nothing is scored on test: " in capsys.readouterr().err


def test_the_official_sizes_are_tried_by_their_script(tmp_path):
    """The whole of bench/official.sh, but with the bundled model in the place of gpt2."""
    flags = f"{FEW} --data {write_reviews(tmp_path / 'films', train=24, dev=20)}"
    # The script starts `python`, which should be the one that runs the tests.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    where = {
        "PATH": path,
        "RECORDS": str(tmp_path),
        "RUNS": str(tmp_path / "runs"),
        "MODELS": "gpt2",
    }
    words = ["bash", str(ROOT / "bench" / "official.sh")]
    done = subprocess.run(
        words,
        env=environment(FLAGS=flags, **where),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "official-gpt2.json").read_text())
    assert found["command"].startswith("python train.py --model gpt2 --data sst2 --epochs 3")
    assert [row["name"] for row in found["summary"]["prompts"]] == ["p2-s0", "p2-s1"]
