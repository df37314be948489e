"""Prompt training on GPT-2 in NumPy: the forward pass, the backward pass by hand, and AdamW.

    python porting/ports/numpy_port.py             label reviews/dev.tsv, bundled model and prompt
    python porting/ports/numpy_port.py mine.npz    do the task of porting/golden.safetensors, write
                                                   all that it makes; then ask:
                                                   python porting/golden.py compare mine.npz

Float32, from porting/porting.md alone; model.py has no part in it.  Letters: B texts of T padded
tokens, K prompts of P vectors, S = sum of P, Q = T or S, C channels, H heads, D = C/H, N labels.
A pair is what is trained of one prompt: vectors (P, C) and head (N, C).
"""

import sys
from itertools import accumulate

import numpy as np

from files import answered, main, named, read_task

ROOT_2_PI = (2 / np.pi) ** 0.5


# ---- one block, there and back --------------------------------------------------------------


def softmax(x):
    """Along the last axis"""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, w, name, eps):
    """(B, Q, C) -> (B, Q, C), and what the way back needs"""
    x = x - x.mean(-1, keepdims=True)
    root = np.sqrt((x * x).mean(-1, keepdims=True) + eps)  # (B, Q, 1)
    gain = w[f"{name}.weight"]
    return x / root * gain + w[f"{name}.bias"], (x / root, root, gain)


def norm_back(dy, kept):
    """(B, Q, C) -> (B, Q, C)"""
    unit, root, gain = kept
    dy = dy * gain
    along = unit * (dy * unit).mean(-1, keepdims=True)
    return (dy - dy.mean(-1, keepdims=True) - along) / root


def linear(x, w, name):
    """(B, Q, in) -> (B, Q, out), as one product of matrices instead of B, which halves the time"""
    y = x.reshape(-1, x.shape[2]) @ w[f"{name}.weight"] + w[f"{name}.bias"]
    return y.reshape(*x.shape[:2], -1)


def gelu(x):
    # x**3 would take ten times as long.
    return 0.5 * x * (1 + np.tanh(ROOT_2_PI * (x + 0.044715 * x * x * x)))


def gelu_slope(x):
    t = np.tanh(ROOT_2_PI * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT_2_PI * (1 + 3 * 0.044715 * x * x)


def split_heads(x, H):
    """(B, Q, C) -> (B, H, Q, D)"""
    return x.reshape(*x.shape[:2], H, -1).swapaxes(1, 2)


def join_heads(x):
    """(B, H, Q, D) -> (B, Q, C)"""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)


def block(x, w, h, model, mask, made, name, past=None):
    """(B, Q, C) -> (B, Q, C), and what the way back needs.

    past: the texts' keys and values, each (B, H, T, D).
    """
    y, kept_1 = norm(x, w, f"{h}.ln_1", model["layer_norm_epsilon"])
    qkv = linear(y, w, f"{h}.attn.c_attn")  # (B, Q, 3C)
    q, k, v = [split_heads(part, model["n_head"]) for part in np.split(qkv, 3, axis=2)]
    made[f"{name}.k"] = k  # (B, H, Q, D)
    made[f"{name}.v"] = v
    if past:
        k = np.concatenate([past[0], k], 2)  # (B, H, T+S, D)
        v = np.concatenate([past[1], v], 2)
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5  # (B, H, Q, T+Q)
    p = softmax(np.where(mask, scores, -np.inf))
    y = linear(join_heads(p @ v), w, f"{h}.attn.c_proj")  # (B, Q, C)
    made[f"{name}.attn"] = y
    x = x + y
    y, kept_2 = norm(x, w, f"{h}.ln_2", model["layer_norm_epsilon"])
    u = linear(y, w, f"{h}.mlp.c_fc")  # (B, Q, 4C)
    y = linear(gelu(u), w, f"{h}.mlp.c_proj")  # (B, Q, C)
    made[f"{name}.mlp"] = y
    x = x + y
    made[f"{name}.x"] = x
    return x, (h, kept_1, q, k, v, p, kept_2, u)


def block_back(dx, w, kept, made, name):
    """(B, S, C) -> (B, S, C): to the vectors alone, since weights are frozen and texts are past"""
    h, kept_1, q, k, v, p, kept_2, u = kept
    S, D = q.shape[2:]

    # Back through the MLP.
    dy = dx @ w[f"{h}.mlp.c_proj.weight"].T * gelu_slope(u)  # (B, S, 4C)
    dx = dx + norm_back(dy @ w[f"{h}.mlp.c_fc.weight"].T, kept_2)
    made[f"{name}.attn"] = dx

    # Back through attention: of k and v only the pack's own rows.
    dy = split_heads(dx @ w[f"{h}.attn.c_proj.weight"].T, q.shape[1])  # (B, H, S, D)
    dp = dy @ v.swapaxes(2, 3)  # (B, H, S, T+S)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * D**-0.5
    dq = ds @ k  # (B, H, S, D)
    dk = ds.swapaxes(2, 3) @ q  # (B, H, T+S, D)
    dv = p.swapaxes(2, 3) @ dy
    parts = [dq, dk[:, :, -S:], dv[:, :, -S:]]
    dqkv = np.concatenate([join_heads(part) for part in parts], 2)  # (B, S, 3C)
    return dx + norm_back(dqkv @ w[f"{h}.attn.c_attn.weight"].T, kept_1)


# ---- texts, then prompts, and the prompts' gradients ----------------------------------------


def read(w, model, ids, made):
    """The texts (B, T), which see no prompt; notes text.i.k and text.i.v, all that prompts need"""
    T = ids.shape[1]
    x = w["wte.weight"][ids] + w["wpe.weight"][:T]  # (B, T, C)
    made["text.embed"] = x
    causal = np.tri(T, dtype=bool)
    for i in range(model["n_layer"]):
        x, _ = block(x, w, f"h.{i}", model, causal, made, f"text.{i}")


