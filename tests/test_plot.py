"""report/plot.py: what its pictures show, and the files that they go to."""

import json
import sys

import pytest

import evaluate
from desk import SHIPPED, Row, ask, number_rows, told, write_run
from helpers import entries
from report import plot, table
from support.statistics import wilson

pytest.importorskip("matplotlib")


def points(container):
    """[x, y] of a line with intervals."""
    return container.lines[0].get_xydata().tolist()


def ways(axes):
    """{label: container} of the lines with intervals, one for each way of training"""
    return {container.get_label(): container for container in axes.containers}


def levels(axes):
    """{label: y} of the horizontal lines"""
    return {line.get_label(): line.get_ydata()[0] for line in axes.lines}


# ---- scores by length -----------------------------------------------------------------------


@pytest.fixture
def panels(drawn, runs):
    """The three panels of two runs: scores by length, accuracy by epoch, loss by epoch"""
    return drawn("plot", *runs).axes


def test_every_rate_is_a_line_of_scores_by_length(panels):
    lines = ways(panels[0])
    heads = points(lines["head, lr 0.03"])
    one, five = points(lines["prompt+head, lr 0.03"])
    (slow,) = points(lines["prompt+head, lr 0.01"])
    assert list(lines) == ["head, lr 0.03", "prompt+head, lr 0.03", "prompt+head, lr 0.01"]
    assert heads == [[1, 0.55], [5, 0.60]]
    assert one == pytest.approx([1.03, 0.72])  # lines stand side by side
    assert five == pytest.approx([5 * 1.03, 0.80])
    assert slow == pytest.approx([5 * 1.03**2, 0.90])


def test_the_panel_of_scores_says_what_it_shows(panels):
    scores = panels[0]
    ticks = [text.get_text() for text in scores.get_xticklabels()]
    assert scores.get_title() == "tiny on reviews"
    assert scores.get_ylabel() == "mean accuracy on dev, 95 % intervals"
    assert scores.get_xscale() == "log"
    assert ticks == ["1", "5"]


def test_intervals_are_wilsons(panels):
    container = ways(panels[0])["prompt+head, lr 0.03"]
    _, _, (bars,) = container.lines
    one, five = bars.get_segments()
    assert [y for _, y in one] == pytest.approx(wilson(288, 400))
    assert [y for _, y in five] == pytest.approx(wilson(320, 400))


def test_baselines_are_levels(panels):
    found = levels(panels[0])
    assert found["majority"] == 0.52
    assert found["untrained"] == pytest.approx(0.5)


# ---- learning curves ------------------------------------------------------------------------


def bands_of(axes):
    """[{epoch: [low, high]}] of the bands in a panel"""
    found = []
    for band in axes.collections:
        ends = {}
        for x, y in band.get_paths()[0].vertices.tolist():
            ends.setdefault(x, set()).add(y)
        found.append({x: [min(some), max(some)] for x, some in ends.items()})
    return found


def legend_of(axes):
    """The legend that tells what is in a panel"""
    (legend,) = axes.figure.legends
    return legend


def test_prompts_that_differ_in_the_seed_are_a_line_with_a_band(panels):
    _, right, losses = panels
    means = [0.75, 0.70, 0.65, 0.64, 0.66]  # P = 1: head alone first; then two seeds, .71 and .69
    chosen = [[1], [1], [1], [2], [1]]
    for line, y, marks in zip(right.lines, means, chosen, strict=True):
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_ydata() == pytest.approx([y - 0.2, y, y - 0.1])
        assert line.get_markevery() == marks
        assert line.get_marker() in "ox"
    (band,) = bands_of(right)
    assert list(band) == [1, 2, 3]
    assert band[1] == pytest.approx([0.49, 0.51])
    assert band[2] == pytest.approx([0.69, 0.71])
    assert band[3] == pytest.approx([0.59, 0.61])
    for line in losses.lines:
        assert line.get_ydata() == pytest.approx([0.6, 0.5, 0.55])
    assert len(bands_of(losses)) == 1


def test_heads_alone_are_dashed_and_each_line_has_its_color(panels):
    _, right, losses = panels
    styles = [line.get_linestyle() for line in right.lines]
    colors = [line.get_color() for line in right.lines]
    band = right.collections[0].get_facecolor()[0]
    assert styles == ["--", "-", "--", "-", "-"]
    assert len(set(colors)) == 5
    assert colors == [line.get_color() for line in losses.lines]
    assert band[:3] == pytest.approx(colors[1][:3])


def test_a_legend_names_each_line_and_says_what_a_band_is(panels):
    _, right, losses = panels
    assert right.get_ylabel() == "accuracy on hold-out"
    assert losses.get_ylabel() == "loss on hold-out"
    legend = legend_of(right)
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        "P = 1, head, lr 0.03",
        "P = 1, prompt+head, lr 0.03",
        "P = 5, head, lr 0.03",
        "P = 5, prompt+head, lr 0.01",
        "P = 5, prompt+head, lr 0.03",
    ]
    said = "mean over seeds; band: from the smallest to the largest of them"
    assert legend.get_title().get_text() == said


