"""What freezing costs: a prompt beside what else could be made of the same model and texts.

    pip install -e '.[bench]'
    python bench/alternatives.py                                       reviews; no test split
    python bench/alternatives.py --data SST-2 --split test --max-examples 8000 --epochs 2
    python bench/alternatives.py --data TREC --only majority words head prompt-10 everything

One row each:

    majority      the commonest label, for every text
    words         scikit-learn: tf-idf of words and pairs of words, logistic regression (ridge
                  regression where the labels are numbers)
    head          a head on a prompt that stays random: train.py --train head
    prompt-P      a prompt of P vectors after the text, and a head: train.py
    peft-10       PEFT's prompt tuning, ten vectors before the text, and a head
    lora          PEFT's LoRA, rank 8 on c_attn, and a head
    last-block    the last block, the last LayerNorm and a head
    everything    all of the model, and a head

Equal are the model, the texts, the epochs, the batches, AdamW without weight decay, the rates' rise
and fall, clipping, float32, no dropout, and one thread.  The hold-out chooses the epoch, and with
the first seed one of three rates.  --split is scored once, with what was chosen, and chooses
nothing.

CPU seconds are those of one training: from the checkpoint to the answers for --split, imports not
included.  A step's memory is what the first step on the longest batch takes above the loaded model:
gradients, optimizer and all that is computed.
"""

import contextlib
import dataclasses
import functools
import io
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

import evaluate
import record
import tables
import train
import ways
from benchmark import Contender, peak_bytes
from data import collate, encode
from metrics import score_of, standing
from support.checkpoint import open_checkpoint
from support.dataset import open_dataset, read_split
from support.settings import Parser, Settings, add_flag, checked
from support.terminal import emit, ending, say, table_text

RATES = {  # of each way, from low to high; of words how weak the penalty is
    "majority": (0.0,),
    "words": (1.0, 10.0, 100.0),
    "head": (0.001, 0.005, 0.02),
    "prompt-1": (0.01, 0.03, 0.1),
    "prompt-10": (0.01, 0.03, 0.1),
    "prompt-20": (0.01, 0.03, 0.1),
    "peft-10": (0.01, 0.03, 0.1),
    "lora": (0.0003, 0.001, 0.003),
    "last-block": (0.0001, 0.0003, 0.001),
    "everything": (0.00003, 0.0001, 0.0003),
}
OURS = ("head", "prompt-1", "prompt-10", "prompt-20")
SURE = ("majority", "words")  # no seed changes them


@dataclass(frozen=True)
class Task:
    """The texts of a run, and how long it trains."""

    data: str
    max_examples: int | None
    epochs: int
    texts: object  # the Dataset; its train cut to max_examples
    split: str  # which is looked at once
    asked: list  # its (text, label) pairs


def open_task(data, split, epochs=None, num_labels=None, max_examples=None):
    """A data set with so many texts to learn from, and the split that is looked at -> Task."""
    texts = open_dataset(data, num_labels=num_labels)
    pairs = texts.train
    if max_examples and max_examples < len(pairs):
        pairs = random.Random(0).sample(pairs, max_examples)  # as train.py draws them
    texts = dataclasses.replace(texts, train=pairs)
    asked = texts.dev
    if split != "dev":
        asked = read_split(data, split, texts.labels, texts.num_labels)
    return Task(data, max_examples, epochs, texts, split, asked)


@dataclass(frozen=True)
class Outcome:
    """One training: its Scores on the hold-out and on the split that is looked at once."""

    seed: int
    rate: float
    held: object
    asked: object
    cpu_seconds: float
    trained: int  # numbers


# ---- one training ---------------------------------------------------------------------------


def majority(task, rate, seed):
    """The commonest label of train for every text; of numbers their mean -> Outcome"""
    labels = torch.tensor([label for _, label in task.texts.train])
    if task.texts.num_labels == 1:
        answer = labels.mean().view(1)  # (1,)
    else:
        answer = torch.bincount(labels, minlength=task.texts.num_labels).log()  # (N,)
        answer = answer.clamp(min=-30)  # a label that train lacks
    found = []
    for pairs in (task.texts.held, task.asked):
        truth = torch.tensor([label for _, label in pairs])
        found.append(score_of(answer.expand(len(pairs), -1), truth))
    return Outcome(seed, rate, *found, 0.0, 0)


