"""minimal.py is the whole method: it trains, it scores, and it leans on nothing of ours."""

import ast
import re

import torch
from checkpoints import TINY, random_weights, sizes

import minimal
from data import Tokenizer, read_split

ROOT = TINY.parent.parent


def test_it_learns():
    """Two words that stand for two labels, told apart by a random model"""
    torch.manual_seed(0)
    config = sizes()
    weights = random_weights(config)
    examples = [([40 + label, word], label) for label in (0, 1) for word in range(60, 80)]
    vectors, head = minimal.train(examples, weights, config, P=3, steps=40)
    assert vectors.shape == (3, 10) and head.shape == (2, 10)
    right = 0
    for ids, label in examples:
        right += int(minimal.logits_of(ids, vectors, head, weights, config).argmax()) == label
    assert right >= 36


def test_it_prints_an_accuracy_beside_the_majority(capsys):
    minimal.main(steps=20)
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 20 of 20, loss \d\.\d{3}", out[0])
    assert re.fullmatch(r"accuracy 0\.\d{4} of 399 texts; the majority's 0\.5113", out[-1])


def test_it_reads_texts_as_data_py_does():
    tokenizer = Tokenizer(TINY / "merges.txt")
    truth = [(tokenizer.encode(text), label) for text, label in read_split("reviews", "dev")]
    bpe = minimal.tokenizer(TINY / "merges.txt")
    assert minimal.read(ROOT / "reviews" / "dev.tsv", bpe) == truth


def test_it_imports_nothing_of_ours_and_stays_a_page():
    text = (ROOT / "minimal.py").read_text(encoding="utf-8")
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    standard = {"csv", "json", "math", "random", "pathlib"}
    assert names == standard | {"tiktoken", "torch", "safetensors.torch"}
    assert len(text.splitlines()) <= 150 and max(map(len, text.splitlines())) <= 100
