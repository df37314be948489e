"""Train prompts on a frozen GPT-2.

    python train.py                                       the bundled model and reviews, on a CPU
    python train.py --model gpt2 --data sst2              the real thing; downloads once
    python train.py --data FOLDER --out runs/mine         your train and dev as tsv, csv or jsonl
    python train.py --prompt-tokens 1 5 20 --seeds 0 1 2  nine prompts that share each text pass
    python train.py --train head                          the baseline: the prompt stays as it began
    python train.py --resume RUN                          go on where a run was stopped or killed
    torchrun --nproc-per-node 2 train.py                  several processes share every batch

Ctrl-C finishes the step, saves, and prints the command that goes on from there.
"""

import support.threads  # noqa: F401  before torch

import math
import random
import sys
from pathlib import Path

import torch

from data import batches, collate, encode, epoch_order
from metrics import score
from model import choose, classify, losses
from report import training
from support import checkpoint, dataset
from support.first_vectors import FirstVectors
from support.meter import Meter
from support.packed import pack
from support.processes import all_reduce, body_dtype, device_of, joined, part_of, rank_0_decides
from support.prompt_file import parse_prompt, prompt_bytes
from support.request import came_to, parse_request
from support.run_folder import LogLine, RunFolder, new_facts, refuse_folder
from support.stopping import Stopped, StopRequest
from support.summary import Selection
from support.terminal import ending, progress
from support.text_cache import TextCache
from support.trial import start_trials, summary_of

WARM_UP = 0.06  # share of the steps in which the learning rates rise; then they fall to zero
CLIP = 1.0  # largest norm of one prompt's gradient, head included
LOG_EVERY = 10  # steps
SAVE_EVERY = 200  # steps; also after each epoch

# ---- one step -------------------------------------------------------------------------------


def lr_share(step, total):
    """The share of the peak learning rate in step 0 to total-1: linear rise, then linear fall."""
    # At least one step of warm-up, so that Adam's first, rough estimates move little.
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return (total - step) / (total - warm + 1)


def make_optimizer(trials, head_lr):
    """One AdamW for all prompts, a group for each rate: `peak`, reached after the warm-up."""
    # Heads have a rate of their own.  Few groups are few launches on a GPU.
    of_rate = {head_lr: [trial.prompt.head for trial in trials]}
    for trial in trials:
        of_rate.setdefault(trial.lr, []).append(trial.prompt.vectors)
    groups = []
    for peak, tensors in of_rate.items():
        groups.append({"peak": peak, "params": tensors})
    fused = trials[0].prompt.head.device.type in ("cpu", "cuda")  # where torch has one
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=fused)


def train_step(gpt2, prompts, optimizer, ids, lengths, labels, kv=None, share=1.0):
    """One step of K prompts: ids (B, T), lengths, labels (B,) -> loss, correct, norm, each (K,).

    kv: the keys and values of the texts, where these have been read before.  share: which part
    of the step's batch these texts are; the other processes have the rest.
    """
    # ---- the learning algorithm -------------------------------------------------------------
    logits = classify(gpt2, prompts, ids, lengths, kv)  # (K, B, N)
    loss = losses(logits, labels)  # (K,)
    optimizer.zero_grad()
    (loss.sum() * share).backward()  # the sum: no gradient depends on the number of prompts
    all_reduce([tensor.grad for p in prompts for tensor in p.parameters() if tensor.requires_grad])
    # Each prompt is clipped by its own norm: none depends on its neighbours.
    norms = [torch.nn.utils.clip_grad_norm_(p.parameters(), CLIP) for p in prompts]
    optimizer.step()
    # -----------------------------------------------------------------------------------------
    # Measured before the step, so it costs no second pass.
    correct = (choose(logits) == labels).sum(dim=1)  # (K,)
    return loss.detach(), correct, torch.stack(norms)


# ---- the loop -------------------------------------------------------------------------------


