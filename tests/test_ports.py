"""The ports before the judge, and the judge before a port with a mistake in it."""

import os
import sys
from pathlib import Path
from types import ModuleType

import golden
import numpy as np
import pytest
import torch
from checkpoints import TINY

import data
from data import Tokenizer, read_split
from evaluate import answers
from model import load_gpt2, load_prompt

PORTS = Path(__file__).parent.parent / "porting" / "ports"
sys.path.insert(0, str(PORTS))
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # JAX compiles longer than it computes here

import files  # noqa: E402
import numpy_port  # noqa: E402


@pytest.fixture(params=["numpy_port", "jax_port"])
def port(request):
    pytest.importorskip(request.param.removesuffix("_port"))
    return __import__(request.param)


@pytest.fixture(scope="module")
def reviews():
    """The dev texts, and this project's logits for them in float32 (n, 2)"""
    texts, tokenizer = [text for text, _ in read_split("reviews", "dev")], Tokenizer(TINY / "merges.txt")
    prompt, _ = load_prompt(TINY / "prompts" / "reviews-p10" / "prompt.safetensors")
    return texts, answers(load_gpt2(TINY), [prompt], [(tokenizer.encode(text), 0) for text in texts], 40)[0]


def test_it_passes_wholly(port, tmp_path, capsys):
    files.main([str(tmp_path / "its.npz")], port.do_task, port.answer)
    assert f"compare {tmp_path / 'its.npz'}" in capsys.readouterr().out
    judge = golden.Judge(golden.read_tensors(tmp_path / "its.npz"))
    assert judge.wrong == [] and {*judge.given} == {name for name in judge.golden if not golden.is_given(name)}


def test_it_answers_as_this_project_does(port, reviews):
    """Float32 through six blocks: 1e-4 of logits that reach 5"""
    texts, truth = (part[:360:6] for part in reviews)
    theirs = torch.tensor(np.stack([logits for _, logits in files.label(texts, port.answer)]))
    assert torch.equal(theirs.argmax(1), truth.argmax(1)) and (theirs - truth).abs().max() < 1e-4


def test_transformers_answer_as_this_project_does(reviews):
    """All dev texts, in batches of near-equal lengths, and one text that is cut"""
    transformers_port = pytest.importorskip("transformers_port")
    port, (texts, truth) = transformers_port.load(), reviews
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for part in (order[i : i + 40] for i in range(0, len(order), 40)):
        logits = transformers_port.answer(*port, [texts[i] for i in part])
        assert torch.equal(logits.argmax(1), truth[part].argmax(1)) and (logits - truth[part]).abs().max() < 1e-4
    cut = golden.read_golden()["real.3.logits"]
    assert (transformers_port.answer(*port, golden.SENTENCES[3:])[0] - cut).abs().max() < 1e-4


# ---- the judge before a port with a mistake in it ---------------------------------------------

