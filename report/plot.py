"""Pictures of trained prompts: what they score by their length, and their learning curves."""

import contextlib
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


# ---- learning curves ------------------------------------------------------------------------


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
    """A row of panels for each set of prompts: scores by length, accuracy and loss by epoch."""
    curves = curves_of(files)
    keys = []
    for key in ("accuracy", "loss"):
        if any(getattr(lines[0], key) is not None for lines in curves.values()):
            keys.append(key)
    sets = sets_of(files)
    figure.set_size_inches(5.2 * (1 + len(keys)), 4 * len(sets))
    grid = figure.subplots(len(sets), 1 + len(keys), squeeze=False)
    for group, row in zip(sets, grid, strict=True):
        names = differing(group)
        title = title_of(group)
        draw_lengths(row[0], group, names)
        row[0].set_title(title)
        for axes, key in zip(row[1:], keys, strict=True):
            known = []
            for file in group:
                if file.path in curves and getattr(curves[file.path][0], key) is not None:
                    known.append(file)
            if known:
                draw_epochs(axes, known, curves, key, names)
                axes.set_title(title)
            else:
                axes.remove()
    for axes in figure.axes:
        axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def title_of(files):
    """A model and a data set, by the last part of each path."""
    how = how_of(files[0])
    parts = [Path(str(how[name])).name for name in ("model", "data")]
    return shown(" on ".join(parts))


def draw_lengths(axes, files, names):
    """Score on dev against prompt length, a line for each way of training, and the baselines.

    names: of how_of, in which the ways differ beside length and rate.
    """
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


def label_of(how, names, rates):
    """What a line of a picture is called: what is trained, and what it differs in."""
    parts = [how["train"]]
    if rates:
        parts.append(f"lr {how['lr']}")
    parts += [f"{name} {how[name]}" for name in names]
    return shown(", ".join(parts))


def draw_epochs(axes, files, curves, key, names):
    """Accuracy or loss on selection after each epoch, a curve for each prompt; its choice is
    marked.  Prompts that differ in the seed have one color."""
    lines = sorted(lines_of(files), key=lambda line: line.how["prompt_tokens"])
    rates = len({line.how["lr"] for line in lines}) > 1
    for i, line in enumerate(lines):
        label = f"P = {line.how['prompt_tokens']}, {label_of(line.how, names, rates)}"
        for file in line.files:
            points = curves[file.path]
            axes.plot(
                [point.epoch for point in points],
                [getattr(point, key) for point in points],
                STYLES[line.how["train"]],
                color=f"C{i}",
                linewidth=1,
                markevery=[file.recipe.epoch - 1],
                label=label,
            )
            label = None  # the legend names it once
    axes.set(xlabel="epoch (chosen ones marked)", ylabel=f"{key} on selection")
    axes.locator_params("x", integer=True, min_n_ticks=1)
