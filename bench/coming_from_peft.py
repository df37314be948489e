"""PEFT's prompt, which stands before the text, beside ours, which stands after it, on equal terms.

    pip install -e '.[bench]'
    python bench/coming_from_peft.py               some twelve minutes on one core

Equal are the model, the texts, the batches, 10 virtual tokens that begin as random tokens, epochs,
AdamW without weight decay, the learning rates and their warm-up, clipping, the choice of the epoch
on held-out texts, float32, no dropout, and one thread.  CPU seconds go from the checkpoint to the
accuracy on dev; imports are not in them.
"""

import copy
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import peft
import torch
import transformers
from torch.nn.functional import cross_entropy

import evaluate
import train
from data import batches, cut, epoch_order
from support.dataset import open_dataset
from support.settings import Parser, Settings, checked
from support.terminal import cell, emit, ending, say, table_text

TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"
SHORT = "great fun"
LONG = "two long hours without a single idea , and then the film begins all over again"
LR = 0.03
HEAD_LR = 0.005
BATCH = 16
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)


@dataclass(frozen=True)
class Result:
    """What one way of training came to."""

    accuracies: list[float]  # on dev, of each seed
    seconds: list[float]  # of CPU time
    ask: Callable  # texts -> probabilities of label 1, by the first seed's prompt


# ---- PEFT -----------------------------------------------------------------------------------


def peft_model(seed, side):
    """(tokenizer, model) as PEFT's own examples make them; side: where the tokenizer puts pads."""
    torch.manual_seed(seed)
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(TINY, padding_side=side)
    tokenizer.pad_token = tokenizer.eos_token  # once for the tokenizer
    base = transformers.GPT2ForSequenceClassification.from_pretrained(
        TINY, num_labels=2, dtype=torch.float32
    )
    # And once for the model, which else refuses a batch.
    base.config.pad_token_id = tokenizer.pad_token_id
    config = peft.PromptTuningConfig(
        task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=10, prompt_tuning_init="SAMPLE_VOCAB"
    )
    model = peft.get_peft_model(base, config).eval()  # without dropout, as this project
    return tokenizer, model


def logits_of(tokenizer, model, texts):
    """B texts -> logits (B, 2); with texts of several lengths some are padded"""
    return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


@torch.no_grad()
def score(tokenizer, model, pairs):
    """(accuracy, loss) on [(text, label)], texts of near-equal lengths together"""
    pairs = sorted(pairs, key=lambda pair: len(tokenizer.encode(pair[0])))
    labels = torch.tensor([label for _, label in pairs])  # (n,)
    parts = []
    for some in cut(pairs, BATCH):
        parts.append(logits_of(tokenizer, model, [text for text, _ in some]))
    logits = torch.cat(parts)  # (n, 2)
    right = logits.argmax(dim=1) == labels
    return right.double().mean().item(), cross_entropy(logits, labels).item()


def run_peft(seed, side, dataset, epochs):
    """Train one prompt as train.py does, with PEFT's model -> its Result."""
    start = time.process_time()
    tokenizer, model = peft_model(seed, side)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for name, parameter in learned.items():
        groups.append({"params": [parameter], "lr": HEAD_LR if "score" in name else LR})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    # The same batches in the same order, and the same rates.
    examples = [(tokenizer.encode(text), label) for text, label in dataset.train]
    plan = batches(examples, BATCH)
    total = epochs * len(plan)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: train.lr_share(step, total))

    best = (-1.0, 0.0)
    kept = None
    for epoch in range(1, epochs + 1):
        for number in epoch_order(len(plan), epoch):
            pairs = [dataset.train[i] for i in plan[number]]
            logits = logits_of(tokenizer, model, [text for text, _ in pairs])
            loss = cross_entropy(logits, torch.tensor([label for _, label in pairs]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned.values(), train.CLIP)
            optimizer.step()
            rate.step()
        # The epoch is chosen on held-out texts.
        accuracy, loss = score(tokenizer, model, dataset.held)
        if (accuracy, -loss) > best:
            best = (accuracy, -loss)
            kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    accuracy, _ = score(tokenizer, model, dataset.dev)
    spent = time.process_time() - start
    say(f"PEFT, {side} padding, seed {seed}: dev {accuracy:.4f}, {spent:.0f} s")

    def ask(texts):
        return logits_of(tokenizer, model, texts).softmax(dim=1)[:, 1].tolist()

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
    parser = Parser(description=__doc__)
    seed = checked(Settings, "seeds")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=checked(Settings, "epochs"), default=6)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    dataset = open_dataset("reviews")  # train, held out and dev of a run with no flags
    results = {"this project, one pack": run_ours(args.seeds, args.epochs)}
    for side in ("left", "right"):
        each = [run_peft(seed, side, dataset, args.epochs) for seed in args.seeds]
        results[f"PEFT, {side} padding"] = Result(
            [accuracy for result in each for accuracy in result.accuracies],
            [spent for result in each for spent in result.seconds],
            each[0].ask,
        )
    tell(results, args.seeds)


def tell(results, seeds):
    """{name: Result} as two tables."""
    rows = []
    for name, result in results.items():
        mean = sum(result.accuracies) / len(result.accuracies)
        spent = " + ".join(cell(seconds, ".0f") for seconds in result.seconds)
        rows.append([name, *result.accuracies, mean, spent])
    versions = [f"{module.__name__} {module.__version__}" for module in (peft, transformers, torch)]
    emit("\n" + ", ".join(versions))
    emit(table_text(["accuracy on dev, seeds", *map(str, seeds), "mean", "CPU seconds"], rows))

    # A prompt before the text sees pads, so its answer depends on the company that a text is in.
    rows = []
    for name, result in results.items():
        rows.append([name, result.ask([SHORT])[0], result.ask([SHORT, LONG])[0]])
    table = table_text([f"{SHORT!r} is positive", "alone", "beside a longer text"], rows)
    emit(f"\n{table}")


if __name__ == "__main__":
    main()