def words(task, rate, seed):
    """Words and pairs of words, by scikit-learn -> Outcome"""
    start = time.process_time()
    answer, size = learn_words(task.texts.train, rate, task.texts.num_labels)
    asked = score_words(answer, task.asked)
    spent = time.process_time() - start
    return Outcome(seed, rate, score_words(answer, task.texts.held), asked, spent, size)


def learn_words(pairs, rate, num_labels):
    """Learn from [(text, label)] -> (a function: texts to logits (n, N), how many numbers it has).

    rate: how weak the penalty is.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    x = vectorizer.fit_transform([text for text, _ in pairs])
    y = [label for _, label in pairs]
    model = LogisticRegression(C=rate, max_iter=1000)
    if num_labels == 1:
        model = Ridge(alpha=10 / rate)
    model.fit(x, y)

    def answer(texts):
        bags = vectorizer.transform(texts)
        if num_labels == 1:
            return torch.tensor(model.predict(bags))[:, None].float()  # (n, 1)
        # Of two labels scikit-learn has one column; logarithms of probabilities are logits, too.
        return torch.tensor(model.predict_log_proba(bags)).float()  # (n, N)

    return answer, model.coef_.size + model.intercept_.size


def score_words(answer, pairs):
    """The Score on (text, label) pairs of a function that `learn_words` gave."""
    logits = answer([text for text, _ in pairs])
    return score_of(logits, torch.tensor([label for _, label in pairs]))


def ours(name, task, rate, seed):
    """train.py as a user starts it -> Outcome"""
    kind, _, P = name.partition("-")
    argv = ["--data", task.data, "--epochs", str(task.epochs), "--seeds", str(seed)]
    argv += ["--num-labels", str(task.texts.num_labels), "--dtype", "float32", "--device", "cpu"]
    argv += ["--train", "head", "--head-lr", str(rate)] if kind == "head" else ["--lr", str(rate)]
    argv += ["--prompt-tokens", P or "10", "--batch-size", str(ways.BATCH)]
    if task.max_examples:
        argv += ["--max-examples", str(task.max_examples)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train.main([*argv, "--out", str(run)])
        classifier = evaluate.load(run, device="cpu", dtype="float32")
        asked = score_ours(classifier, task.asked)
        spent = time.process_time() - start
    held = score_ours(classifier, task.texts.held)
    [prompt] = classifier.prompts
    trained = prompt.head.numel() + (0 if kind == "head" else prompt.vectors.numel())
    return Outcome(seed, rate, held, asked, spent, trained)


def score_ours(classifier, pairs):
    """The Score of a loaded prompt on (text, label) pairs."""
    [logits] = classifier.logits(pairs)  # (n, N)
    return score_of(logits, torch.tensor([label for _, label in pairs]))


def theirs(name, task, rate, seed):
    """One of the ways of others, by the loop of bench/ways.py -> Outcome"""
    start = time.process_time()
    way = ways.make(name, rate, seed, task.texts.labels, task.texts.num_labels)
    held = ways.fit(way, encoded(task.texts.train), encoded(task.texts.held), task.epochs)
    asked = ways.score(way, encoded(task.asked))
    spent = time.process_time() - start
    return Outcome(seed, rate, held, asked, spent, sum(x.numel() for x in way.parameters()))


@functools.cache
def bundled():
    """The bundled model's config and tokenizer, opened once and not in every training's seconds."""
    return open_checkpoint("tiny")


def encoded(pairs):
    """[(text, label)] -> [(ids, label)], with room for the longest prompt that is tried here."""
    base = bundled()
    room = base.config.n_positions - 20
    pairs = encode(base.tokenizer, pairs, base.config.n_positions, 20)
    return [(ids[:room], label) for ids, label in pairs]


def training_of(name, task, rate, seed):
    """Train once -> Outcome"""
    if name == "majority":
        return majority(task, rate, seed)
    if name == "words":
        return words(task, rate, seed)
    if name in OURS:
        return ours(name, task, rate, seed)
    return theirs(name, task, rate, seed)


def step_bytes(name, task):
    """Memory of the first step on the longest batch; None of what takes no steps."""
    if name in SURE:
        return None
    way = ways.make(name, RATES[name][0], 0, task.texts.labels, task.texts.num_labels)
    longest = sorted(encoded(task.texts.train), key=lambda example: len(example[0]))[-ways.BATCH :]
    optimizer = ways.optimizer_of(way)

    def step(batch):
        ways.learn(way, optimizer, *batch)

    return peak_bytes(Contender(step, [collate(longest)]), ways.CPU)


# ---- a row ----------------------------------------------------------------------------------


def row_of(name, task, seeds):
    """Choose the rate with the first seed, train the others with it -> a row, as for JSON."""
    tried = {}
    for rate in RATES[name]:
        tried[rate] = training_of(name, task, rate, seeds[0])
        say(f"{name}, rate {rate:g}, seed {seeds[0]}: hold-out {told(tried[rate].held)}")
    rate = max(tried, key=lambda rate: standing(tried[rate].held))
    outcomes = [tried[rate]]
    for seed in seeds[1:]:
        if name not in SURE:
            outcomes.append(training_of(name, task, rate, seed))
    say(f"{name}, rate {rate:g}: {task.split} {' '.join(told(x.asked) for x in outcomes)}")
    trained = outcomes[0].trained
    return {
        "way": name,
        "tried": {str(rate): facts_of(outcome.held) for rate, outcome in tried.items()},
        "rate": rate,
        "seeds": [outcome.seed for outcome in outcomes],
        "held": [facts_of(outcome.held) for outcome in outcomes],
        "asked": [facts_of(outcome.asked) for outcome in outcomes],
        "trained": trained,
        "bytes": 4 * trained,
        "cpu_seconds": statistics.median(outcome.cpu_seconds for outcome in outcomes),
        "step_bytes": step_bytes(name, task),
    }


def facts_of(score):
    """What a row keeps of a Score."""
    kept = ("n", "loss", "accuracy", "ci95", "macro_f1", "pearson", "spearman")
    return {key: getattr(score, key) for key in kept if getattr(score, key) is not None}


def told(score):
    """A Score in a word: the accuracy, or of a regression the squared error and Pearson's r."""
    if score.accuracy is None:
        return f"{score.loss:.3f} (r {score.pearson or 0:.3f})"
    return f"{score.accuracy:.4f}"


