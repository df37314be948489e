"""Prompt training on GPT-2 in NumPy: the forward pass, the backward pass by hand, and AdamW.

    python porting/ports/numpy_port.py             label reviews/dev.tsv with the bundled model and prompt
    python porting/ports/numpy_port.py mine.npz    do the task of porting/golden.safetensors, write all that it makes;
                                                 then ask: python porting/golden.py compare mine.npz

Float32, from porting/porting.md alone; model.py has no part in it.  Letters: B texts of T padded tokens, K prompts of P
vectors, S = sum of P, Q = T or S, C channels, H heads, D = C/H, N labels.
"""

import sys
from itertools import accumulate

import numpy as np
from files import answered, main, named, read_task

ROOT_2_PI = (2 / np.pi) ** 0.5


# ---- one block, there and back ----------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, w, name, eps):
    """(B, Q, C) -> (B, Q, C), and what the way back needs"""
    x = x - x.mean(-1, keepdims=True)
    root = np.sqrt((x * x).mean(-1, keepdims=True) + eps)  # (B, Q, 1)
    return x / root * w[f"{name}.weight"] + w[f"{name}.bias"], (x / root, root, w[f"{name}.weight"])


def norm_back(dy, kept):
    """(B, Q, C) -> (B, Q, C)"""
    unit, root, gain = kept
    dy = dy * gain
    return (dy - dy.mean(-1, keepdims=True) - unit * (dy * unit).mean(-1, keepdims=True)) / root


def linear(x, w, name):
    """(B, Q, in) -> (B, Q, out), as one product of matrices instead of B, which halves the time"""
    y = x.reshape(-1, x.shape[2]) @ w[f"{name}.weight"] + w[f"{name}.bias"]
    return y.reshape(*x.shape[:2], -1)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(ROOT_2_PI * (x + 0.044715 * x * x * x)))  # x**3 takes ten times as long


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
    """(B, Q, C) -> (B, Q, C), and what the way back needs.  past: the texts' keys and values (B, H, T, D)"""
    y, kept_1 = norm(x, w, f"{h}.ln_1", model["layer_norm_epsilon"])
    qkv = linear(y, w, f"{h}.attn.c_attn")  # (B, Q, 3C)
    q, k, v = (split_heads(part, model["n_head"]) for part in np.split(qkv, 3, axis=2))
    made[f"{name}.k"], made[f"{name}.v"] = k, v
    if past:
        k, v = np.concatenate([past[0], k], 2), np.concatenate([past[1], v], 2)  # (B, H, T+S, D)
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5  # (B, H, Q, T+Q)
    p = softmax(np.where(mask, scores, -np.inf))
    made[f"{name}.attn"] = y = linear(join_heads(p @ v), w, f"{h}.attn.c_proj")  # (B, Q, C)
    x = x + y
    y, kept_2 = norm(x, w, f"{h}.ln_2", model["layer_norm_epsilon"])
    u = linear(y, w, f"{h}.mlp.c_fc")  # (B, Q, 4C)
    made[f"{name}.mlp"] = y = linear(gelu(u), w, f"{h}.mlp.c_proj")  # (B, Q, C)
    made[f"{name}.x"] = x = x + y
    return x, (h, kept_1, q, k, v, p, kept_2, u)


def block_back(dx, w, kept, made, name):
    """(B, S, C) -> (B, S, C): to the vectors alone, since the weights are frozen and the texts are past"""
    h, kept_1, q, k, v, p, kept_2, u = kept
    S, D = q.shape[2:]
    dy = dx @ w[f"{h}.mlp.c_proj.weight"].T * gelu_slope(u)  # (B, S, 4C)
    made[f"{name}.attn"] = dx = dx + norm_back(dy @ w[f"{h}.mlp.c_fc.weight"].T, kept_2)
    dy = split_heads(dx @ w[f"{h}.attn.c_proj.weight"].T, q.shape[1])  # (B, H, S, D)
    dp = dy @ v.swapaxes(2, 3)  # (B, H, S, T+S)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * D**-0.5
    dk, dv = ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dy  # (B, H, T+S, D)
    dqkv = np.concatenate([join_heads(d) for d in (ds @ k, dk[:, :, -S:], dv[:, :, -S:])], 2)  # (B, S, 3C)
    return dx + norm_back(dqkv @ w[f"{h}.attn.c_attn.weight"].T, kept_1)


# ---- texts, then prompts, and the prompts' gradients ------------------------------------------


def read(w, model, ids, made):
    """The texts (B, T), which see no prompt; notes text.i.k and text.i.v, all that the prompts need of them"""
    T = ids.shape[1]
    made["text.embed"] = x = w["wte.weight"][ids] + w["wpe.weight"][:T]  # (B, T, C)
    for i in range(model["n_layer"]):
        x, _ = block(x, w, f"h.{i}", model, np.tri(T, dtype=bool), made, f"text.{i}")


