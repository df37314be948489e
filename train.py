"""Train prompts on a frozen GPT-2.

    python train.py                                      the bundled model and reviews, on a CPU
    python train.py --model gpt2 --data sst2             the real thing; downloads once
    python train.py --data FOLDER --out runs/mine        your train and dev as tsv, csv or jsonl
    python train.py --prompt-tokens 1 5 20 --seeds 0 1 2 nine prompts that share each text pass
    python train.py --train head                         the baseline: the prompt stays as it began
"""

import argparse
import itertools
import json
import math
import os
import platform
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from data import (BUNDLED, LABEL_NAMES, OFFICIAL, TEXT_RULE, Tokenizer, batches, checkpoint_folder,
                  collate, fingerprint, hold_out, read_split, split_file)  # fmt: skip
from evaluate import (add_machine_flags, body_dtype, count, encode, one_sentence, print_table,
                      score)  # fmt: skip
from model import (GPT2Config, Prompt, choose, classify, load_gpt2, load_prompt, losses,
                   save_prompt, weight_files, write_file)  # fmt: skip

WARM_UP = 0.06  # share of the steps in which the learning rates rise; then they fall to zero
CLIP = 1.0  # largest norm of one prompt's gradient, head included
HELD_OUT = 872  # at most, as many as SST-2's dev split has; a tenth of a smaller training set
LOG_EVERY = 10  # steps


def parse_args(argv):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add = parser.add_argument
    add("--model", default=BUNDLED, help=f"{BUNDLED} (bundled), {', '.join(OFFICIAL)} (downloaded "
        "once), a folder, or a hub id (%(default)s)")  # fmt: skip
    add("--data", default="reviews", help="reviews (bundled), sst2 (downloaded once), or a folder "
        "with train and dev as tsv, csv or jsonl (%(default)s)")  # fmt: skip
    add("--out", help="run folder to write (runs/MODEL-DATA)")
    add("--overwrite", action="store_true", help="replace the run that the run folder holds")
    add("--prompt-tokens", type=count, nargs="+", default=[10], help="lengths of the prompts "
        "(%(default)s); a prompt is trained for every length, seed and rate, all of them on one "
        "reading of the texts")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[0], help="of the first vectors (%(default)s)")
    add("--lr", type=positive, nargs="+", default=[3e-2], help="peak learning rates of the prompts "
        "(%(default)s)")  # fmt: skip
    add("--head-lr", type=positive, default=5e-3, help="and of their heads (%(default)s)")
    add("--epochs", type=count, default=6, help="passes over the training texts (%(default)s)")
    add("--steps", type=count, help="train for so many steps instead of --epochs")
    add("--num-labels", type=count, default=2, help="labels are 0 to N-1; with 1 they are numbers, "
        "and a regression is trained (%(default)s)")  # fmt: skip
    add("--init", default="sample", help="first vectors: sample (random tokens), words (the names "
        "of the labels, then random tokens), eot (<|endoftext|>), or a FILE, another "
        "prompt.safetensors (%(default)s)")  # fmt: skip
    add("--train", choices=["prompt+head", "head"], default="prompt+head", help="what is trained; "
        "head is the baseline that leaves the prompt as it began (%(default)s)")  # fmt: skip
    add("--select-on", choices=["hold-out", "dev"], default="hold-out", help="where the best epoch "
        "is chosen: on a part of train that shares no phrase with the rest, or on dev, which then "
        "flatters (%(default)s)")  # fmt: skip
    add("--patience", type=count, help="stop a prompt after so many epochs without a better score")
    add("--max-examples", type=count, help="train on so many random texts only")
    add("--cache-text", type=budget, default="auto", help="memory for the texts' keys and values, "
        "so that later epochs cost only the prompts: off, a size such as 500M or 8G, or auto, a "
        "quarter of the memory, then half of the free disk (%(default)s)")  # fmt: skip
    add("--compile", action="store_true", help="compile the model first, on CUDA into graphs: for "
        "long runs, since the first steps take minutes")  # fmt: skip
    add_machine_flags(parser)
    return parser.parse_args(argv)


