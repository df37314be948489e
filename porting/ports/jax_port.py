"""Prompt training on GPT-2 in JAX: jit and grad, shapes that never change.

    python porting/ports/jax_port.py             label reviews/dev.tsv, bundled model and prompt
    python porting/ports/jax_port.py mine.npz    do the task of porting/golden.safetensors, write
                                                 all that it makes; then ask:
                                                 python porting/golden.py compare mine.npz

Float32, from porting/porting.md alone.  What JAX asks for: a prompt is found by index, at
lengths + 0..P-1, never by a slice whose size depends on a text; the sizes of a pack are those of
its arrays, so a pack compiles once for each (B, T); and freezing is an argument that `grad` is not
asked about.

Letters: B texts of T padded tokens, K prompts of P vectors, S = sum of P, Q = T or S, C channels,
H heads, D = C/H, N labels.  A pair is what is trained of one prompt: (P, C) and (N, C).
"""

import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from files import answered, main, named, read_task

# Accelerators would round to fewer bits.
jax.config.update("jax_default_matmul_precision", "float32")


# ---- the forward pass -----------------------------------------------------------------------


def norm(x, w, name, eps):
    """(B, Q, C) -> (B, Q, C)"""
    x = x - x.mean(-1, keepdims=True)
    unit = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return unit * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(y, w, name):
    """(B, Q, in) -> (B, Q, out)"""
    return y @ w[f"{name}.weight"] + w[f"{name}.bias"]


def untapped(name, y):
    """A tensor as it is; see the taps of `respond`"""
    return y


def block(x, w, h, model, mask, past=None, tap=untapped):
    """(B, Q, C) -> (B, Q, C), {k, v, attn, mlp, x}.

    past: the texts' keys and values, each (B, H, T, D).
    """
    H = model["n_head"]
    eps = model["layer_norm_epsilon"]
    qkv = linear(norm(x, w, f"{h}.ln_1", eps), w, f"{h}.attn.c_attn")  # (B, Q, 3C)
    parts = qkv.reshape(*x.shape[:2], 3, H, -1)  # (B, Q, 3, H, D)
    q, k, v = jnp.moveaxis(parts, (2, 3), (0, 2))  # each (B, H, Q, D)
    made = {"k": k, "v": v}
    if past:
        k = jnp.concatenate([past[0], k], 2)  # (B, H, T+S, D)
        v = jnp.concatenate([past[1], v], 2)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[3] ** -0.5
    shares = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))  # (B, H, Q, T+Q)
    y = jnp.einsum("bhqk,bhkd->bqhd", shares, v).reshape(x.shape)
    made["attn"] = tap("attn", linear(y, w, f"{h}.attn.c_proj"))  # (B, Q, C)
    x = x + made["attn"]
    y = linear(norm(x, w, f"{h}.ln_2", eps), w, f"{h}.mlp.c_fc")  # (B, Q, 4C)
    made["mlp"] = linear(jax.nn.gelu(y, approximate=True), w, f"{h}.mlp.c_proj")
    made["x"] = tap("x", x + made["mlp"])
    return made["x"], made


def read(w, model, ids):
    """(B, T) -> the texts' tensors; text.i.k and text.i.v are all that the prompts need of them"""
    T = ids.shape[1]
    x = w["wte.weight"][ids] + w["wpe.weight"][:T]  # (B, T, C)
    made = {"text.embed": x}
    for i in range(model["n_layer"]):
        x, parts = block(x, w, f"h.{i}", model, jnp.tri(T, dtype=bool))
        made |= {f"text.{i}.{name}": part for name, part in parts.items()}
    return made


def where(sizes, lengths, T, n_positions):
    """positions (B, S) of a pack and its mask (B, S, T+S), true where a vector may look"""
    owner = np.repeat(np.arange(len(sizes)), sizes)  # (S,)
    starts = sizes.cumsum() - sizes  # (K,)
    index = np.arange(len(owner)) - starts[owner]  # (S,) begins again with each prompt
    # An index too high is no error in JAX, it is taken for the highest: without this line long
    # texts answer wrongly.
    seen = jnp.minimum(lengths[:, None], n_positions - sizes[owner])  # (B, S)
    B, S = seen.shape
    text = jnp.arange(T) < seen[:, :, None]  # (B, S, T)
    own = (owner[:, None] == owner) & np.tri(S, dtype=bool)  # (S, S)
    return seen + index, jnp.concatenate([text, jnp.broadcast_to(own, (B, S, S))], 2)


def respond(prompts, w, model, text, lengths, taps=None):
    """K pairs after the texts -> logits (K, B, N), the prompts' tensors.

    taps: {name: zeros} that are added to what has this name, so that `grad` can be asked for its
    gradient.
    """
    taps = taps or {}

    def tap(name, y):
        return y + taps.get(name, 0)

    sizes = np.array([len(vectors) for vectors, _ in prompts])
    T = text["text.embed"].shape[1]
    position, mask = where(sizes, lengths, T, model["n_positions"])
    vectors = jnp.concatenate([vectors for vectors, _ in prompts])  # (S, C)
    x = tap("pack.embed", vectors + w["wpe.weight"][position])  # (B, S, C)
    made = {"pack.position": position, "pack.mask": mask, "pack.embed": x}
    for i in range(model["n_layer"]):

        def tap_inside(name, y, i=i):
            return tap(f"pack.{i}.{name}", y)

        past = (text[f"text.{i}.k"], text[f"text.{i}.v"])
        x, parts = block(x, w, f"h.{i}", model, mask[:, None], past, tap_inside)
        made |= {f"pack.{i}.{name}": part for name, part in parts.items()}
    ends = sizes.cumsum() - 1  # (K,)
    hidden = tap("hidden", norm(x[:, ends], w, "ln_f", model["layer_norm_epsilon"]))  # (B, K, C)
    heads = jnp.stack([head for _, head in prompts])  # (K, N, C)
    logits = tap("logits", jnp.einsum("bkc,knc->kbn", hidden, heads))
    made["hidden"] = hidden
    made["logits"] = logits
    return logits, made


