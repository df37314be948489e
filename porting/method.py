"""The method once more, in float64 and in parts, so that one part at a time can be got wrong.

`steps` and `ask` are porting.md in code: they show what minimal.py throws away, for golden.py to
write down.  Every part that a port is known to get wrong is a small function of its own, and RIGHT
names them all; mistakes.py has the wrong ones.  To judge a port, the method is run with one wrong
part after the other: the mistake is the one that gives the port's own numbers.

Letters as in model.py: B texts, T padded tokens, K prompts of P vectors, S = sum of P, Q = T or S,
C channels, H heads, D = C/H, N labels.  A pair is what is trained of one prompt: (P, C) and (N, C).
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace

import torch

from data import clean
from minimal import gelu, layer_norm


@dataclass
class Case:
    """A model and prompts, before a batch of ids and a recipe, or before texts."""

    weights: dict  # {official name: tensor}, matrices (in, out)
    n_layer: int
    n_head: int
    eps: float
    prompts: list  # K pairs
    ids: torch.Tensor | None = None  # (B, T)
    lengths: torch.Tensor | None = None  # (B,)
    labels: torch.Tensor | None = None  # (B,)
    half: torch.Tensor | None = None
    recipe: dict | None = None
    sentences: list[str] | None = None  # of these ids and logits are asked for
    texts: list[str] | None = None  # of these the ids alone
    tokenizer: object = None


# ---- the parts of the forward pass ----------------------------------------------------------


def stay(x, *_):
    """Whatever it is, it stays as it is."""
    return x


def embed(w, ids):
    """(B, T) -> (B, T, C)"""
    return w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]


def norm(x, gain, bias, eps):
    """(B, Q, C) -> (B, Q, C)"""
    rows = x.flatten(0, 1)  # (B * Q, C)
    return layer_norm(rows, {"ln.weight": gain, "ln.bias": bias}, "ln", eps).view_as(x)


def linear(y, weight, bias):
    """(B, Q, in) -> (B, Q, out)"""
    return y @ weight + bias


def split(qkv, H):
    """(B, Q, 3C) -> q, k, v, each (B, H, Q, D)"""
    return qkv.unflatten(2, (3, H, -1)).permute(2, 0, 3, 1, 4)


def scale(C, H):
    return (C // H) ** -0.5


def score(q, k, factor):
    """(B, H, Q, D), (B, H, T+Q, D) -> (B, H, Q, T+Q)"""
    return q @ k.mT * factor


def text_mask(T):
    """(T, T), true where a query (row) may look"""
    return torch.ones(T, T).tril().bool()


def softmax(scores, mask):
    """(B, H, Q, T+Q) -> the same, each row with the sum 1"""
    return scores.masked_fill(~mask, -math.inf).softmax(3)


def add(x, y):
    """(B, Q, C), and what attention or the MLP has made of it -> (B, Q, C)"""
    return x + y


def between(before, after):
    """Which of the two ln_2 reads: the stream before attention, or after it"""
    return after


def seen(lengths, n, P, sizes):
    """(B,) -> how many tokens of each text a prompt of P vectors sees, (B,), of n positions"""
    return lengths.clamp(max=n - P)


def position(seen, T, P, start):
    """(B,) -> (B, P), the positions of a prompt that is at start of its pack"""
    return seen[:, None] + torch.arange(P)


def prompt_mask(seen, T, P, start, S):
    """(B,) -> what a prompt may look at, in the texts and in its pack: (B, P, T+S)"""
    text = torch.arange(T) < seen[:, None, None]  # (B, 1, T)
    own = torch.zeros(P, S)
    own[:, start : start + P] = torch.ones(P, P).tril()
    return torch.cat([text.expand(-1, P, T), own.bool().expand(len(seen), P, S)], 2)


def place(vectors, rows):
    """(S, C) and the rows of wpe (B, S, C) -> (B, S, C)"""
    return vectors + rows


def pool(x, ends):
    """(B, S, C) -> (B, K, C)"""
    return x[:, ends]


def answer(hidden, heads):
    """(B, K, C), (K, N, C) -> (K, B, N)"""
    return torch.einsum("bkc,knc->kbn", hidden, heads)


# ---- the parts of training ------------------------------------------------------------------


def loss(logits, labels):
    """(K, B, N), (B,) -> (K,)"""
    right = logits.gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]  # (K, B)
    return (logits.logsumexp(2) - right).mean(1)


def total(each, B, N):
    """The losses (K,) -> the number whose gradient is taken"""
    return each.sum()


def gather(grads, before):
    """The gradients of this step, and of the one before -> those that count"""
    return grads


def measure(grads):
    """K pairs -> the norm of each, (K,)"""
    norms = []
    for pair in grads:
        squares = sum(g.square().sum() for g in pair)
        norms.append(squares.sqrt())
    return torch.stack(norms)


def clip(grads, norms, limit):
    """K pairs -> K pairs, each by its own norm"""
    clipped = []
    for pair, n in zip(grads, norms.tolist(), strict=True):
        clipped.append([g * min(1, limit / (n + 1e-6)) for g in pair])
    return clipped


def rate(t, warm, total):
    """The share of the peak rates in step t = 1, 2, ..."""
    if t <= warm:
        return t / warm
    return (total - t + 1) / (total - warm + 1)


def peaks(k, lr, head_lr):
    """The peak rates of prompt k: of its vectors, and of its head"""
    return lr[k], head_lr


def count(t, k, j, K):
    """Adam's t for the vectors (j = 0) or the head (j = 1) of prompt k"""
    return t


