"""The method once more, in float64 and in parts, so that one part at a time can be got wrong.

`steps` is PORTING.md in code: it shows what the oracle throws away, for tests/golden.py to write down.  Every part
that a port is known to get wrong is a small function of its own, and PITFALLS has the wrong ones, each with the
sentence that tells a person.  To judge a port, the method is run with one wrong part after the other: the mistake is
the one that gives the port's own numbers.

Letters as in model.py: B texts, T padded tokens, K prompts of P vectors, S = sum of P, C channels, H heads, N labels.
"""

import math
from itertools import accumulate, permutations
from types import SimpleNamespace

import oracle
import torch
import torch.nn.functional as F

from data import clean

# ---- the parts, right -------------------------------------------------------------------------


def load(weights):
    """the checkpoint's tensors by their official names, matrices (in, out)"""
    return weights


def embed(w, ids):
    """(B, T) -> (B, T, C)"""
    return w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]


def norm(x, gain, bias, eps):
    """(B, Q, C) -> (B, Q, C)"""
    return oracle.layer_norm(x.flatten(0, 1), gain, bias, eps).view_as(x)


def split(qkv, H):
    """(B, Q, 3C) -> q, k, v, each (B, H, Q, D)"""
    return qkv.unflatten(2, (3, H, -1)).permute(2, 0, 3, 1, 4)


def scale(C, H):
    return (C // H) ** -0.5


def text_mask(T):
    """(T, T), true where a query (row) may look"""
    return torch.ones(T, T).tril().bool()


def residual(x, y):
    """(B, Q, C), and what attention or MLP made of it (B, Q, C) -> (B, Q, C)"""
    return x + y


def between(before, after):
    """what ln_2 reads, of the stream before attention and after it"""
    return after


def seen(lengths, room):
    """how many tokens of each text a prompt sees: (B,)"""
    return lengths.clamp(max=room)


def position(seen, T, P, start):
    """where a prompt stands that begins at `start` of its pack: (B, P)"""
    return seen[:, None] + torch.arange(P)


def place(vectors, rows):
    """(S, C) and the rows of wpe (B, S, C) -> (B, S, C)"""
    return vectors + rows


def prompt_mask(seen, T, P, start, S):
    """what a prompt may look at, in the texts and in its pack: (B, P, T+S)"""
    text = torch.arange(T) < seen[:, None, None]  # (B, 1, T)
    own = torch.zeros(P, S)
    own[:, start : start + P] = torch.ones(P, P).tril()
    return torch.cat([text.expand(-1, P, T), own.bool().expand(len(seen), P, S)], 2)


def pool(x, ends):
    """(B, S, C) -> (B, K, C)"""
    return x[:, ends]


def answer(hidden, heads):
    """(B, K, C), (K, N, C) -> (K, B, N)"""
    return torch.einsum("bkc,knc->kbn", hidden, heads)


def loss(logits, labels):
    """(K, B, N) -> (K,)"""
    right = logits.gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]  # (K, B)
    return (logits.logsumexp(2) - right).mean(1)


def clip(grads, limit):
    """K pairs of (P, C) and (N, C), each pair by its own norm"""
    norms = [math.sqrt(sum(g.square().sum() for g in pair)) for pair in grads]
    return [[g * min(1, limit / (n + 1e-6)) for g in pair] for pair, n in zip(grads, norms)]


def rate(t, warm, total):
    """the share of the peak rates in step t = 1, 2, ..."""
    return t / warm if t <= warm else (total - t + 1) / (total - warm + 1)


def peaks(lr, head_lr):
    return lr, head_lr


def adam(x, g, m, v, t, rate):
    """a parameter, its gradient and its two moments -> the parameter and the moments after step t"""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return x - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8), m, v


def encode(tokenizer, text):
    """a clean text -> ids"""
    return tokenizer.encode(text)


def stay(x, *_):
    return x


