"""bench/ways.py: all ways learn by one loop, which is train.py's; and two scripts beside it."""

import dataclasses
import json
import random
import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import coming_from_peft
import minimal_beside
import train
import ways
from data import collate, encode
from helpers import write_reviews
from model import losses
from support.checkpoint import open_checkpoint
from support.dataset import open_dataset
from support.prompt_file import read_prompt

C = 256  # of the bundled model
BLOCK = 12 * C * C + 13 * C  # numbers of a block
EVERY = {  # how many numbers each way trains, its head of two labels included
    "head": 2 * C,
    "prompt-10": 12 * C,
    "peft-10": 12 * C,
    "lora": 6 * 8 * (C + 3 * C) + 2 * C,
    "last-block": BLOCK + 2 * C + 2 * C,
    "everything": 6_868_992 + 2 * C,
}


def examples(count):
    """So many texts of reviews as [(ids, label)]."""
    tokenizer = open_checkpoint("tiny").tokenizer
    return encode(tokenizer, open_dataset("reviews").train[:count], 128, 20)


@pytest.mark.parametrize("name", EVERY)
def test_each_way_trains_what_it_says_and_learns(name):
    way = ways.make(name, 0.001, 0, ["negative", "positive"], 2)
    assert sum(tensor.numel() for tensor in way.parameters()) == EVERY[name]

    ids, lengths, labels = collate(examples(8))
    optimizer = ways.optimizer_of(way)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    before = losses(way.logits(ids, lengths)[None], labels).item()
    for _ in range(8):
        ways.learn(way, optimizer, ids, lengths, labels)
    after = losses(way.logits(ids, lengths)[None], labels).item()
    assert after < before


