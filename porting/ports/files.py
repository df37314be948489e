"""What the ports read and write; nothing here computes.

Each port has a `do_task`, which makes all that the golden file asks for, and a function that answers a batch of texts:
(weights, config, prompts, ids, lengths) -> logits (K, B, N).
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors import safe_open

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "weights" / "tiny"


def load(path):
    """{name: array} of a safetensors file and its metadata; float16, as in weights/tiny, becomes float32"""
    with safe_open(path, framework="np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    return {n: t.astype(np.float32) if t.dtype.kind == "f" else t for n, t in tensors.items()}, metadata


def read_task():
    """The golden file's task: weights, config, prompts, recipe, sentences, texts, ids, lengths, labels, half"""
    given, metadata = load(ROOT / "porting" / "golden.safetensors")
    asked = {name: json.loads(metadata[name]) for name in ("config", "recipe", "sentences", "texts")}
    asked |= {name: given[name] for name in ("ids", "lengths", "labels", "half")}
    weights = {name.removeprefix("weights."): t for name, t in given.items() if name.startswith("weights.")}
    K = len(asked["recipe"]["lr"])
    prompts = [[given[f"prompt.{k}.vectors"], given[f"prompt.{k}.head"]] for k in range(K)]
    return SimpleNamespace(weights=weights, prompts=prompts, **asked)


def named(name, prompts):
    """K pairs of (P, C) and (N, C) -> {name: array}"""
    pairs = [(f"{name}.{k}", *pair) for k, pair in enumerate(prompts)]
    return {f"{k}.{part}": np.array(x) for k, *pair in pairs for part, x in zip(("vectors", "head"), pair)}


def encoder():
    """text -> ids (T,), by the bundled merges"""
    sys.path.insert(0, str(ROOT))
    from data import Tokenizer, clean

    tokenizer = Tokenizer(TINY / "merges.txt")
    return lambda text: np.array(tokenizer.encode(clean(text)), dtype=np.int64)


def label(texts, answer, batch_size=40):
    """[(ids, logits (N,))] of texts, by the bundled model and prompt, near-equal lengths at once"""
    weights, config = load(TINY / "model.safetensors")[0], json.loads((TINY / "config.json").read_text())
    prompt, _ = load(TINY / "prompts" / "reviews-p10" / "prompt.safetensors")
    encode, answers = encoder(), {}
    texts = [encode(text)[: config["n_positions"]] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        lengths = np.array([len(texts[i]) for i in batch])
        ids = np.stack([np.pad(texts[i], (0, lengths[-1] - len(texts[i]))) for i in batch])  # (B, T)
        logits = answer(weights, config, [(prompt["prompt"], prompt["head.weight"])], ids, lengths)
        answers |= zip(batch, np.array(logits[0]))
    return [(ids, answers[i]) for i, ids in enumerate(texts)]


def answered(task, answer):
    """The golden file's texts and sentences -> {name: array}"""
    encode = encoder()
    made = {f"tokens.{i}": encode(text) for i, text in enumerate(task.texts)}
    for i, (ids, logits) in enumerate(label(task.sentences, answer)):
        made |= {f"real.{i}.ids": ids, f"real.{i}.logits": logits}
    return made


def main(argv, do_task, answer):
    """FILE.npz: do the task and write it.  Nothing: label reviews/dev.tsv."""
    if argv:
        np.savez(argv[0], **do_task())
        return print(f"now ask: python porting/golden.py compare {argv[0]}")
    rows = [line.split("\t") for line in (ROOT / "reviews" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    answers = label([text for text, _ in rows], answer)
    right = sum(logits.argmax() == int(truth) for (_, logits), (_, truth) in zip(answers, rows))
    print(f"accuracy {right / len(rows):.4f} of {len(rows)} texts")
