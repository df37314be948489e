"""train.py: its step, its loop against a plain one, what it learns, and what it refuses."""

import contextlib
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import evaluate
import minimal
import train
from helpers import (
    TINY,
    ask,
    contents,
    mask_buffers,
    random_weights,
    rewrite,
    sizes,
    write_checkpoint,
    write_data,
    write_reviews,
    write_unaligned,
)
from metrics import Score
from model import GPT2, GPT2Config, Prompt, classify
from run_helpers import BASE, SHORT, prompt_path, refused, run, timeless, watch
from support import run_folder
from support.checkpoint import open_checkpoint
from support.prompt_file import read_prompt
from support.request import parse_request
from support.settings import Settings
from support.trial import Trial

# ---- the parts of a step --------------------------------------------------------------------


def test_the_rates_rise_over_6_percent_of_the_steps_and_fall_to_just_above_zero():
    shares = [train.lr_share(step, 100) for step in range(100)]
    rise = [i / 6 for i in range(1, 6)]
    fall = [i / 95 for i in range(95, 0, -1)]
    assert shares == pytest.approx(rise + fall)


def test_of_few_steps_one_is_there_to_rise():
    shares = [train.lr_share(step, 3) for step in range(3)]
    assert shares == pytest.approx([1, 2 / 3, 1 / 3])


def four_trials(device):
    """Trials with three rates"""
    trials = []
    for lr in (0.1, 0.2, 0.1, 0.005):
        vectors = torch.zeros(2, 4, device=device)
        head = torch.zeros(3, 4, device=device)
        trials.append(Trial("p1-s0", 0, lr, Prompt(vectors, head), [], "dev"))
    return trials


@pytest.mark.parametrize("device,fused", [("cpu", True), ("meta", False)])
def test_adam_is_fused_where_torch_has_such_a_kernel(device, fused):
    optimizer = train.make_optimizer(four_trials(device), 0.005)
    assert optimizer.defaults["fused"] is fused


def test_each_rate_is_one_group_of_the_optimizer():
    trials = four_trials("cpu")
    optimizer = train.make_optimizer(trials, 0.005)
    peak_of = {}
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            peak_of[id(tensor)] = group["peak"]
    assert len(optimizer.param_groups) == 3
    assert len(peak_of) == 8
    for trial in trials:
        assert peak_of[id(trial.prompt.vectors)] == trial.lr
        assert peak_of[id(trial.prompt.head)] == 0.005


def small_step(dtype=torch.float32, kv=False, share=1.0):
    """One train_step of two prompts on a random model -> (prompts, loss, correct, norm)"""
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(50, 12, 8, 2, 2)).requires_grad_(False)
    for parameter in gpt2.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    gpt2 = gpt2.to(dtype)
    prompts = [Prompt(torch.randn(P, 8), torch.randn(3, 8)) for P in (1, 3)]
    trials = [Trial("p1-s0", 0, 0.1, prompt, [], "dev") for prompt in prompts]
    optimizer = train.make_optimizer(trials, 0.01)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    ids = torch.randint(50, (4, 5))
    lengths = torch.tensor([5, 2, 1, 4])
    labels = torch.tensor([0, 1, 2, 1])
    read = gpt2.text_pass(ids) if kv else None
    result = train.train_step(gpt2, prompts, optimizer, ids, lengths, labels, read, share)
    return prompts, *result


def test_a_step_gives_a_loss_a_count_and_a_norm_for_each_prompt():
    _, loss, correct, norm = small_step()
    assert loss.shape == correct.shape == norm.shape == (2,)
    assert not loss.requires_grad
    assert ((correct >= 0) & (correct <= 4)).all()


def test_texts_that_were_read_before_give_the_same_step():
    fresh, *_ = small_step()
    kept, *_ = small_step(kv=True)
    for a, b in zip(fresh, kept, strict=True):
        assert torch.equal(a.vectors, b.vectors)
        assert torch.equal(a.head, b.head)