def test_one_seed_has_no_band(drawn, tmp_path):
    run = write_run(tmp_path / "run", Row("a", 1), Row("b", 5))
    _, right, losses = drawn("plot", run).axes
    assert len(right.lines) == len(losses.lines) == 2
    assert bands_of(right) == bands_of(losses) == []
    assert legend_of(right).get_title().get_text() == ""


def log_of(run):
    """The lines of a run's log"""
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def write_log(run, lines):
    """Put another log in a run."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)


def cut_log(run, prompt, epochs):
    """Leave a prompt so many epochs, as one that lost its patience has"""
    kept = []
    for line in log_of(run):
        if line["prompt"] != prompt or line["epoch"] <= epochs:
            kept.append(line)
    write_log(run, kept)


def test_a_seed_that_stopped_early_counts_as_long_as_it_was_trained(drawn, tmp_path):
    rows = [Row("a", 1, 0, selected=0.7), Row("b", 1, 1, selected=0.8)]
    run = write_run(tmp_path / "run", *rows)
    cut_log(run, "p1-s0-a", 2)
    _, right, _ = drawn("plot", run).axes
    (line,) = right.lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([0.55, 0.75, 0.7])
    (band,) = bands_of(right)
    assert band[3] == pytest.approx([0.7, 0.7])


def test_runs_of_unlike_epochs_are_lines_of_unlike_lengths(drawn, tmp_path):
    rows = [Row("a", 1), Row("b", 5, epoch=1, recipe={"epochs": 1})]
    run = write_run(tmp_path / "run", *rows)
    cut_log(run, "p5-s0-b", 1)
    _, right, _ = drawn("plot", run).axes
    assert [len(line.get_xdata()) for line in right.lines] == [3, 1]


def test_each_model_and_data_set_has_panels_of_its_own(drawn, runs, tmp_path):
    row = Row("g", 5, 0, 0.70, 0.99, 0.4, recipe={"data": "sst2"})
    other = write_run(tmp_path / "other", row)
    figure = drawn("plot", runs[0], other)
    assert len(figure.axes) == 6
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["tiny on reviews", "", "", "tiny on sst2", "", ""]
    _, first, _, scores, second, _ = figure.axes
    assert len(first.lines) == 3
    (curve,) = second.lines
    assert curve.get_ydata()[1] == 0.99
    assert points(scores.containers[0]) == [[5, 0.70]]
    assert levels(scores)["untrained"] == 0.4


def test_a_picture_can_be_read_on_a_page(drawn, runs):
    """On 800 pixels a letter of ten points is then thirteen pixels high."""
    figure = drawn("plot", *runs)
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width <= 8.5
    assert 0.5 < width / height < 3
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.width > 0.35 * figure.bbox.width
        assert box.height > 150  # of the figure's pixels, some 1,500
        legend = legend_of(axes).get_window_extent()
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.width


def test_a_prompt_without_a_log_has_no_curve(drawn, tmp_path):
    assert len(drawn("plot", SHIPPED).axes) == 1
    run = write_run(tmp_path / "run", Row("a", recipe={"data": "d"}))
    assert len(drawn("plot", run, SHIPPED).axes) == 4


def test_numbers_are_drawn_by_their_error(drawn, desk, tmp_path):
    run = write_run(tmp_path / "run", *number_rows(desk, tmp_path))
    scores, losses = drawn("plot", run).axes
    assert scores.get_ylabel() == "mean squared error on dev"
    assert points(scores.containers[0]) == [[3, 1.5]]
    assert levels(scores)["constant"] == 2.5
    assert losses.get_ylabel() == "loss on hold-out"


# ---- the log --------------------------------------------------------------------------------


def test_a_log_is_read_once_for_all_prompts(monkeypatch, tmp_path):
    """And each of its lines once: a log of thousands of lines would be slow otherwise."""
    rows = [Row("a", 1, seed) for seed in range(5)]
    run = write_run(tmp_path / "run", *rows)
    logs = []
    lines = []
    read_log = plot.read_log
    from_json = plot.from_json

    def one_log(path):
        logs.append(path)
        return read_log(path)

    def one_line(kind, text, where):
        lines.append(where)
        return from_json(kind, text, where)

    monkeypatch.setattr(plot, "read_log", one_log)
    monkeypatch.setattr(plot, "from_json", one_line)
    curves = plot.curves_of(table.trained([run]))
    assert len(logs) == 1
    assert len(lines) == 5 * 6
    assert [len(curve) for curve in curves.values()] == [3] * 5


def test_a_long_log_is_read_whole(tmp_path):
    rows = [Row("a", 1, seed) for seed in range(48)]
    run = write_run(tmp_path / "run", *rows)
    write_log(run, log_of(run) * 50)
    curves = plot.curves_of(table.trained([run]))
    assert [len(curve) for curve in curves.values()] == [150] * 48


def test_a_log_of_before_the_norm_is_read(tmp_path):
    run = write_run(tmp_path / "run", Row("a"))
    lines = log_of(run)
    for line in lines:
        assert line.pop("norm", 0) is None
    write_log(run, lines)
    found = plot.read_log(run / "metrics.jsonl")
    norms = [line.norm for line in found["p1-s0-a", "hold-out"]]
    assert norms == [None] * 3


GOOD = {"step": 1, "epoch": 1, "prompt": "p", "split": "train", "loss": 1, "accuracy": 1}
ODD = ["{", "[]", '{"step": 1}', '{"step": "x"}', json.dumps(GOOD | {"norm": "1"})]


@pytest.mark.parametrize("line", ODD)
def test_a_line_that_is_none_is_named(capsys, tmp_path, line):
    run = write_run(tmp_path / "run", Row("a"))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    code, out, err = ask(capsys, "plot", run, "--out", tmp_path / "x.svg")
    assert code == 2
    assert "metrics.jsonl, line 7" in err
    assert not out
    assert not (tmp_path / "x.svg").exists()


def test_a_loss_that_was_no_number_leaves_a_gap(drawn, tmp_path):
    run = write_run(tmp_path / "run", Row("a"))
    lines = log_of(run)
    lines[1]["loss"] = None
    write_log(run, lines)
    *_, losses = drawn("plot", run).axes
    first, second, third = losses.lines[0].get_ydata()
    assert first == 0.6
    assert second is None or second != second  # NaN
    assert third == 0.55


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind,start", [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_of_the_kind_of_its_name(capsys, runs, tmp_path, kind, start):
    path = tmp_path / f"a.{kind}"
    code, out, _ = ask(capsys, "plot", *runs, SHIPPED, "--out", path)
    assert code == 0
    assert out == f"see {path}\n"
    assert path.read_bytes().startswith(start)


def test_json_names_the_picture(capsys, runs, tmp_path):
    out = tmp_path / "z.png"
    assert told(capsys, "plot", runs[0], "--out", out) == [{"file": str(out)}]


def test_without_matplotlib_there_is_one_sentence(capsys, runs, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = ask(capsys, "plot", *runs, "--out", tmp_path / "b.png")
    assert code == 2
    assert "pip install" in err
    assert err.count("\n") == 1


@pytest.fixture(params=["plot", "attention"])
def command(request, desk, runs):
    """The words of a command that draws"""
    if request.param == "plot":
        return ["plot", runs[0]]
    return ["attention", desk.a, "x y"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_nothing_is_written_over(capsys, command, tmp_path, kind):
    own = tmp_path / f"own.{kind}"
    other = tmp_path / f"other.{kind}"
    link = tmp_path / f"link.{kind}"
    folder = tmp_path / f"folder.{kind}"
    code, _, _ = ask(capsys, *command, "--out", own)
    assert code == 0
    other.write_text("a day's work\n")
    link.symlink_to(own)
    folder.mkdir()
    before = entries(tmp_path)
    for target in (own, other, link, folder):
        code, out, err = ask(capsys, *command, "--out", target)
        assert code == 2
        assert str(target) in err
        assert not out
    assert entries(tmp_path) == before


def test_what_is_put_there_during_the_work_stays(capsys, monkeypatch, runs, tmp_path):
    out = tmp_path / "x.png"
    real = plot.draw

    def slow(figure, files):
        out.write_text("somebody's\n")
        real(figure, files)

    monkeypatch.setattr(plot, "draw", slow)
    code, _, _ = ask(capsys, "plot", runs[0], "--out", out)
    assert code == 2
    assert out.read_text() == "somebody's\n"
    assert not [*tmp_path.glob(".*")]


def test_where_a_picture_cannot_be_is_told_before_the_work(capsys, desk, monkeypatch, tmp_path):
    def opened(*how):
        pytest.fail("was opened")

    monkeypatch.setattr(evaluate, "open_checkpoint", opened)
    for name in ("nowhere/x.png", "x.gif"):
        code, _, err = ask(capsys, "attention", desk.a, "x", "--out", tmp_path / name)
        assert code == 2
        assert name in err


def test_names_in_a_picture_do_not_speak(drawn, tmp_path):
    row = Row("a", recipe={"data": "odd\x1b[31m$x$_"})
    run = write_run(tmp_path / "run", row)
    figure = drawn("plot", run, kind="svg")
    title = figure.axes[0].get_title()
    assert title.startswith("tiny on odd\\x1b[31m$x$_")
