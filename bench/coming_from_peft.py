"""PEFT's prompt, which stands before the text, beside ours, which stands after it, on equal terms.

    pip install -e '.[bench]'
    python bench/coming_from_peft.py               some twelve minutes on one core

Equal are the model, the texts, the batches, 10 virtual tokens that begin as random tokens, epochs,
AdamW without weight decay, the learning rates and their warm-up, clipping, the choice of the epoch
on held-out texts, float32, no dropout, and one thread.  CPU seconds go from the checkpoint to the
accuracy on dev; imports are not in them.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch

import evaluate
import record
import tables
import train
import ways
from data import collate, encode
from support.checkpoint import open_checkpoint
from support.dataset import open_dataset
from support.settings import Parser, Settings, checked
from support.terminal import emit, ending, say, table_text

SHORT = "great fun"
LONG = "two long hours without a single idea , and then the film begins all over again"
P = 10
LR = 0.03


@dataclass(frozen=True)
class Result:
    """What one way of training came to."""

    accuracies: list[float]  # on dev, of each seed
    seconds: list[float]  # of CPU time
    ask: Callable  # texts -> probabilities of label 1, by the first seed's prompt


# ---- PEFT -----------------------------------------------------------------------------------


def run_peft(seed, side, dataset, epochs):
    """Train one prompt as train.py does, with PEFT's model -> its Result.

    side: where the tokenizer puts pads.
    """
    base = open_checkpoint("tiny")

    def encoded(pairs):
        return encode(base.tokenizer, pairs, base.config.n_positions, P)

    start = time.process_time()
    way = ways.peft_prompt(P, LR, seed, 2, side)
    ways.fit(way, encoded(dataset.train), encoded(dataset.held), epochs)
    accuracy = ways.score(way, encoded(dataset.dev)).accuracy
    spent = time.process_time() - start
    say(f"PEFT, {side} padding, seed {seed}: dev {accuracy:.4f}, {spent:.0f} s")

    @torch.no_grad()
    def ask(texts):
        ids, lengths, _ = collate(encoded([(text, 0) for text in texts]))
        return way.logits(ids, lengths).softmax(dim=1)[:, 1].tolist()

    return Result([accuracy], [spent], ask)


# ---- this project ---------------------------------------------------------------------------


def run_ours(seeds, epochs):
    """Train all seeds in one pack -> their Result."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        start = time.process_time()
        words = ["--epochs", str(epochs), "--dtype", "float32", "--device", "cpu"]
        train.main(["--seeds", *map(str, seeds), *words, "--out", str(run)])
        spent = time.process_time() - start
        prompts = json.loads((run / "summary.json").read_text())["prompts"]
        first = run / prompts[0]["folder"]
        classifier = evaluate.load(first, device="cpu", dtype="float32")

    def ask(texts):
        return [answer["probabilities"][1] for answer in classifier.predict(texts)]

    return Result([prompt["accuracy"] for prompt in prompts], [spent], ask)


# ---- both -----------------------------------------------------------------------------------


@ending()
def main(argv=None):
    """Train all, tell and write -> the figures."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(description=__doc__)
    seed = checked(Settings, "seeds")
    epochs = checked(Settings, "epochs")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--epochs", type=epochs, default=6, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="a new file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    command = ["python", "bench/coming_from_peft.py", *argv]
    figures = record.keep(command, args.json, lambda: measure(args))
    emit(table_text(*tables.peft_rows(figures)))
    return figures


def measure(args):
    """Both -> the figures, as for JSON."""
    dataset = open_dataset("reviews")  # train, held out and dev of a run with no flags
    results = {}
    for side in ("left", "right"):
        each = [run_peft(seed, side, dataset, args.epochs) for seed in args.seeds]
        results[f"PEFT, pads on the {side}"] = Result(
            [accuracy for result in each for accuracy in result.accuracies],
            [spent for result in each for spent in result.seconds],
            each[0].ask,
        )
    results["this project, one run"] = run_ours(args.seeds, args.epochs)
    return {"seeds": args.seeds, "rows": [facts_of(*named) for named in results.items()]}


def facts_of(name, result):
    """A row of the record: a Result, and what its first prompt says of one text in two companies.

    A prompt before the text sees pads, so its answer depends on the company that a text is in.
    """
    return {
        "name": name,
        "accuracy": result.accuracies,
        "cpu_seconds": result.seconds,
        "alone": result.ask([SHORT])[0],
        "beside": result.ask([SHORT, LONG])[0],
    }


if __name__ == "__main__":
    main()
