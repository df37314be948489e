"""The method once more, in float64 and in parts, so that one part at a time can be got wrong.

`steps` is porting.md in code: it shows what minimal.py throws away, for golden.py to write down.  Every part
that a port is known to get wrong is a small function of its own, and the lists at the end have the wrong ones, each with
the sentence that tells a person.  To judge a port, the method is run with one wrong part after the other: the mistake is
the one that gives the port's own numbers.

Letters as in model.py: B texts, T padded tokens, K prompts of P vectors, S = sum of P, C channels, H heads, N labels.
"""

import math
import unicodedata
from functools import lru_cache, partial
from itertools import accumulate, permutations
from types import SimpleNamespace

import regex
import tiktoken
import torch
import torch.nn.functional as F

from data import Tokenizer, clean
from minimal import gelu, layer_norm

# ---- the parts, right -------------------------------------------------------------------------


stay = lambda x, *_: x
measure = lambda grads: torch.stack([sum(g.square().sum() for g in pair).sqrt() for pair in grads])
rate = lambda t, warm, total: t / warm if t <= warm else (total - t + 1) / (total - warm + 1)


def norm(x, gain, bias, eps):
    rows = x.flatten(0, 1)  # (B * Q, C)
    return layer_norm(rows, {"ln.weight": gain, "ln.bias": bias}, "ln", eps).view_as(x)


def prompt_mask(seen, T, P, start, S):
    text = torch.arange(T) < seen[:, None, None]  # (B, 1, T)
    own = torch.zeros(P, S)
    own[:, start : start + P] = torch.ones(P, P).tril()
    return torch.cat([text.expand(-1, P, T), own.bool().expand(len(seen), P, S)], 2)


def loss(logits, labels):
    right = logits.gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]  # (K, B)
    return (logits.logsumexp(2) - right).mean(1)


def clip(grads, norms, limit):
    return [[g * min(1, limit / (n + 1e-6)) for g in pair] for pair, n in zip(grads, norms.tolist())]


def adam(x, g, m, v, t, rate, b1=0.9, b2=0.999, first=True, second=True, inside=False, decay=0.0, coupled=0.0):
    """The keywords are for wrong ones: other betas, moments as they are, eps in the root, decay beside or in the gradient"""
    g = g + coupled * x
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    a, b = m / (1 - b1**t) if first else m, v / (1 - b2**t) if second else v
    return x - rate * (a / ((b + 1e-8).sqrt() if inside else b.sqrt() + 1e-8) + decay * x), m, v


RIGHT = dict(
    widen=stay,  # float16 -> the same numbers
    load=stay,  # {official name: tensor}, matrices (in, out)
    embed=lambda w, ids: w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]],  # (B, T) -> (B, T, C)
    norm=norm,  # (B, Q, C), gain, bias, eps -> (B, Q, C)
    last_norm=None,  # ln_f, where it is another than the others
    linear=lambda y, weight, bias: y @ weight + bias,
    split=lambda qkv, H: qkv.unflatten(2, (3, H, -1)).permute(2, 0, 3, 1, 4),  # (B, Q, 3C) -> q, k, v, (B, H, Q, D)
    scale=lambda C, H: (C // H) ** -0.5,
    score=lambda q, k, scale: q @ k.mT * scale,  # (B, H, Q, T+Q)
    text_mask=lambda T: torch.ones(T, T).tril().bool(),  # true where a query (row) may look
    softmax=lambda scores, mask: scores.masked_fill(~mask, -math.inf).softmax(3),
    gelu=gelu,
    add_attn=lambda x, y: x + y,  # (B, Q, C) and what attention made of it
    between=lambda before, after: after,  # what ln_2 reads, of the stream before attention and after it
    add_mlp=lambda x, y: x + y,
    seen=lambda lengths, n, P, sizes: lengths.clamp(max=n - P),  # how many tokens of each text a prompt sees: (B,)
    position=lambda seen, T, P, start: seen[:, None] + torch.arange(P),  # (B, P), of a prompt that is at start of its pack
    prompt_mask=prompt_mask,  # what it may look at, in the texts and in its pack: (B, P, T+S)
    place=lambda vectors, rows: vectors + rows,  # (S, C) and the rows of wpe (B, S, C) -> (B, S, C)
    pool=lambda x, ends: x[:, ends],  # (B, S, C) -> (B, K, C)
    answer=lambda hidden, heads: torch.einsum("bkc,knc->kbn", hidden, heads),  # (B, K, C), (K, N, C) -> (K, B, N)
    loss=loss,  # (K, B, N), (B,) -> (K,)
    total=lambda each, B, N: each.sum(),  # the losses (K,) -> the number whose gradient is taken
    shown=stay,  # what is given as the gradients
    gather=lambda grads, before: grads,  # the gradients of this step and of the one before
    measure=measure,  # K pairs of (P, C) and (N, C) -> K norms
    clip=clip,  # each pair by its own norm
    rate=rate,  # the share of the peak rates in step t = 1, 2, ...
    peaks=lambda k, lr, head_lr: (lr[k], head_lr),  # of prompt k
    count=lambda t, k, j, K: t,  # Adam's t, for the vectors (j = 0) or the head (j = 1) of prompt k
    adam=adam,  # a parameter, its gradient and moments, t, rate -> the parameter and the moments after the step
    clean=clean,  # a text -> what the tokenizer gets
    encode=lambda tokenizer, text: tokenizer.encode(text),  # a clean text -> ids
)