READING = dict(
    load=load, embed=embed, norm=norm, split=split, scale=scale, text_mask=text_mask, gelu=oracle.gelu,
    residual=residual, between=between, seen=seen, position=position, place=place, prompt_mask=prompt_mask, pool=pool,
    last_norm=norm, answer=answer,
)  # fmt: skip
TRAINING = dict(loss=loss, total=torch.sum, shown=stay, clip=clip, rate=rate, peaks=peaks, adam=adam)
TEXTS = dict(clean=clean, encode=encode)
RIGHT = READING | TRAINING | TEXTS

# ---- the method -------------------------------------------------------------------------------


def block(name, i, x, task, mask, past=()):
    """(B, Q, C) -> (B, Q, C), {name: tensor} of what it makes.  past: keys and values (B, H, T, D) of the texts"""
    w = lambda layer, kind: task.weights[f"h.{i}.{layer}.{kind}"]
    linear = lambda y, layer: y @ w(layer, "weight") + w(layer, "bias")
    tidy = lambda y, layer: task.norm(y, w(layer, "weight"), w(layer, "bias"), task.eps)
    q, k, v = task.split(linear(tidy(x, "ln_1"), "attn.c_attn"), task.n_head)  # each (B, H, Q, D)
    made = {f"{name}.{i}.k": k, f"{name}.{i}.v": v}
    k, v = (torch.cat(pair, 2) for pair in zip(*past, (k, v)))  # after a text (B, H, T+Q, D)
    scores = q @ k.mT * task.scale(x.shape[2], task.n_head)  # (B, H, Q, T+Q)
    y = scores.masked_fill(~mask, -math.inf).softmax(3) @ v  # (B, H, Q, D)
    made[f"{name}.{i}.attn"] = y = linear(y.transpose(1, 2).flatten(2), "attn.c_proj")  # (B, Q, C)
    before, x = x, task.residual(x, y)
    y = linear(tidy(task.between(before, x), "ln_2"), "mlp.c_fc")  # (B, Q, 4C)
    made[f"{name}.{i}.mlp"] = y = linear(task.gelu(y), "mlp.c_proj")  # (B, Q, C)
    return task.residual(x, y), made


def read(task):
    """The texts alone: yields {name: tensor} block by block, so that the judge may stop early"""
    x, mask = task.embed(task.weights, task.ids), task.text_mask(task.ids.shape[1])  # (B, T, C), (T, T)
    yield {"text.embed": x}
    for i in range(task.n_layer):
        x, made = block("text", i, x, task, mask)
        yield made


def respond(task, text, prompts):
    """The prompts after the texts, up to the logits, in the same way.  prompts: K pairs of (P, C) and (N, C)"""
    w, sizes, T = task.weights, [len(vectors) for vectors, _ in prompts], task.ids.shape[1]
    wpe, ends = w["wpe.weight"], list(accumulate(sizes))
    plan = [(task.seen(task.lengths, len(wpe) - P), T, P, end - P) for P, end in zip(sizes, ends)]
    position = torch.cat([task.position(*prompt) for prompt in plan], 1)  # (B, S)
    mask = torch.cat([task.prompt_mask(*prompt, ends[-1]) for prompt in plan], 1)  # (B, S, T+S)
    # A position that does not exist is taken for the last, as JAX does, so that wrong ones answer too.
    rows = wpe[position.clamp(max=len(wpe) - 1)]  # (B, S, C)
    x = task.place(torch.cat([vectors for vectors, _ in prompts]), rows)  # (B, S, C)
    yield {"pack.position": position, "pack.mask": mask, "pack.embed": x}
    for i in range(task.n_layer):
        x, made = block("pack", i, x, task, mask[:, None], [(text[f"text.{i}.k"], text[f"text.{i}.v"])])
        yield made
    x = task.pool(x, [end - 1 for end in ends])  # (B, K, C)
    x = task.last_norm(x, w["ln_f.weight"], w["ln_f.bias"], task.eps)
    yield {"hidden": x, "logits": task.answer(x, torch.stack([head for _, head in prompts]))}  # (B, K, C), (K, B, N)