def where(sizes, lengths, T, n_positions):
    """positions (B, S) of a pack and its mask (B, S, T+S), true where a vector may look"""
    owner = np.repeat(np.arange(len(sizes)), sizes)  # (S,)
    index = np.concatenate([np.arange(P) for P in sizes])  # (S,) begins again with each prompt
    seen = np.minimum(lengths[:, None], n_positions - np.repeat(sizes, sizes))  # (B, S)
    text = np.arange(T) < seen[:, :, None]  # (B, S, T)
    own = (owner[:, None] == owner) & np.tri(len(owner), dtype=bool)  # (S, S)
    return seen + index, np.concatenate([text, np.broadcast_to(own, (len(lengths), *own.shape))], 2)


def respond(w, model, prompts, lengths, made):
    """K prompts, pairs of (P, C) and (N, C), after the texts just read -> logits (K, B, N), and what gradients need"""
    sizes = [len(vectors) for vectors, _ in prompts]
    position, mask = where(sizes, lengths, made["text.embed"].shape[1], model["n_positions"])
    x = np.concatenate([vectors for vectors, _ in prompts]) + w["wpe.weight"][position]  # (B, S, C)
    made |= {"pack.position": position, "pack.mask": mask, "pack.embed": x}
    tape, ends = [], [end - 1 for end in accumulate(sizes)]
    for i in range(model["n_layer"]):
        past = made[f"text.{i}.k"], made[f"text.{i}.v"]
        x, kept = block(x, w, f"h.{i}", model, mask[:, None], made, f"pack.{i}", past)
        tape.append(kept)
    made["hidden"], kept = norm(x[:, ends], w, "ln_f", model["layer_norm_epsilon"])  # (B, K, C)
    made["logits"] = np.stack([made["hidden"][:, k] @ head.T for k, (_, head) in enumerate(prompts)])  # (K, B, N)
    return made["logits"], (tape, kept, made["hidden"], ends, x.shape)


def loss_and_gradients(w, prompts, logits, labels, kept, made):
    """(K, B, N), (B,) -> K pairs of (P, C) and (N, C), gradients of the sum of the losses; notes what is on the way"""
    tape, kept, hidden, ends, shape = kept
    p, truth = softmax(logits), np.eye(logits.shape[2], dtype=np.float32)[labels]  # (K, B, N), (B, N)
    made["loss"] = -(np.log(p) * truth).sum(2).mean(1)  # (K,)
    made["grad.logits"] = d = (p - truth) / len(labels)  # (K, B, N)
    made["grad.hidden"] = np.stack([d[k] @ head for k, (_, head) in enumerate(prompts)], 1)  # (B, K, C)
    dx = np.zeros(shape, np.float32)  # (B, S, C)
    dx[:, ends] = norm_back(made["grad.hidden"], kept)
    for i in reversed(range(len(tape))):
        made[f"grad.pack.{i}.x"] = dx
        dx = block_back(dx, w, tape[i], made, f"grad.pack.{i}")
    made["grad.pack.embed"] = dx
    vectors = np.split(dx.sum(0), [end + 1 for end in ends[:-1]])
    return [(v, d[k].T @ hidden[:, k]) for k, v in enumerate(vectors)]


def clip(grads, limit, made):
    """Each prompt's two gradients by the norm of both"""
    made["grad.norm"] = np.array([np.sqrt(sum((g * g).sum() for g in pair)) for pair in grads])  # (K,)
    return [[g * min(1.0, limit / (float(size) + 1e-6)) for g in pair] for size, pair in zip(made["grad.norm"], grads)]


def update(prompts, grads, moments, t, recipe):
    """Step t = 1, 2, ... of AdamW for K prompts, in place"""
    warm, total = recipe["warm_up"], recipe["total"]
    share = t / warm if t <= warm else (total - t + 1) / (total - warm + 1)
    for pair, slopes, states, lr in zip(prompts, grads, moments, recipe["lr"]):
        for x, g, (m, v), peak in zip(pair, slopes, states, (lr, recipe["head_lr"])):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            x -= peak * share * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


# ---- what it is asked for ---------------------------------------------------------------------


def do_task():
    """Train the golden file's prompts, label its sentences -> {name: array} of all that is made on the way"""
    task, curve = read_task(), []
    w, prompts = task.weights, task.prompts
    text, moments = {"half.float32": task.half}, [[(0 * x, 0 * x) for x in pair] for pair in prompts]
    read(w, task.config, task.ids, text)
    for t in range(1, task.recipe["steps"] + 1):
        made = dict(text)
        logits, kept = respond(w, task.config, prompts, task.lengths, made)
        grads = loss_and_gradients(w, prompts, logits, task.labels, kept, made)
        clipped = clip(grads, task.recipe["clip"], made)
        update(prompts, clipped, moments, t, task.recipe)
        curve.append(made["loss"])
        if t == 1:
            first = made | named("grad", grads) | named("clipped", clipped) | named("after1", prompts)
    return first | {"curve": np.stack(curve)} | named("after", prompts) | answered(task, answer)


def answer(w, model, prompts, ids, lengths):
    """(B, T), (B,) -> logits (K, B, N)"""
    made = {}
    read(w, model, ids, made)
    return respond(w, model, prompts, lengths, made)[0]


if __name__ == "__main__":
    main(sys.argv[1:], do_task, answer)
