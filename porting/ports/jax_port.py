"""Prompt training on GPT-2 in JAX: jit and grad, shapes that never change.

    python porting/ports/jax_port.py             label reviews/dev.tsv with the bundled model and prompt
    python porting/ports/jax_port.py mine.npz    do the task of porting/golden.safetensors, write all that it makes;
                                               then ask: python porting/golden.py compare mine.npz

Float32, from porting/porting.md alone.  What JAX asks for: a prompt is found by index, at lengths + 0..P-1, never by a slice
whose size depends on a text; the sizes of a pack are those of its arrays, so a pack compiles once for each (B, T); and
freezing is an argument that `grad` is not asked about.  Letters: B texts of T padded tokens, K prompts of P vectors,
S = sum of P, Q = T or S, C channels, H heads, D = C/H, N labels.
"""

import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from files import answered, main, named, read_task

jax.config.update("jax_default_matmul_precision", "float32")  # accelerators would round to fewer bits


def norm(x, w, name, eps):
    """(B, Q, C) -> (B, Q, C)"""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def block(x, w, h, model, mask, past=None, tap=lambda name, y: y):
    """(B, Q, C) -> (B, Q, C), {k, v, attn, mlp, x}.  past: the texts' keys and values, each (B, H, T, D)"""
    H, eps = model["n_head"], model["layer_norm_epsilon"]
    linear = lambda y, name: y @ w[f"{h}.{name}.weight"] + w[f"{h}.{name}.bias"]
    qkv = linear(norm(x, w, f"{h}.ln_1", eps), "attn.c_attn")  # (B, Q, 3C)
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, H, -1), (2, 3), (0, 2))  # each (B, H, Q, D)
    made = {"k": k, "v": v}
    if past:
        k, v = jnp.concatenate([past[0], k], 2), jnp.concatenate([past[1], v], 2)  # (B, H, T+S, D)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[3] ** -0.5
    shares = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))  # (B, H, Q, T+Q)
    y = jnp.einsum("bhqk,bhkd->bqhd", shares, v).reshape(x.shape)
    made["attn"] = y = tap("attn", linear(y, "attn.c_proj"))  # (B, Q, C)
    x = x + y
    y = linear(norm(x, w, f"{h}.ln_2", eps), "mlp.c_fc")  # (B, Q, 4C)
    made["mlp"] = y = linear(jax.nn.gelu(y, approximate=True), "mlp.c_proj")
    made["x"] = x = tap("x", x + y)
    return x, made


def read(w, model, ids):
    """(B, T) -> the texts' tensors; text.i.k and text.i.v are all that the prompts need of them"""
    T = ids.shape[1]
    made = {"text.embed": w["wte.weight"][ids] + w["wpe.weight"][:T]}  # (B, T, C)
    x = made["text.embed"]
    for i in range(model["n_layer"]):
        x, parts = block(x, w, f"h.{i}", model, jnp.tri(T, dtype=bool))
        made |= {f"text.{i}.{name}": part for name, part in parts.items()}
    return made


def respond(prompts, w, model, text, lengths, taps={}):
    """K pairs (P, C), (N, C) after the texts -> logits (K, B, N), the prompts' tensors

    taps: {name: zeros} that are added to what has this name, so that `grad` can be asked for its gradient.
    """
    sizes = np.array([len(vectors) for vectors, _ in prompts])
    owner, ends = np.repeat(np.arange(len(sizes)), sizes), sizes.cumsum()  # (S,), (K,)
    index = np.arange(len(owner)) - (ends - sizes)[owner]  # (S,) begins again with each prompt
    # An index too high is no error in JAX, it is taken for the highest: without this line long texts answer wrongly.
    seen = jnp.minimum(lengths[:, None], model["n_positions"] - sizes[owner])  # (B, S)
    B, S, T = *seen.shape, text["text.embed"].shape[1]
    own = (owner[:, None] == owner) & np.tri(S, dtype=bool)  # (S, S)
    mask = jnp.concatenate([jnp.arange(T) < seen[:, :, None], jnp.broadcast_to(own, (B, S, S))], 2)  # (B, S, T+S)
    tap = lambda name, y: y + taps.get(name, 0)
    x = tap("pack.embed", jnp.concatenate([vectors for vectors, _ in prompts]) + w["wpe.weight"][seen + index])  # (B, S, C)
    made = {"pack.position": seen + index, "pack.mask": mask, "pack.embed": x}
    for i in range(model["n_layer"]):
        inner = lambda name, y, i=i: tap(f"pack.{i}.{name}", y)
        x, parts = block(x, w, f"h.{i}", model, mask[:, None], (text[f"text.{i}.k"], text[f"text.{i}.v"]), inner)
        made |= {f"pack.{i}.{name}": part for name, part in parts.items()}
    made["hidden"] = x = tap("hidden", norm(x[:, ends - 1], w, "ln_f", model["layer_norm_epsilon"]))  # (B, K, C)
    made["logits"] = tap("logits", jnp.einsum("bkc,knc->kbn", x, jnp.stack([head for _, head in prompts])))
    return made["logits"], made


