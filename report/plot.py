"""Pictures of trained prompts: what they score by their length, and their learning curves."""

import contextlib
import math
import statistics
from pathlib import Path

from report.table import (
    baselines_of,
    differing,
    grouped,
    how_of,
    lines_of,
    refuse_without_scores,
    sets_of,
    trained,
)
from support.files import new_file, read_bytes
from support.records import from_json, to_json
from support.run_folder import LogLine
from support.terminal import emit, shown

PICTURES = (".png", ".svg", ".pdf")
WIDTH = 8.5  # inches: about that of a page, on which letters then keep their size
UPPER = 3.6  # inches, the height of scores by length
LOWER = 3.8  # of learning curves
LETTERS = 110  # of a legend's, that fit into the width
STYLES = {"head": "x--", "prompt+head": "o-"}
LEVELS = {"majority": ":", "constant": ":", "untrained": "-."}  # of lines without a prompt
NAMES = {"accuracy": "accuracy", "loss": "squared error"}  # of measures

# ---- files ----------------------------------------------------------------------------------


@contextlib.contextmanager
def new_picture(path):
    """An empty figure that is written to path at the end; None where no path is named.

    Refused before the work, where it can be, and never written over what is there.
    """
    if path is None:
        yield None
        return
    kind = Path(path).suffix.lower()
    if kind not in PICTURES:
        raise ValueError(f"--out {path} should end in .png, .svg or .pdf")
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install -e '.[plot]'") from None
    rcParams["text.parse_math"] = False  # a dollar in a text is a dollar
    with new_file(path) as output:
        figure = Figure(dpi=200, layout="constrained")
        yield figure
        figure.savefig(output, format=kind[1:])


def tell_picture(path, as_json):
    """Say where the picture is, if there is one."""
    if path is not None:
        emit(to_json({"file": path}) if as_json else f"see {path}")


# ---- the log --------------------------------------------------------------------------------


def curves_of(files):
    """{path: [LogLine]} of the prompts that lie in a run folder with a log: what they scored on the
    selection split after epoch 1, 2, ...  Each log is read once."""
    logs = {}
    found = {}
    for file in files:
        folder = file.path.absolute().parent
        log = folder.parent.parent / "metrics.jsonl"
        if log not in logs:
            logs[log] = read_log(log) if log.exists() else {}
        lines = logs[log].get((folder.name, file.recipe.select_on))
        if lines:
            found[file.path] = lines
    return found


def read_log(path):
    """metrics.jsonl -> {(prompt, split): [LogLine]}; ValueError names the line that is none."""
    lines = []
    for number, text in enumerate(read_bytes(path).splitlines(), 1):
        lines.append(from_json(LogLine, text, f"{path}, line {number}"))
    return grouped(lines, lambda line: (line.prompt, line.split))


# ---- drawing --------------------------------------------------------------------------------


def report_plot(runs, out, as_json):
    """Draw the prompts of runs to a file."""
    files = trained(runs)
    refuse_without_scores(files)
    with new_picture(out) as figure:
        draw(figure, files)
    tell_picture(out, as_json)


def draw(figure, files):
    """For each set of prompts what they score by length, and below that their learning curves."""
    curves = curves_of(files)
    sets = sets_of(files)
    known = []
    for group in sets:
        known.append([file for file in group if file.path in curves])
    # Panels of a set do not all stand in one row: shrunk to a page, they could not be read.
    heights = [UPPER + LOWER * bool(group) for group in known]
    figure.set_size_inches(WIDTH, sum(heights))
    places = figure.subfigures(len(sets), 1, squeeze=False, height_ratios=heights)
    for place, group, logged in zip(places[:, 0], sets, known, strict=True):
        if not logged:
            draw_lengths(place, group)
            continue
        upper, lower = place.subfigures(2, 1, height_ratios=(UPPER, LOWER))
        draw_lengths(upper, group)
        draw_curves(lower, logged, curves)


def title_of(files):
    """A model and a data set, by the last part of each path."""
    how = how_of(files[0])
    parts = [Path(str(how[name])).name for name in ("model", "data")]
    return shown(" on ".join(parts))


