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

import copy
import functools
import itertools
import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data import TEXT_RULE, batches, collate, encode, hold_out, label_names, read_split
from evaluate import open_model, score
from model import Prompt, choose, classify, load_prompt, losses, save_prompt
from support import checks, fetch, flags, machine
from support.cache import TextCache
from support.run import Meter, describe, read_facts, refuse_folder, running

WARM_UP = 0.06  # share of the steps in which the learning rates rise; then they fall to zero
CLIP = 1.0  # largest norm of one prompt's gradient, head included
HELD_OUT = 872  # at most, as many as SST-2's dev split has; a tenth of a smaller training set
LOG_EVERY = 10  # steps
CLOSING = "accuracy ci95 loss n collapsed alarm".split()  # what summary.json says of dev
SAVE_EVERY = 200  # steps; also after each epoch
INITS = ("sample", "words", "eot")


def parse_args(argv):
    """The flags of a run; with --resume those that it was begun with, then what is given here."""
    parser = flags.training(__doc__)
    args = parser.parse_args(argv)
    if args.resume:
        checks.resume_alone(args)
        parser.set_defaults(**read_facts(args.resume)["settings"] | {"out": None})
        args = parser.parse_args(argv)
    args.model = fetch.absolute(args.model, fetch.OFFICIAL)
    args.data = fetch.absolute(args.data, fetch.NAMED)
    args.init = fetch.absolute(args.init, INITS)
    args.out = Path(
        args.resume or args.out or f"runs/{Path(args.model).name}-{Path(args.data).name}"
    )
    return args


@dataclass
class Trial:
    """One prompt of the run, how it began, and the best it has been on the selection split."""

    name: str
    seed: int
    lr: float
    prompt: Prompt
    init_ids: list
    best: dict = field(default_factory=dict)  # the score of the best epoch, and which it was
    waited: int = 0  # epochs since then
    broke: int = 0  # the step by which its gradient was no longer finite

    def __post_init__(self):
        self.began, self.kept = copy.deepcopy(self.prompt), copy.deepcopy(self.prompt)

    def consider(self, result, epoch):
        """Keep the prompt if it is the best so far, and say so; equal accuracies go by loss."""
        self.waited += 1
        if self.best:
            ahead = result["accuracy"] - self.best["accuracy"] or self.best["loss"] - result["loss"]
            if not ahead > 0:
                return False
        self.best, self.waited = result | {"epoch": epoch}, 0
        self.kept.load_state_dict(self.prompt.state_dict())
        return True

    def stop(self, step):
        """Its gradient is no longer finite: it leaves the race."""
        self.broke = step
        print(
            f"{self.name} stopped: no finite gradient by step {step}; try a lower --lr",
            file=sys.stderr,
        )

    def state_dict(self):
        """All that changes in training, for --resume."""
        numbers = {"best": self.best, "waited": self.waited, "broke": self.broke}
        return numbers | {"now": self.prompt.state_dict(), "kept": self.kept.state_dict()}

    def load_state_dict(self, state):
        self.prompt.load_state_dict(state["now"])
        self.kept.load_state_dict(state["kept"])
        self.best, self.waited, self.broke = state["best"], state["waited"], state["broke"]


def start_trials(args, gpt2, tokenizer, names, base):
    """A Trial for every prompt length, seed and learning rate.

    It begins with random tokens, or what --init says, and a random head.  Random tokens come from
    the vocabulary without single bytes (the first 256) and without <|endoftext|>.  Each prompt has
    a generator of its own, so it starts the same in any pack.
    """
    trials, unique = [], map(dict.fromkeys, (args.prompt_tokens, args.seeds, args.lr))
    for P, seed, lr in itertools.product(*unique):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(256, tokenizer.end_of_text, (P,), generator=generator).tolist()
        head = torch.randn(args.num_labels, gpt2.config.n_embd, generator=generator) * 0.02
        if args.init == "words":
            ids = (tokenizer.encode(" " + " ".join(names)) + ids)[:P]
        if args.init == "eot":
            ids = [tokenizer.end_of_text] * P
        prompt = Prompt(gpt2.wte.weight[ids].float(), head)  # vectors (P, C), head (N, C)
        if args.init not in INITS:
            ids, (prompt, about) = [], load_prompt(args.init)
            checks.prompt_on_model(args.init, prompt, about, TEXT_RULE, base, gpt2.config)
            checks.init_fits(args.init, (P, *head.shape), (len(prompt.vectors), *prompt.head.shape))
        prompt.vectors.requires_grad_(args.train == "prompt+head")
        name = f"p{P}-s{seed}" + (f"-lr{lr}" if len(args.lr) > 1 else "")
        trials.append(Trial(name, seed, lr, prompt.to(args.device), ids))
    return trials