def train(task, logits_of):
    """The first steps of a run: (name, tensor) of grad.*, curve and after.*.  logits_of: K pairs -> (K, B, N)"""
    recipe, curve = task.recipe, []
    prompts = [[tensor.clone().requires_grad_() for tensor in pair] for pair in task.prompts]
    moments = [[[torch.zeros_like(tensor)] * 2 for tensor in pair] for pair in prompts]
    for t in range(1, recipe["steps"] + 1):
        each = task.loss(logits_of(prompts), task.labels)  # (K,)
        curve.append(each.detach())
        flat = torch.autograd.grad(task.total(each), [tensor for pair in prompts for tensor in pair])
        grads = list(zip(flat[::2], flat[1::2]))
        if t == 1:
            yield from named("grad", task.shown(grads, recipe["clip"]))
        share = task.rate(t, recipe["warm_up"], recipe["total"])
        for k, clipped in enumerate(task.clip(grads, recipe["clip"])):
            for j, peak in enumerate(task.peaks(recipe["lr"][k], recipe["head_lr"])):
                x, *moments[k][j] = task.adam(prompts[k][j].detach(), clipped[j], *moments[k][j], t, peak * share)
                prompts[k][j] = x.requires_grad_()
    yield "curve", torch.stack(curve)  # (steps, K)
    yield from named("after", prompts)


def named(name, prompts):
    """K pairs of (P, C) and (N, C) -> (name, tensor) for each tensor"""
    for k, (vectors, head) in enumerate(prompts):
        yield f"{name}.{k}.vectors", vectors.detach()
        yield f"{name}.{k}.head", head.detach()


def start(case, wrong):
    task = SimpleNamespace(**vars(case) | RIGHT | wrong)
    task.weights = task.load(task.weights)
    return task


def steps(case, wrong={}, logits_of=None):
    """Every (name, tensor) of a case in the order of computation, with some parts replaced.

    logits_of: another way to the logits while training, for the truth that is written down.
    """
    task, made = start(case, wrong), {}
    for stage in (read(task), respond(task, made, task.prompts)):
        for tensors in stage:
            made |= tensors
            yield from tensors.items()
    yield "loss", task.loss(made["logits"], task.labels)
    yield from train(task, logits_of or (lambda prompts: [*respond(task, made, prompts)][-1]["logits"]))


def ask(case, wrong={}):
    """The same for the sentences of a case, one at a time: real.0.ids, real.0.logits, real.1.ids, ..."""
    task = start(case, wrong)
    for i, text in enumerate(task.sentences):
        ids = task.encode(task.tokenizer, task.clean(text))[: len(task.weights["wpe.weight"])]  # no more can be read
        task.ids, task.lengths = torch.tensor([ids]), torch.tensor([len(ids)])
        yield f"real.{i}.ids", task.ids[0]  # (T,)
        text = {name: tensor for tensors in read(task) for name, tensor in tensors.items()}
        yield f"real.{i}.logits", [*respond(task, text, task.prompts)][-1]["logits"][0, 0]  # (N,)


# ---- the parts, wrong -------------------------------------------------------------------------


def each_weight(change):
    """A wrong `load`: change(name, tensor) for each weight"""
    return lambda weights: {name: change(name, tensor) for name, tensor in weights.items()}


def as_it_lies(name, tensor):
    is_matrix = name.startswith("h.") and tensor.dim() == 2
    return tensor.reshape(tensor.shape[::-1]).t() if is_matrix else tensor


def exchanged(weights):
    other = {"ln_1": "ln_2", "ln_2": "ln_1"}
    return {".".join(other.get(part, part) for part in name.split(".")): tensor for name, tensor in weights.items()}


