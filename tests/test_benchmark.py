"""bench/benchmark.py runs and compares like with like.  Nothing here looks at a clock."""

import json
import statistics

import pytest
import torch

import benchmark
from helpers import ROOT
from model import GPT2, GPT2Config, Prompt, classify
from support.checkpoint import open_checkpoint
from support.dataset import read_split

CPU = torch.device("cpu")
SMALL = ["--size", "tiny", "--batch-size", "4", "--prompt-tokens", "3", "--device", "cpu"]
SHORT = [*SMALL, "--rounds", "1", "--batches", "1"]

# ---- the whole ------------------------------------------------------------------------------


def test_it_runs_and_writes_its_figures(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    timed = []
    seconds = benchmark.seconds

    def count(contender, device):
        timed.append(contender)
        return seconds(contender, device)

    monkeypatch.setattr(benchmark, "seconds", count)
    ratios = benchmark.main([*SHORT, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratios"] == ratios
    assert all(value > 0 for value in ratios.values())
    assert {"a/d", "g/d", "g/d'", "g/a", "a6/e", "e6/e", "f/d", "f'/d'"} <= ratios.keys()
    assert ("g'/d" in ratios) == ("b/d" in ratios)  # both need bfloat16
    assert ("h/d" in ratios) == ("c/d" in ratios)  # both need PEFT
    assert {len(spent) for spent in figures["seconds"].values()} == {1}
    assert len(timed) == (benchmark.WARM_UP + 1) * len(figures["seconds"])
    out = capsys.readouterr().out
    for name in ("a", "d", "d'", "e", "f", "f'", "g"):
        assert benchmark.LABELS[name] in out
    assert "projected" in out
    chip = benchmark.chip_of(CPU)
    assert chip in out
    assert ("bf16" in chip) == (benchmark.body_dtype("auto", CPU) == torch.bfloat16)


def test_two_checkouts_take_turns(capsys, tmp_path):
    """Here both are this one: they come to the same losses, to the last bit."""
    path = tmp_path / "figures.json"
    ratios = benchmark.main([*SHORT, "--beside", str(ROOT), "--json", str(path)])
    wanted = []
    for name in ("d", "d'", "e"):
        wanted += [f"here/other {name}", f"here/other {name}, CPU time"]
    assert list(ratios) == wanted
    assert all(value > 0 for value in ratios.values())
    figures = json.loads(path.read_text())
    [here] = figures["here"]
    [other] = figures["other"]
    assert here["losses"] == other["losses"]
    assert here["losses"]["d"] == pytest.approx(here["losses"]["d'"])  # kept or read: the same
    assert "here/other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["--beside", "nowhere"], "no checkout of this project"),
        (["--batch-size", "100000"], "fills no batch of 100000 texts"),
        (["--text-tokens", "1010"], "more than 1024 tokens"),
        (["--rounds", "0"], "--rounds"),
        (["--device", "warp"], "no device warp"),
        (["--json", str(ROOT / "README.md")], "is there already"),
    ],
)
def test_it_refuses_in_one_sentence(capsys, words, naming):
    with pytest.raises(SystemExit) as end:
        benchmark.main([*SHORT, *words])
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert naming in line


# ---- like with like -------------------------------------------------------------------------


def test_batches_stand_for_an_epoch_of_the_same_texts():
    """Both kinds hold as many of the same texts; those in random order are full of pads."""
    args = benchmark.parse_args(["--batch-size", "8", "--batches", "5"])
    tokenizer = open_checkpoint("tiny").tokenizer
    known = {tuple(tokenizer.encode(text)) for text, _ in read_split("reviews", "train")}
    (near, near_mean), (mixed, mixed_mean) = benchmark.make_batches(args, CPU)
    for todo, mean in ((near, near_mean), (mixed, mixed_mean)):
        assert len(todo) == 5
        widths = [ids.shape[1] for ids, _, _ in todo]
        assert statistics.mean(widths) == pytest.approx(mean, rel=0.05)
        for ids, lengths, labels in todo:
            assert len(ids) == len(lengths) == len(labels) == 8
            assert ids.shape[1] == lengths.max()
            for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
                assert tuple(row[:length]) in known
    assert all(ascends(batch) for batch in near)
    assert not any(ascends(batch) for batch in mixed)
    assert filled(near) > 0.95
    assert filled(mixed) < 0.7
    assert near_mean < 1.05 * statistics.mean(map(len, known))
    assert mixed_mean > 1.4 * near_mean


def ascends(batch):
    """Whether the texts of a batch are sorted by length"""
    lengths = batch[1].tolist()
    return lengths == sorted(lengths)


def filled(todo):
    """The share of tokens that are no pads"""
    return statistics.mean((lengths.sum() / ids.numel()).item() for ids, lengths, _ in todo)


def test_texts_of_one_length_come_in_one_order():
    [(equal, mean)] = benchmark.make_batches(benchmark.parse_args(["--text-tokens", "30"]), CPU)
    assert mean == 30
    assert all(ids.shape == (32, 30) for ids, _, _ in equal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_who_trains_on_which_batches(dtype):
    pytest.importorskip("transformers")
    gpt2 = benchmark.random_gpt2("tiny", CPU, dtype)
    args = benchmark.parse_args(SMALL)
    (near, _), (mixed, _) = benchmark.make_batches(args, CPU)
    contenders = benchmark.make_contenders(args, gpt2, near, mixed)
    for name, contender in contenders.items():
        if name == "d'":
            assert [batch[:3] for batch in contender.batches] == near
            assert all(len(batch) == 4 for batch in contender.batches)
        else:
            assert contender.batches is (mixed if name[0] in "gh" else near)
    for name, same in benchmark.MIXED.items():  # the very same way to train
        assert (name in contenders) == (same in contenders)
        assert name not in contenders or contenders[name].step is contenders[same].step
    assert "g" in contenders
    assert ("g'" in contenders) == (dtype == torch.bfloat16)
    assert not benchmark.MIXED.keys() & benchmark.make_contenders(args, gpt2, near).keys()


def test_the_body_has_no_zeros_that_hardware_might_multiply_faster():
    gpt2 = benchmark.random_gpt2("tiny", CPU, torch.float32)
    for name, weights in gpt2.named_parameters():
        assert "ln_" in name or weights.count_nonzero() > 0.99 * weights.numel(), name
    assert not any(weights.requires_grad for weights in gpt2.parameters())


# ---- what is measured -----------------------------------------------------------------------


def test_the_graph_does_not_grow_with_the_text():
    """What autograd keeps above the texts' own keys and values: only attention weights see T."""
    gpt2 = GPT2(GPT2Config(500, 512, 64, 4, 4)).requires_grad_(False)
    step = benchmark.ours(gpt2, [5])
    sizes = []
    for T in (10, 410):
        labels = torch.zeros(8, dtype=torch.int64)
        batch = (torch.randint(500, (8, T)), torch.full((8,), T), labels)
        sizes.append(benchmark.graph_bytes(gpt2, step, batch))
    attention = 4 * 8 * 4 * 5 * 400 * 4  # layers, batch, heads, queries, more keys, bytes
    assert sizes[1] - sizes[0] < 4 * attention
    assert attention < 0.1 * 4 * 2 * 8 * 400 * 64 * 4 * 5


def test_the_floor_is_made_of_the_products_of_one_step(monkeypatch):
    """Counted on the real step: every nn.Linear that runs, and its rows."""
    gpt2 = GPT2(GPT2Config(500, 64, 32, 3, 2)).requires_grad_(False)
    P = 5
    batch = (torch.randint(500, (4, 9)), torch.full((4,), 9), torch.zeros(4, dtype=torch.int64))
    seen = []
    linear = torch.nn.Linear.forward

    def count(self, x):
        seen.append((x.shape[0] * x.shape[1], tuple(self.weight.shape)))
        return linear(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    prompt = Prompt(torch.zeros(P, 32), torch.zeros(2, 32))
    classify(gpt2, [prompt], batch[0], batch[1])
    forward, _ = benchmark.products(gpt2, P, batch)
    found = [(rows, (linear.out_features, linear.in_features)) for rows, linear in forward]
    assert found == seen