# ---- training -------------------------------------------------------------------------------


def losses(prompts, taps, w, model, text, lengths, labels):
    """The sum of the losses, whose gradient is each prompt's own; and the prompts' tensors, the
    losses (K,) among them"""
    logits, made = respond(prompts, w, model, text, lengths, taps)
    shares = jax.nn.log_softmax(logits)  # (K, B, N)
    made["loss"] = -shares[:, jnp.arange(len(labels)), labels].mean(1)  # (K,)
    return made["loss"].sum(), made


def clip(grads, limit):
    """K pairs, each by the norm of both -> norms (K,), K pairs"""
    norms = []
    clipped = []
    for pair in grads:
        size = jnp.sqrt(sum((g * g).sum() for g in pair))
        norms.append(size)
        clipped.append([g * jnp.minimum(1, limit / (size + 1e-6)) for g in pair])
    return jnp.stack(norms), clipped


def update(prompts, grads, moments, t, recipe):
    """Step t = 1, 2, ... of AdamW for K prompts -> prompts, moments"""
    warm = recipe["warm_up"]
    total = recipe["total"]
    share = jnp.where(t <= warm, t / warm, (total - t + 1) / (total - warm + 1))
    first = -jnp.expm1(t * math.log(0.9))
    second = -jnp.expm1(t * math.log(0.999))  # 1 - .999**t would lose digits
    trained = []
    kept = []
    for pair, slopes, states, lr in zip(prompts, grads, moments, recipe["lr"], strict=True):
        rates = (lr * share, recipe["head_lr"] * share)
        new_pair = []
        new_states = []
        for x, g, (m, v), rate in zip(pair, slopes, states, rates, strict=True):
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            new_pair.append(x - rate * (m / first) / (jnp.sqrt(v / second) + 1e-8))
            new_states.append((m, v))
        trained.append(new_pair)
        kept.append(new_states)
    return trained, kept


# ---- what it is asked for -------------------------------------------------------------------


def tapped(task, text):
    """{name: zeros} of what `grad` is asked for on the way back"""

    def on_the_way(w):
        return respond(task.prompts, w, task.config, text, task.lengths)[1]

    taps = {}
    for name, shape in jax.eval_shape(on_the_way, task.weights).items():
        if shape.dtype == "float32" and not name.endswith((".k", ".v")):
            taps[name] = jnp.zeros(shape.shape)
    return taps


def do_task():
    """Train the golden file's prompts, label its sentences -> {name: array} of all on the way"""
    task = read_task()
    prompts = task.prompts
    moments = [[(0 * x, 0 * x) for x in pair] for pair in prompts]

    @jax.jit
    def read_texts(w, ids):
        return read(w, task.config, ids)

    text = read_texts(task.weights, task.ids)
    taps = tapped(task, text)

    @jax.jit
    def step(prompts, moments, t, w, text):
        slopes = jax.grad(losses, argnums=(0, 1), has_aux=True)
        both, made = slopes(prompts, taps, w, task.config, text, task.lengths, task.labels)
        grads, on_the_way = both
        norms, clipped = clip(grads, task.recipe["clip"])
        for name, slope in on_the_way.items():
            if not name.endswith(".mlp"):
                made[f"grad.{name}"] = slope
        made["grad.norm"] = norms
        prompts, moments = update(prompts, clipped, moments, t, task.recipe)
        return prompts, moments, made, grads, clipped

    made = text | {"half.float32": task.half}
    curve = []
    for t in range(1, task.recipe["steps"] + 1):
        # As a float32, not as a Python number: each of those would be compiled for anew.
        result = step(prompts, moments, np.float32(t), task.weights, text)
        prompts, moments, of_step, grads, clipped = result
        curve.append(of_step["loss"])
        if t == 1:
            made |= of_step | named("grad", grads) | named("clipped", clipped)
            made |= named("after1", prompts)
    made["curve"] = np.stack(curve)
    made |= named("after", prompts) | answered(task, answer)
    return {name: np.array(tensor) for name, tensor in made.items()}


@partial(jax.jit, static_argnames="sizes")
def answer_padded(w, sizes, prompts, ids, lengths):
    model = dict(sizes)
    return respond(prompts, w, model, read(w, model, ids), lengths)[0]


def answer(w, model, prompts, ids, lengths):
    """(B, T), (B,) -> logits (K, B, N)"""
    names = ("n_layer", "n_head", "n_positions", "layer_norm_epsilon")
    sizes = tuple((name, model[name]) for name in names)
    # Both are padded up to a few sizes, so that little is compiled.
    B, T = ids.shape
    more = -B % 8
    ids = np.pad(ids, ((0, more), (0, -T % 32)))
    lengths = np.pad(lengths, (0, more), constant_values=1)
    return answer_padded(w, sizes, prompts, ids, lengths)[:, :B]


if __name__ == "__main__":
    main(sys.argv[1:], do_task, answer)
