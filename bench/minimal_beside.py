"""A step of minimal.py beside a step of train.py: the same texts and weights, one thread.

    python bench/minimal_beside.py                a minute

Sixteen texts of near-equal length are a batch, and --batches of them are spread over an epoch of
reviews.  minimal.py reads one text at a time; model.py reads a batch at once, or has its keys and
values from an earlier epoch.  All learn ten vectors and a head in float32 on the bundled model.
The rounds take turns; told are medians of CPU seconds a step.
"""

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch
from safetensors.torch import load_file

import benchmark
import minimal
import record
from data import batches, collate, encode
from support.checkpoint import open_checkpoint
from support.dataset import open_dataset
from support.packed import pack
from support.settings import Parser, Settings, checked
from support.terminal import ending, say

P = 10
BATCH = 16
TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"


def contenders(gpt2):
    """{who: a step}; gpt2: our body, packed.

    A step takes a batch as [(ids, label)], as [ids, lengths, labels], and its keys and values.
    """
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    stored = load_file(TINY / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in stored.items()}
    step = benchmark.ours(gpt2, [P])
    return {
        "minimal.py": lambda texts, batch, kv: minimal.train(texts, weights, config, P, steps=1),
        "train.py": lambda texts, batch, kv: step(batch),
        "train.py, texts kept": lambda texts, batch, kv: step([*batch, kv]),
    }


def spread(examples, count):
    """So many batches of an epoch, from short texts to long ones, each as [(ids, label)]."""
    plan = sorted(batches(examples, BATCH), key=lambda batch: len(examples[batch[0]][0]))
    chosen = []
    for i in range(count):
        middle = (2 * i + 1) * len(plan) // (2 * count)  # of the i-th part of the epoch
        chosen.append([examples[j] for j in plan[middle]])
    return chosen


def step_seconds(step, todo):
    """CPU seconds of a step, the mean over what is to do."""
    start = time.process_time()
    for given in todo:
        step(*given)
    return (time.process_time() - start) / len(todo)


def measure(args):
    """CPU seconds a step of each -> the figures, as for JSON."""
    checkpoint = open_checkpoint("tiny")
    gpt2 = checkpoint.load(torch.float32, torch.device("cpu"))
    pack(gpt2, with_gradient=True)
    pairs = open_dataset("reviews").train
    examples = encode(checkpoint.tokenizer, pairs, checkpoint.config.n_positions, P)
    todo = []
    for texts in spread(examples, args.batches):
        batch = collate(texts)
        todo.append((texts, batch, gpt2.text_pass(batch[0])))

    steps = contenders(gpt2)
    spent = {name: [] for name in steps}
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            spent[name].append(step_seconds(step, todo))
    seconds = {}
    for name, found in spent.items():
        seconds[name] = statistics.median(found[1:])  # the first round is a warm-up
    for name, found in seconds.items():
        say(f"{name}: {found:.3f} CPU seconds a step, {seconds['minimal.py'] / found:.1f} times")
    return {"batches": args.batches, "rounds": args.rounds, "cpu_seconds": seconds}


@ending()
def main(argv=None):
    """Measure, tell and write -> the figures."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(description=__doc__)
    count = checked(Settings, "batch_size")
    parser.add_argument("--batches", type=count, default=12, help="(%(default)s)")
    parser.add_argument("--rounds", type=count, default=7, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="a new file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    command = ["python", "bench/minimal_beside.py", *argv]
    return record.keep(command, args.json, lambda: measure(args))


if __name__ == "__main__":
    main()
