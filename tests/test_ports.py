"""The ports before the judge, and the judge before a port with a mistake in it."""

import os
import sys
from pathlib import Path

# JAX compiles longer than it computes here.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
sys.path.insert(0, str(Path(__file__).parent.parent / "porting" / "ports"))

from types import ModuleType

import numpy as np
import pytest
import torch

import data
import files
import minimal
import numpy_port
from golden import read_tensors
from helpers import ROOT, TINY
from judge import Judge
from metrics import logits_of
from support.checkpoint import open_checkpoint
from support.prompt_file import read_prompt
from task import SENTENCES, is_given, read_golden


@pytest.fixture(params=["numpy_port", "jax_port"])
def port(request):
    pytest.importorskip(request.param.removesuffix("_port"))
    return __import__(request.param)


@pytest.fixture(scope="module")
def dev():
    """The texts of reviews/dev"""
    return [text for text, _ in files.read_dev()]


@pytest.fixture(scope="module")
def truth():
    """This project's logits for them, float32 (n, 2)"""
    bpe = minimal.tokenizer(TINY / "merges.txt")
    examples = minimal.read(ROOT / "reviews" / "dev.tsv", bpe)
    prompt = read_prompt(TINY / "prompts" / "reviews-p10" / "prompt.safetensors").prompt
    gpt2 = open_checkpoint("tiny").load()
    return logits_of(gpt2, [prompt], examples, batch_size=40)[0]


# ---- the ports ------------------------------------------------------------------------------


def assert_same_answers(ours, theirs):
    """Float32 through six blocks: 1e-4 of logits that reach 5"""
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert (ours - theirs).abs().max() < 1e-4


def test_it_passes_wholly(port, tmp_path, capsys):
    path = tmp_path / "its.npz"
    files.main([str(path)], port.do_task, port.answer)
    assert f"compare {path}" in capsys.readouterr().out
    judge = Judge(read_tensors(path))
    assert judge.wrong == []
    asked = {name for name in judge.golden if not is_given(name)}
    assert set(judge.given) == asked


def test_it_answers_as_this_project_does(port, dev, truth):
    answers = files.label(dev[:360:6], port.answer)
    theirs = np.stack([logits for _, logits in answers])
    assert_same_answers(truth[:360:6], torch.tensor(theirs))


def test_it_prints_an_accuracy(monkeypatch, capsys):
    pairs = files.read_dev()[:20]
    monkeypatch.setattr(files, "read_dev", lambda: pairs)
    files.main([], numpy_port.do_task, numpy_port.answer)
    right = 0
    answers = files.label([text for text, _ in pairs], numpy_port.answer)
    for (_, logits), (_, label) in zip(answers, pairs, strict=True):
        right += int(logits.argmax()) == label
    said = f"accuracy {right / 20:.4f} of 20 texts\n"
    assert capsys.readouterr().out == said


@pytest.fixture(scope="module")
def in_transformers():
    """texts -> logits (B, N) by transformers"""
    port = pytest.importorskip("transformers_port")
    model = port.load()

    def answer(texts):
        return port.answer(*model, texts)

    return answer


def test_transformers_answer_as_this_project_does(in_transformers, dev, truth):
    """All dev texts, in batches of near-equal lengths."""
    order = sorted(range(len(dev)), key=lambda i: len(dev[i]))
    for batch in data.cut(order, 40):
        logits = in_transformers([dev[i] for i in batch])
        assert_same_answers(truth[batch], logits)


def test_transformers_cut_a_long_text_as_this_project_does(in_transformers):
    logits = in_transformers(SENTENCES[3:])
    truth = read_golden()["real.3.logits"]
    assert (logits[0] - truth).abs().max() < 1e-4


# ---- the judge before a port with a mistake in it -------------------------------------------

