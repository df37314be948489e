"""Train prompts on a frozen GPT-2.

    python train.py                                      the bundled model and reviews, on a CPU
    python train.py --model gpt2 --data sst2             the real thing; downloads once
    python train.py --data FOLDER --out runs/mine        your train and dev as tsv, csv or jsonl
    python train.py --prompt-tokens 1 5 20 --seeds 0 1 2 nine prompts that share each text pass
    python train.py --train head                         the baseline: the prompt stays as it began
    python train.py --resume RUN                         go on where a run was stopped or killed
    torchrun --nproc-per-node 8 train.py --model gpt2-xl --data sst2

Ctrl-C finishes the step, saves, and prints the command that goes on from there.
"""

import argparse
import itertools
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from data import (BUNDLED, LABEL_NAMES, OFFICIAL, TEXT_RULE, TextCache, batches,
                  checkpoint_folder, collate, fingerprint, hold_out, read_split,
                  split_file)  # fmt: skip
from evaluate import (add_machine_flags, add_up, count, encode, one_sentence, open_base,
                      print_table, processes, score)  # fmt: skip
from model import (Prompt, choose, classify, load_prompt, losses, open_safetensors,
                   safetensors_bytes, save_prompt, weight_files, write_file)  # fmt: skip

WARM_UP = 0.06  # share of the steps in which the learning rates rise; then they fall to zero
CLIP = 1.0  # largest norm of one prompt's gradient, head included
HELD_OUT = 872  # at most, as many as SST-2's dev split has; a tenth of a smaller training set
LOG_EVERY = 10  # steps
SAVE_EVERY = 200  # steps, a multiple of the above; also after each epoch


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
    add("--resume", metavar="RUN", help="go on with this run, with the flags it was begun with; "
        "the results are those of a run that was never stopped")  # fmt: skip
    add("--prompt-tokens", type=count, nargs="+", default=[10], help="lengths of the prompts "
        "(%(default)s); a prompt is trained for every length, seed and rate, all of them on one "
        "reading of the texts")  # fmt: skip
    add("--seeds", type=seed, nargs="+", default=[0], help="of the first vectors (%(default)s)")
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
    args = parser.parse_args(argv)
    args.argv, args.stored = argv, None
    if args.resume:
        path = Path(args.resume) / "run.json"
        try:
            args.stored = json.loads(path.read_bytes())
            began = [str(word) for word in args.stored["argv"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path} does not describe a run; name another folder") from None
        args = parser.parse_args(began + argv, args)
        args.out = args.resume
    return args


def budget(text):
    """argparse type: auto, off (0), or a size in bytes with K, M or G."""
    if text in ("auto", "off"):
        return text if text == "auto" else 0
    unit = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper(), 1)
    if not text.rstrip("KMGkmg").isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither auto, off nor a size such as 8G")
    return int(text.rstrip("KMGkmg")) * unit