def learning_rate(step, total):
    """The share of the peak learning rate in step 0 to total-1: linear rise, then linear fall."""
    warm = max(1, round(WARM_UP * total))
    return (step + 1) / warm if step < warm else (total - step) / (total - warm + 1)


def make_optimizer(trials, head_lr):
    """One AdamW for all prompts, a group for each rate: `peak`, reached after the warm-up."""
    of_rate = {head_lr: [trial.prompt.head for trial in trials]}
    for trial in trials:
        of_rate.setdefault(trial.lr, []).append(trial.prompt.vectors)
    groups = [{"peak": peak, "params": tensors} for peak, tensors in of_rate.items()]
    fused = trials[0].prompt.head.device.type in ("cpu", "cuda")  # where torch has one
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=fused)


def train_step(gpt2, prompts, optimizer, ids, lengths, labels, text=None, share=1.0):
    """One step of K prompts: ids (B, T), lengths, labels (B,) -> loss, correct, norm, each (K,).

    text: the keys and values of the texts, where these have been read before.  share: which part
    of the step's batch these texts are; the other processes have the rest.
    """
    # ---- the learning algorithm -------------------------------------------------------------
    logits = classify(gpt2, prompts, ids, lengths, text)  # (K, B, N)
    loss = losses(logits, labels)  # (K,)
    optimizer.zero_grad()
    (loss.sum() * share).backward()  # the sum: no gradient depends on the number of prompts
    grads = [tensor.grad for p in prompts for tensor in p.parameters() if tensor.requires_grad]
    machine.all_reduce(grads)
    clip = torch.nn.utils.clip_grad_norm_
    norm = torch.stack([clip(p.parameters(), CLIP) for p in prompts])  # (K,) each alone, too
    optimizer.step()
    # -----------------------------------------------------------------------------------------
    return loss.detach(), (choose(logits) == labels).sum(dim=1), norm


def fit(args, total, gpt2, trials, train_set, held_set, run, read):
    """Train every trial for `total` steps; after each epoch keep what became better.

    read(indices, ids): keys and values of a batch, from gpt2.read or from a cache before it.
    """
    per_epoch, patience = math.ceil(len(train_set) / args.batch_size), args.patience or math.inf
    optimizer, meter = make_optimizer(trials, args.head_lr), Meter()
    parts = {"optimizer": optimizer, "meter": meter} | {trial.name: trial for trial in trials}
    first = run.load(parts)  # 0, or the step at which a stopped run goes on
    # The same batches come in every epoch: they are made once.
    batch_of = functools.cache(lambda *those: collate([train_set[i] for i in those], args.device))

    for step in run.steps(first, total):
        epoch, at, done = step // per_epoch + 1, step % per_epoch, step + 1
        ends = done % per_epoch == 0 or done == total
        logs = done % LOG_EVERY == 0 or ends

        # a new epoch: its batches, and the prompts that are still in the race
        if at == 0 or step == first:
            plan = batches(train_set, args.batch_size, epoch)
            active = [trial for trial in trials if not trial.broke and trial.waited < patience]
            meter.since = None
        if not active:
            break

        # one step of every active prompt, on one reading of the texts
        indices, n = run.part_of(plan[at])
        batch = batch_of(*indices)
        rate = learning_rate(step, total)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        prompts, text = [trial.prompt for trial in active], read(indices, batch[0])
        result = train_step(gpt2, prompts, optimizer, *batch, text, n / len(plan[at]))
        meter.add(*result, n, len(plan[at]))

        # every ten steps and at an epoch's end: a line for each prompt, and farewell to what broke
        if logs:
            rows, speed = meter.read()
            for trial, (loss, accuracy, health) in zip(active, rows):  # see Meter.read
                run.log(done, epoch, trial.name, "train", loss, accuracy, trial.lr * rate, speed)
                if not math.isfinite(health):
                    trial.stop(done)
            active = [trial for trial in active if not trial.broke]

        # after an epoch: score, and keep what became better
        if ends and active:
            results = score(gpt2, [trial.prompt for trial in active], held_set, args.batch_size)
            for trial, its in zip(active, results):
                run.log(done, epoch, trial.name, args.select_on, its["loss"], its["accuracy"])
                if trial.consider(its, epoch):
                    save_best(run, trial, its)
            leader = max(active, key=lambda trial: trial.best["accuracy"])
            run.tell(epoch, args.select_on, leader.name, leader.best["accuracy"])

        # once in a while, and after a signal: all that --resume needs
        stops = run.told_to_stop(together=logs)
        if ends or done % SAVE_EVERY == 0 or stops:
            run.save(done, parts)
        if stops:
            raise machine.Stopped(stops)


