"""The runs behind docs/results.md: each is trained, and kept as a record.

    python bench/results.py docs/records               some forty minutes on one core
    python bench/results.py docs/records --only reviews-lengths reviews-head

SST-2 is fetched if it is not in sst2/.  A run whose record is there already is not trained again,
so who stops it goes on by the same command.  A record holds the command, the machine, the
summary.json, and what the prompts say together, an ensemble.
"""

import dataclasses
import json
import shlex
import sys
import tempfile
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
from support.terminal import ending, say

SEEDS = "--seeds 0 1 2 --dtype float32 --device cpu"
DATA = {
    "reviews": "--epochs 4",
    "sst2": "--data sst2 --max-examples 8000 --epochs 1",
}
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
    return runs


RUNS = every_run()


def train_run(flags):
    """Train as train.py does with these flags -> what a record keeps of it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        train.main([*shlex.split(flags), "--out", str(run)])
        facts = json.loads((run / "run.json").read_text())
        summary = json.loads((run / "summary.json").read_text())
        return {
            "texts": facts["texts"],
            "threads": torch.get_num_threads(),
            "summary": summary,
            "together": together(run, facts, summary),
        }


def together(run, facts, summary):
    """What the prompts of a run say together on dev: {which: Score}; of one prompt nothing."""
    rows = summary["prompts"]
    groups = {"all": rows, f"p{TOGETHER}": []}
    groups[f"p{TOGETHER}"] = [row for row in rows if row["prompt_tokens"] == TOGETHER]
    pairs = read_split(facts["settings"]["data"], "dev")
    labels = torch.tensor([label for _, label in pairs])
    found = {}
    for name, some in groups.items():
        if len(some) > 1:
            first, *others = [run / row["folder"] for row in some]
            files = evaluate.prompts_of(first, others)
            classifier = evaluate.Classifier(files, device="cpu", dtype=facts["settings"]["dtype"])
            logits = classifier.logits(pairs).mean(dim=0)  # (n, N)
            found[name] = dataclasses.asdict(score_of(logits, labels))
    return found


@ending()
def main(argv=None):
    """Train and keep what is not there yet."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the records are")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN")
    args = parser.parse_args(argv)
    for name in args.only:
        path = args.folder / f"{name}.json"
        if path.exists():
            say(f"{path} is there")
            continue
        say(f"{name}: python train.py {RUNS[name]}")
        command = ["python", "train.py", *shlex.split(RUNS[name])]
        record.keep(command, path, lambda name=name: train_run(RUNS[name]))


if __name__ == "__main__":
    main()