def fit(gpt2, trials, train_set, held_set, run, stop):
    """Train every trial; after each epoch keep what became better.

    train_set, held_set: [(ids, label)].  run: the RunFolder.  stop: the StopRequest.
    """
    settings = run.facts.settings
    total = settings.total_steps
    patience = settings.patience or math.inf

    # The same batches come in every epoch: they are made once, and numbered.
    plan = make_batches(train_set, settings.batch_size, gpt2.wte.weight.device)
    # In one epoch no text is read twice.
    cache = TextCache(settings.cache_text if total > len(plan) else 0, gpt2)

    # All that changes in training, and so all that a checkpoint holds.
    optimizer = make_optimizer(trials, settings.head_lr)
    meter = Meter()
    state = {"optimizer": optimizer, "meter": meter}
    state |= {trial.name: trial for trial in trials}
    first = run.load(state)  # 0, or the step at which a stopped run goes on
    if first == 0:
        run.save(0, state)  # what cannot be written is refused before the work
    clock = training.Clock(first, total)

    for step in progress(range(first, total), "steps", first):
        epoch = step // len(plan) + 1
        at = step % len(plan)
        done = step + 1
        epoch_ends = done % len(plan) == 0 or done == total
        log_now = done % LOG_EVERY == 0 or epoch_ends

        # A new epoch: the order of its batches, and the prompts that are still trained.
        if at == 0 or step == first:
            order = epoch_order(len(plan), epoch)
            active = [t for t in trials if not t.broke_at and t.epochs_since_best < patience]
            meter.start_epoch()
        if not active:
            break

        # One step of every active prompt, on one reading of the texts: of the `whole` batch, which
        # the processes share, n texts are read in this one.
        number = order[at]
        whole, n, ids, lengths, labels = plan[number]
        kv = cache.text_pass(number, ids)  # (L, 2, B, H, T, D)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * lr_share(step, total)
        prompts = [trial.prompt for trial in active]
        result = train_step(gpt2, prompts, optimizer, ids, lengths, labels, kv, n / whole)
        meter.add(*result, n, whole)

        # Every ten steps and at an epoch's end: a line of the log, and no more of what broke.
        if log_now:
            active = log_training(run, active, meter, done, epoch)

        # After an epoch: score, and keep what became better.
        if epoch_ends and active:
            active = score_epoch(run, gpt2, active, held_set, done, epoch)
            training.tell_epoch(epoch, clock, done, active, settings.select_by)

        # Once in a while, and after a signal: all that --resume needs.
        signal = stop.told(log_now, ids.device)
        if epoch_ends or done % SAVE_EVERY == 0 or signal:
            run.save(done, state)
        if signal:
            raise Stopped(signal)


def make_batches(train_set, size, device):
    """[(ids, label)] -> of each batch: how many texts it has, how many of these are read in this
    process, and their ids (B, T), lengths (B,), labels (B,)."""
    # On the device once and for all: a GPU never waits for a copy.
    plan = []
    for indices in batches(train_set, size):
        mine, n = part_of(indices)
        ids, lengths, labels = collate([train_set[i] for i in mine], device)
        plan.append((len(indices), n, ids, lengths, labels))
    return plan


def log_training(run, active, meter, done, epoch):
    """A line for each active prompt -> those of them that are finite, and go on."""
    share = lr_share(done - 1, run.facts.settings.total_steps)
    rows, speed = meter.read()
    # A step that is not finite poisons all that follow, so such a prompt stops here.
    for trial, (loss, accuracy, norm) in zip(active, rows, strict=True):
        if len(trial.prompt.head) == 1:
            accuracy = None  # of numbers no answer is right or wrong
        rate = trial.lr * share
        line = LogLine(done, epoch, trial.name, "train", loss, accuracy, rate, speed, norm)
        run.log(line)
        trial.latest["train"] = line
        if not math.isfinite(norm):
            trial.stop(done)
    return [trial for trial in active if not trial.broke_at]


def score_epoch(run, gpt2, active, held_set, done, epoch):
    """Score the active prompts on the selection split, and keep those that became better.

    What is not finite there is never the best, and goes on no more -> those that go on.
    """
    settings = run.facts.settings
    split = settings.select_on
    prompts = [trial.prompt for trial in active]
    results = score(gpt2, prompts, held_set, settings.batch_size)
    for trial, result in zip(active, results, strict=True):
        line = LogLine(done, epoch, trial.name, split, result.loss, result.accuracy)
        run.log(line)
        trial.latest[split] = line
        if result.broken:
            trial.stop(done)
            continue
        found = Selection(result.accuracy, result.loss, result.n, split, result.macro_f1)
        if trial.consider(found, epoch, settings.select_by):
            run.write_prompt(trial.name, trial.file(run.facts, result))
    return [trial for trial in active if not trial.broke_at]