def seed(text):
    """argparse type: a whole number that a generator takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2**63 - 1")
    return int(text)


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
    best: dict = field(default_factory=dict)  # the score of the best epoch, and which it was
    state: dict = field(default_factory=dict)  # the tensors of that epoch
    waited: int = 0  # epochs since then
    broke: int = 0  # the step in which its gradient was no longer finite

    def consider(self, result, epoch):
        """Keep the state if it is the best so far, and say so; equal accuracies go by the loss."""
        rank = lambda score: (score["accuracy"], -score["loss"])
        self.waited += 1
        if self.best and rank(result) <= rank(self.best):
            return False
        self.best, self.waited = result | {"epoch": epoch}, 0
        self.state = {name: tensor.clone() for name, tensor in self.prompt.state_dict().items()}
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
        trials.append(Trial(name, seed, lr, prompt.to(args.device), ids))
    return trials


def learning_rate(step, total):
    """The share of the peak learning rate in step 0 to total-1: linear rise, then linear fall."""
    warm = max(1, round(WARM_UP * total))
    return (step + 1) / warm if step < warm else (total - step) / (total - warm + 1)


def train_step(gpt2, prompts, optimizer, ids, lengths, labels, past=None, share=1.0):
    """One step of K prompts: ids (B, T), lengths, labels (B,) -> loss, correct, norm, each (K,).

    past: the keys and values of the texts, where these have been read before.  share: which part
    of the step's batch these texts are; the other processes have the rest.
    """
    # ---- the learning algorithm -------------------------------------------------------------
    logits = classify(gpt2, prompts, ids, lengths, past)  # (K, B, N)
    loss = losses(logits, labels)  # (K,)
    optimizer.zero_grad()
    (loss.sum() * share).backward()  # the sum: no gradient depends on the number of prompts
    add_up([tensor.grad for p in prompts for tensor in p.parameters() if tensor.requires_grad])
    clip = torch.nn.utils.clip_grad_norm_
    norm = torch.stack([clip(p.parameters(), CLIP) for p in prompts])  # (K,) each alone, too
    optimizer.step()
    # -----------------------------------------------------------------------------------------
    return loss.detach(), (choose(logits) == labels).sum(dim=1), norm


def join_processes(device):
    """Join what torchrun started -> the device of this process; only the first one speaks."""
    if not dist.is_torchelastic_launched():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.get_rank():
        sys.stdout = open(os.devnull, "w")
    return device


def check_out(args):
    """The run folder to write; nothing but a run is ever written over, and that when told to."""
    out = Path(args.out or f"runs/{Path(args.model).name}-{Path(args.data).name}")
    if args.resume:
        return out
    if (out / "run.json").exists():
        if not args.overwrite:
            raise FileExistsError(f"{out} holds a run: add --overwrite, go on with it by --resume "
                                  f"{out}, or name another with --out")  # fmt: skip
    elif out.exists() and (not out.is_dir() or any(p.suffix != ".tmp" for p in out.iterdir())):
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
    if args.num_labels > len(train):
        raise ValueError(f"--num-labels {args.num_labels} is more than {args.data} has texts")
    if args.max_examples:
        train = random.Random(0).sample(train, min(args.max_examples, len(train)))
    classes = max(args.num_labels, 2)  # a regression is scored by a threshold between 0 and 1
    names = LABEL_NAMES.get(args.data, [])
    return train, held, dev, names if len(names) == classes else [str(i) for i in range(classes)]


def open_model(args):
    """(gpt2, tokenizer, where it came from) of --model, fit for the prompts that are asked for."""
    folder, longest = checkpoint_folder(args.model), max(args.prompt_tokens)
    gpt2, tokenizer = open_base(args, folder)
    if longest >= gpt2.config.n_positions:
        raise ValueError(f"--prompt-tokens {longest} leaves no room for a text: {folder} has "
                         f"{gpt2.config.n_positions} positions")  # fmt: skip
    revision = folder / "revision"  # written by a download
    return gpt2, tokenizer, {
        "base_model": args.model,
        "base_revision": revision.read_text(errors="replace") if revision.exists() else "",
        "base_sha256": fingerprint(*weight_files(folder)),
    }  # fmt: skip


def describe(args, out, total, gpt2, base, names, texts):
    """What run.json says: all that it takes to repeat the run, or to refuse to resume another."""
    data = {split: split_file(args.data, split) for split in ("train", "dev")}
    files = {name: checkpoint_folder(args.model) / name for name in ("config.json", "merges.txt")}
    if args.init not in ("sample", "words", "eot"):
        files["init"] = args.init
    settings = {key: value for key, value in vars(args).items()
                if key not in ("argv", "stored", "resume", "overwrite")}  # fmt: skip
    return {
        "argv": args.argv,
        "settings": settings | {
            "device": str(args.device), "dtype": str(gpt2.wte.weight.dtype).removeprefix("torch."),
            "out": str(out), "total_steps": total, "processes": processes()[1],
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "base": base,
        "data": {split: fingerprint(path) for split, path in data.items()},
        "files": {name: fingerprint(path) for name, path in files.items()},
        "texts": texts,
        "labels": names,
    }  # fmt: skip


def differences(stored, facts):
    """In which settings, weights or files (a name each) the run that began is not this one."""
    for part in ("settings", "base", "data", "files"):
        began = stored.get(part) if isinstance(stored.get(part), dict) else {}
        for key, value in facts[part].items():
            old = began.get(key)
            if key != "out" and old != value:
                yield f"{key} ({part}) was {old} when it began and is {value} now"


class RunFolder:
    """What a run leaves on disk.  Only the first process writes, and files appear when whole.

    run.json, metrics.jsonl, prompts/NAME/prompt.safetensors, checkpoint/state.safetensors (all that
    --resume needs, in one file, so that no two can disagree), and summary.json, written last.
    """

    def __init__(self, path, facts):
        """facts: what run.json says of the run, here or to be written by `prepare`."""
        self.path, self.facts, self.writes = path, facts, processes()[0] == 0
        self.checkpoint = path / "checkpoint" / "state.safetensors"

    def prepare(self, trials, resume):
        """Make the folders, for a fresh run in the place of what is there.

        Killed at any moment, this leaves a run that starts afresh, or no run.
        """
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            for old in self.path.iterdir():
                if old.name != "run.json":
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            self.write_json("run.json", self.facts)
        for folder in (self.checkpoint.parent, *(self.path / "prompts" / t.name for t in trials)):
            folder.mkdir(parents=True, exist_ok=True)

    def write_json(self, name, value):
        if self.writes:
            write_file(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def open_metrics(self, size):
        """Go on with metrics.jsonl after its first `size` bytes."""
        self.metrics = open(self.path / "metrics.jsonl" if self.writes else os.devnull, "ab")
        if self.writes:
            self.metrics.truncate(size)

    def log(self, step, epoch, trial, split, loss, accuracy, lr=None, rate=None):
        line = dict(step=step, epoch=epoch, prompt=trial.name, split=split,
                    loss=loss if math.isfinite(loss) else None,  # JSON knows no NaN
                    accuracy=accuracy, lr=lr, examples_per_second=rate)  # fmt: skip
        self.metrics.write(json.dumps(line).encode() + b"\n")
        self.metrics.flush()

    def save_prompt(self, trial, result):
        """The best state of a trial, with how it was trained and how it scored."""
        if not self.writes:
            return
        settings = self.facts["settings"]
        kept = ("data", "head_lr", "batch_size", "epochs", "steps", "train", "select_on", "dtype")
        recipe = {key: settings[key] for key in kept} | {"lr": trial.lr, "seed": trial.seed}
        path = self.path / "prompts" / trial.name / "prompt.safetensors"
        best = Prompt(trial.state["vectors"], trial.state["head"])
        save_prompt(path, best, self.facts["base"] | {
            "labels": self.facts["labels"], "init": settings["init"], "init_ids": trial.init_ids,
            "text_rule": TEXT_RULE, "accuracy": result["accuracy"], "n": result["n"],
            "recipe": recipe | {"epoch": trial.best["epoch"]},
        })  # fmt: skip

    def save_checkpoint(self, step, epoch, trials, optimizer, window):
        """Where the run stands: tensors, and numbers as JSON in the metadata beside them."""
        if not self.writes:
            return
        tensors = {"window": window}
        for i, trial in enumerate(trials):
            tensors |= {f"{i}.{name}": value for name, value in trial.prompt.state_dict().items()}
            tensors |= {f"{i}.best.{name}": value for name, value in trial.state.items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        os.fsync(self.metrics.fileno())
        numbers = {"step": step, "epoch": epoch, "metrics": self.metrics.tell(), "trials": [
            {"best": trial.best, "waited": trial.waited, "broke": trial.broke} for trial in trials
        ]}  # fmt: skip
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_file(self.checkpoint, safetensors_bytes(tensors, {"numbers": json.dumps(numbers)}))

    def load_checkpoint(self, trials, optimizer):
        """Put everything back -> (step, epoch, window); the beginning where none was saved yet."""
        if not self.checkpoint.exists():
            self.open_metrics(0)
            return 0, 1, None
        device = trials[0].prompt.head.device
        try:
            with open_safetensors(self.checkpoint) as file:
                numbers = json.loads(file.metadata()["numbers"])
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}
            for i, (trial, its) in enumerate(zip(trials, numbers["trials"], strict=True)):
                trial.best, trial.waited, trial.broke = its["best"], its["waited"], its["broke"]
                parts = trial.prompt.state_dict()
                trial.prompt.load_state_dict({name: tensors.pop(f"{i}.{name}") for name in parts})
                if trial.best:
                    trial.state = {name: tensors.pop(f"{i}.best.{name}") for name in parts}
            window, adam = tensors.pop("window"), {}
            for name, tensor in tensors.items():
                _, i, key = name.split(".")
                adam.setdefault(int(i), {})[key] = tensor
            optimizer.load_state_dict(optimizer.state_dict() | {"state": adam})
            self.open_metrics(numbers["metrics"])
            return numbers["step"], numbers["epoch"], window
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self.checkpoint} is no checkpoint of this run ({error}); start "
                             "again with --overwrite") from None  # fmt: skip


class Stopped(Exception):
    """A signal asked for the end, and all that --resume needs has been saved."""


@contextmanager
def signals_noted():
    """-> a list to which SIGINT and SIGTERM are added, instead of ending the process at once."""
    noted = []
    before = {number: signal.signal(number, lambda number, _: noted.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}  # fmt: skip
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(args, total, gpt2, trials, train_set, held_set, run, noted):
    """The loop: train every trial for `total` steps; after each epoch keep what became better.

    noted: the signals received.  Stopped is raised when there is one.
    """
    device, (rank, world) = gpt2.wte.weight.device, processes()
    groups = [{"params": [parameter], "peak": peak} for trial in trials
              for parameter, peak in ((trial.prompt.vectors, trial.lr),
                                      (trial.prompt.head, args.head_lr))]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    step, first, window = run.load_checkpoint(trials, optimizer)
    # A graph serves one shape, so a compiled model is given few; pads change no result.
    multiple = math.gcd(8, gpt2.config.n_positions) if args.compile else 1
    plan = batches(train_set, args.batch_size, first)
    widths = [len(batch) * max(len(train_set[i][0]) for i in batch) for batch in plan]
    epochs = math.ceil(total / len(plan))
    cache = TextCache(args.cache_text, gpt2, widths, epochs - first + 1, run.path / "text-cache",
                      rank, world)  # fmt: skip
    bar = tqdm(total=total, initial=step, unit="step", disable=True if rank else None)

    def still_active():
        return [trial for trial in trials if not trial.broke
                and not (args.patience and trial.waited >= args.patience)]  # fmt: skip

    def save(epoch):
        run.save_checkpoint(step, epoch, trials, optimizer, window)

    def stop_if_told(epoch):
        """End in all processes after a signal to any of them."""
        told = torch.tensor(float(len(noted)), device=device if world > 1 else "cpu")
        add_up([told])
        if told:
            save(epoch)
            raise Stopped(noted[0] if noted else signal.SIGTERM)

    def drop_broken():
        """What broke stays as it was best; the others go on."""
        for trial, at in zip(active, window[3].tolist()):
            if at:
                trial.broke = int(at)
                print(f"{trial.name} stopped: no finite gradient in step {trial.broke}; try a "
                      "lower --lr", file=sys.stderr)  # fmt: skip

    for epoch in range(first, epochs + 1):
        active, since, timed = still_active(), None, 0
        if not active:
            break
        done = step - (epoch - 1) * len(plan)  # more than none where an epoch is resumed
        if not done:
            # Sums since the last line of the log: loss, correct, texts; and the step that broke.
            window = torch.zeros(4, len(active), device=device)
        for indices in batches(train_set, args.batch_size, epoch)[done : done + total - step]:
            if not active:
                break
            # Every process takes its part of the batch; one without any, a text of no weight.
            weight, mine = len(indices[rank::world]), indices[rank::world] or indices[:1]
            batch = collate([train_set[i] for i in mine], multiple)
            batch = [tensor.to(device) for tensor in batch]
            past, rate = cache.read(gpt2, mine, batch[0]), learning_rate(step, total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            loss, correct, norm = train_step(gpt2, [trial.prompt for trial in active], optimizer,
                                             *batch, past, weight / len(indices))  # fmt: skip
            step, timed = step + 1, timed + len(indices)
            bar.update()
            ones = torch.ones_like(loss)
            window[:3] += torch.stack([loss * weight, correct * bool(weight), ones * weight])
            window[3] = torch.where((window[3] == 0) & ~norm.isfinite(), step, window[3])
            if step % LOG_EVERY == 0:
                add_up([sums := window[:3]])
                speed = timed / (time.perf_counter() - since) if since else None
                for trial, l, a in zip(active, *(sums[:2] / sums[2]).tolist()):
                    run.log(step, epoch, trial, "train", l, a, trial.lr * rate, speed)
                drop_broken()
                active = still_active()
                window = torch.zeros(4, len(active), device=device)
            if step % SAVE_EVERY == 0:
                save(epoch)
            if step % LOG_EVERY == 0 or world == 1:
                stop_if_told(epoch)
            if since is None or step % LOG_EVERY == 0:  # an epoch's first step is warm-up
                since, timed = time.perf_counter(), 0
        drop_broken()
        active = still_active()
        if active:
            prompts = [trial.prompt for trial in active]
            for trial, result in zip(active, score(gpt2, prompts, held_set, args.batch_size)):
                run.log(step, epoch, trial, args.select_on, result["loss"], result["accuracy"])
                if trial.consider(result, epoch):
                    run.save_prompt(trial, result)
            bar.set_postfix_str(f"best {max(t.best['accuracy'] for t in trials if t.best):.3f}")
        save(epoch + 1)
        stop_if_told(epoch + 1)
    bar.close()


def summarize(args, gpt2, trials, untrained, dev_set, run):
    """Score the best of every trial on dev, and what it began as, and write summary.json."""
    whole = [(trial, start) for trial, start in zip(trials, untrained) if trial.best]
    if not whole:
        raise ValueError("no prompt came through its first epoch; try a lower --lr")
    for trial, _ in whole:
        trial.prompt.load_state_dict(trial.state)
    prompts = [trial.prompt for pair in zip(*whole) for trial in pair]
    results = score(gpt2, prompts, dev_set, args.batch_size)
    rows, half = [], len(whole)
    for (trial, _), result, start in zip(whole, results[:half], results[half:]):
        run.save_prompt(trial, result)
        select = {key: trial.best[key] for key in ("accuracy", "loss", "n")}
        rows.append({
            "name": trial.name, "prompt_tokens": len(trial.prompt.vectors), "seed": trial.seed,
            "lr": trial.lr, "epoch": trial.best["epoch"], "folder": f"prompts/{trial.name}",
            "selection": {"split": args.select_on} | select, "untrained": start["accuracy"],
            "broke": trial.broke,
            **{key: result[key] for key in ("accuracy", "ci95", "loss", "n", "collapsed")},
        })  # fmt: skip
    untrained = sum(row["untrained"] for row in rows) / half
    baselines = {"majority": results[0]["majority"], "untrained": untrained}
    summary = {"prompts": rows, "baselines": baselines, "finished": True}
    run.write_json("summary.json", summary)
    return summary


def print_summary(summary, out):
    """The table at the end of a run."""
    rows, select = summary["prompts"], summary["prompts"][0]["selection"]["split"]
    print_table(["prompt", "lr", "epoch", select, "dev", "95 % interval"], [
        [row["name"], f"{row['lr']:g}", row["epoch"], f"{row['selection']['accuracy']:.4f}",
         f"{row['accuracy']:.4f}", "{:.3f} to {:.3f}".format(*row["ci95"])] for row in rows
    ] + [[name, "", "", "", f"{value:.4f}", ""]
         for name, value in summary["baselines"].items()])  # fmt: skip
    print(f'try: python evaluate.py predict {out} "a delight from start to finish"')


@one_sentence
def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    args.device = join_processes(args.device)

    # What prompts ride on and what they learn from.  Nothing is written before all of it is there.
    out = check_out(args)
    train, held, dev, names = read_data(args)
    gpt2, tokenizer, base = open_model(args)
    trials, untrained = (start_trials(args, gpt2, tokenizer, names) for _ in range(2))
    train_set, held_set, dev_set = (
        encode(tokenizer, pairs, gpt2.config.n_positions, max(args.prompt_tokens))
        for pairs in (train, held, dev)
    )
    total = args.steps or args.epochs * math.ceil(len(train_set) / args.batch_size)
    texts = {"train": len(train_set), args.select_on: len(held_set), "dev": len(dev_set)}
    facts = describe(args, out, total, gpt2, base, names, texts)

    run = RunFolder(out, facts)
    if args.resume and (refused := next(differences(args.stored, facts), None)):
        raise ValueError(f"{out} cannot be resumed: {refused}; start again with --overwrite")
    run.prepare(trials, args.resume)
    if dist.is_initialized():
        dist.barrier()  # the others look into the folder, too
    settings = facts["settings"]
    size = sum(parameter.numel() for parameter in gpt2.parameters())
    print(f"model {args.model}: {size:,} frozen parameters in {settings['dtype']} on {args.device}")
    print(f"data {args.data}: {', '.join(f'{n:,} {key}' for key, n in texts.items())} texts")

    if args.compile:
        gpt2.compile(mode="reduce-overhead", dynamic=True)
    try:
        with signals_noted() as noted:
            fit(args, total, gpt2, trials, train_set, held_set, run, noted)
        # Dev is looked at for the first time here (unless --select-on dev asked for it before).
        print_summary(summarize(args, gpt2, trials, untrained, dev_set, run), out)
    except (Stopped, KeyboardInterrupt) as stop:
        if run.writes:
            print(f"stopped; go on with: python train.py --resume {out}", file=sys.stderr)
        sys.exit(128 + (stop.args or [signal.SIGINT])[0])
    except OSError as error:  # a full disk
        hint = f"mend that and go on with: python train.py --resume {out}"
        why = f"{error.strerror or error}; {hint}"
        raise OSError(error.errno, why, error.filename or str(out)) from None
    finally:
        shutil.rmtree(out / "text-cache", ignore_errors=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
