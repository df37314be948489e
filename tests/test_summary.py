"""summary.py: the summary of a finished run, and the prompts it names."""

import json
import math

import pytest
from hypothesis import strategies as st

from hostile import EDITS, ODD, cases, mutate, spliced
from hostile import read as answer_of
from support.records import from_json, load, to_json
from support.summary import Selection, Summary, SummaryRow, best_first, find_prompts


def row(name, accuracy=0.5, loss=1.0, macro_f1=None):
    """A prompt that did so on the selection split"""
    return SummaryRow(name, Selection(accuracy, loss, 9, "hold-out", macro_f1))


ROWS = [
    row("p1-s0", accuracy=0.5, loss=0.1, macro_f1=0.1),
    row("p1-s1", accuracy=0.9, loss=0.8, macro_f1=0.2),
    row("p1-s2", accuracy=0.9, loss=0.7, macro_f1=0.3),
    row("p1-s3-lr0.03", accuracy=0.7, loss=0.9, macro_f1=0.9),
]


def write_run(folder, rows=ROWS, select_by="accuracy"):
    """summary.json of a run with these prompts, and its prompts, which are empty"""
    folder.mkdir(exist_ok=True)
    summary = Summary(list(rows), {"majority": 0.5}, True, select_by)
    (folder / "summary.json").write_text(to_json(summary, indent=2))
    for each in rows:
        path = folder / "prompts" / each.name / "prompt.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    return folder


def names(paths):
    return [path.parent.name for path in paths]


# ---- which is the best ----------------------------------------------------------------------

ORDERS = {
    "accuracy": ["p1-s2", "p1-s1", "p1-s3-lr0.03", "p1-s0"],
    "loss": ["p1-s0", "p1-s2", "p1-s1", "p1-s3-lr0.03"],
    "macro-f1": ["p1-s3-lr0.03", "p1-s2", "p1-s1", "p1-s0"],
}


@pytest.mark.parametrize("by", ORDERS)
def test_the_best_comes_first_by_what_was_asked_for(by):
    found = best_first(Summary(ROWS, select_by=by))
    assert [each.name for each in found] == ORDERS[by]


def test_of_equals_the_first_is_the_best():
    rows = [row("p1-s0"), row("p1-s1"), row("p2-s0")]
    assert best_first(Summary(rows)) == rows


def test_what_is_not_finite_is_never_the_best():
    rows = [row("p1-s0", loss=None), row("p1-s1", accuracy=0.1)]
    assert best_first(Summary(rows))[0].name == "p1-s1"
    rows = [row("p1-s0", loss=math.nan), row("p1-s1", accuracy=0.1)]
    assert best_first(Summary(rows))[0].name == "p1-s1"


def test_a_regression_goes_by_its_loss():
    rows = [row("p1-s0", accuracy=None, loss=2.0), row("p1-s1", accuracy=None, loss=1.0)]
    assert best_first(Summary(rows))[0].name == "p1-s1"


# ---- a run, a folder and a file name a prompt -----------------------------------------------


def test_a_run_names_its_best_prompt_or_all_of_them(tmp_path):
    run = write_run(tmp_path / "run")
    assert find_prompts(run) == [run / "prompts/p1-s2/prompt.safetensors"]
    assert find_prompts(str(run)) == find_prompts(run)
    assert names(find_prompts(run, every=True)) == ORDERS["accuracy"]


def test_a_run_goes_by_what_it_was_selected_by(tmp_path):
    run = write_run(tmp_path / "run", select_by="loss")
    assert names(find_prompts(run, every=True)) == ORDERS["loss"]


@pytest.mark.parametrize("every", [True, False])
def test_a_prompt_folder_and_a_file_name_themselves(tmp_path, every):
    run = write_run(tmp_path / "run")
    path = run / "prompts/p1-s0/prompt.safetensors"
    assert find_prompts(path, every) == [path]
    assert find_prompts(path.parent, every) == [path]


def test_a_run_that_has_not_finished_is_none(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    sentence = "is no finished run, no prompt folder and no prompt.safetensors"
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{path} {sentence}"):
            find_prompts(path)


DAMAGED = [
    "",
    "{",
    "[]",
    '{"prompts": [{}], "baselines": {}}',
    '{"prompts": [], "baselines": {"majority": 0.5, "untrained": 0.5}}',
    '{"prompts": [{"name": "../x", "selection": {}}]}',
    '{"prompts": [{"name": "p1-s0/../../x", "selection": {}}]}',
    '{"prompts": [{"name": "p1-s0\\u0000", "selection": {}}]}',
    '{"prompts": [{"name": "p1-s0", "selection": {"accuracy": 2}}]}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_summary_is_named(tmp_path, text):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(text)
    with pytest.raises(ValueError, match="summary.json .*damaged"):
        find_prompts(run)


@cases(100, edits=EDITS)
def test_mutated_bytes_lead_to_prompts_of_the_run_or_are_refused(tmp_path_factory, edits):
    run = tmp_path_factory.mktemp("run")
    data = to_json(Summary(ROWS)).encode()
    (run / "summary.json").write_bytes(mutate(data, edits))
    found = answer_of(find_prompts, run, True, naming="summary.json")
    for path in found or []:
        assert path.resolve().parent.parent == (run / "prompts").resolve()


KEYS = ["prompts", "baselines", "finished", "select_by"]


@cases(100, key=st.sampled_from(KEYS), odd=ODD)
def test_odd_values_lead_to_prompts_of_the_run_or_are_refused(tmp_path_factory, key, odd):
    run = tmp_path_factory.mktemp("run")
    summary = json.loads(to_json(Summary(ROWS)))
    (run / "summary.json").write_bytes(spliced(summary, key, odd))
    found = answer_of(find_prompts, run, True, naming="summary.json")
    for path in found or []:
        assert path.resolve().parent.parent == (run / "prompts").resolve()


# ---- there and back -------------------------------------------------------------------------


def test_a_summary_that_is_written_is_read_as_it_was(tmp_path):
    (tmp_path / "s.json").write_text(to_json(Summary(ROWS, {"untrained": None}), indent=2))
    assert load(tmp_path / "s.json", Summary) == Summary(ROWS, {"untrained": None})


NAMES = st.builds(
    "p{}-s{}{}".format,
    st.integers(1, 10**6),
    st.integers(0, 2**63 - 1),
    st.just("") | st.builds("-lr{}".format, st.floats(1e-30, 1e30)),
)


@cases(150, names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_each_name_of_a_prompt_of_ours_can_be_read(names):
    summary = Summary([row(name) for name in names])
    assert from_json(Summary, to_json(summary), "summary.json") == summary
