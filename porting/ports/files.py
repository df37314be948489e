"""What the ports read and write; nothing here computes.

Each port has a `do_task`, which makes all that the golden file asks for, and a function that
answers a batch of texts: (weights, config, prompts, ids, lengths) -> logits (K, B, N).  A pair is
what is trained of one prompt: (P, C) and (N, C).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import json
from types import SimpleNamespace

import numpy as np
from safetensors import safe_open

import data
from support.checkpoint import open_checkpoint
from support.terminal import emit

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "weights" / "tiny"


def load(path):
    """{name: array} of a safetensors file and its metadata; float16 becomes float32"""
    arrays = {}
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        for name in names:
            array = file.get_tensor(name)
            arrays[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return arrays, file.metadata()


def read_task():
    """The golden file's task: weights, config, prompts (K pairs), recipe, sentences, texts, ids,
    lengths, labels, half"""
    given, metadata = load(ROOT / "porting" / "golden.safetensors")
    task = SimpleNamespace(weights={}, prompts=[])
    for name in ("config", "recipe", "sentences", "texts"):
        setattr(task, name, json.loads(metadata[name]))
    for name in ("ids", "lengths", "labels", "half"):
        setattr(task, name, given[name])
    for name, array in given.items():
        if name.startswith("weights."):
            task.weights[name.removeprefix("weights.")] = array
    for k in range(len(task.recipe["lr"])):
        task.prompts.append([given[f"prompt.{k}.vectors"], given[f"prompt.{k}.head"]])
    return task


def named(name, prompts):
    """K pairs -> {name: array}"""
    arrays = {}
    for k, (vectors, head) in enumerate(prompts):
        arrays[f"{name}.{k}.vectors"] = np.array(vectors)
        arrays[f"{name}.{k}.head"] = np.array(head)
    return arrays


def encoded(texts):
    """The ids (T,) of each text, by the bundled merges"""
    tokenizer = open_checkpoint("tiny").tokenizer
    ids = []
    for text in texts:
        ids.append(np.array(tokenizer.encode(data.clean(text)), dtype=np.int64))
    return ids


def label(texts, answer, batch_size=40):
    """[(ids, logits (N,))] of texts, by the bundled model and prompt; near-equal lengths at once"""
    weights, _ = load(TINY / "model.safetensors")
    config = json.loads((TINY / "config.json").read_text())
    trained, _ = load(TINY / "prompts" / "reviews-p10" / "prompt.safetensors")
    prompts = [(trained["prompt"], trained["head.weight"])]
    every = [ids[: config["n_positions"]] for ids in encoded(texts)]
    order = sorted(range(len(every)), key=lambda i: len(every[i]))
    logits_of = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        lengths = np.array([len(every[i]) for i in batch])
        rows = [np.pad(every[i], (0, lengths[-1] - len(every[i]))) for i in batch]
        logits = answer(weights, config, prompts, np.stack(rows), lengths)  # (1, B, N)
        for i, row in zip(batch, np.array(logits[0]), strict=True):
            logits_of[i] = row
    return [(ids, logits_of[i]) for i, ids in enumerate(every)]


def answered(task, answer):
    """The golden file's texts and sentences -> {name: array}"""
    made = {}
    for i, ids in enumerate(encoded(task.texts)):
        made[f"tokens.{i}"] = ids
    for i, (ids, logits) in enumerate(label(task.sentences, answer)):
        made[f"real.{i}.ids"] = ids
        made[f"real.{i}.logits"] = logits
    return made


def read_dev():
    """reviews/dev.tsv -> [(text, label)]"""
    pairs = []
    lines = (ROOT / "reviews" / "dev.tsv").read_text(encoding="utf-8").splitlines()
    for line in lines[1:]:
        text, truth = line.split("\t")
        pairs.append((text, int(truth)))
    return pairs


def main(argv, do_task, answer):
    """FILE.npz: do the task and write it.  Nothing: label reviews/dev.tsv."""
    if argv:
        np.savez(argv[0], **do_task())
        emit(f"now ask: python porting/golden.py compare {argv[0]}")
        return
    pairs = read_dev()
    right = 0
    answers = label([text for text, _ in pairs], answer)
    for (_, logits), (_, truth) in zip(answers, pairs, strict=True):
        right += int(logits.argmax()) == truth
    emit(f"accuracy {right / len(pairs):.4f} of {len(pairs)} texts")