SOURCE = Path(numpy_port.__file__).read_text(encoding="utf-8")
# (what stands in the NumPy port, what a person wrote, where the judge stops, what it says)
MISTAKES = [
    (
        "y = linear(join_heads(p @ v), w,",
        "y = linear(join_heads(p @ v), {n: x.T for n, x in w.items()},",
        "text.0.attn",
        "attn.c_proj was not transposed",
    ),
    (
        'w[f"{name}.weight"] + w[f"{name}.bias"]\n    return y.re',
        'w[f"{name}.weight"] + ("c_attn" not in name) * w[f"{name}.bias"]\n    return y.re',
        "text.0.k",
        "mind the dot",
    ),
    (
        'split_heads(part, model["n_head"]) for part in np.split(qkv, 3, axis=2)',
        "part.swapaxes(1, 2) for part in np.moveaxis("
        'qkv.reshape(*x.shape[:2], model["n_head"], 3, -1), 3, 0)',
        "text.0.k",
        "heads are split before",
    ),
    ("q, k, v = [split", "k, q, v = [split", "text.0.k", "another order"),
    ("q, k, v = [split", "v, k, q = [split", "text.0.v", "another order"),
    (
        "keepdims=True) + eps)",
        "keepdims=True) + 1e-6)",
        "text.0.k",
        "eps is not",
    ),
    (
        "keepdims=True) + eps)",
        "keepdims=True)) + eps",
        "text.0.k",
        "eps stands outside",
    ),
    (
        "(1 + np.tanh(ROOT_2_PI * (x + 0.044715 * x * x * x)))",
        "(1 + np.vectorize(__import__('math').erf)(x / 2**0.5))",
        "text.0.mlp",
        "exact (erf) form",
    ),
    (
        "y, kept_2 = norm(x, w",
        "y, kept_2 = norm(x - y, w",
        "text.0.mlp",
        "stood before attention",
    ),
    (
        " * q.shape[3] ** -0.5",
        " * x.shape[2] ** -0.5",
        "text.0.attn",
        "by C, not by D",
    ),
    (
        'w["wpe.weight"][:T]',
        'w["wpe.weight"][1 : T + 1]',
        "text.embed",
        "begin at 1",
    ),
    (
        "np.concatenate([np.arange(P) for P in sizes])",
        "np.arange(sum(sizes))",
        "pack.position",
        "run on",
    ),
    (
        "return seen + index,",
        "return seen + index + 1,",
        "pack.position",
        "one too high",
    ),
    (
        "np.arange(T) < seen[:, :, None]",
        "np.arange(T) < T + 0 * seen[:, :, None]",
        "pack.mask",
        "see the pads",
    ),
    (
        "norm(x[:, ends], w",
        "norm(x[:, [-1] * len(ends)], w",
        "hidden",
        "pooled at -1",
    ),
    (
        "@ head.T for",
        "@ head[:1].T for",
        "logits",
        "a head of one column",
    ),
    (
        ".sum(2).mean(1)  # (K,)",
        ".sum(2).sum(1)",
        "loss",
        "summed over the texts",
    ),
    (
        "/ len(labels)  #",
        "/ len(labels) / len(logits)  #",
        "grad.logits",
        "averaged, not summed",
    ),
    (
        " / len(labels)  #",
        "  #",
        "grad.logits",
        "not divided by B",
    ),
    (
        " * gelu_slope(u)",
        " * 0.5 * (1 + np.tanh(ROOT_2_PI * (u + 0.044715 * u * u * u)))",
        "grad.pack.2.attn",
        "second term",
    ),
    (
        " - (dp * p).sum(-1, keepdims=True)",
        "",
        "grad.pack.1.x",
        "lacks the sum of each row",
    ),
    (
        ".sum(-1, keepdims=True)) * D**-0.5",
        ".sum(-1, keepdims=True))",
        "grad.pack.1.x",
        "the scores is not scaled",
    ),
    (
        "[dq, dk[:, :, -S:], dv",
        "[dq, 0 * dk[:, :, -S:], dv",
        "grad.pack.1.x",
        "leaves out k",
    ),
    (
        "dy - dy.mean(-1, keepdims=True) - along",
        "dy - along",
        "grad.pack.2.x",
        "takes the mean for a constant",
    ),
    (
        "keepdims=True) - along) / root",
        "keepdims=True)) / root",
        "grad.pack.2.x",
        "takes the variance for a constant",
    ),
    (
        "    dy = dy * gain\n",
        "",
        "grad.pack.2.x",
        "leaves out its weight",
    ),
    (
        'dx @ w[f"{h}.attn.c_proj.weight"].T',
        'dx @ w[f"{h}.attn.c_proj.weight"]',
        "grad.pack.1.x",
        "for its transpose",
    ),
    (
        "sum((g * g).sum() for g in pair)",
        "sum((g * g).sum() for both in grads for g in both)",
        "grad.norm",
        "clipped as one",
    ),
    (
        "t / warm if t <= warm",
        "1 if t <= warm",
        "after1.0.vectors",
        "do not warm up",
    ),
    (
        "np.sqrt(v / (1 - 0.999**t)) + 1e-8",
        "np.sqrt(v / (1 - 0.999**t) + 1e-8)",
        "after1.0.head",
        "eps stands inside",
    ),
    (
        "x -= peak",
        "x *= 1 - 0.01 * peak * share\n            x -= peak",
        "after1.0.vectors",
        "weight decay",
    ),
    (
        '(lr, recipe["head_lr"])',
        '(recipe["head_lr"], lr)',
        "after1.0.vectors",
        "are exchanged",
    ),
    (
        "share = t / warm",
        "t, share = t + 1, t / warm",
        "after1.0.vectors",
        "t begins at 2",
    ),
    (
        "e / e.sum",
        "np.exp(x) / np.exp(x).sum",
        "text.0.attn",
        "exp overflows",
    ),
    (
        "n_positions - np.repeat(sizes, sizes)",
        "n_positions - max(sizes) + 0 * owner",
        "pack.position",
        "as if every prompt were the longest",
    ),
    (
        "n_positions - np.repeat(sizes, sizes)",
        "n_positions - sum(sizes) + 0 * owner",
        "pack.position",
        "leave the whole pack room",
    ),
]