# ---- the command line -----------------------------------------------------------------------


def parse_args(argv):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add_flag(parser, Settings, "data")
    add("--split", default="dev", help="what is looked at once: dev or test (%(default)s)")
    add_flag(parser, Settings, "num_labels")
    add_flag(parser, Settings, "max_examples")
    add("--epochs", type=checked(Settings, "epochs"), default=4, help="(%(default)s)")
    add("--seeds", type=checked(Settings, "seeds"), nargs="+", default=[0, 1, 2], help="(0 1 2)")
    add("--only", nargs="+", choices=list(RATES), default=list(RATES), help="these rows alone")
    add("--json", metavar="FILE", help="a new file for the figures")
    return parser.parse_args(argv)


@ending()
def main(argv=None):
    """Train all rows, tell and write them -> the figures."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(1)
    command = ["python", "bench/alternatives.py", *argv]
    figures = record.keep(command, args.json, lambda: measure(args))
    emit(table_text(*tables.ways_rows(figures)))
    return figures


def measure(args):
    """All rows -> the figures, as for JSON."""
    task = open_task(args.data, args.split, args.epochs, args.num_labels, args.max_examples)
    say(
        f"{task.data}: {len(task.texts.train):,} texts to learn from, "
        f"{len(task.texts.held):,} held out, {len(task.asked):,} of {task.split}"
    )
    rows = [row_of(name, task, args.seeds) for name in args.only]
    return {
        "data": task.texts.name if task.data in ("reviews", "sst2") else Path(task.data).name,
        "sizes": {"train": len(task.texts.train), "hold-out": len(task.texts.held)}
        | {task.split: len(task.asked)},
        "split": task.split,
        "epochs": task.epochs,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