def draw_legend(place, **more):
    """Name what the first axes in a part of a figure show, below all that is drawn there."""
    handles, labels = place.axes[0].get_legend_handles_labels()
    columns = max(1, LETTERS // (8 + max(map(len, labels))))
    how = {"loc": "outside lower center", "fontsize": "small", "ncols": columns}
    place.legend(handles, labels, **how | more)


# ---- scores by length -----------------------------------------------------------------------


def draw_lengths(place, files):
    """Score on dev against prompt length, a line for each way of training, and the baselines."""
    axes = place.subplots()
    names = differing(files)  # in which the ways differ beside length and rate
    lines = lines_of(files)
    measure = lines[0].measure()
    for name, value in baselines_of(files).items():
        axes.axhline(value, linestyle=LEVELS[name], color="grey", label=name)

    def way_of(line):
        return tuple((key, value) for key, value in line.how.items() if key != "prompt_tokens")

    rates = len({line.how["lr"] for line in lines}) > 1
    for i, way in enumerate(grouped(lines, way_of).values()):
        how = way[0].how
        # Intervals stand side by side, or they would hide one another.
        x = [line.how["prompt_tokens"] * 1.03**i for line in way]
        y = [line.mean(measure) for line in way]
        low = []
        high = []
        for line, middle in zip(way, y, strict=True):
            ends = line.ci95() or [middle, middle]
            low.append(middle - ends[0])
            high.append(ends[1] - middle)
        style = {"fmt": STYLES[how["train"]], "capsize": 3, "alpha": 0.8}
        axes.errorbar(x, y, (low, high), label=label_of(how, names, rates), **style)
    lengths = sorted({file.prompt_tokens for file in files})
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    ends = ", 95 % intervals" if measure == "accuracy" else ""
    axes.set(xlabel="prompt tokens P", ylabel=f"mean {NAMES[measure]} on dev{ends}")
    axes.set_title(title_of(files))
    draw_legend(place)


def label_of(how, names, rates):
    """What a line of a picture is called: what is trained, and what it differs in."""
    parts = [how["train"]]
    if rates:
        parts.append(f"lr {how['lr']}")
    parts += [f"{name} {how[name]}" for name in names]
    return shown(", ".join(parts))


# ---- learning curves ------------------------------------------------------------------------


def draw_curves(place, files, curves):
    """Accuracy and loss on selection after each epoch, side by side.

    Of prompts that differ in the seed alone there is one line, their mean, in a band that reaches
    from the smallest to the largest.
    """
    from matplotlib import colormaps

    shades = colormaps["viridis"]
    names = differing(files)
    lines = sorted(lines_of(files), key=lambda line: line.how["prompt_tokens"])
    rates = len({line.how["lr"] for line in lines}) > 1
    keys = ["loss"]
    if any(curves[file.path][0].accuracy is not None for file in files):
        keys.insert(0, "accuracy")
    splits = sorted({file.recipe.select_on for file in files})
    for axes, key in zip(place.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for i, line in enumerate(lines):
            label = f"P = {line.how['prompt_tokens']}, {label_of(line.how, names, rates)}"
            # From dark to light, as lengths grow; the lightest is too light for white.
            draw_curve(axes, line, curves, key, color=shades(0.9 * i / len(lines)), label=label)
        axes.set(xlabel="epoch (chosen ones marked)", ylabel=f"{key} on {' or '.join(splits)}")
        axes.locator_params("x", integer=True, min_n_ticks=1)
    several = any(len(line.files) > 1 for line in lines)
    title = "mean over seeds; band: from the smallest to the largest of them"
    draw_legend(place, title=title if several else None, title_fontsize="small")


def draw_curve(axes, line, curves, key, **how):
    """Prompts that differ in the seed, as a line: after each epoch the mean of those that were
    still trained; the epochs that were chosen are marked."""
    values = {}  # of each epoch
    for file in line.files:
        for point in curves[file.path]:
            known = values.setdefault(point.epoch, [])
            if getattr(point, key) is not None:
                known.append(getattr(point, key))
    epochs = sorted(values)
    of_epochs = [values[epoch] for epoch in epochs]
    # Where nothing is known there is a gap.
    mean = [statistics.fmean(known) if known else math.nan for known in of_epochs]
    chosen = {file.recipe.epoch for file in line.files}
    marked = [i for i, epoch in enumerate(epochs) if epoch in chosen]
    style = STYLES[line.how["train"]]
    axes.plot(epochs, mean, style, markevery=marked, markersize=5, **how)
    if len(line.files) > 1:
        low = [min(known, default=math.nan) for known in of_epochs]
        high = [max(known, default=math.nan) for known in of_epochs]
        axes.fill_between(epochs, low, high, color=how["color"], alpha=0.12, linewidth=0)