def losses(prompts, taps, w, model, text, lengths, labels):
    """The sum of the losses, whose gradient is each prompt's own; and the losses (K,), the prompts' tensors"""
    logits, made = respond(prompts, w, model, text, lengths, taps)
    loss = -jax.nn.log_softmax(logits)[:, jnp.arange(len(labels)), labels].mean(1)  # (K,)
    return loss.sum(), made | {"loss": loss}


def clip(grads, limit):
    """Each prompt's two gradients by the norm of both -> norms (K,), K pairs"""
    norms = jnp.stack([jnp.sqrt(sum((g * g).sum() for g in pair)) for pair in grads])
    return norms, [[g * jnp.minimum(1, limit / (n + 1e-6)) for g in pair] for n, pair in zip(norms, grads)]


def update(prompts, grads, moments, t, recipe):
    """Step t = 1, 2, ... of AdamW for K prompts -> prompts, moments"""
    warm, total = recipe["warm_up"], recipe["total"]
    share = jnp.where(t <= warm, t / warm, (total - t + 1) / (total - warm + 1))
    first, second = (-jnp.expm1(t * math.log(beta)) for beta in (0.9, 0.999))  # 1 - .999**t would lose digits
    new, kept = [], []
    for pair, slopes, states, lr in zip(prompts, grads, moments, recipe["lr"]):
        states = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g) for g, (m, v) in zip(slopes, states)]
        rates = lr * share, recipe["head_lr"] * share
        new.append([x - rate * (m / first) / (jnp.sqrt(v / second) + 1e-8)
                    for x, rate, (m, v) in zip(pair, rates, states)])  # fmt: skip
        kept.append(states)
    return new, kept


def do_task():
    """Train the golden file's prompts, label its sentences -> {name: array} of all that is made on the way"""
    task = read_task()
    prompts, moments = task.prompts, [[(0 * x, 0 * x) for x in pair] for pair in task.prompts]
    text = jax.jit(lambda w, ids: read(w, task.config, ids))(task.weights, task.ids)
    made, curve = text | {"half.float32": task.half}, []
    shapes = jax.eval_shape(lambda w: respond(prompts, w, task.config, text, task.lengths)[1], task.weights)
    taps = {name: jnp.zeros(x.shape) for name, x in shapes.items() if x.dtype == "float32" and name[-2:] not in (".k", ".v")}

    @jax.jit
    def step(prompts, moments, t, w, text):
        slopes = jax.grad(losses, argnums=(0, 1), has_aux=True)
        (grads, on_the_way), noted = slopes(prompts, taps, w, task.config, text, task.lengths, task.labels)
        norms, clipped = clip(grads, task.recipe["clip"])
        noted |= {f"grad.{name}": x for name, x in on_the_way.items() if not name.endswith(".mlp")}
        return *update(prompts, clipped, moments, t, task.recipe), noted | {"grad.norm": norms}, grads, clipped

    for t in range(1, task.recipe["steps"] + 1):
        # As a float32, not as a Python number: each of those would be compiled for anew.
        prompts, moments, noted, grads, clipped = step(prompts, moments, np.float32(t), task.weights, text)
        made |= noted | named("grad", grads) | named("clipped", clipped) | named("after1", prompts) if t == 1 else {}
        curve.append(noted["loss"])
    made |= {"curve": np.stack(curve)} | named("after", prompts) | answered(task, answer)
    return {name: np.array(tensor) for name, tensor in made.items()}


@partial(jax.jit, static_argnames="sizes")
def answer_padded(w, sizes, prompts, ids, lengths):
    model = dict(sizes)
    return respond(prompts, w, model, read(w, model, ids), lengths)[0]


def answer(w, model, prompts, ids, lengths):
    """(B, T), (B,) -> logits (K, B, N)"""
    sizes = tuple((name, model[name]) for name in ("n_layer", "n_head", "n_positions", "layer_norm_epsilon"))
    (B, T), step = ids.shape, 32  # both are padded up to a few sizes, so that little is compiled
    ids = np.pad(ids, ((0, -B % 8), (0, -T % step)))
    return answer_padded(w, sizes, prompts, ids, np.pad(lengths, (0, -B % 8), constant_values=1))[:, :B]


if __name__ == "__main__":
    main(sys.argv[1:], do_task, answer)