# ---- the method -------------------------------------------------------------------------------


def block(name, i, x, task, mask, past=()):
    """(B, Q, C) -> (B, Q, C), {name: tensor} of what it makes.  past: keys and values (B, H, T, D) of the texts"""
    w = lambda layer: [task.weights[f"h.{i}.{layer}.{kind}"] for kind in ("weight", "bias")]
    q, k, v = task.split(task.linear(task.norm(x, *w("ln_1"), task.eps), *w("attn.c_attn")), task.n_head)  # (B, H, Q, D)
    made = {f"{name}.{i}.k": k, f"{name}.{i}.v": v}
    k, v = (torch.cat(pair, 2) for pair in zip(*past, (k, v)))  # after a text (B, H, T+Q, D)
    scores = task.score(q, k, task.scale(x.shape[2], task.n_head))  # (B, H, Q, T+Q)
    y = task.softmax(scores, mask) @ v  # (B, H, Q, D)
    made[f"{name}.{i}.attn"] = y = task.linear(y.transpose(1, 2).flatten(2), *w("attn.c_proj"))  # (B, Q, C)
    before, x = x, task.add_attn(x, y)
    y = task.linear(task.norm(task.between(before, x), *w("ln_2"), task.eps), *w("mlp.c_fc"))  # (B, Q, 4C)
    made[f"{name}.{i}.mlp"] = y = task.linear(task.gelu(y), *w("mlp.c_proj"))  # (B, Q, C)
    made[f"{name}.{i}.x"] = x = task.add_mlp(x, y)
    return x, made


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
    plan = [(task.seen(task.lengths, len(wpe), P, sizes), T, P, end - P) for P, end in zip(sizes, ends)]
    position = torch.cat([task.position(*prompt) for prompt in plan], 1)  # (B, S)
    mask = torch.cat([task.prompt_mask(*prompt, ends[-1]) for prompt in plan], 1)  # (B, S, T+S)
    # A position that does not exist is taken for the last, as JAX does, so that wrong ones answer too.
    rows = wpe[position.clamp(0, len(wpe) - 1)]  # (B, S, C)
    x = task.place(torch.cat([vectors for vectors, _ in prompts]), rows)  # (B, S, C)
    yield {"pack.position": position, "pack.mask": mask, "pack.embed": x}
    for i in range(task.n_layer):
        x, made = block("pack", i, x, task, mask[:, None], [(text[f"text.{i}.k"], text[f"text.{i}.v"])])
        yield made
    x = task.pool(x, [end - 1 for end in ends])  # (B, K, C)
    x = (task.last_norm or task.norm)(x, w["ln_f.weight"], w["ln_f.bias"], task.eps)
    yield {"hidden": x, "logits": task.answer(x, torch.stack([head for _, head in prompts]))}  # (B, K, C), (K, B, N)


def backward(made, prompts, total):
    """{name: gradient of the total} in the order of the way back, of what was made and of the prompts"""
    blocks = sorted({name[:6] for name in made if name.endswith(".attn")}, reverse=True)  # pack.2, pack.1, ...
    way = ["hidden", *(f"{block}.{part}" for block in blocks for part in ("x", "attn")), "pack.embed"]
    ends, wanted = named("grad", prompts), {f"grad.{name}": made[name] for name in way if name in made}
    heads, vectors = ({name: x for name, x in ends.items() if name.endswith(part)} for part in ("head", "vectors"))
    wanted = {"grad.logits": made["logits"]} | heads | wanted | vectors
    return dict(zip(wanted, torch.autograd.grad(total, [*wanted.values()], materialize_grads=True)))


