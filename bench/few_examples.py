"""How many labelled texts does each way need?  Few of them, drawn five times.

    pip install -e '.[bench]'
    python bench/few_examples.py --data SST-2 --split test --rates alternatives-sst2.json

Of the training texts so many are drawn, each label at least once, and all are trained on: with so
few nothing is held out, and no epoch, no rate is chosen.  The rates are those that
bench/alternatives.py chose with many texts of the same data set.  Each training has 128 steps at
least, and four epochs.  Ways and all else as in bench/alternatives.py; --split is scored once a
training.
"""

import json
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch

import alternatives
import record
import tables
import ways
from support.settings import Parser, Settings, add_flag, checked
from support.terminal import emit, ending, say, table_text

SIZES = (16, 64, 256, 1024)
WAYS = ("words", "head", "prompt-10", "everything")
STEPS = 128  # at least
EPOCHS = 4  # at least


def draw(pairs, size, seed):
    """`size` of [(text, label)], each label at least once."""
    labels = {label for _, label in pairs}
    generator = random.Random(seed)
    while True:
        drawn = generator.sample(pairs, size)
        if {label for _, label in drawn} == labels:
            return drawn


def score_after(name, rate, drawn, task, seed):
    """Train one way on the drawn (text, label) pairs -> its Score."""
    if name == "words":
        answer, _ = alternatives.learn_words(drawn, rate, task.texts.num_labels)
        return alternatives.score_words(answer, task.asked)
    way = ways.make(name, rate, seed, task.texts.labels, task.texts.num_labels)
    batches = math.ceil(len(drawn) / ways.BATCH)
    epochs = max(EPOCHS, math.ceil(STEPS / batches))
    ways.fit(way, alternatives.encoded(drawn), None, epochs)
    return ways.score(way, alternatives.encoded(task.asked))


def measure(args):
    """All sizes and ways -> the figures, as for JSON."""
    rates = {}
    for row in json.loads(Path(args.rates).read_text())["rows"]:
        rates[row["way"]] = row["rate"]
    task = alternatives.open_task(args.data, args.split)
    rows = []
    for size in args.sizes:
        for name in args.only:
            found = []
            for seed in range(args.draws):
                drawn = draw(task.texts.train, size, seed)
                found.append(score_after(name, rates[name], drawn, task, seed).accuracy)
            told = " ".join(f"{accuracy:.4f}" for accuracy in found)
            say(f"{size} texts, {name}, rate {rates[name]:g}: {task.split} {told}")
            rows.append({"texts": size, "way": name, "rate": rates[name], "accuracy": found})
    return {
        "data": Path(args.data).name,
        "split": task.split,
        "n": len(task.asked),
        "steps": STEPS,
        "epochs": EPOCHS,
        "rows": rows,
    }


@ending()
def main(argv=None):
    """Train all, tell and write -> the figures."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(description=__doc__)
    add = parser.add_argument
    count = checked(Settings, "batch_size")
    add_flag(parser, Settings, "data")
    add("--split", default="dev", help="what is scored: dev or test (%(default)s)")
    add("--rates", metavar="FILE", required=True, help="what bench/alternatives.py --json wrote")
    add("--sizes", type=count, nargs="+", metavar="N", default=SIZES, help="(16 64 256 1024)")
    add("--draws", type=count, default=5, help="of each size (%(default)s)")
    add("--only", nargs="+", choices=WAYS, default=WAYS, help="these ways alone")
    add("--json", metavar="FILE", help="a new file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    command = ["python", "bench/few_examples.py", *argv]
    figures = record.keep(command, args.json, lambda: measure(args))
    emit(table_text(*tables.few_rows(figures)))
    return figures


if __name__ == "__main__":
    main()
