"""The method, slowly: one text, one prompt, one ordinary causal pass, in float64.

No batch, no padding, no cache, no pack, no module, and nothing imported from the project.  Weights
come as the checkpoint stores them, (in, out), by their official names.  This is the shortest
explanation of what model.py computes, and what its tests hold it to.
"""

import math

import torch


def layer_norm(x, gain, bias, eps):
    """(Q, C) -> (Q, C), each row normalised with its biased variance"""
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt() * gain + bias


def gelu(x):
    """The tanh form that GPT-2 was trained with"""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, weights, name, n_head):
    """(Q, C) -> (Q, C), one head and one query at a time"""
    Q, C = x.shape
    D = C // n_head
    q, k, v = (x @ weights[f"{name}.c_attn.weight"] + weights[f"{name}.c_attn.bias"]).split(C, dim=1)
    rows = []
    for i in range(Q):
        heads = []
        for h in range(n_head):
            of_head = slice(h * D, h * D + D)
            scores = k[: i + 1, of_head] @ q[i, of_head] / math.sqrt(D)  # (i+1,) itself and before
            share = scores.exp() / scores.exp().sum()
            heads.append(share @ v[: i + 1, of_head])  # (D,)
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ weights[f"{name}.c_proj.weight"] + weights[f"{name}.c_proj.bias"]


def logits(weights, n_head, eps, ids, vectors, head):
    """ids: list of T ints, vectors (P, C), head (N, C) -> logits (N,)"""
    P, n_positions = len(vectors), len(weights["wpe.weight"])
    text = weights["wte.weight"][ids[: n_positions - P]]  # (T, C); a long text leaves the prompt room
    x = torch.cat([text, vectors])  # (T+P, C): the prompt stands right after the text
    x = x + weights["wpe.weight"][: len(x)]
    i = 0
    while f"h.{i}.ln_1.weight" in weights:
        h = f"h.{i}"
        y = layer_norm(x, weights[f"{h}.ln_1.weight"], weights[f"{h}.ln_1.bias"], eps)
        x = x + attention(y, weights, f"{h}.attn", n_head)
        y = layer_norm(x, weights[f"{h}.ln_2.weight"], weights[f"{h}.ln_2.bias"], eps)
        y = gelu(y @ weights[f"{h}.mlp.c_fc.weight"] + weights[f"{h}.mlp.c_fc.bias"])  # (T+P, 4C)
        x = x + y @ weights[f"{h}.mlp.c_proj.weight"] + weights[f"{h}.mlp.c_proj.bias"]
        i += 1
    last = layer_norm(x, weights["ln_f.weight"], weights["ln_f.bias"], eps)[-1]  # (C,)
    return head @ last