def train(task, respond_to):
    """The first steps of a run: (name, tensor) from grad.logits on, the curve by rows.  respond_to: K pairs -> tensors"""
    recipe, before = task.recipe, None
    prompts = [[tensor.clone().requires_grad_() for tensor in pair] for pair in task.prompts]
    moments = [[[torch.zeros_like(tensor)] * 2 for tensor in pair] for pair in prompts]
    for t in range(1, recipe["steps"] + 1):
        made = respond_to(prompts)
        each = task.loss(made["logits"], task.labels)  # (K,)
        if t > 1:
            yield f"curve[{t - 1}]", each.detach()
        slopes = backward(made if t == 1 else made | {"pack.embed": made["logits"]}, prompts,
                          task.total(each, *made["logits"].shape[1:]))  # fmt: skip
        grads = [[slopes[f"grad.{k}.{part}"] for part in ("vectors", "head")] for k in range(len(prompts))]
        grads = before = task.gather(grads, before)
        norms = task.measure(grads)
        clipped = task.clip(grads, norms, recipe["clip"])
        if t == 1:
            yield from (slopes | named("grad", task.shown(grads, norms, recipe["clip"]))).items()
            yield "grad.norm", norms  # (K,)
            yield from named("clipped", clipped).items()
        share = task.rate(t, recipe["warm_up"], recipe["total"])
        for k, pair in enumerate(prompts):
            for j, peak in enumerate(task.peaks(k, recipe["lr"], recipe["head_lr"])):
                counted = task.count(t, k, j, len(prompts))
                x, *moments[k][j] = task.adam(pair[j].detach(), clipped[k][j], *moments[k][j], counted, peak * share)
                pair[j] = x.requires_grad_()
        if t == 1:
            yield from named("after1", prompts).items()
            yield "curve[0]", each.detach()
    yield from named("after", prompts).items()


def named(name, prompts):
    """K pairs of (P, C) and (N, C) -> {name: tensor}"""
    return {f"{name}.{k}.{part}": x for k, pair in enumerate(prompts) for part, x in zip(("vectors", "head"), pair)}


def start(case, wrong):
    task = SimpleNamespace(**vars(case) | RIGHT | wrong)
    task.weights = task.load(task.weights)
    return task


def steps(case, wrong={}, text=None, respond_to=None):
    """Every (name, tensor) of a case in the order of computation, with some parts replaced.

    text: what was read of the texts before, where no replaced part changes it.  respond_to: another way to the logits
    while training, for the truth that is written down.
    """
    task, made = start(case, wrong), dict(text or {})
    yield "half.float32", task.widen(task.half)
    for stage in ([] if text else read(task), respond(task, made, task.prompts)):
        for tensors in stage:
            made |= tensors
            yield from tensors.items()
    yield "loss", task.loss(made["logits"], task.labels)
    quickly = lambda prompts: {name: x for tensors in respond(task, made, prompts) for name, x in tensors.items()}
    yield from train(task, respond_to or quickly)


def ask(case, wrong={}, only=None):
    """The same for the texts of a case: tokens.0, ..., real.0.ids, ..., real.0.logits, ...; only: of these sentences"""
    task = start(case, wrong)
    ids_of = lambda text: torch.tensor(task.encode(task.tokenizer, task.clean(text)), dtype=torch.int64)
    for i, text in enumerate(task.texts):
        yield f"tokens.{i}", ids_of(text)  # (T,)
    every = [ids_of(text)[: len(task.weights["wpe.weight"])] for text in task.sentences]  # no more can be read
    for i, ids in enumerate(every):
        yield f"real.{i}.ids", ids  # (T,)
    for i, ids in enumerate(every):
        if only is None or i in only:
            task.ids, task.lengths = ids[None], torch.tensor([len(ids)])
            text = {name: tensor for tensors in read(task) for name, tensor in tensors.items()}
            yield f"real.{i}.logits", [*respond(task, text, task.prompts)][-1]["logits"][0, 0]  # (N,)


# ---- the parts, wrong -------------------------------------------------------------------------


# A wrong `load` or `widen` by what it does to each weight, to all names, to the 16 bits of each number.
each_weight = lambda change: lambda weights: {name: change(name, tensor) for name, tensor in weights.items()}
as_it_lies = lambda name, w: w.reshape(w.shape[::-1]).t() if name.startswith("h.") and w.dim() == 2 else w
other_names = lambda change: lambda weights: {change(name): tensor for name, tensor in weights.items()}
bits = lambda change: lambda half: change(half.to(torch.float16).view(torch.int16)).double()
as_one = lambda grads: measure([[g for pair in grads for g in pair]]).expand(len(grads))


