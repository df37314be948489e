"""The prompt before the text (PEFT's prompt tuning) beside the prompt after it (this project), on equal terms.

    pip install -e '.[bench]'
    python bench/coming_from_peft.py               some twelve minutes on one core

Equal are the model, the texts, the batches, 10 virtual tokens that begin as random tokens, epochs, AdamW without weight
decay, the learning rates and their warm-up, clipping, the choice of the epoch on held-out texts, float32, no dropout, and
one thread.  CPU seconds go from the checkpoint to the accuracy on dev; imports are not in them.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import peft
import torch
import transformers
from torch.nn.functional import cross_entropy

import evaluate
import train
from data import batches, cut
from support.fetch import ROOT

TINY = ROOT / "weights" / "tiny"
SHORT, LONG = "great fun", "two long hours without a single idea , and then the film begins all over again"
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)


def peft_model(seed, side):
    """(tokenizer, model) as PEFT's own examples make them; `side` is where the tokenizer puts the pads."""
    torch.manual_seed(seed)
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(TINY, padding_side=side)
    tokenizer.pad_token = tokenizer.eos_token  # once for the tokenizer
    base = transformers.GPT2ForSequenceClassification.from_pretrained(TINY, num_labels=2, dtype=torch.float32)
    base.config.pad_token_id = tokenizer.pad_token_id  # and once for the model, which else refuses a batch
    kind = peft.PromptTuningConfig(task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=10, prompt_tuning_init="SAMPLE_VOCAB")
    return tokenizer, peft.get_peft_model(base, kind).eval()  # eval: without dropout, as this project


def logits_of(tokenizer, model, texts):
    """B texts -> logits (B, 2); with texts of several lengths some are padded"""
    return model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits


@torch.no_grad()
def score(tokenizer, model, pairs):
    """(accuracy, loss) on [(text, label)], texts of near-equal lengths together"""
    pairs = sorted(pairs, key=lambda pair: len(tokenizer.encode(pair[0])))
    texts, labels = zip(*pairs)
    logits, labels = torch.cat([logits_of(tokenizer, model, part) for part in cut(texts, 16)]), torch.tensor(labels)
    return (logits.argmax(dim=1) == labels).double().mean().item(), cross_entropy(logits, labels).item()


def run_peft(seed, side, texts, epochs):
    """Train one prompt as train.py does -> accuracy on dev, CPU seconds, texts -> probabilities of label 1"""
    start, (train_pairs, held, dev) = time.process_time(), texts
    tokenizer, model = peft_model(seed, side)
    learned = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups = [{"params": [tensor], "lr": 0.005 if "score" in name else 0.03} for name, tensor in learned.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    encoded = [(tokenizer.encode(text), label) for text, label in train_pairs]
    total = epochs * len(batches(encoded, 16, epoch=1))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: train.learning_rate(step, total))

    best = (-1.0, 0.0), None
    for epoch in range(1, epochs + 1):
        for chosen in batches(encoded, 16, epoch):
            part, labels = zip(*(train_pairs[i] for i in chosen))
            loss = cross_entropy(logits_of(tokenizer, model, part), torch.tensor(labels))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned.values(), train.CLIP)
            optimizer.step()
            rate.step()
        accuracy, loss = score(tokenizer, model, held)
        if (accuracy, -loss) > best[0]:
            best = (accuracy, -loss), copy.deepcopy(model.state_dict())
    model.load_state_dict(best[1])
    accuracy, spent = score(tokenizer, model, dev)[0], time.process_time() - start
    print(f"PEFT, {side} padding, seed {seed}: dev {accuracy:.4f}, {spent:.0f} s", flush=True)
    return accuracy, spent, lambda texts: logits_of(tokenizer, model, texts).softmax(dim=1)[:, 1].tolist()


def run_ours(seeds, epochs):
    """Train all seeds in one pack -> accuracies on dev, CPU seconds, texts -> probabilities of label 1 by the first"""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        train.main(["--seeds", *map(str, seeds), "--epochs", str(epochs), "--dtype", "float32", "--out", f"{folder}/run"])
        spent = time.process_time() - start
        prompts = json.loads(Path(f"{folder}/run/summary.json").read_text())["prompts"]
        classifier = evaluate.load(f"{folder}/run/{prompts[0]['folder']}", dtype="float32")
    ask = lambda texts: [answer["probabilities"][1] for answer in classifier.predict(texts)]
    return [prompt["accuracy"] for prompt in prompts], [spent], ask


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    texts = train.read_data(train.parse_args([]))[:3]  # train, held out and dev of a run with no flags
    results = {"this project, one pack": run_ours(args.seeds, args.epochs)}
    for side in ("left", "right"):
        accuracies, spent, asks = zip(*(run_peft(seed, side, texts, args.epochs) for seed in args.seeds))
        results[f"PEFT, {side} padding"] = accuracies, spent, asks[0]

    print(f"\npeft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'accuracy on dev, seeds':24}{''.join(f'{seed:8}' for seed in args.seeds)}    mean  CPU seconds")
    for name, (accuracies, spent, _) in results.items():
        cells = "".join(f"{value:8.4f}" for value in (*accuracies, sum(accuracies) / len(accuracies)))
        print(f"{name:24}{cells}  {' + '.join(f'{seconds:.0f}' for seconds in spent)}")
    print(f"\n{f'{SHORT!r} is positive':24}   alone  beside a longer text")
    for name, (*_, ask) in results.items():
        print(f"{name:24}{ask([SHORT])[0]:8.4f}{ask([SHORT, LONG])[0]:8.4f}")


if __name__ == "__main__":
    main()
