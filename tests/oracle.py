"""The method, slowly: one text, one prompt, one ordinary causal pass, in float64.

No batch, no padding, no cache, no pack, no module, and nothing imported from the project.  Weights
come as the checkpoint stores them, (in, out), by their official names.  The shortest explanation of
what model.py computes, and what its tests hold it to; `python tests/oracle.py TEXT` prints it.
"""

import json
import math
import sys
from pathlib import Path

import tiktoken
import torch
from safetensors.torch import load_file


def layer_norm(x, gain, bias, eps):
    """(Q, C) -> (Q, C), each row normalised with its biased variance"""
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt() * gain + bias


def gelu(x):
    """The tanh form that GPT-2 was trained with"""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, weights, name, n_head):
    """(Q, C) -> (Q, C), one head and one query at a time"""
    C, D = x.shape[1], x.shape[1] // n_head
    q, k, v = (x @ weights[f"{name}.c_attn.weight"] + weights[f"{name}.c_attn.bias"]).split(C, dim=1)
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(n_head):
            of_head = slice(h * D, h * D + D)
            scores = k[: i + 1, of_head] @ q[i, of_head] / math.sqrt(D)  # (i+1,) itself and before
            share = scores.exp() / scores.exp().sum()
            heads.append(share @ v[: i + 1, of_head])  # (D,)
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ weights[f"{name}.c_proj.weight"] + weights[f"{name}.c_proj.bias"]


def logits(weights, n_head, eps, ids, vectors, head, tell=lambda step, x: None):
    """ids: list of T ints, vectors (P, C), head (N, C) -> logits (N,); tell hears of each step"""
    room = len(weights["wpe.weight"]) - len(vectors)  # a long text leaves the prompt room
    x = torch.cat([weights["wte.weight"][ids[:room]], vectors])  # (T+P, C): text, then the prompt
    x = x + weights["wpe.weight"][: len(x)]
    tell("embedding", x)
    for h in [f"h.{i}" for i in range(sum("ln_1.weight" in name for name in weights))]:  # each block
        y = layer_norm(x, weights[f"{h}.ln_1.weight"], weights[f"{h}.ln_1.bias"], eps)
        x = x + attention(y, weights, f"{h}.attn", n_head)
        y = layer_norm(x, weights[f"{h}.ln_2.weight"], weights[f"{h}.ln_2.bias"], eps)
        y = gelu(y @ weights[f"{h}.mlp.c_fc.weight"] + weights[f"{h}.mlp.c_fc.bias"])  # (T+P, 4C)
        x = x + y @ weights[f"{h}.mlp.c_proj.weight"] + weights[f"{h}.mlp.c_proj.bias"]
        tell(h, x)
    x = layer_norm(x, weights["ln_f.weight"], weights["ln_f.bias"], eps)
    tell("ln_f", x)
    return head @ x[-1]  # the last vector (C,) alone


def story(text="great fun", folder="weights/tiny", prompt="weights/tiny/prompts/reviews-p10/prompt.safetensors"):
    """Print what becomes of a text, and the gradients that training would follow"""
    config = json.loads(Path(folder, "config.json").read_text("utf-8"))
    weights = {name: tensor.double() for name, tensor in load_file(f"{folder}/model.safetensors").items()}
    vectors, head = (load_file(prompt)[name].double().requires_grad_() for name in ("prompt", "head.weight"))
    merges = Path(folder, "merges.txt").read_text("utf-8").replace(" ", "").split("\n")[1:-1]
    order = sorted(range(256), key=lambda byte: byte == 32 or not chr(byte).isprintable())  # ids 0 to 255
    byte_of = dict(zip(map(chr, order[:188] + [*range(256, 324)]), order))  # as merges.txt spells them
    ranks = {bytes(map(byte_of.get, token)): i for i, token in enumerate([*byte_of, *merges])}
    words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    bpe = tiktoken.Encoding("gpt2", pat_str=words, mergeable_ranks=ranks, special_tokens={})
    ids = bpe.encode_ordinary(text.strip())[: config["n_positions"] - len(vectors)]
    T, tokens = len(ids), "  ".join(f"{bpe.decode([i])!r} (id {i})" for i in ids)
    print(f"positions 0 to {T - 1}: {tokens}\npositions {T} to {T + len(vectors) - 1}: the prompt\n")
    numbers = lambda row, form="9.3f": "".join(f"{value:{form}}" for value in row)
    tell = lambda step, x: print(f"{step:10}{tuple(x.shape)}{numbers(x[0, :4])} ...{numbers(x[-1, :4])} ...")
    print("after     (T+P, C)  first row, a token's                    last row, of the prompt's last vector")
    out = logits(weights, config["n_head"], config["layer_norm_epsilon"], ids, vectors, head, tell)
    print(f"\nthe last row times the head: logits{numbers(out, '10.5f')}, probabilities{numbers(out.softmax(0))}")
    print("\nif the label were, the loss, the norm of its gradient on head, prompt, each of the prompt's vectors")
    for label, loss in enumerate(-out.log_softmax(0)):
        of_vectors, of_head = torch.autograd.grad(loss, (vectors, head), retain_graph=True)
        print(label, numbers([loss, of_head.norm(), of_vectors.norm(), *of_vectors.norm(dim=1)], "7.3f"))


if __name__ == "__main__":
    story(*sys.argv[1:])