def other_norm(centre=1, shift=1, unbiased=0, outside=0, fixed=None):
    """A wrong `norm`: not centred, without bias, unbiased variance, eps outside the root, another eps"""

    def wrong(x, gain, bias, eps):
        eps, x = fixed or eps, x - centre * x.mean(-1, keepdim=True)
        variance = x.square().sum(-1, keepdim=True) / (x.shape[-1] - unbiased)
        return x / ((variance + eps * (1 - outside)).sqrt() + eps * outside) * gain + shift * bias

    return wrong


def norm_of(mean=stay, variance=stay):
    """A `norm` with another way back: torch.detach takes what it is given for a constant"""

    def wrong(x, gain, bias, eps):
        middle = x.mean(-1, keepdim=True)
        spread = (x - middle).square().mean(-1, keepdim=True)
        return (x - mean(middle)) / (variance(spread) + eps).sqrt() * gain + bias

    return wrong


def back(part, wrong):
    """The numbers of the right part, the way back of a wrong one"""

    def mixed(*given):
        y = wrong(*given)
        return RIGHT[part](*given).detach() + y - y.detach()

    return mixed


def unstable(scores, mask):
    """exp as float32 has it: infinite above 88.7"""
    e = scores.masked_fill(~mask, -math.inf).exp()
    e = torch.where(e > torch.finfo(torch.float32).max, math.inf, e)
    return e / e.sum(3, keepdim=True)


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


# What other languages take for white space: Rust, Go; Java; JavaScript.
RUST = "\t\n\v\f\r\x85 \xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
JAVA = "".join(c for c in RUST if c not in "\x85\xa0\u2007\u202f") + "\x1c\x1d\x1e\x1f"
SCRIPT = RUST.replace("\x85", "\ufeff")


@lru_cache
def other_bpe(tokenizer, pattern):
    ranks = {tokenizer.bpe.decode_single_token_bytes(i): i for i in range(tokenizer.end_of_text)}
    ends = {"<|endoftext|>": tokenizer.end_of_text}
    return ranks, tiktoken.Encoding("other", pat_str=pattern, mergeable_ranks=ranks, special_tokens=ends)


def cut_by(old, new, special=()):
    """A wrong `encode`: words are cut by another pattern, or <|endoftext|> in a text is the token"""
    pattern = Tokenizer.PATTERN.replace(old, new)
    return lambda tokenizer, text: other_bpe(tokenizer, pattern)[1].encode(
        text, allowed_special={*special}, disallowed_special=()
    )


def other_merges(longest):
    """A wrong `encode`: the longest token that fits, from the left, or the leftmost merge that there is"""

    def wrong(tokenizer, text):
        ranks, ids = other_bpe(tokenizer, Tokenizer.PATTERN)[0], []
        for word in map(str.encode, regex.findall(Tokenizer.PATTERN, text)):
            parts = [word[i : i + 1] for i in range(len(word))]
            while longest and word:
                end = next(end for end in range(len(word), 0, -1) if word[:end] in ranks)
                ids, word, parts = [*ids, ranks[word[:end]]], word[end:], []
            while pairs := [i for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]:
                parts[pairs[0] : pairs[0] + 2] = [parts[pairs[0]] + parts[pairs[0] + 1]]
            ids += [ranks[part] for part in parts]
        return ids

    return wrong