def save_best(run, trial, result, **more):
    """prompts/NAME/prompt.safetensors: the best of a trial, how it came about and how it scored.

    more: what else its metadata says.
    """
    asked = run.facts["settings"]
    recipe = checks.recipe_of(asked)
    recipe |= {"lr": trial.lr, "seed": trial.seed, "epoch": trial.best["epoch"]}
    about = {"labels": run.facts["labels"], "text_rule": TEXT_RULE, "recipe": recipe}
    about |= {"init": asked["init"], "init_ids": trial.init_ids}
    about |= run.facts["base"] | {"selected": trial.best["accuracy"]} | more
    about |= {key: result[key] for key in ("accuracy", "n", "majority")}
    run.check_base()  # that nobody has changed the model under way
    save_prompt(f"prompts/{trial.name}/prompt.safetensors", trial.kept, about, run.write)


def summarize(args, gpt2, trials, dev_set, run):
    """Score the best of every trial on dev, and what it began as -> what summary.json says."""
    trials = [trial for trial in trials if trial.best]
    if not trials:
        raise ValueError("no prompt came through its first epoch; try a lower --lr")
    prompts = [trial.kept for trial in trials] + [trial.began for trial in trials]
    results = score(gpt2, prompts, dev_set, args.batch_size)
    rows = []
    for trial, result, start in zip(trials, results, results[len(trials) :]):
        save_best(run, trial, result, untrained=start["accuracy"])
        selection = {key: trial.best[key] for key in ("accuracy", "loss", "n")}
        row = {
            "name": trial.name,
            "folder": f"prompts/{trial.name}",
            "prompt_tokens": len(trial.kept.vectors),
            "seed": trial.seed,
            "lr": trial.lr,
            "epoch": trial.best["epoch"],
            "broke": trial.broke,
            "selection": {"split": args.select_on} | selection,
            "untrained": start["accuracy"],
        }
        rows.append(row | {key: result[key] for key in CLOSING})
    untrained = sum(row["untrained"] for row in rows) / len(rows)
    baselines = {"majority": results[0]["majority"], "untrained": untrained}
    return {"prompts": rows, "baselines": baselines, "finished": True}


def read_data(args):
    """(train, held out, dev) as lists of (text, label), and the names of the labels."""
    columns = args.text_column, args.label_column
    names = label_names(args.data, columns[1])
    args.num_labels = checks.label_count(args, names)
    N = 0 if names else args.num_labels  # beside names a number would be a slip
    train, dev = (read_split(args.data, split, N, names, columns) for split in ("train", "dev"))
    held = dev
    if args.select_on == "hold-out":
        train, held = hold_out(train, min(HELD_OUT, len(train) // 10))
    checks.enough(args, train, held)
    if args.max_examples:
        train = random.Random(0).sample(train, min(args.max_examples, len(train)))
    # A regression is scored by a threshold, which makes two classes of it.
    classes = max(args.num_labels, 2)
    if args.data in fetch.NAMED and classes == 2:
        names = checks.KNOWN
    return train, held, dev, names or [*map(str, range(classes))]


@machine.ending(patient=True)
@machine.signals
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    machine.join_processes(args.device)
    machine.rank_0_decides(lambda: refuse_folder(args))

    # What prompts ride on and what they learn from.  Nothing is written before all of it is there.
    train, held, dev, names = read_data(args)
    gpt2, tokenizer, base = open_model(args.model, args, not args.resume)
    longest = max(args.prompt_tokens)
    positions = checks.room(longest, gpt2.config.n_positions, args.model)
    trials = start_trials(args, gpt2, tokenizer, names, base)
    train_set, held_set, dev_set = (
        encode(tokenizer, pairs, positions, longest) for pairs in (train, held, dev)
    )

    # What is asked for, in words and in run.json.
    per_epoch = math.ceil(len(train_set) / args.batch_size)
    total = args.steps or args.epochs * per_epoch
    known = {
        "base": base,
        "texts": {"train": len(train), args.select_on: len(held), "dev": len(dev)},
        "labels": names,
        "prompts": [trial.name for trial in trials],
    }
    facts = describe(argv, args, gpt2, total, known)

    with running(args, facts) as run:
        # In one epoch no text is read twice.
        cache = TextCache(args.cache_text if total > per_epoch else 0, gpt2)
        fit(args, total, gpt2, trials, train_set, held_set, run, cache.read)
        # Dev is looked at for the first time here (unless --select-on dev asked for it before).
        run.finish(summarize(args, gpt2, trials, dev_set, run))


if __name__ == "__main__":
    main()