def budget(text):
    """argparse type: auto, off (0), or a size in bytes with K, M or G."""
    if text in ("auto", "off"):
        return text if text == "auto" else 0
    unit = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper(), 1)
    if not text.rstrip("KMGkmg").isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither auto, off nor a size such as 8G")
    return int(text.rstrip("KMGkmg")) * unit


def positive(text):
    """argparse type: a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


@dataclass
class Trial:
    """One prompt of the run, how it started, and the best it has been on the selection split."""

    name: str
    seed: int
    lr: float
    prompt: Prompt
    init_ids: list
    best: dict  # the score of the best epoch, with its epoch and state; {} before the first
    waited: int = 0  # epochs since then

    def consider(self, result, epoch):
        """Keep the state if it is the best so far, and say so; equal accuracies go by the loss."""
        rank = lambda score: (score["accuracy"], -score["loss"])
        self.waited += 1
        if self.best and rank(result) <= rank(self.best):
            return False
        state = {name: tensor.detach().clone() for name, tensor in self.prompt.state_dict().items()}
        self.best, self.waited = result | {"epoch": epoch, "state": state}, 0
        return True


def start_trials(args, gpt2, tokenizer, names):
    """A Trial for every prompt length, seed and learning rate.

    Each has a generator of its own, so it starts the same alone and in a pack.  Random tokens come
    from the vocabulary without single bytes (the first 256) and without <|endoftext|>.
    """
    trials, unique = [], map(dict.fromkeys, (args.prompt_tokens, args.seeds, args.lr))
    for P, seed, lr in itertools.product(*unique):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(256, tokenizer.end_of_text, (P,), generator=generator).tolist()
        head = torch.randn(args.num_labels, gpt2.config.n_embd, generator=generator) * 0.02
        if args.init == "words":
            ids = (tokenizer.encode("".join(f" {name}" for name in names)) + ids)[:P]
        elif args.init == "eot":
            ids = [tokenizer.end_of_text] * P
        if args.init in ("sample", "words", "eot"):
            prompt = Prompt(gpt2.wte.weight[ids].float(), head.to(args.device))
        else:
            ids, (prompt, _) = [], load_prompt(args.init)
            wanted, found = (P, *head.shape), (*prompt.vectors.shape[:1], *prompt.head.shape)
            if wanted != found:
                raise ValueError(f"--init {args.init} has (tokens, labels, channels) {found}, but "
                                 f"this run asks for {wanted}")  # fmt: skip
        prompt.vectors.requires_grad_(args.train == "prompt+head")
        name = f"p{P}-s{seed}" + (f"-lr{lr:g}" if len(args.lr) > 1 else "")
        trials.append(Trial(name, seed, lr, prompt.to(args.device), ids, best={}))
    return trials


def learning_rate(step, total):
    """The share of the peak learning rate in step 0 to total-1: linear rise, then linear fall."""
    warm = max(1, round(WARM_UP * total))
    return (step + 1) / warm if step < warm else (total - step) / (total - warm + 1)


def train_step(gpt2, prompts, optimizer, ids, lengths, labels, past=None):
    """One step of K prompts: ids (B, T), lengths (B,), labels (B,) -> losses (K,), correct (K,).

    past: the keys and values of the texts, where these have been read before.
    """
    # ---- the learning algorithm -------------------------------------------------------------
    logits = classify(gpt2, prompts, ids, lengths, past)  # (K, B, N)
    loss = losses(logits, labels)  # (K,)
    optimizer.zero_grad()
    loss.sum().backward()  # the sum, so that no gradient depends on the number of prompts
    for prompt in prompts:
        torch.nn.utils.clip_grad_norm_(prompt.parameters(), CLIP)  # each alone: the same reason
    optimizer.step()
    # -----------------------------------------------------------------------------------------
    return loss.detach(), (choose(logits) == labels).sum(dim=1)


def check_out(args):
    """The run folder to write; nothing but a run is ever written over, and that when told to."""
    out = Path(args.out or f"runs/{Path(args.model).name}-{Path(args.data).name}")
    if (out / "run.json").exists():
        if not args.overwrite:
            raise FileExistsError(f"{out} holds a run: add --overwrite, or name another with --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"--out {out} exists and holds no run; name another folder")
    return out


def read_data(args):
    """(train, held out, dev) as lists of (text, label), and the names of the labels."""
    train, dev = (read_split(args.data, split, args.num_labels) for split in ("train", "dev"))
    held = dev
    if args.select_on == "hold-out":
        train, held = hold_out(train, min(HELD_OUT, len(train) // 10))
        if not held or not train:
            raise ValueError(f"{args.data} has too few training texts to hold some out; "
                             "use --select-on dev")  # fmt: skip
    if args.max_examples:
        train = random.Random(0).sample(train, min(args.max_examples, len(train)))
    classes = max(args.num_labels, 2)  # a regression is scored by a threshold between 0 and 1
    names = LABEL_NAMES.get(args.data, [])
    return train, held, dev, names if len(names) == classes else [str(i) for i in range(classes)]


def open_model(args):
    """(gpt2, tokenizer, where it came from) of --model, fit for the prompts that are asked for."""
    folder, longest = checkpoint_folder(args.model), max(args.prompt_tokens)
    config = GPT2Config.from_json(folder / "config.json")
    tokenizer = Tokenizer(folder / "merges.txt")
    if longest >= config.n_positions:
        raise ValueError(f"--prompt-tokens {longest} leaves no room for a text: {folder} has "
                         f"{config.n_positions} positions")  # fmt: skip
    if tokenizer.size > config.vocab_size:
        raise ValueError(f"{folder}: merges.txt makes {tokenizer.size} tokens, but config.json has "
                         f"{config.vocab_size}")  # fmt: skip
    gpt2 = load_gpt2(folder, body_dtype(args.dtype, args.device), args.device)
    revision = folder / "revision"  # written by a download
    base = {
        "base_model": args.model,
        "base_revision": revision.read_text() if revision.exists() else "",
        "base_sha256": fingerprint(*weight_files(folder)),
    }
    return gpt2, tokenizer, base


class TextCache:
    """Keys and values of training batches, kept from the first epoch: texts never change.

    In memory as far as the budget goes, then in files of the run folder; what fits in neither is
    read again in every epoch.  Kept or read again, the bits are the same.
    """

    def __init__(self, memory, disk, folder):
        self.memory, self.disk, self.folder, self.kept = memory, disk, folder, {}

    @classmethod
    def plan(cls, args, out, gpt2, train_set):
        """The cache that --cache-text asks for, saying what it will hold and why not more."""
        L, C, weight = gpt2.config.n_layer, gpt2.config.n_embd, gpt2.wte.weight
        plan = batches(train_set, args.batch_size, epoch=0)
        tokens = sum(len(batch) * max(len(train_set[i][0]) for i in batch) for batch in plan)
        need = tokens * L * 2 * C * weight.element_size()
        memory, disk = args.cache_text, 0
        if args.cache_text == "auto":
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
            if weight.device.type == "cuda":
                memory = torch.cuda.mem_get_info(weight.device)[0] // 2
            disk = shutil.disk_usage(out).free // 2
        if (args.steps or args.epochs * len(plan)) <= len(plan):
            memory = disk = 0  # nothing is read twice
        held, filed = min(need, memory), max(0, min(need - memory, disk))
        print(f"keys and values of the texts: {need / 1e9:.2f} GB, of which {held / 1e9:.2f} are "
              f"kept in memory and {filed / 1e9:.2f} on disk")  # fmt: skip
        return cls(memory, disk, out / "text-cache")

    def read(self, gpt2, indices, ids):
        """Keys and values (L, 2, B, H, T, D) of the batch with these indices and ids (B, T)."""
        key = indices[0]  # no other batch holds it
        if key in self.kept:
            return self.kept[key].to(ids.device)
        past = gpt2.read(ids)
        if past.nbytes <= self.memory:
            self.memory -= past.nbytes
            self.kept[key] = past
        elif past.nbytes <= self.disk:
            self.disk -= past.nbytes
            self.folder.mkdir(exist_ok=True)
            path = self.folder / str(key)
            past.flatten().view(torch.uint8).cpu().numpy().tofile(path)
            self.kept[key] = torch.from_file(str(path), size=past.numel(), dtype=past.dtype)
            self.kept[key] = self.kept[key].view(past.shape)
        return past


def fit(args, total, gpt2, trials, train_set, held_set, cache, log, save):
    """The loop: train every trial for `total` steps; after each epoch keep what became better."""
    device = gpt2.wte.weight.device
    groups = [{"params": [parameter], "peak": peak} for trial in trials
              for parameter, peak in ((trial.prompt.vectors, trial.lr),
                                      (trial.prompt.head, args.head_lr))]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    # A graph serves one shape, so a compiled model is given few; pads change no result.
    multiple = math.gcd(8, gpt2.config.n_positions) if args.compile else 1
    bar, step, active = tqdm(total=total, unit="step", disable=None), 0, trials
    for epoch in itertools.count(1):
        prompts = [trial.prompt for trial in active]
        recent, since, timed = [], None, 0  # steps since the last line of the log, and their rate
        for indices in batches(train_set, args.batch_size, epoch)[: total - step]:
            batch = [tensor.to(device) for tensor in collate([train_set[i] for i in indices], multiple)]
            past = cache.read(gpt2, indices, batch[0])
            share = learning_rate(step, total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            loss, correct = train_step(gpt2, prompts, optimizer, *batch, past)
            recent.append((loss * len(indices), correct, len(indices)))
            step, timed = step + 1, timed + len(indices)
            bar.update()
            if step % LOG_EVERY == 0:
                n = sum(size for _, _, size in recent)
                loss, accuracy = ((sum(part) / n).tolist() for part in list(zip(*recent))[:2])
                rate = timed / (time.perf_counter() - since) if since else None
                for trial, l, a in zip(active, loss, accuracy):
                    log(step, epoch, trial, "train", l, a, trial.lr * share, rate)
                recent = []
            if since is None or not recent:  # an epoch's first step is warm-up and not timed
                since, timed = time.perf_counter(), 0
        for trial, result in zip(active, score(gpt2, prompts, held_set, args.batch_size)):
            log(step, epoch, trial, args.select_on, result["loss"], result["accuracy"])
            if trial.consider(result, epoch):
                save(trial, result)
        active = [trial for trial in active if not args.patience or trial.waited < args.patience]
        bar.set_postfix_str(f"best {max(trial.best['accuracy'] for trial in trials):.3f}")
        if step == total or not active:
            return bar.close()


@one_sentence
def main(argv=None):
    args = parse_args(argv)

    # What prompts ride on and what they learn from.  Nothing is written before all of it is there.
    out = check_out(args)
    train, held, dev, names = read_data(args)
    gpt2, tokenizer, base = open_model(args)
    trials = start_trials(args, gpt2, tokenizer, names)
    train_set, held_set, dev_set = (
        encode(tokenizer, pairs, gpt2.config.n_positions, max(args.prompt_tokens))
        for pairs in (train, held, dev)
    )
    if args.compile:
        gpt2.compile(mode="reduce-overhead", dynamic=True)
    total = args.steps or args.epochs * math.ceil(len(train_set) / args.batch_size)
    dtype = str(gpt2.wte.weight.dtype).removeprefix("torch.")
    texts = {"train": len(train_set), args.select_on: len(held_set), "dev": len(dev_set)}
    if out.exists():
        shutil.rmtree(out)
    for trial in trials:
        (out / "prompts" / trial.name).mkdir(parents=True)

    def write_json(name, value):
        write_file(out / name, (json.dumps(value, indent=2) + "\n").encode())

    settings = vars(args) | {"out": str(out), "device": str(args.device), "dtype": dtype}
    write_json("run.json", {
        "argv": sys.argv[1:] if argv is None else argv,
        "settings": settings | {"total_steps": total},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "base": base,
        "data": {split: fingerprint(split_file(args.data, split)) for split in ("train", "dev")},
        "texts": texts,
    })  # fmt: skip
    size = sum(parameter.numel() for parameter in gpt2.parameters())
    print(f"model {args.model}: {size:,} frozen parameters in {dtype} on {args.device}")
    print(f"data {args.data}: {', '.join(f'{n:,} {key}' for key, n in texts.items())} texts")

    def save(trial, result):
        """The best state of a trial so far, with how it was trained and how it scored."""
        kept = ("data", "head_lr", "batch_size", "epochs", "steps", "train", "select_on", "dtype")
        recipe = {key: settings[key] for key in kept} | {"lr": trial.lr, "seed": trial.seed}
        save_prompt(out / "prompts" / trial.name / "prompt.safetensors", trial.prompt, base | {
            "labels": names, "init": args.init, "init_ids": trial.init_ids, "text_rule": TEXT_RULE,
            "accuracy": result["accuracy"], "n": result["n"],
            "recipe": recipe | {"epoch": trial.best["epoch"]},
        })  # fmt: skip

    with open(out / "metrics.jsonl", "w", buffering=1) as metrics:

        def log(step, epoch, trial, split, loss, accuracy, lr=None, rate=None):
            print(json.dumps(dict(step=step, epoch=epoch, prompt=trial.name, split=split, loss=loss,
                                  accuracy=accuracy, lr=lr, examples_per_second=rate)),
                  file=metrics)  # fmt: skip

        try:
            cache = TextCache.plan(args, out, gpt2, train_set)
            fit(args, total, gpt2, trials, train_set, held_set, cache, log, save)
        except KeyboardInterrupt:
            print(f"stopped; the best of the whole epochs is in {out / 'prompts'}", file=sys.stderr)
            raise
        finally:
            shutil.rmtree(out / "text-cache", ignore_errors=True)

    # Dev is looked at for the first time here (unless --select-on dev asked for it before).
    for trial in trials:
        trial.prompt.load_state_dict(trial.best["state"])
    results = score(gpt2, [trial.prompt for trial in trials], dev_set, args.batch_size)
    rows = []
    for trial, result in zip(trials, results):
        save(trial, result)
        select = {key: trial.best[key] for key in ("accuracy", "loss", "n")}
        rows.append({
            "name": trial.name, "prompt_tokens": len(trial.prompt.vectors), "seed": trial.seed,
            "lr": trial.lr, "epoch": trial.best["epoch"], "folder": f"prompts/{trial.name}",
            "selection": {"split": args.select_on} | select,
            **{key: result[key] for key in ("accuracy", "ci95", "loss", "n", "collapsed")},
        })  # fmt: skip
    majority = results[0]["majority"]
    write_json("summary.json", {
        "prompts": rows, "baselines": {"majority": majority}, "finished": True,
    })  # fmt: skip
    print_table(["prompt", "lr", "epoch", args.select_on, "dev", "95 % interval"], [
        [row["name"], f"{row['lr']:g}", row["epoch"], f"{row['selection']['accuracy']:.4f}",
         f"{row['accuracy']:.4f}", "{:.3f} to {:.3f}".format(*row["ci95"])] for row in rows
    ] + [["majority", "", "", "", f"{majority:.4f}", ""]])  # fmt: skip
    print(f'try: python evaluate.py predict {out} "a delight from start to finish"')


if __name__ == "__main__":
    main()