@pytest.mark.parametrize("name", [name for name in EVERY if name != "peft-10"])
@torch.no_grad()
def test_no_answer_depends_on_pads(name):
    """But with PEFT's prompt, whose texts move by their pads: the next test."""
    way = ways.make(name, 0.001, 0, ["negative", "positive"], 2)
    few = examples(6)
    together = way.logits(*collate(few)[:2])  # (6, 2)
    for example, row in zip(few, together, strict=True):
        alone = way.logits(*collate([example])[:2])  # (1, 2)
        assert torch.allclose(alone[0], row, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("left", [[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]]),
        ("right", [[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_peft_is_given_pads_on_the_side_that_is_asked(monkeypatch, side, ids, mask):
    class Model:
        config = SimpleNamespace(pad_token_id=0)
        logits = None

        def eval(self):
            return self

        def named_parameters(self):
            return []

        def __call__(self, input_ids, attention_mask):
            assert input_ids.tolist() == ids
            assert attention_mask.tolist() == mask
            return self

    monkeypatch.setattr(ways.peft, "get_peft_model", lambda model, config: Model())
    way = ways.peft_prompt(10, 0.03, 0, 2, side)
    padded = torch.tensor([[5, 6, 7], [8, 99, 99]])
    assert way.logits(padded, torch.tensor([3, 1])) is None


def test_our_prompt_learns_here_as_it_does_in_train_py(tmp_path):
    """The loop for the others is the loop of train.py: the same prompt comes out of both."""
    data = str(write_reviews(tmp_path / "films", train=120, dev=20))
    run = tmp_path / "run"
    words = ["--data", data, "--max-examples", "64", "--epochs", "2", "--lr", "0.03"]
    train.main([*words, "--dtype", "float32", "--device", "cpu", "--out", str(run)])
    [row] = json.loads((run / "summary.json").read_text())["prompts"]
    theirs = read_prompt(run / row["folder"] / "prompt.safetensors").prompt

    texts = open_dataset(data)
    pairs = random.Random(0).sample(texts.train, 64)
    tokenizer = open_checkpoint("tiny").tokenizer
    way = ways.make("prompt-10", 0.03, 0, texts.labels, 2)
    held = encode(tokenizer, texts.held, 128, 10)
    best = ways.fit(way, encode(tokenizer, pairs, 128, 10), held, 2)
    head, vectors = way.parameters()
    assert torch.allclose(vectors, theirs.vectors, atol=1e-5)
    assert torch.allclose(head, theirs.head, atol=1e-5)
    assert best.accuracy == row["selection"]["accuracy"]


def test_the_best_epoch_is_kept(monkeypatch):
    """Of three epochs the second is best on the hold-out: its numbers are what stays."""
    way = ways.make("head", 0.02, 0, ["negative", "positive"], 2)
    few = examples(16)
    real = ways.score
    seen = []

    def score(way, held):
        seen.append(way.parameters()[0].detach().clone())
        accuracy = {1: 0.5, 2: 0.9, 3: 0.7}[len(seen)]
        return dataclasses.replace(real(way, held), accuracy=accuracy)

    monkeypatch.setattr(ways, "score", score)
    best = ways.fit(way, few, few, 3)
    assert best.accuracy == 0.9
    assert torch.equal(way.parameters()[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_way_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no way middle"):
        ways.make("middle", 0.1, 0, ["negative", "positive"], 2)


# ---- coming from PEFT -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_peft_is_trained_on_the_same_and_answers_by_the_batch(side):
    """One epoch of a few texts: it learns little, but all of it runs."""
    whole = open_dataset("reviews")
    few = dataclasses.replace(
        whole, train=whole.train[:40], held=whole.held[:40], dev=whole.dev[:40]
    )
    result = coming_from_peft.run_peft(0, side, few, epochs=1)
    assert 0 < result.accuracies[0] < 1
    assert result.seconds[0] > 0
    alone = result.ask([coming_from_peft.SHORT])[0]
    among_others = result.ask([coming_from_peft.SHORT, coming_from_peft.LONG])[0]
    assert result.ask([coming_from_peft.SHORT] * 2) == pytest.approx([alone] * 2, abs=1e-5)
    assert abs(alone - among_others) > 1e-3


def test_what_both_came_to_is_told_and_kept(capsys, monkeypatch, tmp_path):
    def ask(texts):
        return [1 / len(texts)] * len(texts)

    def run_peft(seed, side, dataset, epochs):
        return coming_from_peft.Result([0.5 + seed / 4], [3.2 + seed], ask)

    def run_ours(seeds, epochs):
        return coming_from_peft.Result([0.8] * len(seeds), [epochs] * 2, ask)

    monkeypatch.setattr(coming_from_peft, "run_peft", run_peft)
    monkeypatch.setattr(coming_from_peft, "run_ours", run_ours)
    path = tmp_path / "record.json"
    coming_from_peft.main(["--seeds", "0", "1", "--epochs", "7", "--json", str(path)])
    left, right, ours = json.loads(path.read_text())["rows"]
    assert left["accuracy"] == right["accuracy"] == [0.5, 0.75]
    assert (left["alone"], left["beside"]) == (1, 0.5)
    *_, last = capsys.readouterr().out.splitlines()
    cells = re.split(" {2,}", last)
    assert cells == ["this project, one run", ".8000 .8000", ".8000", "7 + 7", "1.0000", ".5000"]
    assert ours["name"] == "this project, one run"


def test_a_page_is_timed_beside_a_step(tmp_path):
    path = tmp_path / "record.json"
    figures = minimal_beside.main(["--rounds", "1", "--batches", "2", "--json", str(path)])
    assert json.loads(path.read_text()) == figures
    assert list(figures["cpu_seconds"]) == ["minimal.py", "train.py", "train.py, texts kept"]
    assert min(figures["cpu_seconds"].values()) > 0


def test_the_page_and_the_step_learn_the_same_texts(monkeypatch):
    """Each batch is given to all: as pairs, and as tensors with their keys and values."""
    seen = []

    def contenders(gpt2):
        return {name: lambda *given: seen.append(given) for name in real(gpt2)}

    real = minimal_beside.contenders
    monkeypatch.setattr(minimal_beside, "contenders", contenders)
    minimal_beside.main(["--rounds", "1", "--batches", "2"])
    assert len(seen) == 3 * 2 * 2  # contenders, batches, rounds with the warm-up
    for texts, (ids, lengths, labels), kv in seen:
        assert len(texts) == len(ids) == 16
        assert [label for _, label in texts] == labels.tolist()
        assert [len(given) for given, _ in texts] == lengths.tolist()
        assert len(kv) == 6
    for first in (0, 1):  # both batches come to each contender in turn
        assert {id(texts) for texts, _, _ in seen[first::2]} == {id(seen[first][0])}
    lengths = [len(texts[0][0]) for texts, _, _ in seen]
    assert max(lengths) > 1.5 * min(lengths)  # short texts and long ones