def other_norm(centre=1, shift=1, unbiased=0, outside=0, fixed=None):
    """A wrong `norm`: not centred, without bias, unbiased variance, eps outside the root, another eps"""

    def wrong(x, gain, bias, eps):
        eps, x = fixed or eps, x - centre * x.mean(-1, keepdim=True)
        variance = x.square().sum(-1, keepdim=True) / (x.shape[-1] - unbiased)
        return x / ((variance + eps * (1 - outside)).sqrt() + eps * outside) * gain + shift * bias

    return wrong


def looks(own=None):
    """A wrong `prompt_mask`: own(row, column, start) says what it sees of its pack; without, it sees all of the text"""

    def wrong(seen, T, P, start, S):
        mask = prompt_mask(seen, T, P, start, S)
        if own:
            mask[:, :, T:] = own(torch.arange(P)[:, None] + start, torch.arange(S), start)
        else:
            mask[:, :, :T] = True
        return mask

    return wrong


def clip_as_one(grads, limit):
    flat = clip([[g for pair in grads for g in pair]], limit)[0]
    return list(zip(flat[::2], flat[1::2]))


def clip_apart(grads, limit):
    return [[clip([[g]], limit)[0][0] for g in pair] for pair in grads]


def other_adam(bias=True, inside=False, decay=0.0, coupled=0.0):
    """A wrong `adam`: moments as they are, eps inside the root, weight decay beside or within the gradient"""

    def wrong(x, g, m, v, t, rate):
        g = g + coupled * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        first, second = (m / (1 - 0.9**t), v / (1 - 0.999**t)) if bias else (m, v)
        root = (second + 1e-8).sqrt() if inside else second.sqrt() + 1e-8
        return x - rate * (first / root + decay * x), m, v

    return wrong


