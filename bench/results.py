"""The runs behind docs/results.md: each is trained, and kept as a record.

    python bench/results.py docs/records               some forty minutes on one core
    python bench/results.py docs/records --only reviews-lengths reviews-head
    python bench/results.py docs/records --only official-gpt2 --flags '--max-examples 64 --epochs 1'

SST-2 is fetched if it is not in sst2/.  A run whose record is there already is not trained again,
and one that was stopped goes on: so who stops it goes on by the same command.  A record holds the
command, the machine, the summary.json, and what the prompts say together, an ensemble.  Where the
data set has a test split with labels, the best prompt, chosen on the hold-out, is scored on it.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch

import evaluate
import record
import train
from metrics import score_of
from support.dataset import read_split
from support.settings import Parser
from support.terminal import ending, say, warn

SEEDS = "--seeds 0 1 2 --dtype float32 --device cpu"
DATA = {
    "reviews": "--epochs 4",
    "sst2": "--data sst2 --max-examples 8000 --epochs 1",
}
OFFICIAL = (
    "--data sst2 --epochs 3 --prompt-tokens 1 2 5 10 20 50 --seeds 0 1 2 --lr 0.003 0.01 0.03"
)
VARIED = {
    "lengths": "--prompt-tokens 1 2 5 10 20 50",
    "head": "--train head",
    "rates": "--lr 0.01 0.1",
    "words": "--init words",
    "eot": "--init eot",
}
TOGETHER = 20  # of this length the three prompts answer together


def every_run():
    """{name of a record: the flags of its run}"""
    runs = {
        "default-float32": "--dtype float32 --device cpu",
        "default-bfloat16": "--dtype bfloat16 --device cpu",
    }
    for data, size in DATA.items():
        for name, flags in VARIED.items():
            runs[f"{data}-{name}"] = f"{SEEDS} {size} {flags}"
    # The post's models and lengths; on a GPU, and with the hub at hand.
    for model in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        runs[f"official-{model}"] = f"--model {model} {OFFICIAL}"
    return runs


RUNS = every_run()
CPU_RUNS = [name for name in RUNS if not name.startswith("official")]


def train_run(flags, run):
    """Train in the folder run as train.py does, or go on there -> what a record keeps of it."""
    if not (run / "summary.json").exists():
        begun = (run / "run.json").exists()
        train.main(["--resume", str(run)] if begun else [*shlex.split(flags), "--out", str(run)])
    facts = json.loads((run / "run.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    return {
        "texts": facts["texts"],
        "versions": facts["versions"],
        "device": facts["settings"]["device"],
        "dtype": facts["settings"]["dtype"],
        "summary": summary,
        "together": together(run, facts, summary),
        "test": test_of(run, facts),
    }


def test_of(run, facts):
    """The Score of a run's best prompt on the test split; None where there is none."""
    machine = {"device": facts["settings"]["device"], "dtype": facts["settings"]["dtype"]}
    try:
        pairs = read_split(facts["settings"]["data"], "test", facts["labels"])
    except FileNotFoundError:
        return None
    except ValueError as error:  # GLUE's own test split has no labels
        warn(f"nothing is scored on test: {error}")
        return None
    [logits] = evaluate.load(run, **machine).logits(pairs)  # (n, N)
    labels = torch.tensor([label for _, label in pairs])
    return dataclasses.asdict(score_of(logits, labels))


def together(run, facts, summary):
    """What the prompts of a run say together on dev: {which: Score}; of one prompt nothing."""
    rows = summary["prompts"]
    of_one_length = [row for row in rows if row["prompt_tokens"] == TOGETHER]
    groups = {"all": rows, f"p{TOGETHER}": of_one_length}
    pairs = read_split(facts["settings"]["data"], "dev")
    labels = torch.tensor([label for _, label in pairs])
    machine = {"device": facts["settings"]["device"], "dtype": facts["settings"]["dtype"]}
    found = {}
    for name, some in groups.items():
        if len(some) > 1:
            first, *others = [run / row["folder"] for row in some]
            classifier = evaluate.Classifier(evaluate.prompts_of(first, others), **machine)
            logits = classifier.logits(pairs).mean(dim=0)  # (n, N)
            found[name] = dataclasses.asdict(score_of(logits, labels))
    return found


@ending()
def main(argv=None):
    """Train and keep what is not there yet."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="where the records are")
    add("--runs", type=Path, default=Path("runs"), help="where the run folders are (%(default)s)")
    add("--only", nargs="+", choices=list(RUNS), default=CPU_RUNS, metavar="RUN", help="these runs")
    add("--flags", default="", help="more flags for train.py, for a trial")
    args = parser.parse_args(argv)
    for name in args.only:
        path = args.folder / f"{name}.json"
        if path.exists():
            say(f"{path} is there")
            continue
        flags = f"{RUNS[name]} {args.flags}".strip()
        say(f"{name}: python train.py {flags}")
        command = ["python", "train.py", *shlex.split(flags)]
        run = args.runs / name
        record.keep(command, path, lambda flags=flags, run=run: train_run(flags, run))


if __name__ == "__main__":
    main()