# The last position is taken for one that does not exist, as some frameworks do; NumPy by itself
# would stop there.
LAST = (
    'w["wpe.weight"][position]',
    'w["wpe.weight"][np.minimum(position, model["n_positions"] - 1)]',
)


def changed(*mistakes):
    """The NumPy port with other words in some places"""
    source = SOURCE
    for old, new in mistakes:
        assert source.count(old) == 1, f"{old} stands {source.count(old)} times in numpy_port.py"
        source = source.replace(old, new)
    module = ModuleType("changed")
    exec(source, vars(module))
    return module


def tensors(made):
    """Arrays as the judge takes them"""
    return {name: torch.tensor(np.asarray(x, np.float64)) for name, x in made.items()}


def no_answers(task, answer):
    """The sentences are no part of this"""
    return {}


def made_by(port, trained):
    """What it makes of the golden file's task; up to the logits, unless it is trained"""
    if trained:
        port.answered = no_answers
        return tensors(port.do_task())
    task = files.read_task()
    made = {}
    port.read(task.weights, task.config, task.ids, made)
    port.respond(task.weights, task.config, task.prompts, task.lengths, made)
    return tensors(made)


@pytest.mark.parametrize("old,new,stops,says", MISTAKES, ids=[row[3] for row in MISTAKES])
def test_a_mistake_is_found_and_named(old, new, stops, says):
    mistakes = [(old, new)]
    if stops == "pack.position":
        mistakes.append(LAST)
    trained = stops.startswith(("loss", "grad", "after1", "curve"))
    judge = Judge(made_by(changed(*mistakes), trained))
    assert judge.first == stops
    assert len(judge.names) == 1
    assert says in judge.names[0]


def test_an_unknown_mistake_is_found_and_goes_without_a_name():
    """Half of GELU is forgotten"""
    port = changed(("return 0.5 * x * (1", "return x * (1"))
    judge = Judge(made_by(port, trained=False))
    assert judge.first == "text.0.mlp"
    assert judge.names == []
    assert "it is made of: x + attn, ln_2, c_fc, GELU" in judge.hints[-1]


def unstripped(text):
    return text


def space_before(text):
    return " " + text.strip()


RULES = [
    (unstripped, "tokens.7", "the text was not stripped"),
    (space_before, "tokens.0", "a space was put before the text"),
]


@pytest.mark.parametrize("rule,stops,says", RULES)
def test_another_text_rule_is_found_and_named(monkeypatch, rule, stops, says):
    monkeypatch.setattr(data, "clean", rule)
    made = files.answered(files.read_task(), numpy_port.answer)
    judge = Judge(tensors(made))
    assert judge.first == stops
    assert judge.names == [says]


def test_an_uncut_text_is_found_and_named():
    cut = "np.minimum(lengths[:, None], n_positions - np.repeat(sizes, sizes))"
    port = changed((cut, "lengths[:, None] + 0 * owner"), LAST)
    judge = Judge(tensors(files.answered(files.read_task(), port.answer)))
    assert judge.first == "real.3.logits"
    assert judge.names == ["a long text is not cut to leave the prompt room"]