def adam(
    x,
    g,
    m,
    v,
    t,
    rate,
    b1=0.9,
    b2=0.999,
    first=True,  # the rest is for wrong ones: whether a moment is corrected for its start
    second=True,
    inside=False,  # eps in the root
    decay=0.0,  # weight decay, beside the gradient
    coupled=0.0,  # and in it
):
    """A parameter, its gradient and moments -> the parameter and the moments after step t"""
    g = g + coupled * x
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    a = m / (1 - b1**t) if first else m
    b = v / (1 - b2**t) if second else v
    root = (b + 1e-8).sqrt() if inside else b.sqrt() + 1e-8
    return x - rate * (a / root + decay * x), m, v


def encode(tokenizer, text):
    """A clean text -> a list of ids"""
    return tokenizer.encode(text)


RIGHT = {
    "widen": stay,  # float16 -> the same numbers
    "load": stay,  # {official name: tensor}, matrices (in, out)
    "embed": embed,
    "norm": norm,
    "last_norm": None,  # ln_f, where it is another than the others
    "linear": linear,
    "split": split,
    "scale": scale,
    "score": score,
    "text_mask": text_mask,
    "softmax": softmax,
    "gelu": gelu,
    "add_attn": add,
    "between": between,
    "add_mlp": add,
    "seen": seen,
    "position": position,
    "prompt_mask": prompt_mask,
    "place": place,
    "pool": pool,
    "answer": answer,
    "loss": loss,
    "total": total,
    "shown": stay,  # what is given as the gradients
    "gather": gather,
    "measure": measure,
    "clip": clip,
    "rate": rate,
    "peaks": peaks,
    "count": count,
    "adam": adam,
    "clean": clean,  # a text -> what the tokenizer gets
    "encode": encode,
}


def start(case, wrong=None):
    """A case and its parts as one: the task.  wrong: {name of a part: what stands for it}"""
    task = SimpleNamespace(**vars(case) | RIGHT | (wrong or {}))
    task.weights = task.load(task.weights)
    return task


# ---- the forward pass -----------------------------------------------------------------------