SOURCE = (PORTS / "numpy_port.py").read_text(encoding="utf-8")
MISTAKES = [  # (what stands in the NumPy port, what a person wrote, where the judge stops, what it says)
    ("linear(join_heads(p @ v), w,", "linear(join_heads(p @ v), {n: x.T for n, x in w.items()},",
     "text.0.attn", "attn.c_proj was not transposed"),
    ('@ w[f"{name}.weight"] + w', '@ w[f"{name}.weight"] + ("c_attn" not in name) * w', "text.0.k", "mind the dot"),
    ('split_heads(part, model["n_head"]) for part in np.split(qkv, 3, axis=2)',
     'part.swapaxes(1, 2) for part in np.moveaxis(qkv.reshape(*x.shape[:2], model["n_head"], 3, -1), 3, 0)',
     "text.0.k", "heads are split before"),
    ("q, k, v = (split", "k, q, v = (split", "text.0.k", "another order"),
    ("q, k, v = (split", "v, k, q = (split", "text.0.v", "another order"),
    ("keepdims=True) + eps)", "keepdims=True) + 1e-6)", "text.0.k", "eps is not"),
    ("keepdims=True) + eps)", "keepdims=True)) + eps", "text.0.k", "eps stands outside"),
    ("(1 + np.tanh(ROOT_2_PI * (x + 0.044715 * x * x * x)))", "(1 + np.vectorize(__import__('math').erf)(x / 2**0.5))",
     "text.0.mlp", "exact (erf) form"),
    ("y, kept_2 = norm(x, w", "y, kept_2 = norm(x - y, w", "text.0.mlp", "stood before attention"),
    (" * q.shape[3] ** -0.5", " * x.shape[2] ** -0.5", "text.0.attn", "by C, not by D"),
    ('w["wpe.weight"][:T]', 'w["wpe.weight"][1 : T + 1]', "text.embed", "begin at 1"),
    ("np.concatenate([np.arange(P) for P in sizes])", "np.arange(sum(sizes))", "pack.position", "run on"),
    ("return seen + index,", "return seen + index + 1,", "pack.position", "one too high"),
    ("np.arange(T) < seen[:, :, None]", "np.arange(T) < T + 0 * seen[:, :, None]", "pack.mask", "see the pads"),
    ("norm(x[:, ends], w", "norm(x[:, [-1] * len(ends)], w", "hidden", "pooled at -1"),
    ("@ head.T for", "@ head[:1].T for", "logits", "a head of one column"),
    (".sum(2).mean(1)  # (K,)", ".sum(2).sum(1)", "loss", "summed over the texts"),
    ("/ len(labels)  #", "/ len(labels) / len(logits)  #", "grad.logits", "averaged, not summed"),
    (" / len(labels)  #", "  #", "grad.logits", "not divided by B"),
    (" * gelu_slope(u)", " * 0.5 * (1 + np.tanh(ROOT_2_PI * (u + 0.044715 * u * u * u)))", "grad.pack.2.attn", "second term"),
    (" - (dp * p).sum(-1, keepdims=True)", "", "grad.pack.1.x", "lacks the sum of each row"),
    (".sum(-1, keepdims=True)) * D**-0.5", ".sum(-1, keepdims=True))", "grad.pack.1.x", "the scores is not scaled"),
    ("(ds @ k, dk[:, :, -S:], dv", "(ds @ k, 0 * dk[:, :, -S:], dv", "grad.pack.1.x", "leaves out k"),
    ("dy.mean(-1, keepdims=True) - unit", "unit", "grad.pack.2.x", "takes the mean for a constant"),
    ("- unit * (dy * unit).mean(-1, keepdims=True)", "", "grad.pack.2.x", "takes the variance for a constant"),
    ("    dy = dy * gain\n", "", "grad.pack.2.x", "leaves out its weight"),
    ('dx @ w[f"{h}.attn.c_proj.weight"].T', 'dx @ w[f"{h}.attn.c_proj.weight"]', "grad.pack.1.x", "for its transpose"),
    ("for g in pair)) for pair in grads])", "for pair in grads for g in pair)) for _ in grads])", "grad.norm",
     "clipped as one"),
    ("t / warm if t <= warm", "1 if t <= warm", "after1.0.vectors", "do not warm up"),
    ("np.sqrt(v / (1 - 0.999**t)) + 1e-8", "np.sqrt(v / (1 - 0.999**t) + 1e-8)", "after1.0.head", "eps stands inside"),
    ("x -= peak", "x *= 1 - 0.01 * peak * share\n            x -= peak", "after1.0.vectors", "weight decay"),
    ("(lr, recipe[", "(recipe['head_lr'], lr, recipe[", "after1.0.vectors", "are exchanged"),
    ("share = t / warm", "t, share = t + 1, t / warm", "after1.0.vectors", "t begins at 2"),
    ("e / e.sum", "np.exp(x) / np.exp(x).sum", "text.0.attn", "exp overflows"),
    ("n_positions - np.repeat(sizes, sizes)", "n_positions - max(sizes) + 0 * owner", "pack.position",
     "as if every prompt were the longest"),
    ("n_positions - np.repeat(sizes, sizes)", "n_positions - sum(sizes) + 0 * owner", "pack.position",
     "leave the whole pack room"),
]  # fmt: skip


# The last position is taken for one that does not exist, as some frameworks do; NumPy by itself would stop there.
LAST = ('w["wpe.weight"][position]', 'w["wpe.weight"][np.minimum(position, model["n_positions"] - 1)]')


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
    return {name: torch.tensor(np.asarray(array, np.float64)) for name, array in made.items()}


def made_by(port, trained):
    """What it makes of the golden file's task; up to the logits, unless it is trained"""
    if trained:
        vars(port)["answered"] = lambda task, answer: {}  # the sentences are no part of this
        made = port.do_task()
    else:
        task, made = files.read_task(), {}
        port.read(task.weights, task.config, task.ids, made)
        port.respond(task.weights, task.config, task.prompts, task.lengths, made)
    return tensors(made)


@pytest.mark.parametrize("old,new,stops,says", MISTAKES, ids=[says for *_, says in MISTAKES])
def test_a_mistake_is_found_and_named(old, new, stops, says):
    mistakes = [(old, new), LAST] if stops == "pack.position" else [(old, new)]
    made = made_by(changed(*mistakes), trained=stops.startswith(("loss", "grad", "after1", "curve")))
    judge = golden.Judge(made)
    assert judge.first == stops and len(judge.names) == 1 and says in judge.names[0], (judge.first, judge.names)


def test_an_unknown_mistake_is_found_and_goes_without_a_name():
    """Half of GELU is forgotten"""
    port = changed(("return 0.5 * x * (1", "return x * (1"))
    judge = golden.Judge(made_by(port, trained=False))
    assert judge.first == "text.0.mlp" and judge.names == [] and "it is made of: x + attn, ln_2, c_fc, GELU" in judge.hints[-1]


@pytest.mark.parametrize("rule,stops,says", [
    (lambda text: text, "tokens.7", "the text was not stripped"),
    (lambda text: " " + text.strip(), "tokens.0", "a space was put before the text"),
])  # fmt: skip
def test_another_text_rule_is_found_and_named(monkeypatch, rule, stops, says):
    monkeypatch.setattr(data, "clean", rule)
    judge = golden.Judge(tensors(files.answered(files.read_task(), numpy_port.answer)))
    assert judge.first == stops and judge.names == [says]


def test_an_uncut_text_is_found_and_named():
    port = changed(
        ("np.minimum(lengths[:, None], n_positions - np.repeat(sizes, sizes))", "lengths[:, None] + 0 * owner"),
        LAST,
    )
    judge = golden.Judge(tensors(files.answered(files.read_task(), port.answer)))
    assert judge.first == "real.3.logits" and judge.names == ["a long text is not cut to leave the prompt room"]