def where(sizes, lengths, T, n_positions):
    """positions (B, S) of a pack and its mask (B, S, T+S), true where a vector may look"""
    owner = np.repeat(np.arange(len(sizes)), sizes)  # (S,)
    index = np.concatenate([np.arange(P) for P in sizes])  # (S,) begins again with each prompt
    seen = np.minimum(lengths[:, None], n_positions - np.repeat(sizes, sizes))  # (B, S)
    text = np.arange(T) < seen[:, :, None]  # (B, S, T)
    own = (owner[:, None] == owner) & np.tri(len(owner), dtype=bool)  # (S, S)
    own = np.broadcast_to(own, (len(lengths), *own.shape))  # (B, S, S)
    return seen + index, np.concatenate([text, own], 2)


def respond(w, model, prompts, lengths, made):
    """K pairs after the texts just read -> logits (K, B, N), and what gradients need"""
    sizes = [len(vectors) for vectors, _ in prompts]
    ends = [end - 1 for end in accumulate(sizes)]  # K x the index of a last vector
    T = made["text.embed"].shape[1]
    position, mask = where(sizes, lengths, T, model["n_positions"])
    rows = w["wpe.weight"][position]  # (B, S, C)
    x = np.concatenate([vectors for vectors, _ in prompts]) + rows
    made["pack.position"] = position
    made["pack.mask"] = mask
    made["pack.embed"] = x
    tape = []
    for i in range(model["n_layer"]):
        past = (made[f"text.{i}.k"], made[f"text.{i}.v"])
        x, kept = block(x, w, f"h.{i}", model, mask[:, None], made, f"pack.{i}", past)
        tape.append(kept)
    hidden, kept = norm(x[:, ends], w, "ln_f", model["layer_norm_epsilon"])  # (B, K, C)
    logits = np.stack([hidden[:, k] @ head.T for k, (_, head) in enumerate(prompts)])  # (K, B, N)
    made["hidden"] = hidden
    made["logits"] = logits
    return logits, (tape, kept, hidden, ends, x.shape)


def loss_and_gradients(w, prompts, logits, labels, kept, made):
    """(K, B, N), (B,) -> K pairs, the gradients of the sum of the losses; notes what is on the
    way"""
    tape, kept, hidden, ends, shape = kept
    p = softmax(logits)  # (K, B, N)
    truth = np.eye(logits.shape[2], dtype=np.float32)[labels]  # (B, N)
    made["loss"] = -(np.log(p) * truth).sum(2).mean(1)  # (K,)
    d = (p - truth) / len(labels)  # (K, B, N)
    made["grad.logits"] = d
    of_hidden = np.stack([d[k] @ head for k, (_, head) in enumerate(prompts)], 1)  # (B, K, C)
    made["grad.hidden"] = of_hidden
    dx = np.zeros(shape, np.float32)  # (B, S, C)
    dx[:, ends] = norm_back(of_hidden, kept)
    for i in reversed(range(len(tape))):
        made[f"grad.pack.{i}.x"] = dx
        dx = block_back(dx, w, tape[i], made, f"grad.pack.{i}")
    made["grad.pack.embed"] = dx
    vectors = np.split(dx.sum(0), [end + 1 for end in ends[:-1]])  # K x (P, C)
    return [(v, d[k].T @ hidden[:, k]) for k, v in enumerate(vectors)]


def clip(grads, limit, made):
    """K pairs -> K pairs, each by the norm of both"""
    norms = []
    for pair in grads:
        norms.append(np.sqrt(sum((g * g).sum() for g in pair)))
    made["grad.norm"] = np.array(norms)  # (K,)
    clipped = []
    for pair, size in zip(grads, norms, strict=True):
        factor = min(1.0, limit / (float(size) + 1e-6))
        clipped.append([g * factor for g in pair])
    return clipped


def update(prompts, grads, moments, t, recipe):
    """Step t = 1, 2, ... of AdamW for K prompts, in place"""
    warm = recipe["warm_up"]
    total = recipe["total"]
    share = t / warm if t <= warm else (total - t + 1) / (total - warm + 1)
    for pair, slopes, states, lr in zip(prompts, grads, moments, recipe["lr"], strict=True):
        peaks = (lr, recipe["head_lr"])
        for x, g, (m, v), peak in zip(pair, slopes, states, peaks, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            x -= peak * share * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


# ---- what it is asked for -------------------------------------------------------------------


def do_task():
    """Train the golden file's prompts, label its sentences -> {name: array} of all on the way"""
    task = read_task()
    w = task.weights
    prompts = task.prompts
    moments = [[(0 * x, 0 * x) for x in pair] for pair in prompts]
    text = {"half.float32": task.half}
    read(w, task.config, task.ids, text)
    curve = []
    for t in range(1, task.recipe["steps"] + 1):
        made = dict(text)
        logits, kept = respond(w, task.config, prompts, task.lengths, made)
        grads = loss_and_gradients(w, prompts, logits, task.labels, kept, made)
        clipped = clip(grads, task.recipe["clip"], made)
        update(prompts, clipped, moments, t, task.recipe)
        curve.append(made["loss"])
        if t == 1:
            first = made | named("grad", grads) | named("clipped", clipped)
            first |= named("after1", prompts)
    first["curve"] = np.stack(curve)
    return first | named("after", prompts) | answered(task, answer)


def answer(w, model, prompts, ids, lengths):
    """(B, T), (B,) -> logits (K, B, N)"""
    made = {}
    read(w, model, ids, made)
    return respond(w, model, prompts, lengths, made)[0]


if __name__ == "__main__":
    main(sys.argv[1:], do_task, answer)
