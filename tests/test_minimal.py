"""minimal.py is the whole method: it trains, it scores, and it leans on nothing of ours."""

import ast
import random
import re

import pytest
import torch

import minimal
from helpers import ROOT, TINY, random_weights, sizes
from support.checkpoint import open_checkpoint
from support.settings import Settings

SOURCE = (ROOT / "minimal.py").read_text(encoding="utf-8")


def test_it_learns():
    """Two words that stand for two labels, told apart by a random model"""
    torch.manual_seed(0)
    random.seed(0)
    config = sizes()
    weights = random_weights(config)
    examples = []
    for label in (0, 1):
        examples += [([40 + label, word], label) for word in range(60, 80)]
    vectors, head = minimal.train(examples, weights, config, P=3, steps=40)
    assert vectors.shape == (3, 10)
    assert head.shape == (2, 10)
    right = 0
    for ids, label in examples:
        logits = minimal.logits_of(ids, vectors, head, weights, config)
        right += int(logits.argmax()) == label
    assert right >= 36


def test_its_rates_are_those_of_train_py_without_flags(monkeypatch):
    seen = []
    real = torch.optim.AdamW

    def adamw(groups, **how):
        seen.append([group["lr"] for group in groups])
        return real(groups, **how)

    monkeypatch.setattr(torch.optim, "AdamW", adamw)
    config = sizes()
    minimal.train([([40], 0), ([41], 1)], random_weights(config), config, steps=1, batch_size=2)
    settings = Settings()
    assert seen == [[*settings.lr, settings.head_lr]]


def test_it_prints_an_accuracy_beside_the_majority(monkeypatch, capsys):
    """And draws from the same seed, whatever was drawn before."""
    train = minimal.train

    def of_small_batches(*given, **more):
        assert torch.initial_seed() == 0
        return train(*given, batch_size=2, **more)

    torch.manual_seed(1)
    monkeypatch.setattr(minimal, "train", of_small_batches)
    minimal.main(steps=20)
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 20 of 20, loss \d\.\d{3}", out[0])
    last = r"accuracy 0\.\d{4} of 399 texts; the majority's 0\.5113"
    assert re.fullmatch(last, out[-1])


@pytest.mark.parametrize("split", ["train", "dev"])
def test_it_reads_texts_as_data_py_does(split):
    tokenizer = open_checkpoint("tiny").tokenizer
    path = ROOT / "reviews" / f"{split}.tsv"
    truth = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        text, label = line.split("\t")
        truth.append((tokenizer.encode(text.strip()), int(label)))
    bpe = minimal.tokenizer(TINY / "merges.txt")
    assert minimal.read(path, bpe) == truth


def test_it_imports_nothing_of_ours():
    names = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    standard = {"csv", "json", "math", "random", "pathlib"}
    assert names == standard | {"tiktoken", "torch", "safetensors.torch"}


def test_it_stays_a_page():
    lines = SOURCE.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