def test_a_share_of_a_batch_has_that_share_of_the_gradient():
    _, loss, _, whole = small_step()
    _, same, _, half = small_step(share=0.5)
    assert torch.equal(loss, same)
    assert half.tolist() == pytest.approx((whole / 2).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained_is_float32_whatever_the_body_is(dtype):
    prompts, loss, _, norm = small_step(dtype)
    for prompt in prompts:
        assert prompt.vectors.dtype == prompt.head.dtype == torch.float32
        assert prompt.vectors.grad.dtype == torch.float32
    assert loss.dtype == norm.dtype == torch.float32


@pytest.mark.parametrize("init", ["sample", "words", "p2"])
def test_a_run_on_a_bfloat16_body_trains_float32(place, monkeypatch, init):
    """Small steps, which bfloat16 would round away, move the vectors."""
    run("--prompt-tokens", 2, "--steps", 1, out="first")
    found = {}

    def look(step, prompts):
        for prompt in prompts:
            found[step] = {prompt.vectors.dtype, prompt.head.dtype}

    watch(monkeypatch, look)
    begin = prompt_path("p2-s0", "first") if init == "p2" else init
    flags = ["--dtype", "bfloat16", "--init", begin, "--lr", 1e-6, "--steps", 2]
    run("--prompt-tokens", 2, *flags)
    assert found == {1: {torch.float32}, 2: {torch.float32}}
    vectors = read_prompt(prompt_path("p2-s0")).prompt.vectors
    moved = vectors - vectors.bfloat16().float()
    assert moved.abs().max() > 0


# ---- against a loop that shares no code with it ---------------------------------------------


def true_logits(weights, ids, tensors):
    """Logits (N,) of one text in float64, by the page that shows the method"""
    vectors, head = tensors
    return minimal.logits_of(ids, vectors, head, weights, sizes(L=1))


def measure(weights, examples, tensors):
    """The mean loss of vectors and head on examples, and which answers are right, float64 (n,)"""
    logits = torch.stack([true_logits(weights, ids, tensors) for ids, _ in examples])
    labels = torch.tensor([label for _, label in examples])
    right = (logits.argmax(1) == labels).double()
    return F.cross_entropy(logits, labels), right


def numbers_of(weights, examples, tensors):
    """(loss, accuracy) of vectors and head on examples, as numbers"""
    loss, right = measure(weights, examples, tensors)
    return loss.item(), right.mean().item()


def first_tensors(weights, P, seed):
    """The vectors and the head with which a seed begins"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, 299, (P,), generator=generator)  # no byte, no end of text
    head = torch.randn(2, 10, generator=generator) * 0.02
    return [weights["wte.weight"][ids], head.double()]


class PlainAdam:
    """Adam by the formulas of its paper, after the clipping of the whole gradient to norm 1"""

    def __init__(self, tensors, peaks):
        self.tensors = tensors
        self.peaks = peaks
        self.first = [torch.zeros_like(tensor) for tensor in tensors]
        self.second = [torch.zeros_like(tensor) for tensor in tensors]
        self.step = 0

    def follow(self, gradients, share):
        """One step down the gradients, at a share of the peak rates -> their norm, unclipped"""
        self.step += 1
        norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
        for i, tensor in enumerate(self.tensors):
            gradient = gradients[i] / max(1.0, norm)
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient.square()
            mean = self.first[i] / (1 - 0.9**self.step)
            size = (self.second[i] / (1 - 0.999**self.step)).sqrt()
            tensor.data -= share * self.peaks[i] * mean / (size + 1e-8)
        return norm.item()


@dataclass
class Truth:
    """What a prompt becomes: first and best tensors, the best epoch, and the lines of the log"""

    began: list
    best: list
    best_epoch: int
    lines: list


def copies(tensors):
    """The tensors as they are now"""
    return [tensor.detach().clone() for tensor in tensors]


def plain_share(step, total):
    """The share of the peak rate in step 1 to total"""
    warm = round(0.06 * total)
    if step <= warm:
        return step / warm
    return (total - step + 1) / (total - warm + 1)


def plain_run(weights, P, seed, peaks, epochs, held):
    """What becomes of a prompt in these epochs, one text at a time in float64 -> Truth"""
    tensors = [tensor.requires_grad_() for tensor in first_tensors(weights, P, seed)]
    truth = Truth(copies(tensors), [], 0, [])
    adam = PlainAdam(tensors, peaks)
    total = sum(len(batches) for batches in epochs)
    best = None
    for epoch, batches in enumerate(epochs, 1):
        losses = []
        hits = []
        for batch in batches:
            loss, right = measure(weights, batch, tensors)
            share = plain_share(adam.step + 1, total)
            norm = adam.follow(torch.autograd.grad(loss, tensors), share)
            losses += [loss.item()] * len(batch)
            hits += right.tolist()
            if adam.step % 10 == 0 or batch is batches[-1]:
                means = [sum(losses) / len(losses), sum(hits) / len(hits)]
                truth.lines.append([adam.step, epoch, "train", *means, share * peaks[0], norm])
                losses = []
                hits = []
        loss, accuracy = numbers_of(weights, held, copies(tensors))
        truth.lines.append([adam.step, epoch, "hold-out", loss, accuracy, None, None])
        if best is None or (accuracy, -loss) > best:
            best = (accuracy, -loss)
            truth.best = copies(tensors)
            truth.best_epoch = epoch
    return truth


KEYS = ["step", "epoch", "split", "loss", "accuracy", "lr", "norm"]
LRS = [0.03, 0.2]
HEAD_LR = 0.05
PACK = list(itertools.product([1, 3], [0, 5], LRS))  # prompt tokens, seed, rate
PACK_FLAGS = ["--prompt-tokens", 1, 3, "--seeds", 0, 5, "--lr", *LRS, "--head-lr", HEAD_LR]


@dataclass
class Done:
    """A run of a pack of eight prompts on a model of one layer, and what went into it"""

    weights: dict
    steps: list
    lines: list
    summary: dict
    files: dict
    said: str
    texts: list
    dev: list

    @property
    def epochs(self):
        """The batches of each epoch, as [(ids, label)]"""
        batches = [step.texts for step in self.steps]
        return [batches[:14], batches[14:28], batches[28:]]

    @property
    def held(self):
        """What the run held out"""
        trained = sum(self.epochs[0], [])
        return [pair for pair in self.texts if pair not in trained]


def examples_in(path, tokenizer):
    """The rows of a tsv as [(ids, label)]"""
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [(tokenizer.encode(text)[:24], int(label)) for text, label in rows]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Three epochs of eight prompts, 55 texts in batches of 4; one text leaves them no room."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("done"))
        weights = random_weights(sizes(L=1))
        write_checkpoint("m", sizes(L=1), weights)
        write_data("d")
        long_row = b"so long that a part of it has no room at all\t1\n"
        rewrite("d/train.tsv", lambda data: data + long_row)
        rewrite("d/dev.tsv", lambda data: data + b"fine\t0\n" * 5)
        steps = watch(patch)
        # A clock by the steps, so that the speeds are known, too.
        patch.setattr(time, "perf_counter", lambda: float(len(steps)))
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            _, lines, summary = run(*PACK_FLAGS, "--batch-size", 4, "--epochs", 3)
        files = {name: read_prompt(prompt_path(name)) for name in os.listdir("run/prompts")}
        tokenizer = open_checkpoint("m").tokenizer
        texts = examples_in(Path("d/train.tsv"), tokenizer)
        dev = examples_in(Path("d/dev.tsv"), tokenizer)
    weights = {name: tensor.double() for name, tensor in weights.items()}
    return Done(weights, steps, lines, summary, files, said.getvalue(), texts, dev)


def near(value):
    """A number up to what float32 can do; other values as they are"""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-5, abs=1e-5)
    return value


def check_against_truth(done, P, seed, lr):
    """All that the run wrote of one prompt, beside the Truth -> the epoch that is best"""
    name = f"p{P}-s{seed}-lr{lr}"
    truth = plain_run(done.weights, P, seed, (lr, HEAD_LR), done.epochs, done.held)

    lines = [line for line in done.lines if line["prompt"] == name]
    for line, expected in zip(lines, truth.lines, strict=True):
        assert [line[key] for key in KEYS] == [near(value) for value in expected]

    file = done.files[name]
    assert file.recipe.epoch == truth.best_epoch
    vectors, head = truth.best
    assert (file.prompt.vectors - vectors).abs().max() < 1e-4
    assert (file.prompt.head - head).abs().max() < 1e-4

    row = done.summary["prompts"][PACK.index((P, seed, lr))]
    about = [row[key] for key in ("name", "prompt_tokens", "seed", "lr", "epoch")]
    assert about == [name, P, seed, lr, truth.best_epoch]
    for said, examples in ((row, done.dev), (row["selection"], done.held)):
        loss, accuracy = numbers_of(done.weights, examples, truth.best)
        assert said["loss"] == near(loss)
        assert said["accuracy"] == near(accuracy)
        assert said["n"] == len(examples)
    _, untrained = numbers_of(done.weights, done.dev, truth.began)
    assert row["untrained"] == near(untrained)
    assert row["untrained"] != row["accuracy"]
    return truth.best_epoch


def test_a_run_equals_a_plain_loop(done):
    """First vectors, rates, clipping, Adam, log, best epoch and dev of three out of eight."""
    best = [
        check_against_truth(done, 1, 0, 0.03),
        check_against_truth(done, 3, 5, 0.03),
        check_against_truth(done, 3, 0, 0.2),
    ]
    assert best == [1, 3, 3]  # which is not always the last


def test_the_norm_in_the_log_is_that_before_the_clipping(done):
    """What a clipped gradient has is 1 at most."""
    norms = [line["norm"] for line in done.lines if line["split"] == "train"]
    assert max(norms) > 2 * train.CLIP
    assert min(norms) < train.CLIP
    assert all(line["norm"] is None for line in done.lines if line["split"] == "hold-out")


def test_every_text_but_the_held_out_comes_once_an_epoch_in_the_same_batches(done):
    assert len(done.steps) == 42
    first, second, third = done.epochs
    assert sorted(first) == sorted(second) == sorted(third)
    assert first != second != third != first
    assert len(done.held) == 6
    assert sorted(sum(first, done.held)) == sorted(done.texts)


def test_every_step_has_its_rates(done):
    peaks = [(lr, HEAD_LR) for _, _, lr in PACK]
    for number, step in enumerate(done.steps, 1):
        share = number / 3 if number <= 3 else (43 - number) / 40
        for rates, (peak, head_peak) in zip(step.rates, peaks, strict=True):
            assert rates == pytest.approx((share * peak, share * head_peak))


def test_the_baselines_are_the_commonest_label_and_the_untrained_prompts(done):
    untrained = [row["untrained"] for row in done.summary["prompts"]]
    baselines = {"majority": 11 / 17, "untrained": near(sum(untrained) / 8)}
    assert done.summary["baselines"] == baselines


def test_a_text_without_room_is_cut_and_that_is_told(done):
    assert "1 of 55 texts are cut to 21 tokens" in done.said


def test_the_speed_leaves_out_the_first_step_of_an_epoch(done):
    """The next line's window begins where this one's ends."""
    n = [len(step.texts) for step in done.steps]
    speeds = {}
    for line in done.lines:
        if line["split"] == "train":
            speeds[line["step"]] = line["examples_per_second"]
    assert speeds == {
        10: sum(n[1:10]) / 9,
        14: sum(n[10:14]) / 4,
        20: sum(n[15:20]) / 5,
        28: sum(n[20:28]) / 8,
        30: n[29],
        40: sum(n[30:40]) / 10,
        42: sum(n[40:]) / 2,
    }


# ---- what it learns from --------------------------------------------------------------------


def numbered(rows):
    """A table whose texts are numbers"""
    return "text\tlabel\n" + "".join(f"{i}\t{i % 2}\n" for i in range(rows))


def test_872_texts_are_held_out_at_most_and_max_examples_draws_from_the_rest(place, monkeypatch):
    (place / "d" / "train.tsv").write_text(numbered(9000))
    steps = watch(monkeypatch)
    flags = ["--max-examples", 40, "--epochs", 1, "--prompt-tokens", 1, "--batch-size", 64]
    facts, _, _ = run(*flags)
    assert facts["texts"] == {"train": 40, "hold-out": 872, "dev": 12}
    tokenizer = open_checkpoint("m").tokenizer
    drawn = [int(tokenizer.decode(ids)) for ids, _ in steps[0].texts]
    assert len(set(drawn)) == 40
    early = sum(i < 4500 for i in drawn)
    assert 8 <= early <= 32  # from all of them, not from the first


def test_a_tenth_of_a_small_set_is_held_out(place):
    facts, _, _ = run("--steps", 1)
    assert facts["texts"] == {"train": 54, "hold-out": 6, "dev": 12}


def test_a_run_without_out_lies_in_runs_by_its_model_and_data(place):
    flags = ["--model", "m", "--data", "reviews", "--device", "cpu", "--steps", "1"]
    train.main([*flags, "--max-examples", "4"])
    facts = json.loads((place / "runs" / "m-reviews" / "run.json").read_bytes())
    assert facts["labels"] == ["negative", "positive"]


@pytest.mark.parametrize("N,labels", [(3, ["0", "1", "2"]), (1, ["negative", "positive"])])
def test_the_bundled_labels_have_names_where_their_number_fits(place, N, labels):
    """One label is a number, which a threshold makes two."""
    facts, _, _ = run("--data", "reviews", "--num-labels", N, "--steps", 1)
    assert facts["labels"] == labels
    assert read_prompt(prompt_path("p10-s0")).prompt.head.shape == (N, 10)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, request):
    """Sixteen real sentences on the bundled model: the last line and the prompt of each --train"""
    folder = tmp_path_factory.mktemp("learned")
    write_reviews(folder / "d", train=16, dev=16)
    flags = ["--model", "tiny", "--batch-size", 16, "--epochs", 30, "--select-on", "dev"]
    flags += ["--lr", 0.03, "--head-lr", 0.01, "--prompt-tokens", 3]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for part in ("head", "prompt+head"):
            _, lines, _ = run(*flags, "--train", part, out=part)
            last = [line for line in lines if line["split"] == "train"][-1]
            found[part] = (last, read_prompt(folder / prompt_path("p3-s0", part)))
    return found


def test_a_prompt_and_its_head_learn_sixteen_sentences(learned):
    last, _ = learned["prompt+head"]
    assert last["accuracy"] == 1
    assert last["loss"] < 0.05


def test_the_head_alone_learns_less(learned):
    last, _ = learned["head"]
    assert last["loss"] > 0.2


@pytest.mark.parametrize("part", ["head", "prompt+head"])
def test_the_vectors_stay_as_they_began_where_the_head_alone_is_trained(learned, part):
    _, file = learned[part]
    table = open_checkpoint(str(TINY)).load().wte.weight
    assert torch.equal(file.prompt.vectors, table[file.init_ids]) == (part == "head")


def test_the_same_command_writes_the_same_bytes(place):
    """In every file but for the times."""
    run("--epochs", 2, "--overwrite")
    first = timeless(place / "run")
    run("--epochs", 2, "--overwrite")
    assert timeless(place / "run") == first
    assert len(first) == 5


def test_batches_are_made_once_and_stay_where_they_are_needed(place, monkeypatch):
    made = []
    collate = train.collate

    def count(examples, device):
        made.append(device)
        return collate(examples, device)

    monkeypatch.setattr(train, "collate", count)
    facts, _, _ = run("--epochs", 5)
    assert len(made) == facts["settings"]["total_steps"] / 5 > 1
    assert set(made) == {torch.device("cpu")}


def test_every_prompt_has_a_name_of_its_own(place):
    """However near to each other the rates are; the same rate spelled otherwise is the same."""
    rates = [0.1, 0.1234561, 0.1234564, 0.12345640000000001, 1e-7, 1.0000001e-7, "1E-7", 3]
    _, _, summary = run("--prompt-tokens", 2, "--steps", 2, "--lr", *rates)
    told = {row["name"]: row["lr"] for row in summary["prompts"]}
    assert sorted(told.values()) == sorted({float(rate) for rate in rates})
    assert sorted(told) == sorted(os.listdir("run/prompts"))
    for name, rate in told.items():
        assert read_prompt(prompt_path(name)).recipe.lr == rate


def test_patience_ends_a_run_in_which_nothing_improves(place):
    """Nothing moves but the last digits of the loss."""
    flags = ["--epochs", 50, "--patience", 2, "--lr", 1e-9, "--head-lr", 1e-9]
    _, lines, summary = run(*flags)
    last = max(line["epoch"] for line in lines)
    assert last == summary["prompts"][0]["epoch"] + 2
    assert last < 50


# ---- numbers as labels ----------------------------------------------------------------------


def write_ratings(folder):
    """Texts whose labels are numbers from -3 to 4"""
    for split, rows in (("train", 60), ("dev", 12)):
        lines = [f"{'good ' * (i % 8)}{split} {i}\t{i % 8 - 3}.5\n" for i in range(rows)]
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(lines))


@pytest.fixture
def ratings(place):
    """(run.json, log, summary) of three prompts that learn numbers"""
    write_ratings(place / "d")
    flags = ["--num-labels", 1, "--seeds", 0, 1, 2, "--prompt-tokens", 2, "--epochs", 4]
    return run(*flags, "--lr", 0.3, "--head-lr", 0.2)


def test_a_regression_keeps_the_epoch_of_the_least_loss(ratings):
    facts, lines, summary = ratings
    assert facts["settings"]["select_by"] == "loss"
    for row in summary["prompts"]:
        losses = {}
        for line in lines:
            if line["prompt"] == row["name"] and line["split"] == "hold-out":
                losses[line["epoch"]] = line["loss"]
        assert row["epoch"] == min(losses, key=losses.get)
        assert row["selection"]["loss"] == losses[row["epoch"]]
        assert row["selection"]["accuracy"] is None


def test_the_log_of_a_regression_knows_no_right_answers(ratings):
    _, lines, _ = ratings
    assert {line["accuracy"] for line in lines} == {None}
    assert all(line["loss"] > 0 for line in lines)


def test_labels_0_and_1_as_numbers_are_no_right_answers_in_training_either(place):
    _, lines, _ = run("--num-labels", 1, "--epochs", 2)
    train_lines = [line for line in lines if line["split"] == "train"]
    assert {line["accuracy"] for line in train_lines} == {None}
    held = [line for line in lines if line["split"] == "hold-out"]
    assert all(0 <= line["accuracy"] <= 1 for line in held)


def test_the_summary_of_a_regression_can_be_read(ratings):
    _, _, summary = ratings
    for row in summary["prompts"]:
        assert row["accuracy"] is None
        assert row["ci95"] is None
        assert -1 <= row["pearson"] <= 1
        assert -1 <= row["spearman"] <= 1
        assert row["untrained"] is None
        assert row["untrained_loss"] > row["loss"]
    assert set(summary["baselines"]) == {"constant", "untrained"}
    best = min(summary["prompts"], key=lambda row: row["selection"]["loss"])
    assert run_folder.read_facts("run").settings.num_labels == 1
    found = evaluate.find_prompts("run")
    assert found == [prompt_path(best["name"])]


def test_the_best_epoch_can_be_chosen_by_macro_f1(place, monkeypatch):
    """The shares of three epochs: accuracy is best in the first, macro-F1 in the second."""
    shares = iter([(0.9, 0.4, 0.5), (0.8, 0.7, 0.6), (0.8, 0.6, 0.1), (0.5, 0.5, 0.5)])

    def score(gpt2, prompts, examples, batch_size, names=None):
        found = []
        for _ in prompts:
            accuracy, macro_f1, loss = next(shares, (0.5, 0.5, 0.5))
            found.append(Score(6, loss, accuracy, [0, 1], macro_f1, majority=0.5))
        return found

    monkeypatch.setattr(train, "score", score)
    _, _, summary = run("--epochs", 3, "--select-by", "macro-f1")
    assert summary["prompts"][0]["epoch"] == 2
    assert summary["select_by"] == "macro-f1"


# ---- what breaks ----------------------------------------------------------------------------


def test_all_prompts_broken_is_said_in_one_sentence(place, monkeypatch, capsys):
    def break_it(step, prompts):
        prompts[0].vectors.data.fill_(float("inf"))

    watch(monkeypatch, break_it)
    refused(capsys, *BASE, "--out", "run", naming="lower --lr")
    assert not os.path.exists("run/summary.json")


@pytest.mark.parametrize("rate", ["1e20", "1e29"])
def test_a_prompt_whose_scores_are_not_finite_is_never_the_best(place, rate, capsys):
    """Not even by the answers that happen to be right: NaN in an argmax is label 0."""
    rewrite("d/dev.tsv", lambda data: data.replace(b"\t1\n", b"\t0\n"))
    flags = ["--steps", "1", "--lr", rate, "--head-lr", rate, "--select-on", "dev"]
    code, _, err = ask(capsys, train, *BASE, "--out", "run", *flags)
    if code == 0:
        file = read_prompt(prompt_path("p10-s0"))
        assert math.isfinite(file.scores.loss)
    else:
        assert code == 2
        assert "lower --lr" in err


def test_what_we_write_is_json_whatever_the_numbers(place, capsys):
    """A label whose squared error overflows"""
    (place / "d" / "dev.tsv").write_text("text\tlabel\na\t1e30\nb\t0\n")
    flags = ["--out", "run", "--num-labels", "1"]
    code, _, err = ask(capsys, train, *SHORT, *flags)
    assert code == 0, err
    for path, data in contents(place / "run").items():
        assert not re.search(rb"\bNaN\b|\bInfinity\b", data), path
    assert ask(capsys, train, "--resume", "run")[0] == 0


# ---- what is refused ------------------------------------------------------------------------


FLAGS = [
    ["--lrate", "1"],
    ["--lr", "fast"],
    ["--lr", "0"],
    ["--lr", "nan"],
    ["--head-lr", "inf"],
    ["--seeds", "-1"],
    ["--seeds", str(2**63)],
    ["--prompt-tokens", "0"],
    ["--prompt-tokens"],
    ["--epochs", "-1"],
    ["--steps", "0"],
    ["--cache-text", "much"],
    ["--dtype", "int8"],
    ["--patience", "0"],
    # What could not be read again
    ["--batch-size", "3000000000"],
    ["--patience", "10000000000"],
    ["--max-examples", "10000000000"],
    ["--epochs", "10000000000"],
    ["--cache-text", "99999999999G"],
    ["--lr", "1e305"],
    ["--head-lr", "1e301"],
]
VALUES = [
    ["--model", "gpt5"],
    ["--data", "imdb"],
    ["--prompt-tokens", "24"],
    ["--num-labels", "55"],
    ["--device", "warp"],
    ["--device", "cuda:9"],
]


def check_refused(place, capsys, flags, named):
    """It ends in exit code 2 and one sentence with these words, and nothing is written."""
    before = contents(place)
    code, _, err = ask(capsys, train, *BASE, "--out", "run", *flags)
    last = err.strip().split("\n")[-1]
    assert code == 2
    assert named in last
    assert "Traceback" not in err
    assert re.search(r"^(\S+: )?error: .+$", last)
    assert contents(place) == before


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_flag_that_makes_no_sense_is_refused_by_its_name(place, capsys, flags):
    check_refused(place, capsys, flags, flags[0])


@pytest.mark.parametrize("flags", VALUES, ids=" ".join)
def test_a_value_that_cannot_be_is_refused_by_the_value(place, capsys, flags):
    check_refused(place, capsys, flags, flags[1])


def test_a_prompt_of_another_model_is_no_beginning(place, capsys):
    path = f"{TINY}/prompts/sst2-p10/prompt.safetensors"
    check_refused(place, capsys, ["--init", path], "do not fit")


def test_a_label_out_of_range_is_refused_by_its_line(place, capsys):
    rewrite("d/dev.tsv", lambda data: data + b"a\t2\n")
    check_refused(place, capsys, [], "dev.tsv, line 14")


def test_too_few_rows_to_hold_some_out_are_refused_with_a_way_out(place, capsys):
    rewrite("d/train.tsv", lambda data: data[:25])
    check_refused(place, capsys, [], "--select-on dev")


def test_weights_that_are_cut_are_refused(place, capsys):
    rewrite("m/model.safetensors", lambda data: data[:-9])
    check_refused(place, capsys, [], "model.safetensors")


def test_more_merges_than_the_model_has_vectors_are_refused(place, capsys):
    shutil.copy(TINY / "merges.txt", "m")
    check_refused(place, capsys, [], "merges.txt")


def test_out_that_is_a_file_is_refused(place, capsys):
    (place / "run").write_text("")
    check_refused(place, capsys, [], "run")


def test_out_whose_run_json_is_none_is_refused(place, capsys):
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text("")
    check_refused(place, capsys, [], "run.json is damaged")


def test_out_that_holds_something_else_is_refused_even_with_overwrite(place, capsys):
    shutil.copytree("d", "run")
    check_refused(place, capsys, ["--overwrite"], "holds no run")


def test_out_under_a_file_is_refused(place, capsys):
    check_refused(place, capsys, ["--out", "d/dev.tsv/run"], "dev.tsv")


def test_a_folder_whose_name_no_file_can_hold_is_refused_before_the_work(place, capsys):
    check_refused(place, capsys, ["--out", "run\udce9"], "out")


def test_resume_takes_neither_out_nor_overwrite(place, capsys):
    run("--steps", 1, "--prompt-tokens", 2)
    for more in (["--out", "new"], ["--overwrite"]):
        naming = "--resume run takes neither"
        refused(capsys, "--resume", "run", *more, naming=naming)


HOSTILE = {  # what is done to which file, and words of the one sentence
    "lacks h.10": ("m/config.json", lambda old: old.replace(b'"n_layer": 3', b'"n_layer": 99')),
    "config.json": ("m/config.json", lambda old: b"[" * 10**5),
    "merges.txt": ("m/merges.txt", lambda old: old + b"a b c\n"),
    "dev.tsv": ("d/dev.tsv", lambda old: old + b"\xff\0\n"),
    "dev.tsv, line 14": ("d/dev.tsv", lambda old: old + b"a" + b" " * 10**6 + b"b\t1\n"),
}


@pytest.mark.parametrize("named", HOSTILE)
def test_a_hostile_file_ends_in_one_sentence(place, capsys, named):
    path, change = HOSTILE[named]
    rewrite(path, change)
    flags = ["--select-on", "dev"]
    sentence = refused(capsys, *SHORT, "--out", "run", *flags, naming=named)
    assert len(sentence) < 1100
    assert not os.path.exists("run")


def test_weights_that_are_no_numbers_are_refused_by_their_name(place, capsys):
    values = {"wte.weight": "nan", "h.2.mlp.c_fc.bias": "inf", "ln_f.weight": "-inf"}
    weights = random_weights(sizes())
    for name, value in values.items():
        spoilt = weights[name].clone()
        spoilt.view(-1)[-1] = float(value)
        write_checkpoint("m", sizes(), weights | {name: spoilt})
        refused(capsys, *SHORT, "--out", "run", naming=name)


# ---- the official sizes ---------------------------------------------------------------------

GPT2_FILE = 548_105_171  # bytes of the official files
GPT2_LARGE_FILE = 3_247_159_078
OFFICIAL = [
    pytest.param(768, 12, 12, GPT2_FILE, {}, id="gpt2"),
    pytest.param(
        1280,
        20,
        36,
        GPT2_LARGE_FILE,
        {"_num_labels": 1},
        id="gpt2-large",
        marks=pytest.mark.large,
    ),
]


@pytest.mark.parametrize("C,H,L,size,config", OFFICIAL)
def test_official_sizes_load_train_and_predict_two_columns(place, capsys, C, H, L, size, config):
    """Names, mask buffers and byte size of the official files, and gpt2-large's one label."""
    config = sizes(C, H, L, V=50257, n_positions=1024, **config)
    weights = random_weights(config)
    write_checkpoint("big", config, {})
    write_unaligned("big/model.safetensors", weights | mask_buffers(config), size)
    assert os.path.getsize("big/model.safetensors") == size
    del weights
    flags = ["--steps", "3", "--prompt-tokens", "2", "--device", "cpu"]
    train.main(["--model", "big", "--data", "d", "--out", "run", *flags])
    assert read_prompt(prompt_path("p2-s0")).prompt.head.shape == (2, C)
    words = ["predict", "run", "--json", "--device", "cpu", "a fine film"]
    code, out, err = ask(capsys, evaluate, *words)
    assert code == 0, err
    answer = json.loads(out)
    assert len(answer["logits"]) == len(answer["probabilities"]) == 2


# ---- the command line -----------------------------------------------------------------------


def test_without_flags_it_trains_the_bundled_model_on_the_bundled_reviews():
    request = parse_request([], "")
    settings = request.settings
    assert settings.model == "tiny"
    assert settings.data == "reviews"
    assert settings.out == os.path.abspath("runs/tiny-reviews")
    assert settings.init == "sample"
    assert not request.resume
    assert not request.overwrite
    assert isinstance(settings, Settings)


def test_long_work_says_where_it_is(place, monkeypatch, capsys):
    """Without a terminal by a line a minute; here each look at the clock is 25 seconds later."""
    seconds = itertools.count(0, 25)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    code, _, err = ask(capsys, train, *BASE, "--epochs", "2", "--out", "run")
    assert code == 0
    assert re.search(r"^\d+ of 14 steps$", err, flags=re.MULTILINE)


def test_other_systems_lack_what_is_not_needed(place, monkeypatch, capsys):
    """Windows has no SIGHUP and no O_NOFOLLOW, macOS no /proc: train, replace and resume."""
    for owner, name in ((os, "sysconf"), (os, "O_NOFOLLOW"), (signal, "SIGHUP")):
        monkeypatch.delattr(owner, name, raising=False)
    exists = Path.exists

    def no_proc(path, **how):
        return not str(path).startswith(("/proc", "/sys")) and exists(path, **how)

    monkeypatch.setattr(Path, "exists", no_proc)
    monkeypatch.setattr("support.text_cache.LIMITS", ("/no/such/file",))
    fresh = [*BASE, "--epochs", "2", "--prompt-tokens", "2", "--out", "run"]
    for argv in (fresh, [*fresh, "--overwrite"], ["--resume", "run"]):
        code, _, err = ask(capsys, train, *argv)
        assert code == 0, err


def test_classify_is_what_a_step_asks(monkeypatch):
    """One pass over the texts for all prompts of a step."""
    asked = []

    def count(gpt2, prompts, *rest):
        asked.append(len(prompts))
        return classify(gpt2, prompts, *rest)

    monkeypatch.setattr(train, "classify", count)
    small_step()
    assert asked == [2]