EPS, ORDER = "LayerNorm's eps is not the checkpoint's", "q, k and v are taken in another order"
DECAY = "weight decay is on; the prompt has none"
PITFALLS = [  # (what the judge says, the part that is replaced, the wrong part)
    ("attn.c_proj was not transposed: it is square, so no shape tells", "load",
     each_weight(lambda name, w: w.t() if name.endswith("attn.c_proj.weight") else w)),
    ("matrices were copied as they lie, but they are stored (in, out)", "load", each_weight(as_it_lies)),
    ("c_attn.bias was skipped with the mask buffers: theirs is .attn.bias, mind the dot", "load",
     each_weight(lambda name, w: w * 0 if name.endswith("attn.c_attn.bias") else w)),
    ("ln_1 and ln_2 are exchanged", "load", exchanged),
    ("the text has no positions", "embed", lambda w, ids: w["wte.weight"][ids]),
    ("the positions of the text begin at 1", "embed",
     lambda w, ids: w["wte.weight"][ids] + w["wpe.weight"].roll(-1, 0)[: ids.shape[1]]),
    *((EPS, "norm", other_norm(fixed=eps)) for eps in (1e-3, 1e-6, 1e-8, 1e-12)),
    ("LayerNorm's eps stands outside the root", "norm", other_norm(outside=1)),
    ("LayerNorm divides by C - 1", "norm", other_norm(unbiased=1)),
    ("LayerNorm does not subtract the mean", "norm", other_norm(centre=0)),
    ("LayerNorm has no bias", "norm", other_norm(shift=0)),
    ("heads are split before q, k and v", "split",
     lambda qkv, H: qkv.unflatten(2, (H, 3, -1)).permute(3, 0, 2, 1, 4)),
    *((ORDER, "split", lambda qkv, H, order=order: split(qkv, H)[list(order)])
      for order in [*permutations(range(3))][1:]),
    ("scores are not scaled", "scale", lambda C, H: 1),
    ("scores are scaled by C, not by D", "scale", lambda C, H: C**-0.5),
    ("scores are scaled by 1/8, right only where D = 64", "scale", lambda C, H: 1 / 8),
    ("the text sees what comes after", "text_mask", lambda T: torch.ones(T, T, dtype=torch.bool)),
    ("GELU is the exact (erf) form; GPT-2 has the tanh form", "gelu", F.gelu),
    ("GELU is the sigmoid form; GPT-2 has the tanh form", "gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ("x is not added to what attention and MLP make of it", "residual", lambda x, y: y),
    ("ln_2 reads what stood before attention", "between", stay),
    ("a long text is not cut to leave the prompt room", "seen", lambda lengths, room: lengths),
    ("positions run on across the pack", "position",
     lambda seen, T, P, start: seen[:, None] + start + torch.arange(P)),
    ("positions count from the padded length", "position",
     lambda seen, T, P, start: (T + torch.arange(P)).expand(len(seen), P)),
    ("positions of the prompt begin at 0", "position",
     lambda seen, T, P, start: torch.arange(P).expand(len(seen), P)),
    ("positions are one too high", "position", lambda *prompt: position(*prompt) + 1),
    ("prompts see each other", "prompt_mask", looks(lambda row, column, start: column <= row)),
    ("prompts see the pads", "prompt_mask", looks()),
    ("a prompt sees its own later vectors", "prompt_mask",
     lambda seen, T, P, start, S: prompt_mask(seen, T, P, start, S)[:, -1:].expand(-1, P, -1)),
    ("a vector of the prompt does not see itself", "prompt_mask",
     looks(lambda row, column, start: (column < row) & (column >= start))),
    ("the prompt has no positions", "place", lambda vectors, rows: vectors.expand_as(rows)),
    ("pooled at -1, the end of the pack, not at the end of each prompt", "pool",
     lambda x, ends: x[:, -1:].expand(-1, len(ends), -1)),
    ("pooled at the first vector, not at the last", "pool",
     lambda x, ends: x[:, [0, *(end + 1 for end in ends[:-1])]]),
    ("ln_f is missing", "last_norm", stay),
    ("all prompts are read by the first head", "answer", lambda x, heads: answer(x, heads[:1].expand_as(heads))),
    ("the head is read as (C, N)", "answer",
     lambda x, heads: torch.einsum("bkc,kcn->kbn", x, heads.reshape(*heads.shape[::2], -1))),
    ("a head of one column, whose argmax is always 0", "answer", lambda x, heads: answer(x, heads[:, :1])),
    ("the loss is summed over the texts", "loss", lambda logits, labels: loss(logits, labels) * len(labels)),
    ("the K losses are averaged, not summed", "total", torch.mean),
    ("the gradients are those after clipping", "shown", clip),
    ("nothing is clipped", "clip", stay),
    ("the pack is clipped as one, not each prompt alone", "clip", clip_as_one),
    ("vectors and head are clipped apart, not together", "clip", clip_apart),
    ("the rates do not warm up", "rate", lambda t, warm, total: 1 if t <= warm else rate(t, warm, total)),
    ("the rates do not fall", "rate", lambda t, warm, total: min(1, t / warm)),
    ("the rates are one step late", "rate", lambda t, warm, total: rate(t - 1, warm, total)),
    ("the head is trained at the rate of the vectors", "peaks", lambda lr, head_lr: (lr, lr)),
    ("Adam's moments are not corrected for their start", "adam", other_adam(bias=False)),
    ("Adam's eps stands inside the root", "adam", other_adam(inside=True)),
    *((DECAY, "adam", other_adam(**{kind: 0.01})) for kind in ("decay", "coupled")),
    ("the text was not stripped", "clean", stay),
    ("a token was put before or after the text", "encode",
     lambda tokenizer, text: [tokenizer.end_of_text, *tokenizer.encode(text)]),
    ("a token was put before or after the text", "encode",
     lambda tokenizer, text: [*tokenizer.encode(text), tokenizer.end_of_text]),
    ("a space was put before the text", "encode", lambda tokenizer, text: tokenizer.encode(" " + text)),
]  # fmt: skip