def block(name, i, x, task, mask, past=None):
    """(B, Q, C) -> (B, Q, C), and {name: tensor} of what it makes.

    past: keys and values of the texts, each (B, H, T, D).
    """

    def weights_of(layer):
        return task.weights[f"h.{i}.{layer}.weight"], task.weights[f"h.{i}.{layer}.bias"]

    y = task.norm(x, *weights_of("ln_1"), task.eps)
    q, k, v = task.split(task.linear(y, *weights_of("attn.c_attn")), task.n_head)  # (B, H, Q, D)
    made = {f"{name}.{i}.k": k, f"{name}.{i}.v": v}
    if past:
        k = torch.cat([past[0], k], 2)  # (B, H, T+Q, D)
        v = torch.cat([past[1], v], 2)
    scores = task.score(q, k, task.scale(x.shape[2], task.n_head))  # (B, H, Q, T+Q)
    y = task.softmax(scores, mask) @ v  # (B, H, Q, D)
    y = task.linear(y.transpose(1, 2).flatten(2), *weights_of("attn.c_proj"))  # (B, Q, C)
    made[f"{name}.{i}.attn"] = y
    before = x
    x = task.add_attn(x, y)
    y = task.norm(task.between(before, x), *weights_of("ln_2"), task.eps)
    y = task.gelu(task.linear(y, *weights_of("mlp.c_fc")))  # (B, Q, 4C)
    y = task.linear(y, *weights_of("mlp.c_proj"))  # (B, Q, C)
    made[f"{name}.{i}.mlp"] = y
    x = task.add_mlp(x, y)
    made[f"{name}.{i}.x"] = x
    return x, made


def read(task):
    """The texts alone: yields {name: tensor} block by block, so that the judge may stop early"""
    x = task.embed(task.weights, task.ids)  # (B, T, C)
    mask = task.text_mask(task.ids.shape[1])  # (T, T)
    yield {"text.embed": x}
    for i in range(task.n_layer):
        x, made = block("text", i, x, task, mask)
        yield made


def respond(task, text, prompts):
    """The prompts after the texts, up to the logits, in the same way.  prompts: K pairs"""
    w = task.weights
    wpe = w["wpe.weight"]
    T = task.ids.shape[1]
    sizes = [len(vectors) for vectors, _ in prompts]
    ends = list(accumulate(sizes))

    # Where each prompt stands, and what it may look at.
    positions = []
    masks = []
    for P, end in zip(sizes, ends, strict=True):
        own = (task.seen(task.lengths, len(wpe), P, sizes), T, P, end - P)
        positions.append(task.position(*own))
        masks.append(task.prompt_mask(*own, ends[-1]))
    position = torch.cat(positions, 1)  # (B, S)
    mask = torch.cat(masks, 1)  # (B, S, T+S)

    # A position that does not exist is taken for the last, as JAX does, so that wrong ones answer.
    rows = wpe[position.clamp(0, len(wpe) - 1)]  # (B, S, C)
    x = task.place(torch.cat([vectors for vectors, _ in prompts]), rows)  # (B, S, C)
    yield {"pack.position": position, "pack.mask": mask, "pack.embed": x}
    for i in range(task.n_layer):
        past = (text[f"text.{i}.k"], text[f"text.{i}.v"])
        x, made = block("pack", i, x, task, mask[:, None], past)
        yield made

    x = task.pool(x, [end - 1 for end in ends])  # (B, K, C)
    x = (task.last_norm or task.norm)(x, w["ln_f.weight"], w["ln_f.bias"], task.eps)
    heads = torch.stack([head for _, head in prompts])  # (K, N, C)
    yield {"hidden": x, "logits": task.answer(x, heads)}  # (B, K, C), (K, B, N)


def joined(stages):
    """What read or respond yield -> one {name: tensor}"""
    made = {}
    for tensors in stages:
        made |= tensors
    return made


# ---- training -------------------------------------------------------------------------------


def named(name, prompts):
    """K pairs -> {name: tensor}"""
    tensors = {}
    for k, (vectors, head) in enumerate(prompts):
        tensors[f"{name}.{k}.vectors"] = vectors
        tensors[f"{name}.{k}.head"] = head
    return tensors


def backward(made, prompts, number):
    """{name: gradient of a number} in the order of the way back, of what was made and of K pairs"""
    wanted = {"grad.logits": made["logits"]}
    for k, (_, head) in enumerate(prompts):
        wanted[f"grad.{k}.head"] = head
    blocks = sorted({name[:6] for name in made if name.endswith(".attn")}, reverse=True)
    way = ["hidden"]
    for block in blocks:  # pack.2, pack.1, ...
        way += [f"{block}.x", f"{block}.attn"]
    way.append("pack.embed")
    for name in way:
        if name in made:
            wanted[f"grad.{name}"] = made[name]
    for k, (vectors, _) in enumerate(prompts):
        wanted[f"grad.{k}.vectors"] = vectors
    slopes = torch.autograd.grad(number, list(wanted.values()), materialize_grads=True)
    return dict(zip(wanted, slopes, strict=True))