EPS, ORDER = "LayerNorm's eps is not the checkpoint's", "q, k and v are taken in another order"
# The lists: (what the judge says, the parts that are replaced, the wrong part).
READING = [  # what changes the numbers of the forward pass
    ("float16's smallest numbers, the subnormal ones, are read as zero", "widen",
     lambda half: half * (half.abs() >= 2**-14)),
    ("float16 is read as bfloat16", "widen", bits(lambda half: half.view(torch.bfloat16))),
    ("float16's two bytes are exchanged", "widen", bits(lambda half: (half << 8 | half >> 8 & 255).view(torch.float16))),
    ("attn.c_proj was not transposed: it is square, so no shape tells", "load",
     each_weight(lambda name, w: w.t() if name.endswith("attn.c_proj.weight") else w)),
    ("matrices were copied as they lie, but they are stored (in, out)", "load", each_weight(as_it_lies)),
    ("c_attn.bias was skipped with the mask buffers: theirs is .attn.bias, mind the dot", "load",
     each_weight(lambda name, w: w * 0 if name.endswith("attn.c_attn.bias") else w)),
    ("no linear layer has its bias", "linear", lambda y, weight, bias: y @ weight),
    ("ln_1 and ln_2 are exchanged", "load",
     other_names(lambda name: regex.sub("ln_[12]", lambda found: {"ln_1": "ln_2", "ln_2": "ln_1"}[found[0]], name))),
    ("the text has no positions", "embed", lambda w, ids: w["wte.weight"][ids]),
    ("the positions of the text begin at 1", "embed",
     lambda w, ids: w["wte.weight"][ids] + w["wpe.weight"].roll(-1, 0)[: ids.shape[1]]),
    ("embeddings are multiplied by the root of C", "embed",
     lambda w, ids: w["wte.weight"][ids] * w["wte.weight"].shape[1] ** 0.5 + w["wpe.weight"][: ids.shape[1]]),
    *((EPS, "norm", other_norm(fixed=eps)) for eps in (1e-3, 1e-6, 1e-8, 1e-12)),
    ("LayerNorm's eps stands outside the root", "norm", other_norm(outside=1)),
    ("LayerNorm divides by C - 1", "norm", other_norm(unbiased=1)),
    ("LayerNorm does not subtract the mean", "norm", other_norm(centre=0)),
    ("LayerNorm has no bias", "norm", other_norm(shift=0)),
    ("heads are split before q, k and v", "split", lambda qkv, H: qkv.unflatten(2, (H, 3, -1)).permute(3, 0, 2, 1, 4)),
    ("channel c is taken to belong to head c mod H", "split",
     lambda qkv, H: qkv.unflatten(2, (3, -1, H)).permute(2, 0, 4, 1, 3)),
    *((ORDER, "split", lambda qkv, H, order=order: RIGHT["split"](qkv, H)[list(order)])
      for order in [*permutations(range(3))][1:]),
    ("scores are not scaled", "scale", lambda C, H: 1), ("scores are scaled by C, not by D", "scale", lambda C, H: C**-0.5),
    ("scores are scaled by 1/8, right only where D = 64", "scale", lambda C, H: 1 / 8),
    ("scores are divided by D, not by its root", "scale", lambda C, H: H / C),
    ("the text sees what comes after", "text_mask", lambda T: torch.ones(T, T, dtype=torch.bool)),
    ("softmax does not subtract each row's largest score, and exp overflows", "softmax", unstable),
    ("softmax runs over the queries, not over the keys", "softmax",
     lambda scores, mask: scores.masked_fill(~mask, -math.inf).softmax(2)),
    ("the mask is applied after softmax, so that shares do not sum to 1", "softmax",
     lambda scores, mask: scores.softmax(3) * mask),
    ("masked scores are set to 0, not to -infinity", "softmax", lambda scores, mask: (scores * mask).softmax(3)),
    ("GELU is the exact (erf) form; GPT-2 has the tanh form", "gelu", F.gelu),
    ("GELU is the sigmoid form; GPT-2 has the tanh form", "gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ("ReLU stands where GELU should", "gelu", F.relu),
    ("x is not added to what attention and MLP make of it", "add_attn add_mlp", lambda x, y: y),
    ("x is not added to what attention makes of it", "add_attn", lambda x, y: y),
    ("x is not added to what the MLP makes of it", "add_mlp", lambda x, y: y),
    ("ln_2 reads what stood before attention", "between", stay),
    ("a long text is not cut to leave the prompt room", "seen", lambda lengths, n, P, sizes: lengths),
    ("a long text is cut as if every prompt were the longest", "seen",
     lambda lengths, n, P, sizes: lengths.clamp(max=n - max(sizes))),
    ("a long text is cut to leave the whole pack room", "seen",
     lambda lengths, n, P, sizes: lengths.clamp(max=n - sum(sizes))),
    ("a long text is cut by one token too many", "seen", lambda lengths, n, P, sizes: lengths.clamp(max=n - P - 1)),
    ("positions run on across the pack", "position", lambda seen, T, P, start: seen[:, None] + start + torch.arange(P)),
    ("positions count from the padded length", "position",
     lambda seen, T, P, start: (T + torch.arange(P)).expand(len(seen), P)),
    ("positions of the prompt begin at 0", "position", lambda seen, T, P, start: torch.arange(P).expand(len(seen), P)),
    *(("positions are one too high", "position",
       lambda seen, T, P, start, top=top: (seen[:, None] + torch.arange(P) + 1).clamp(max=top)) for top in (10**9, 12, 127)),
    ("positions are one too low", "position", lambda seen, T, P, start: seen[:, None] + torch.arange(P) - 1),
    ("prompts see each other", "prompt_mask", looks(lambda row, column, start: column <= row)),
    ("prompts see the pads", "prompt_mask", looks()),
    ("a prompt sees its own later vectors", "prompt_mask",
     lambda seen, T, P, start, S: prompt_mask(seen, T, P, start, S)[:, -1:].expand(-1, P, -1)),
    ("a vector of the prompt does not see itself", "prompt_mask",
     looks(lambda row, column, start: (column < row) & (column >= start))),
    ("a vector of the prompt sees itself alone, of its prompt", "prompt_mask",
     looks(lambda row, column, start: column == row)),
    ("the prompt has no positions", "place", lambda vectors, rows: vectors.expand_as(rows)),
    ("pooled at -1, the end of the pack, not at the end of each prompt", "pool",
     lambda x, ends: x[:, -1:].expand(-1, len(ends), -1)),
    ("pooled at the first vector, not at the last", "pool", lambda x, ends: x[:, [0, *(end + 1 for end in ends[:-1])]]),
    ("pooled as the mean of each prompt's vectors", "pool",
     lambda x, ends: torch.stack([part.mean(1) for part in x.tensor_split([end + 1 for end in ends[:-1]], 1)], 1)),
    ("ln_f is missing", "last_norm", stay),
    ("all prompts are read by the first head", "answer", lambda x, heads: RIGHT["answer"](x, heads[:1].expand_as(heads))),
    ("the head is read as (C, N)", "answer",
     lambda x, heads: torch.einsum("bkc,kcn->kbn", x, heads.reshape(*heads.shape[::2], -1))),
    ("a head of one column, whose argmax is always 0", "answer", lambda x, heads: RIGHT["answer"](x, heads[:, :1])),
]  # fmt: skip
WAY_BACK = [  # what is right on the way there, and changes gradients
    ("the loss is summed over the texts", "loss", lambda logits, labels: loss(logits, labels) * len(labels)),
    ("the loss is divided by the number of labels, too", "loss",
     lambda logits, labels: loss(logits, labels) / logits.shape[2]),
    ("the loss takes the labels to count from 1", "loss",
     lambda logits, labels: loss(logits, (labels - 1) % logits.shape[2])),
    ("the loss takes softmax of what softmax has made", "loss", lambda logits, labels: loss(logits.softmax(2), labels)),
    ("the loss has logarithms to base 2", "loss", lambda logits, labels: loss(logits, labels) / math.log(2)),
    ("the K losses are averaged, not summed", "total", lambda each, B, N: each.mean()),
    ("the gradients are not divided by B, as the mean over the texts asks", "total", lambda each, B, N: each.sum() * B),
    ("the gradients are divided by B twice", "total", lambda each, B, N: each.sum() / B),
    ("the gradients are divided by N, too", "total", lambda each, B, N: each.sum() / N),
    ("the gradients have the wrong sign", "total", lambda each, B, N: -each.sum()),
    ("the way back through LayerNorm takes the mean for a constant", "norm", norm_of(mean=torch.detach)),
    ("the way back through LayerNorm takes the variance for a constant", "norm", norm_of(variance=torch.detach)),
    ("the way back through LayerNorm takes mean and variance for constants", "norm", norm_of(torch.detach, torch.detach)),
    ("the way back through LayerNorm leaves out its weight", "norm",
     back("norm", lambda x, gain, bias, eps: norm(x, 1, 0, eps))),
    ("the way back leaves out ln_f", "last_norm", back("norm", stay)),
    ("the way back through softmax lacks the sum of each row", "softmax",
     back("softmax", lambda scores, mask: RIGHT["softmax"](scores, mask).detach() * scores)),
    ("the way back through the scores is not scaled", "score", back("score", lambda q, k, scale: q @ k.mT)),
    ("the way back through GELU has the slope of its erf form", "gelu", back("gelu", F.gelu)),
    ("the way back through GELU lacks its second term", "gelu",
     back("gelu", lambda x: x * (RIGHT["gelu"](x) / x).detach())),
    ("the way back leaves out q", "split", lambda qkv, H: [RIGHT["split"](qkv, H)[0].detach(), *RIGHT["split"](qkv, H)[1:]]),
    ("the way back leaves out k", "score", lambda q, k, scale: q @ k.detach().mT * scale),
    ("the way back leaves out v", "split", lambda qkv, H: [*RIGHT["split"](qkv, H)[:2], RIGHT["split"](qkv, H)[2].detach()]),
    ("the way back leaves out k and v, so that a vector learns only by its own answers", "split",
     lambda qkv, H: [RIGHT["split"](qkv, H)[0], *RIGHT["split"](qkv, H)[1:].detach()]),
    ("the way back leaves out the x that is added to attention", "add_attn", lambda x, y: x.detach() + y),
    ("the way back leaves out the x that is added to the MLP", "add_mlp", lambda x, y: x.detach() + y),
    ("the way back leaves out attention", "add_attn", lambda x, y: x + y.detach()),
    ("the way back leaves out the MLP", "add_mlp", lambda x, y: x + y.detach()),
    ("the way back takes a square matrix, attn.c_proj, for its transpose", "linear",
     lambda y, weight, bias: back("linear", lambda y, w, b: y @ (w.t() if len(w) == len(w.t()) else w))(y, weight, bias)),
    ("the gradients are those after clipping", "shown", clip),
]  # fmt: skip
PACK = "the pack is clipped as one, not each prompt alone"
DECAY, WARM = "weight decay is on; the prompt has none", "the warm-up has another length than W"
LATER, BETA = "the rates fall towards another step than M", "one of Adam's betas is not 0.9 or 0.999"
COUNTED = "Adam's t grows with every prompt or tensor, not with every step"
STEP = [  # what is right up to the gradients
    ("nothing is clipped", "clip", stay), (PACK, "measure", as_one),
    (PACK, "clip", lambda grads, norms, limit: clip(grads, as_one(grads), limit)),
    ("vectors and head are clipped apart, not together", "clip",
     lambda grads, norms, limit: [[clip([[g]], measure([[g]]), limit)[0][0] for g in pair] for pair in grads]),
    ("gradients are clipped number by number, not by their norm", "clip",
     lambda grads, norms, limit: [[g.clamp(-limit, limit) for g in pair] for pair in grads]),
    ("short gradients are stretched to the norm at which long ones are clipped", "clip",
     lambda grads, norms, limit: [[g * limit / n for g in pair] for pair, n in zip(grads, norms)]),
    *(("the norm is that of the vectors or of the head alone", "measure",
       lambda grads, j=j: measure([pair[j : j + 1] for pair in grads])) for j in (0, 1)),
    ("the norm lacks its root", "measure", lambda grads: measure(grads).square()),
    ("gradients are not set to zero after a step, and add up", "gather",
     lambda grads, before: grads if before is None else [[a + b for a, b in zip(*pair)] for pair in zip(grads, before)]),
    ("the rates do not warm up", "rate", lambda t, warm, total: 1 if t <= warm else rate(t, warm, total)),
    ("the rates do not fall", "rate", lambda t, warm, total: min(1, t / warm)),
    ("the rates neither warm up nor fall", "rate", lambda *_: 1),
    ("the rates are one step late", "rate", lambda t, warm, total: rate(t - 1, warm, total)),
    ("the rates are one step early", "rate", lambda t, warm, total: rate(t + 1, warm, total)),
    ("the rates fall from the step after the warm-up, one too early", "rate",
     lambda t, warm, total: t / warm if t <= warm else (total - t) / (total - warm)),
    ("the rates fall along a cosine, not a line", "rate",
     lambda t, warm, total: t / warm if t <= warm else (1 + math.cos(math.pi * (t - warm) / (total - warm))) / 2),
    *((WARM, "rate", lambda t, warm, total, w=w: rate(t, w, total)) for w in (1, 2, 4, 5, 6, 10)),
    *((LATER, "rate", lambda t, warm, total, m=m: rate(t, warm, m)) for m in (10, 20, 51, 100)),
    ("the head is trained at the rate of the vectors", "peaks", lambda k, lr, head_lr: (lr[k], lr[k])),
    ("the vectors are trained at the rate of the head", "peaks", lambda k, lr, head_lr: (head_lr, head_lr)),
    ("the rates of vectors and head are exchanged", "peaks", lambda k, lr, head_lr: (head_lr, lr[k])),
    *(("all prompts are trained at one rate", "peaks", lambda k, lr, head_lr, j=j: (lr[j], head_lr)) for j in range(4)),
    ("the head is not trained", "peaks", lambda k, lr, head_lr: (lr[k], 0)),
    ("the vectors are not trained", "peaks", lambda k, lr, head_lr: (0, head_lr)),
    ("Adam's moments are not corrected for their start", "adam", partial(adam, first=False, second=False)),
    ("Adam's first moment is not corrected for its start", "adam", partial(adam, first=False)),
    ("Adam's second moment is not corrected for its start", "adam", partial(adam, second=False)),
    ("Adam's eps stands inside the root", "adam", partial(adam, inside=True)),
    *((DECAY, "adam", partial(adam, **{kind: by})) for kind in ("decay", "coupled") for by in (0.01, 0.1)),
    *((BETA, "adam", partial(adam, b2=b)) for b in (0.9, 0.95, 0.98, 0.99, 0.9999)),
    *((BETA, "adam", partial(adam, b1=b)) for b in (0.0, 0.5, 0.8, 0.85, 0.95, 0.99)),
    ("Adam's betas are exchanged", "adam", partial(adam, b1=0.999, b2=0.9)),
    ("Adam's t begins at 0, and 1 - 0.9^0 is zero", "count", lambda t, *_: t - 1),
    ("Adam's t begins at 2", "count", lambda t, *_: t + 1), (COUNTED, "count", lambda t, k, j, K: (t - 1) * K + k + 1),
    (COUNTED, "count", lambda t, k, j, K: 2 * ((t - 1) * K + k) + j + 1),
    ("the step goes uphill", "adam", lambda x, g, m, v, t, rate: adam(x, g, m, v, t, -rate)),
    ("the step is plain gradient descent, not Adam's", "adam", lambda x, g, m, v, t, rate: (x - rate * g, m, v)),
]  # fmt: skip
SPACES, LETTERS = "white space within the text was changed", "the text was put into another Unicode form"
PUT = "a token was put before or after the text"
TEXTS = [
    ("the text was not stripped", "clean", stay),
    ("the text was stripped as JavaScript does: U+FEFF goes, U+0085 and U+001C to U+001F stay", "clean",
     lambda text: text.strip(SCRIPT)),
    ("the text was stripped as Rust and Go do: U+001C to U+001F stay", "clean", lambda text: text.strip(RUST)),
    ("the text was stripped as Java does: U+0085 and hard spaces stay", "clean", lambda text: text.strip(JAVA)),
    ("only ASCII's white space was stripped", "clean", lambda text: text.strip("\t\n\v\f\r ")),
    ("only spaces were stripped", "clean", lambda text: text.strip(" ")),
    ("only one end of the text was stripped", "clean", str.rstrip),
    ("only one end of the text was stripped", "clean", str.lstrip),
    ("U+FEFF was taken from the text", "clean", lambda text: clean(text.replace("\ufeff", ""))),
    (SPACES, "clean", lambda text: " ".join(text.split())), (SPACES, "clean", lambda text: regex.sub(" +", " ", clean(text))),
    (SPACES, "clean", lambda text: clean(text).replace("\r\n", "\n")),
    *((LETTERS, "clean", lambda text, form=form: unicodedata.normalize(form, clean(text)))
      for form in ("NFC", "NFD", "NFKC", "NFKD")),
    ("capitals were made small", "clean", lambda text: clean(text).lower()),
    (PUT, "encode", lambda tokenizer, text: [tokenizer.end_of_text, *tokenizer.encode(text)]),
    (PUT, "encode", lambda tokenizer, text: [*tokenizer.encode(text), tokenizer.end_of_text]),
    ("a space was put before the text", "encode", lambda tokenizer, text: tokenizer.encode(" " + text)),
    ("the pattern lacks \\s+(?!\\S), which leaves a word the space before it", "encode", cut_by(r"|\s+(?!\S)", "")),
    *(("numbers are cut into single digits or by three", "encode", cut_by(r" ?\p{N}+", new))
      for new in (r" ?\p{N}{1,3}", r"\p{N}{1,3}", r" ?\p{N}", r"\p{N}")),
    ("'S and its like are cut off in capitals, too", "encode", cut_by("'(?:", "'(?i:")),
    ("the pattern takes ASCII alone for letters and numbers", "encode",
     cut_by(Tokenizer.PATTERN, Tokenizer.PATTERN.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9"))),
    ("words do not begin with the space before them", "encode", cut_by(" ?", "")),
    ("the text is merged as a whole, not word by word", "encode", cut_by(Tokenizer.PATTERN, r"[\s\S]+")),
    ("<|endoftext|> in a text is read as the token, not as its characters", "encode",
     cut_by("", "", special=["<|endoftext|>"])),
    ("the first 256 ids are not in the order of the table of bytes", "encode", lambda tokenizer, text: [
        tokenizer.bpe.decode_single_token_bytes(i)[0] if i < 256 else i for i in tokenizer.encode(text)]),
    ("#version, the first line of merges.txt, was counted as a merge", "encode",
     lambda tokenizer, text: [i + (i > 255) for i in tokenizer.encode(text)]),
    ("the leftmost pair is merged, not the one that comes first in merges.txt", "encode", other_merges(longest=False)),
    ("the longest token is taken, not the one that the merges make", "encode", other_merges(longest=True)),
]  # fmt: skip
