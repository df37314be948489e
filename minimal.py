"""Prompt tuning, whole and slowly: one text at a time, and nothing imported that is ours.

    python minimal.py         train ten vectors and a head on reviews/, and score them: a minute

A frozen GPT-2 reads a text, then P vectors that stand where the embeddings of tokens would.  A head
makes a number for each label of what became of the last vector.  Only vectors and head are trained.
model.py computes the same for many texts and prompts at once; its tests hold it to this page.

T tokens of a text, P vectors, Q = T + P rows, C channels, D channels of a head, N labels.
"""

import csv
import json
import math
import random
from pathlib import Path

import tiktoken
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent


def linear(x, weights, name):
    """(Q, in) -> (Q, out).  GPT-2's checkpoints store matrices as (in, out)."""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layer_norm(x, weights, name, eps):
    """(Q, C) -> (Q, C): each row to mean 0 and variance 1, then to a learned scale and shift."""
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)  # (Q, 1)
    return centred / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    """Any shape, kept.  GPT-2 was trained with this form, by tanh."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, weights, name, n_head):
    """(Q, C) -> (Q, C): every row gathers from the rows before it, and from itself."""
    Q, C = x.shape
    D = C // n_head
    q, k, v = linear(x, weights, f"{name}.c_attn").split(C, dim=1)  # (Q, C) each
    future = torch.ones(Q, Q, dtype=torch.bool).triu(1)  # (Q, Q), true where a row may not look
    found = []
    for h in range(n_head):
        own = slice(h * D, (h + 1) * D)  # its channels: each head looks for something else
        scores = q[:, own] @ k[:, own].T / math.sqrt(D)  # (Q, Q)
        shares = scores.masked_fill(future, -math.inf).softmax(dim=1)  # (Q, Q), each row sums to 1
        found.append(shares @ v[:, own])  # (Q, D)
    return linear(torch.cat(found, dim=1), weights, f"{name}.c_proj")


def block(x, weights, config, i):
    """(Q, C) -> (Q, C): to x is added what attention finds, then what the MLP makes of each row."""
    eps = config["layer_norm_epsilon"]
    y = layer_norm(x, weights, f"h.{i}.ln_1", eps)
    x = x + attention(y, weights, f"h.{i}.attn", config["n_head"])
    y = layer_norm(x, weights, f"h.{i}.ln_2", eps)
    y = gelu(linear(y, weights, f"h.{i}.mlp.c_fc"))  # (Q, 4C)
    return x + linear(y, weights, f"h.{i}.mlp.c_proj")


def logits_of(ids, vectors, head, weights, config):
    """A list of T ids, vectors (P, C), head (N, C) -> (N,)"""
    # The text comes first, so its rows know of no prompt: model.py keeps them for all prompts.
    ids = ids[: config["n_positions"] - len(vectors)]  # cut what leaves the prompt no room
    x = torch.cat([weights["wte.weight"][ids], vectors])  # (T+P, C)
    x = x + weights["wpe.weight"][: len(x)]
    for i in range(config["n_layer"]):
        x = block(x, weights, config, i)
    x = layer_norm(x, weights, "ln_f", config["layer_norm_epsilon"])
    return head @ x[-1]  # (N,): the last row is the one that has seen all others


def tokenizer(path):
    """merges.txt -> what makes a list of ids of a text"""
    # The file spells 188 bytes as the characters that they are, the other 68 by those from 256 on.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = visible + [byte for byte in range(256) if byte not in visible]
    byte_of = dict(zip(map(chr, [*visible, *range(256, 324)]), order, strict=True))
    # Every byte is a token, and so is what a line after the first joins.  This order makes the ids.
    merges = path.read_text("utf-8").replace(" ", "").splitlines()[1:]
    ranks = {}
    for i, token in enumerate([*byte_of, *merges]):
        ranks[bytes(byte_of[character] for character in token)] = i
    # A text is cut into words, and no token reaches from one into the next.
    words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return tiktoken.Encoding("gpt2", pat_str=words, mergeable_ranks=ranks, special_tokens={})


def read(path, bpe):
    """A tsv of sentences and labels -> [(ids, label)]"""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(bpe.encode_ordinary(row["sentence"].strip()), int(row["label"])) for row in rows]


def train(examples, weights, config, P=10, N=2, steps=180, batch_size=16):
    """[(ids, label)] -> vectors (P, C), head (N, C)"""
    # Vectors begin as tokens drawn at random (no single bytes), since the model can read those.
    ids = torch.randint(256, config["vocab_size"] - 1, (P,))
    vectors = weights["wte.weight"][ids].requires_grad_()
    head = (torch.randn(N, config["n_embd"]) * 0.02).requires_grad_()
    # The optimizer knows of no weight, so the model stays frozen.  Both rates fall to zero.
    groups = [{"params": [vectors], "lr": 0.03}, {"params": [head], "lr": 0.005}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(1, steps + 1):
        loss = 0.0  # the mean of -log(share of the label)
        for ids, label in random.sample(examples, batch_size):
            logits = logits_of(ids, vectors, head, weights, config)  # (N,)
            loss = loss - logits.log_softmax(dim=0)[label] / batch_size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([vectors, head], 1.0)  # one odd batch can not undo the rest
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}")
    return vectors.detach(), head.detach()


def main(steps=180):
    """Train on reviews/train.tsv, score on reviews/dev.tsv, print both"""
    torch.manual_seed(0)  # for the first vectors and the head
    random.seed(0)  # for the batches
    folder = ROOT / "weights" / "tiny"
    config = json.loads((folder / "config.json").read_text("utf-8"))
    stored = load_file(folder / "model.safetensors")  # float16
    weights = {name: tensor.float() for name, tensor in stored.items()}
    bpe = tokenizer(folder / "merges.txt")
    examples = read(ROOT / "reviews" / "train.tsv", bpe)
    vectors, head = train(examples, weights, config, steps=steps)
    dev = read(ROOT / "reviews" / "dev.tsv", bpe)
    right = 0
    for ids, label in dev:
        right += int(logits_of(ids, vectors, head, weights, config).argmax()) == label
    positive = sum(label for _, label in dev) / len(dev)
    majority = max(positive, 1 - positive)  # what one answer to everything has right
    print(f"accuracy {right / len(dev):.4f} of {len(dev)} texts; the majority's {majority:.4f}")


if __name__ == "__main__":
    main()