def finish(gpt2, trials, dev_set, run):
    """Score the best of every trial on dev, and what it began as; write both -> Summary."""
    settings = run.facts.settings
    if not any(trial.best for trial in trials):
        raise ValueError(f"no prompt came through its first epoch; {trials[0].advice()}")
    trials = [trial for trial in trials if trial.best]
    # All of them on one reading of the texts.
    prompts = [trial.best_prompt for trial in trials]
    prompts += [trial.initial for trial in trials]
    results = score(gpt2, prompts, dev_set, settings.batch_size, run.facts.labels)
    best = results[: len(trials)]
    begun = results[len(trials) :]
    for trial, result, start in zip(trials, best, begun, strict=True):
        run.write_prompt(trial.name, trial.file(run.facts, result, start))
    summary = summary_of(trials, best, begun, settings.select_by)
    run.write_summary(summary)
    return summary


# ---- the command line -----------------------------------------------------------------------


@ending()
def main(argv=None):
    """train.py, with these words behind it."""
    argv = sys.argv[1:] if argv is None else argv
    with StopRequest() as stop:
        request = parse_request(argv, __doc__)
        device = device_of(request.settings.device)
        with joined(device):
            rank_0_decides(lambda: refuse_other_runs(request))
            train(request, device, argv, stop)


def refuse_other_runs(request):
    """A new run takes a folder of its own, or one that it may replace; said before the work."""
    if not request.resume:
        asked = request.settings
        refuse_folder(Path(asked.out), request.overwrite, asked.init)


def train(request, device, argv, stop):
    """A run from its request to its summary.  Nothing is written before all of it is there."""
    settings = request.settings
    # What the prompts learn from, and what they ride on.
    texts = dataset.open_dataset(
        settings.data,
        settings.text_column,
        settings.label_column,
        settings.num_labels,
        settings.select_on,
    )
    base = checkpoint.open_checkpoint(settings.model, asked=not request.resume)
    longest = max(settings.prompt_tokens)
    positions = base.config.n_positions
    if longest >= positions:
        raise ValueError(
            f"--prompt-tokens {longest} leaves no room for a text: {base.name} has {positions} "
            "positions"
        )
    # Prompts, heads and all that is computed of them stay in float32.
    gpt2 = base.load(body_dtype(settings.dtype, device), device)
    first_vectors = FirstVectors(settings.init, texts.labels, texts.num_labels, gpt2, base)
    trials = start_trials(settings, first_vectors, device)
    pairs = texts.train
    if settings.max_examples:
        size = min(settings.max_examples, len(pairs))
        pairs = random.Random(0).sample(pairs, size)
    train_set = encode(base.tokenizer, pairs, positions, longest)
    held_set = encode(base.tokenizer, texts.held, positions, longest)
    dev_set = encode(base.tokenizer, texts.dev, positions, longest)

    # What was asked, and what it came to, as run.json.
    settings = came_to(settings, texts.num_labels, gpt2, len(train_set))
    sizes = {"train": len(train_set), settings.select_on: len(held_set), "dev": len(dev_set)}
    names = [trial.name for trial in trials]
    facts = new_facts(settings, base.base, texts, sizes, names, argv)
    training.tell_beginning(facts, gpt2, texts)
    # What will be written has to be what can be read.
    parse_prompt(prompt_bytes(trials[0].file(facts)), "the prompt")

    pack(gpt2, with_gradient=settings.train == "prompt+head")
    run = RunFolder(settings.out, facts, base, device)
    with run.at_work(stop, request.resume, request.overwrite):
        with stop.hold():
            fit(gpt2, trials, train_set, held_set, run, stop)
        # Dev is looked at for the first time here (unless --select-on dev asked for it before).
        summary = finish(gpt2, trials, dev_set, run)
        training.tell_end(summary, settings.out, texts.dev[0][0])
    stop.held = True  # there is nothing left to stop


if __name__ == "__main__":
    main()
