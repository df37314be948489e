"""bench/benchmark.py runs and compares like with like.  Nothing here looks at a clock."""

import json
import statistics

import benchmark
import pytest
import torch

from model import GPT2, GPT2Config, Prompt, classify


CPU = torch.device("cpu")


def test_it_runs_and_writes_its_figures(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    flags = ["--size", "tiny", "--rounds", "1", "--batches", "1", "--batch-size", "4", "--prompt-tokens", "3"]
    timed, seconds = [], benchmark.seconds
    monkeypatch.setattr(benchmark, "seconds", lambda step, *more: timed.append(step) or seconds(step, *more))
    ratios = benchmark.main([*flags, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratios"] == ratios and all(value > 0 for value in ratios.values())
    assert {"a/d", "g/d", "g/d'", "g/a", "a6/e", "e6/e", "f/d", "f'/d'", "memory a/d"} <= ratios.keys()
    assert ("g'/d" in ratios, "h/d" in ratios) == ("b/d" in ratios, "c/d" in ratios)  # bfloat16, and PEFT
    assert len(timed) == (3 + 1) * len(figures["seconds"]) and {*map(len, figures["seconds"].values())} == {1}
    out = capsys.readouterr().out
    assert all(benchmark.LABELS[name] in out for name in ("a", "d", "d'", "e", "f", "f'", "g")) and "projected" in out
    chip = benchmark.chip_of(CPU)
    assert chip in out and ("bf16" in chip) == (benchmark.body_dtype("auto", CPU) == torch.bfloat16)


def test_batches_stand_for_an_epoch_of_the_same_texts():
    """Both kinds hold as many of the same texts; but those in random order are unsorted, and so full of pads."""
    args = benchmark.parse_args(["--batch-size", "8", "--batches", "5"])
    tokenizer = benchmark.Tokenizer(benchmark.ROOT / "weights/tiny/merges.txt")
    known = {tuple(tokenizer.encode(text)) for text, _ in benchmark.read_split("reviews", "train")}
    (near, near_mean), (mixed, mixed_mean) = benchmark.make_batches(args, CPU)
    for todo, mean in ((near, near_mean), (mixed, mixed_mean)):
        assert len(todo) == 5 and statistics.mean(ids.shape[1] for ids, _, _ in todo) == pytest.approx(mean, rel=0.05)
        for ids, lengths, labels in todo:
            assert len(ids) == len(lengths) == len(labels) == 8 and ids.shape[1] == lengths.max()
            assert {tuple(row[:length]) for row, length in zip(ids.tolist(), lengths)} <= known
    ascending = lambda batch: batch[1].tolist() == sorted(batch[1].tolist())
    assert all(map(ascending, near)) and not any(map(ascending, mixed))
    filled = [sum(lengths.sum() / ids.numel() for ids, lengths, _ in todo) / 5 for todo in (near, mixed)]
    assert filled[0] > 0.95 and filled[1] < 0.7
    assert near_mean < 1.05 * statistics.mean(map(len, known)) and mixed_mean > 1.4 * near_mean
    [(equal, mean)] = benchmark.make_batches(benchmark.parse_args(["--text-tokens", "30"]), CPU)
    assert mean == 30 and all(ids.shape == (32, 30) for ids, _, _ in equal)


def test_who_trains_on_which_batches():
    pytest.importorskip("transformers")
    C, L, H = benchmark.SIZES["tiny"]
    for dtype in (torch.float32, torch.bfloat16):
        gpt2 = GPT2(GPT2Config(benchmark.V, 64, C, L, H)).to(dtype).requires_grad_(False)
        args = benchmark.parse_args(["--size", "tiny", "--batch-size", "4", "--prompt-tokens", "3"])
        (near, _), (mixed, _) = benchmark.make_batches(args, CPU)
        contenders = benchmark.make_contenders(args, gpt2, near, mixed)
        assert all(batches is (mixed if name[0] in "gh" else near) for name, (_, batches) in contenders.items())
        for name, of in (("g", "a"), ("g'", "b"), ("h", "c")):  # the very same way to train
            assert (name in contenders) == (of in contenders)
            assert name not in contenders or contenders[name][0] is contenders[of][0]
        assert "g" in contenders and ("g'" in contenders) == (dtype == torch.bfloat16)
        assert not {"g", "g'", "h"} & benchmark.make_contenders(args, gpt2, near).keys()


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