def train(task, respond_to):
    """The first steps of a run: (name, tensor) from grad.logits on, the curve by rows.

    respond_to: K pairs -> {name: tensor}.
    """
    recipe = task.recipe
    prompts = [[tensor.clone().requires_grad_() for tensor in pair] for pair in task.prompts]
    moments = [[[torch.zeros_like(tensor)] * 2 for tensor in pair] for pair in prompts]
    before = None
    for t in range(1, recipe["steps"] + 1):
        made = respond_to(prompts)
        each = task.loss(made["logits"], task.labels)  # (K,)
        if t > 1:
            yield f"curve[{t - 1}]", each.detach()
            made = {"logits": made["logits"]}  # the way to the prompts is shown once
        number = task.total(each, *made["logits"].shape[1:])
        slopes = backward(made, prompts, number)

        grads = []
        for k in range(len(prompts)):
            grads.append([slopes[f"grad.{k}.vectors"], slopes[f"grad.{k}.head"]])
        grads = task.gather(grads, before)
        before = grads
        norms = task.measure(grads)  # (K,)
        clipped = task.clip(grads, norms, recipe["clip"])
        if t == 1:
            shown = named("grad", task.shown(grads, norms, recipe["clip"]))
            yield from (slopes | shown).items()
            yield "grad.norm", norms
            yield from named("clipped", clipped).items()

        step(task, t, prompts, clipped, moments)
        if t == 1:
            yield from named("after1", prompts).items()
            yield "curve[0]", each.detach()
    yield from named("after", prompts).items()


def step(task, t, prompts, grads, moments):
    """Step t of Adam, in place"""
    recipe = task.recipe
    share = task.rate(t, recipe["warm_up"], recipe["total"])
    for k, pair in enumerate(prompts):
        for j, peak in enumerate(task.peaks(k, recipe["lr"], recipe["head_lr"])):
            counted = task.count(t, k, j, len(prompts))
            m, v = moments[k][j]
            x, m, v = task.adam(pair[j].detach(), grads[k][j], m, v, counted, peak * share)
            moments[k][j] = [m, v]
            pair[j] = x.requires_grad_()


# ---- the whole ------------------------------------------------------------------------------


def steps(case, wrong=None, text=None, respond_to=None):
    """Every (name, tensor) of a case in the order of computation, with some parts replaced.

    text: what was read of the texts before, where no replaced part changes it.  respond_to:
    another way to the logits while training, for the truth that is written down.
    """
    task = start(case, wrong)
    made = dict(text or {})
    yield "half.float32", task.widen(task.half)
    if not text:
        for tensors in read(task):
            made |= tensors
            yield from tensors.items()
    for tensors in respond(task, made, task.prompts):
        made |= tensors
        yield from tensors.items()
    yield "loss", task.loss(made["logits"], task.labels)

    def by_parts(prompts):
        return joined(respond(task, made, prompts))

    yield from train(task, respond_to or by_parts)


def ask(case, wrong=None, only=None):
    """The same for the texts of a case: tokens.0, ..., real.0.ids, ..., real.0.logits, ...

    only: the numbers of the sentences whose logits are computed.
    """
    task = start(case, wrong)

    def ids_of(text):
        ids = task.encode(task.tokenizer, task.clean(text))
        return torch.tensor(ids, dtype=torch.int64)

    for i, text in enumerate(task.texts):
        yield f"tokens.{i}", ids_of(text)  # (T,)
    n = len(task.weights["wpe.weight"])  # no more can be read
    every = [ids_of(text)[:n] for text in task.sentences]
    for i, ids in enumerate(every):
        yield f"real.{i}.ids", ids  # (T,)
    for i, ids in enumerate(every):
        if only is None or i in only:
            task.ids = ids[None]  # (1, T)
            task.lengths = torch.tensor([len(ids)])
            made = joined(respond(task, joined(read(task)), task.prompts))
            yield f"real.{i}.logits", made["logits"][0, 0]  # (N,)
