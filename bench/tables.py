"""The tables of docs/, made from the records in docs/records/.

    python bench/tables.py            write them into docs/, between their marks
    python bench/tables.py --check    change nothing; say which table is another than its records

A table stands between <!-- table NAME --> and <!-- end -->.  What is named there is one of the
functions below.
"""

import json
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import benchmark
from support.records import from_json
from support.settings import Parser
from support.statistics import wilson
from support.summary import Summary, best_first
from support.terminal import ending, say

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORDS = DOCS / "records"
MARKED = re.compile(r"(<!-- table ([a-z0-9-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def kept(name):
    """A record by its name."""
    return json.loads((RECORDS / f"{name}.json").read_text())


def markdown(header, rows):
    """A table whose first column is words, and whose others are numbers."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def share(value):
    """An accuracy, or nothing."""
    return "" if value is None else f"{value:.4f}"


def interval(mean, n):
    """The 95 % interval of one accuracy on n texts."""
    low, high = wilson(round(mean * n), n)
    return f"{low:.3f} to {high:.3f}"


# ---- the runs of bench/results.py -----------------------------------------------------------


def runs_table(data):
    """Lengths, rates and first vectors on one data set, a mean over seeds a row."""
    lengths = kept(f"{data}-lengths")
    n = lengths["texts"]["dev"]
    baselines = lengths["summary"]["baselines"]
    rows = [
        ["majority", "", share(baselines["majority"]), "", ""],
        ["untrained prompt and head, 18 of them", "", share(baselines["untrained"]), "", ""],
        run_row("head alone, P = 10", chosen(kept(f"{data}-head")), n),
    ]
    for P in (1, 2, 5, 10, 20, 50):
        rows.append(run_row(f"P = {P}", chosen(lengths, prompt_tokens=P), n))
    for lr in (0.01, 0.1):
        rows.append(run_row(f"P = 10, lr {lr}", chosen(kept(f"{data}-rates"), lr=lr), n))
    for init in ("words", "eot"):
        rows.append(run_row(f"P = 10, --init {init}", chosen(kept(f"{data}-{init}")), n))
    for which, told in (("p20", "three prompts of P = 20"), ("all", "all 18 prompts")):
        accuracy = lengths["together"][which]["accuracy"]
        rows.append([f"ensemble of {told}", "", share(accuracy), "", interval(accuracy, n)])
    return markdown(["", "hold-out", "dev", "sd", "95 % interval"], rows)


def chosen(record, **wanted):
    """The prompts of a run that have these values."""
    rows = record["summary"]["prompts"]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def run_row(name, prompts, n):
    """The mean of prompts that differ in their seeds alone."""
    held = statistics.mean(row["selection"]["accuracy"] for row in prompts)
    dev = [row["accuracy"] for row in prompts]
    mean = statistics.mean(dev)
    return [name, share(held), share(mean), share(statistics.stdev(dev)), interval(mean, n)]


RUNS = {
    "lengths": "six lengths, three seeds",
    "rates": "P = 10, lr 0.01 and 0.1, three seeds",
    "words": "P = 10, --init words, three seeds",
    "eot": "P = 10, --init eot, three seeds",
    "head": "head alone, three seeds",
}


def unseen_table():
    """Of each run on SST-2 the prompt that the hold-out chose, on dev and on test."""
    rows = []
    for name, told in RUNS.items():
        record = kept(f"sst2-{name}")
        best = chosen_row(record, name)
        scores = (best.selection.accuracy, best.accuracy, record["test"]["accuracy"])
        rows.append([told, *map(share, scores)])
    return markdown(["the best prompt of", "hold-out", "dev", "test"], rows)


def chosen_row(record, name):
    """Of the prompts of a run the one that the hold-out chose, a SummaryRow."""
    return best_first(from_json(Summary, json.dumps(record["summary"]), name))[0]


# ---- beside the alternatives ----------------------------------------------------------------

NAMES = {
    "majority": "majority",
    "words": "tf-idf, logistic regression",
    "head": "head alone",
    "prompt-1": "prompt after the text, P = 1",
    "prompt-10": "prompt after the text, P = 10",
    "prompt-20": "prompt after the text, P = 20",
    "peft-10": "PEFT's prompt before the text, P = 10",
    "lora": "LoRA, rank 8 (PEFT)",
    "last-block": "last block",
    "everything": "everything fine-tuned",
}


def ways_rows(record):
    """Every way of a record of bench/alternatives.py -> the header, and the rows as cells."""
    header = ["", "rate", "hold-out", record["split"], "sd", "95 % interval"]
    header += ["numbers trained", "kept, kB", "CPU s", "a step's MiB"]
    return header, [score_cells(row) + cost_cells(row) for row in record["rows"]]


def score_cells(row):
    """A way's name, its rate and its scores: accuracies, or of a regression squared errors."""
    name = NAMES[row["way"]]
    key = "accuracy"
    if key not in row["asked"][0]:
        key = "loss"
        name = name.replace("logistic", "ridge").replace("majority", "the mean")
    asked = [score[key] for score in row["asked"]]
    mean = statistics.mean(asked)
    held = statistics.mean(score[key] for score in row["held"])
    sd = statistics.stdev(asked) if len(asked) > 1 else None
    last = ""
    if key == "accuracy":
        last = interval(mean, row["asked"][0]["n"])
    elif row["trained"]:
        r = statistics.mean(score["pearson"] for score in row["asked"])
        last = f"Pearson's r {r:.3f}"
    rate = f"{row['rate']:g}" if row["rate"] else ""
    return [name, rate, share(held), share(mean), share(sd), last]


def cost_cells(row):
    """Numbers trained, kilobytes to keep, CPU seconds and a step's memory."""
    if not row["trained"]:
        return ["", "", "", ""]
    peak = row["step_bytes"]
    memory = "" if peak is None else f"{peak / 2**20:.0f}"
    return [
        f"{row['trained']:,}",
        f"{row['bytes'] / 1000:,.0f}",
        f"{row['cpu_seconds']:.0f}",
        memory,
    ]


def tasks_table():
    """Other tasks: a row for each of them and each way, the same columns."""
    every = []
    for data in ("trec", "subj", "ratings"):
        record = kept(f"alternatives-{data}")
        header, rows = ways_rows(record)
        every += [[record["data"], *cells] for cells in rows]
    return markdown(["", *header], every)


def few_rows(record):
    """Accuracy by the number of labelled texts, mean (sd) -> the header, and a row for each way."""
    cells = {}
    for row in record["rows"]:
        mean = statistics.mean(row["accuracy"])
        sd = statistics.stdev(row["accuracy"]) if len(row["accuracy"]) > 1 else 0.0
        cells[row["way"], row["texts"]] = f"{mean:.3f} ({sd:.3f})"
    ways = list(dict.fromkeys(way for way, _ in cells))
    sizes = sorted({size for _, size in cells})
    rows = [[NAMES[way], *(cells[way, size] for size in sizes)] for way in ways]
    return ["texts", *(f"{size:,}" for size in sizes)], rows


def peft_rows(record):
    """PEFT's prompt and ours -> the header, and a row for each way."""
    seeds = " ".join(map(str, record["seeds"]))
    header = ["", f"dev, seeds {seeds}", "mean", "CPU seconds"]
    header += ['"great fun" alone', "beside a longer text"]
    rows = []
    for row in record["rows"]:
        each = " ".join(short(accuracy) for accuracy in row["accuracy"])
        spent = " + ".join(f"{seconds:.0f}" for seconds in row["cpu_seconds"])
        cells = [row["name"], each, short(statistics.mean(row["accuracy"])), spent]
        rows.append([*cells, short(row["alone"]), short(row["beside"])])
    return header, rows


def short(value, digits=4):
    """A share as in a sentence, without the zero before it."""
    return f"{value:.{digits}f}".removeprefix("0")


# ---- the official sizes ---------------------------------------------------------------------

POST = {  # its best accuracy on dev, and the length of its best prompt
    "gpt2": (".8704", "P = 20"),
    "gpt2-medium": (".8933", "P = 5"),
    "gpt2-large": (".875", "any"),
    "gpt2-xl": ("", ""),
}


def official_table():
    """The post's figures, and of each model the prompt that the hold-out chose, once it has run."""
    header = ["", "the post, dev", "its prompt", "chosen here", "hold-out", "dev", "test"]
    rows = []
    for model, figures in POST.items():
        row = [model, *figures]
        if not (RECORDS / f"official-{model}.json").exists():
            rows.append(row + ["*not measured*", "", "", ""])
            continue
        record = kept(f"official-{model}")
        best = chosen_row(record, model)
        test = record["test"]["accuracy"] if record["test"] else None
        row.append(f"P = {best.prompt_tokens}, lr {best.lr:g}")
        row += [share(best.selection.accuracy), share(best.accuracy), share(test)]
        rows.append(row)
    return markdown(header, rows)


# ---- speed ----------------------------------------------------------------------------------


def speed_block(name):
    """What bench/benchmark.py printed, indented as code."""
    figures = kept(name)
    lines = [f"$ {figures['command']}", *benchmark.lines_of(figures)]
    return "".join(f"    {line}\n" for line in lines)


def answering_table():
    """Texts a second, this project's predict and transformers' pipeline."""
    speeds = kept("answering")["texts_a_second"]
    header = ["", *speeds]
    rows = []
    for name in speeds["tiny"]:
        rows.append([name, *(f"{found[name]:.1f}" for found in speeds.values())])
    return markdown(header, rows)


TABLES = {
    "reviews": lambda: runs_table("reviews"),
    "sst2": lambda: runs_table("sst2"),
    "unseen": unseen_table,
    "alternatives-sst2": lambda: markdown(*ways_rows(kept("alternatives-sst2"))),
    "alternatives-reviews": lambda: markdown(*ways_rows(kept("alternatives-reviews"))),
    "tasks": tasks_table,
    "few": lambda: markdown(*few_rows(kept("few-examples-sst2"))),
    "peft": lambda: markdown(*peft_rows(kept("peft"))),
    "official": official_table,
    "answering": answering_table,
    "speed-short": lambda: speed_block("speed-short"),
    "speed-short-float32": lambda: speed_block("speed-short-float32"),
    "speed-long": lambda: speed_block("speed-long"),
}


KEPT = "train.py, texts kept"
SENTENCES = [  # (page, a sentence in it, its figure)
    ("README.md", "{}", lambda: default_row("default-float32")),
    ("docs/results.md", "in bfloat16 {}", lambda: default_accuracy("default-bfloat16")),
    ("docs/results.md", "in float32 {}", lambda: default_accuracy("default-float32")),
    ("README.md", "on SST-2 ({})", lambda: beside_words("sst2")),
    ("README.md", "on SUBJ ({})", lambda: beside_words("subj")),
    ("README.md", "TREC ({})", lambda: beside_words("trec")),
    ("README.md", "on SST-2 LoRA has {}", lambda: asked_mean("sst2", "lora")),
    ("README.md", "everything fine-tuned {}, for", lambda: asked_mean("sst2", "everything")),
    ("README.md", "everything fine-tuned has {}", lambda: asked_mean("trec", "everything")),
    ("README.md", "a step is {} times as fast", lambda: times_as_fast("train.py")),
    ("README.md", "and {} times where texts are kept", lambda: times_as_fast(KEPT)),
    ("docs/learn.md", "model.py's step takes {} CPU seconds", lambda: step_seconds("train.py")),
    ("docs/learn.md", "{} where keys and values are kept", lambda: step_seconds(KEPT)),
    ("docs/results.md", "head alone has {}", lambda: asked_mean("trec", "head")),
    ("docs/results.md", "a prompt {}.", lambda: asked_mean("trec", "prompt-10")),
    ("docs/results.md", "to {}.", lambda: asked_mean("trec", "everything")),
    ("docs/results.md", "(squared error {})", lambda: beside_words("ratings")),
]


def beside_words(data):
    """A prompt's accuracy against that of words."""
    return f"{asked_mean(data, 'prompt-10')} against {asked_mean(data, 'words')}"


def asked_mean(data, way):
    """A way's mean on the split that was looked at once, as in a sentence.

    Of accuracies three digits without the zero before them, of squared errors two.
    """
    [row] = [row for row in kept(f"alternatives-{data}")["rows"] if row["way"] == way]
    if "accuracy" in row["asked"][0]:
        mean = statistics.mean(score["accuracy"] for score in row["asked"])
        return short(mean, 3)
    return f"{statistics.mean(score['loss'] for score in row['asked']):.2f}"


def step_seconds(who):
    """CPU seconds of a step, as in a sentence."""
    return short(kept("minimal-beside")["cpu_seconds"][who], 2)


def times_as_fast(who):
    """How many times as fast as minimal.py's a step is."""
    seconds = kept("minimal-beside")["cpu_seconds"]
    return f"{seconds['minimal.py'] / seconds[who]:.1f}"


def default_accuracy(name):
    """The default run's accuracy on dev."""
    [row] = kept(name)["summary"]["prompts"]
    return short(row["accuracy"])


def default_row(name):
    """What the default run prints of its prompt: epoch, hold-out, dev, interval."""
    [row] = kept(name)["summary"]["prompts"]
    low, high = row["ci95"]
    found = f"{row['selection']['accuracy']:.4f} {row['accuracy']:.4f} {low:.3f} to {high:.3f}"
    return f"p10-s0 0.03 {row['epoch']} {found}"


def with_tables(text):
    """A page with every marked table made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[4]}", text)


@ending()
def main(argv=None):
    """Write, or compare, every page of docs/ -> the names of those that differ."""
    parser = Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    args = parser.parse_args(argv)
    differ = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        made = with_tables(text)
        if made == text:
            continue
        differ.append(path.name)
        if not args.check:
            path.write_text(made, encoding="utf-8")
        say(f"docs/{path.name} {'differs from its records' if args.check else 'is written'}")
    return differ


if __name__ == "__main__":
    main()
