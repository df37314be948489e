"""tests/benchmark.py runs and compares like with like.  Nothing here looks at a clock."""

import json

import benchmark
import pytest
import torch

from model import GPT2, GPT2Config, Prompt, classify


def test_it_runs_and_writes_its_figures(tmp_path, capsys):
    pytest.importorskip("transformers")
    flags = ["--size", "tiny", "--rounds", "1", "--batches", "1", "--batch-size", "4", "--prompt-tokens", "3"]
    ratios = benchmark.main([*flags, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratios"] == ratios and all(value > 0 for value in ratios.values())
    assert {"a/d", "a6/e", "e6/e", "f/d", "f'/d'", "memory a/d"} <= ratios.keys()
    out = capsys.readouterr().out
    assert all(benchmark.LABELS[name] in out for name in ("a", "d", "d'", "e", "f", "f'")) and "projected" in out


def test_peft_is_trained_on_the_same_and_answers_by_the_batch():
    """One epoch of a few texts: nobody learns much, but all of it runs."""
    pytest.importorskip("transformers"), pytest.importorskip("peft")
    import coming_from_peft as beside

    train, held, dev = (pairs[:40] for pairs in beside.train.read_data(beside.train.parse_args([]))[:3])
    for side in ("left", "right"):
        tokenizer, model = beside.peft_model(0, side)
        assert [p.shape for p in model.parameters() if p.requires_grad] == [(2, 256), (10, 256)] and not model.training
        accuracy, spent, ask = beside.run_peft(0, side, (train, held, dev), epochs=1)
        assert 0 < accuracy < 1 and spent > 0
        alone, among_others = ask([beside.SHORT])[0], ask([beside.SHORT, beside.LONG])[0]
        assert ask([beside.SHORT] * 2) == pytest.approx([alone] * 2, abs=1e-5) and abs(alone - among_others) > 1e-3


def test_the_graph_does_not_grow_with_the_text():
    """What autograd keeps above the texts' own keys and values: only the attention weights see T."""
    gpt2 = GPT2(GPT2Config(500, 512, 64, 4, 4)).requires_grad_(False)
    sizes = []
    for T in (10, 410):
        batch = (torch.randint(500, (8, T)), torch.full((8,), T), torch.zeros(8, dtype=torch.int64))
        kept, texts = benchmark.graph_bytes(benchmark.ours(gpt2, [5]), batch)
        weights = {p.untyped_storage().data_ptr() for p in gpt2.parameters()}
        sizes.append(sum(size for pointer, size in kept.items() if pointer not in texts | weights))
    attention = 4 * 8 * 4 * 5 * 400 * 4  # layers, batch, heads, queries, more keys, bytes
    assert sizes[1] - sizes[0] < 4 * attention and attention < 0.1 * 4 * 2 * 8 * 400 * 64 * 4 * 5


def test_the_floor_is_made_of_the_products_of_one_step():
    """Counted on the real step: every nn.Linear that runs, and its rows."""
    gpt2, P = GPT2(GPT2Config(500, 64, 32, 3, 2)).requires_grad_(False), 5
    batch = (torch.randint(500, (4, 9)), torch.full((4,), 9), torch.zeros(4, dtype=torch.int64))
    seen, linear = [], torch.nn.Linear.forward

    def count(self, x):
        seen.append((x.shape[0] * x.shape[1], tuple(self.weight.shape)))
        return linear(self, x)

    torch.nn.Linear.forward = count
    try:
        classify(gpt2, [Prompt(torch.zeros(P, 32), torch.zeros(2, 32))], batch[0], batch[1])
    finally:
        torch.nn.Linear.forward = linear
    forward, _ = benchmark.products(gpt2, P)(batch)
    assert [(rows, tuple(weight.shape)) for rows, weight in forward] == seen
