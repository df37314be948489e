"""The mistakes that ports are known to make: each a wrong part of the method, and its name.

Four lists, by where a mistake shows first: READING (the forward pass), WAY_BACK (right there, and
wrong in the loss or the gradients), STEP (right up to the gradients), TEXTS (the tokenizer).  The
sentence over each function is what the judge tells a person; porting.md has them all.

Letters as in method.py, whose parts have the same names and arguments.
"""

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import regex
import tiktoken
import torch
import torch.nn.functional as F

import method
from data import clean
from method import RIGHT, adam, clip, loss, measure, norm, prompt_mask, rate, softmax, split, stay
from support.tokenizer import Tokenizer


@dataclass(frozen=True)
class Mistake:
    """What the judge says, of which parts of the method, and what stands in their place."""

    sentence: str
    parts: tuple[str, ...]
    wrong: Callable

    def changes(self):
        """{part: what stands for it}"""
        return dict.fromkeys(self.parts, self.wrong)


READING = []
WAY_BACK = []
STEP = []
TEXTS = []


def add(mistakes, sentence, part, wrong):
    """One more mistake: `wrong` stands for this part of the method."""
    mistakes.append(Mistake(sentence, (part,), wrong))


def mistake(mistakes, sentence, *parts):
    """A decorator: the function under it is one more mistake, in these parts."""

    def keep(wrong):
        mistakes.append(Mistake(sentence, parts, wrong))
        return wrong

    return keep


# ---- the file -------------------------------------------------------------------------------


@mistake(READING, "float16's smallest numbers, the subnormal ones, are read as zero", "widen")
def no_subnormals(half):
    return half * (half.abs() >= 2**-14)


def bits(half):
    """float64 -> the 16 bits of each number as float16, int16"""
    return half.to(torch.float16).view(torch.int16)


@mistake(READING, "float16 is read as bfloat16", "widen")
def as_bfloat16(half):
    return bits(half).view(torch.bfloat16).double()


@mistake(READING, "float16's two bytes are exchanged", "widen")
def bytes_exchanged(half):
    low = bits(half) << 8
    high = bits(half) >> 8 & 255
    return (low | high).view(torch.float16).double()


def each_weight(change):
    """A wrong `load`, by what it does to the name and the tensor of each weight"""

    def load(weights):
        return {name: change(name, tensor) for name, tensor in weights.items()}

    return load


@mistake(READING, "attn.c_proj was not transposed: it is square, so no shape tells", "load")
@each_weight
def square_as_stored(name, w):
    return w.t() if name.endswith("attn.c_proj.weight") else w


@mistake(READING, "matrices were copied as they lie, but they are stored (in, out)", "load")
@each_weight
def as_it_lies(name, w):
    is_matrix = name.startswith("h.") and w.dim() == 2
    return w.reshape(w.shape[::-1]).t() if is_matrix else w


@mistake(
    READING,
    "c_attn.bias was skipped with the mask buffers: theirs is .attn.bias, mind the dot",
    "load",
)
@each_weight
def bias_skipped(name, w):
    return w * 0 if name.endswith("attn.c_attn.bias") else w


@mistake(READING, "no linear layer has its bias", "linear")
def no_bias(y, weight, bias):
    return y @ weight


@mistake(READING, "ln_1 and ln_2 are exchanged", "load")
def norms_exchanged(weights):
    other = {"ln_1": "ln_2", "ln_2": "ln_1"}
    return {regex.sub("ln_[12]", lambda n: other[n[0]], name): w for name, w in weights.items()}


# ---- the embedding of a text ----------------------------------------------------------------


@mistake(READING, "the text has no positions", "embed")
def no_positions(w, ids):
    return w["wte.weight"][ids]


@mistake(READING, "the positions of the text begin at 1", "embed")
def positions_from_1(w, ids):
    return w["wte.weight"][ids] + w["wpe.weight"].roll(-1, 0)[: ids.shape[1]]


@mistake(READING, "embeddings are multiplied by the root of C", "embed")
def embeddings_scaled(w, ids):
    C = w["wte.weight"].shape[1]
    return w["wte.weight"][ids] * C**0.5 + w["wpe.weight"][: ids.shape[1]]


# ---- LayerNorm ------------------------------------------------------------------------------


def other_norm(centre=1, shift=1, unbiased=0, outside=0, fixed=None):
    """A wrong `norm`: not centred, without bias, unbiased variance, eps outside the root, its own
    eps"""

    def wrong(x, gain, bias, eps):
        eps = fixed or eps
        x = x - centre * x.mean(-1, keepdim=True)
        variance = x.square().sum(-1, keepdim=True) / (x.shape[-1] - unbiased)
        root = (variance + eps * (1 - outside)).sqrt() + eps * outside
        return x / root * gain + shift * bias

    return wrong


EPS = "LayerNorm's eps is not the checkpoint's"
for eps in (1e-3, 1e-6, 1e-8, 1e-12):
    add(READING, EPS, "norm", other_norm(fixed=eps))
add(READING, "LayerNorm's eps stands outside the root", "norm", other_norm(outside=1))
add(READING, "LayerNorm divides by C - 1", "norm", other_norm(unbiased=1))
add(READING, "LayerNorm does not subtract the mean", "norm", other_norm(centre=0))
add(READING, "LayerNorm has no bias", "norm", other_norm(shift=0))


# ---- attention ------------------------------------------------------------------------------


@mistake(READING, "heads are split before q, k and v", "split")
def heads_first(qkv, H):
    return qkv.unflatten(2, (H, 3, -1)).permute(3, 0, 2, 1, 4)


@mistake(READING, "channel c is taken to belong to head c mod H", "split")
def heads_last(qkv, H):
    return qkv.unflatten(2, (3, -1, H)).permute(2, 0, 4, 1, 3)


def other_order(*order):
    """A wrong `split`: what is taken for q, k and v"""

    def wrong(qkv, H):
        return split(qkv, H)[list(order)]

    return wrong


ORDER = "q, k and v are taken in another order"
add(READING, ORDER, "split", other_order(0, 2, 1))
add(READING, ORDER, "split", other_order(1, 0, 2))
add(READING, ORDER, "split", other_order(1, 2, 0))
add(READING, ORDER, "split", other_order(2, 0, 1))
add(READING, ORDER, "split", other_order(2, 1, 0))


@mistake(READING, "scores are not scaled", "scale")
def unscaled(C, H):
    return 1


@mistake(READING, "scores are scaled by C, not by D", "scale")
def scaled_by_channels(C, H):
    return C**-0.5


@mistake(READING, "scores are scaled by 1/8, right only where D = 64", "scale")
def scaled_by_an_eighth(C, H):
    return 1 / 8


@mistake(READING, "scores are divided by D, not by its root", "scale")
def scaled_without_root(C, H):
    return H / C


@mistake(READING, "the text sees what comes after", "text_mask")
def all_seen(T):
    return torch.ones(T, T, dtype=torch.bool)


@mistake(
    READING, "softmax does not subtract each row's largest score, and exp overflows", "softmax"
)
def unstable(scores, mask):
    """exp as float32 has it: infinite above 88.7"""
    e = scores.masked_fill(~mask, -math.inf).exp()
    e = torch.where(e > torch.finfo(torch.float32).max, math.inf, e)
    return e / e.sum(3, keepdim=True)


@mistake(READING, "softmax runs over the queries, not over the keys", "softmax")
def over_queries(scores, mask):
    return scores.masked_fill(~mask, -math.inf).softmax(2)


@mistake(READING, "the mask is applied after softmax, so that shares do not sum to 1", "softmax")
def mask_after(scores, mask):
    return scores.softmax(3) * mask


@mistake(READING, "masked scores are set to 0, not to -infinity", "softmax")
def masked_to_zero(scores, mask):
    return (scores * mask).softmax(3)


# ---- the MLP, and the sums ------------------------------------------------------------------

add(READING, "GELU is the exact (erf) form; GPT-2 has the tanh form", "gelu", F.gelu)


@mistake(READING, "GELU is the sigmoid form; GPT-2 has the tanh form", "gelu")
def sigmoid_gelu(x):
    return x * torch.sigmoid(1.702 * x)


add(READING, "ReLU stands where GELU should", "gelu", F.relu)


def without_x(x, y):
    """A wrong `add_attn` or `add_mlp`"""
    return y


BOTH = "x is not added to what attention and MLP make of it"
READING.append(Mistake(BOTH, ("add_attn", "add_mlp"), without_x))
add(READING, "x is not added to what attention makes of it", "add_attn", without_x)
add(READING, "x is not added to what the MLP makes of it", "add_mlp", without_x)
add(READING, "ln_2 reads what stood before attention", "between", stay)


# ---- where a prompt stands ------------------------------------------------------------------


@mistake(READING, "a long text is not cut to leave the prompt room", "seen")
def uncut(lengths, n, P, sizes):
    return lengths


@mistake(READING, "a long text is cut as if every prompt were the longest", "seen")
def cut_for_the_longest(lengths, n, P, sizes):
    return lengths.clamp(max=n - max(sizes))


@mistake(READING, "a long text is cut to leave the whole pack room", "seen")
def cut_for_the_pack(lengths, n, P, sizes):
    return lengths.clamp(max=n - sum(sizes))


@mistake(READING, "a long text is cut by one token too many", "seen")
def cut_by_one_more(lengths, n, P, sizes):
    return lengths.clamp(max=n - P - 1)


@mistake(READING, "positions run on across the pack", "position")
def positions_run_on(seen, T, P, start):
    return seen[:, None] + start + torch.arange(P)


@mistake(READING, "positions count from the padded length", "position")
def positions_after_pads(seen, T, P, start):
    return (T + torch.arange(P)).expand(len(seen), P)


@mistake(READING, "positions of the prompt begin at 0", "position")
def positions_from_0(seen, T, P, start):
    return torch.arange(P).expand(len(seen), P)


def one_too_high(top):
    """A wrong `position`, in a language in which one that does not exist is the one at the top"""

    def wrong(seen, T, P, start):
        return (seen[:, None] + torch.arange(P) + 1).clamp(max=top)

    return wrong


for top in (10**9, 12, 127):  # nowhere, in the small model, in the bundled one
    add(READING, "positions are one too high", "position", one_too_high(top))


@mistake(READING, "positions are one too low", "position")
def one_too_low(seen, T, P, start):
    return seen[:, None] + torch.arange(P) - 1


# ---- what a prompt looks at -----------------------------------------------------------------


def looks(own):
    """A wrong `prompt_mask`; own(row, column, start) says what a vector sees of its pack."""

    def wrong(seen, T, P, start, S):
        mask = prompt_mask(seen, T, P, start, S)
        row = torch.arange(P)[:, None] + start  # (P, 1)
        mask[:, :, T:] = own(row, torch.arange(S), start)
        return mask

    return wrong


@mistake(READING, "prompts see each other", "prompt_mask")
@looks
def all_before(row, column, start):
    return column <= row


@mistake(READING, "prompts see the pads", "prompt_mask")
def pads_seen(seen, T, P, start, S):
    mask = prompt_mask(seen, T, P, start, S)
    mask[:, :, :T] = True
    return mask


@mistake(READING, "a prompt sees its own later vectors", "prompt_mask")
def later_seen(seen, T, P, start, S):
    return prompt_mask(seen, T, P, start, S)[:, -1:].expand(-1, P, -1)


@mistake(READING, "a vector of the prompt does not see itself", "prompt_mask")
@looks
def not_itself(row, column, start):
    return (column < row) & (column >= start)


@mistake(READING, "a vector of the prompt sees itself alone, of its prompt", "prompt_mask")
@looks
def itself_alone(row, column, start):
    return column == row


@mistake(READING, "the prompt has no positions", "place")
def prompt_without_positions(vectors, rows):
    return vectors.expand_as(rows)


# ---- the answer -----------------------------------------------------------------------------


@mistake(READING, "pooled at -1, the end of the pack, not at the end of each prompt", "pool")
def pooled_at_the_end(x, ends):
    return x[:, -1:].expand(-1, len(ends), -1)


@mistake(READING, "pooled at the first vector, not at the last", "pool")
def pooled_at_the_first(x, ends):
    firsts = [0]
    for end in ends[:-1]:
        firsts.append(end + 1)
    return x[:, firsts]


@mistake(READING, "pooled as the mean of each prompt's vectors", "pool")
def pooled_as_mean(x, ends):
    parts = x.tensor_split([end + 1 for end in ends[:-1]], 1)  # K x (B, P, C)
    return torch.stack([part.mean(1) for part in parts], 1)


add(READING, "ln_f is missing", "last_norm", stay)


@mistake(READING, "all prompts are read by the first head", "answer")
def first_head(hidden, heads):
    return method.answer(hidden, heads[:1].expand_as(heads))


@mistake(READING, "the head is read as (C, N)", "answer")
def head_as_it_lies(hidden, heads):
    K, N, C = heads.shape
    return torch.einsum("bkc,kcn->kbn", hidden, heads.reshape(K, C, N))


@mistake(READING, "a head of one column, whose argmax is always 0", "answer")
def one_column(hidden, heads):
    return method.answer(hidden, heads[:, :1])


# ---- the loss -------------------------------------------------------------------------------


@mistake(WAY_BACK, "the loss is summed over the texts", "loss")
def loss_summed(logits, labels):
    return loss(logits, labels) * len(labels)


@mistake(WAY_BACK, "the loss is divided by the number of labels, too", "loss")
def loss_over_labels(logits, labels):
    return loss(logits, labels) / logits.shape[2]


@mistake(WAY_BACK, "the loss takes the labels to count from 1", "loss")
def labels_from_1(logits, labels):
    return loss(logits, (labels - 1) % logits.shape[2])


@mistake(WAY_BACK, "the loss takes softmax of what softmax has made", "loss")
def softmax_twice(logits, labels):
    return loss(logits.softmax(2), labels)


@mistake(WAY_BACK, "the loss has logarithms to base 2", "loss")
def base_2(logits, labels):
    return loss(logits, labels) / math.log(2)


@mistake(WAY_BACK, "the K losses are averaged, not summed", "total")
def averaged(each, B, N):
    return each.mean()


@mistake(WAY_BACK, "the gradients are not divided by B, as the mean over the texts asks", "total")
def not_over_texts(each, B, N):
    return each.sum() * B


@mistake(WAY_BACK, "the gradients are divided by B twice", "total")
def over_texts_twice(each, B, N):
    return each.sum() / B


@mistake(WAY_BACK, "the gradients are divided by N, too", "total")
def over_labels(each, B, N):
    return each.sum() / N


@mistake(WAY_BACK, "the gradients have the wrong sign", "total")
def wrong_sign(each, B, N):
    return -each.sum()


# ---- the way back ---------------------------------------------------------------------------


def norm_of(mean=stay, variance=stay):
    """A `norm` with another way back: torch.detach takes what it is given for a constant."""

    def wrong(x, gain, bias, eps):
        middle = x.mean(-1, keepdim=True)
        spread = (x - middle).square().mean(-1, keepdim=True)
        return (x - mean(middle)) / (variance(spread) + eps).sqrt() * gain + bias

    return wrong


def back(right):
    """A decorator: the numbers of the right part, the way back of the function under it."""

    def replace(wrong):
        def mixed(*given):
            y = wrong(*given)
            return right(*given).detach() + y - y.detach()

        return mixed

    return replace


add(
    WAY_BACK,
    "the way back through LayerNorm takes the mean for a constant",
    "norm",
    norm_of(mean=torch.detach),
)
add(
    WAY_BACK,
    "the way back through LayerNorm takes the variance for a constant",
    "norm",
    norm_of(variance=torch.detach),
)
add(
    WAY_BACK,
    "the way back through LayerNorm takes mean and variance for constants",
    "norm",
    norm_of(torch.detach, torch.detach),
)


@mistake(WAY_BACK, "the way back through LayerNorm leaves out its weight", "norm")
@back(norm)
def norm_without_gain(x, gain, bias, eps):
    return norm(x, 1, 0, eps)


add(WAY_BACK, "the way back leaves out ln_f", "last_norm", back(norm)(stay))


@mistake(WAY_BACK, "the way back through softmax lacks the sum of each row", "softmax")
@back(softmax)
def without_row_sums(scores, mask):
    return softmax(scores, mask).detach() * scores


@mistake(WAY_BACK, "the way back through the scores is not scaled", "score")
@back(method.score)
def scores_unscaled(q, k, factor):
    return q @ k.mT


add(
    WAY_BACK,
    "the way back through GELU has the slope of its erf form",
    "gelu",
    back(RIGHT["gelu"])(F.gelu),
)


@mistake(WAY_BACK, "the way back through GELU lacks its second term", "gelu")
@back(RIGHT["gelu"])
def gelu_of_one_term(x):
    return x * (RIGHT["gelu"](x) / x).detach()


@mistake(WAY_BACK, "the way back leaves out q", "split")
def q_constant(qkv, H):
    q, k, v = split(qkv, H)
    return q.detach(), k, v


@mistake(WAY_BACK, "the way back leaves out k", "score")
def k_constant(q, k, factor):
    return method.score(q, k.detach(), factor)


@mistake(WAY_BACK, "the way back leaves out v", "split")
def v_constant(qkv, H):
    q, k, v = split(qkv, H)
    return q, k, v.detach()


@mistake(
    WAY_BACK,
    "the way back leaves out k and v, so that a vector learns only by its own answers",
    "split",
)
def k_and_v_constant(qkv, H):
    q, k, v = split(qkv, H)
    return q, k.detach(), v.detach()


def x_constant(x, y):
    return x.detach() + y


def y_constant(x, y):
    return x + y.detach()


add(WAY_BACK, "the way back leaves out the x that is added to attention", "add_attn", x_constant)
add(WAY_BACK, "the way back leaves out the x that is added to the MLP", "add_mlp", x_constant)
add(WAY_BACK, "the way back leaves out attention", "add_attn", y_constant)
add(WAY_BACK, "the way back leaves out the MLP", "add_mlp", y_constant)


@mistake(
    WAY_BACK,
    "the way back takes a square matrix, attn.c_proj, for its transpose",
    "linear",
)
@back(method.linear)
def square_transposed(y, weight, bias):
    rows, columns = weight.shape
    return y @ (weight.t() if rows == columns else weight)


add(WAY_BACK, "the gradients are those after clipping", "shown", clip)


# ---- clipping -------------------------------------------------------------------------------

add(STEP, "nothing is clipped", "clip", stay)
PACK = "the pack is clipped as one, not each prompt alone"


@mistake(STEP, PACK, "measure")
def one_norm(grads):
    """K pairs -> K times the norm of them all, (K,)"""
    every = []
    for pair in grads:
        every += pair
    return measure([every]).expand(len(grads))


@mistake(STEP, PACK, "clip")
def clipped_as_one(grads, norms, limit):
    return clip(grads, one_norm(grads), limit)


@mistake(STEP, "vectors and head are clipped apart, not together", "clip")
def clipped_apart(grads, norms, limit):
    clipped = []
    for pair in grads:
        alone = [[g] for g in pair]
        parts = clip(alone, measure(alone), limit)
        clipped.append([part[0] for part in parts])
    return clipped


@mistake(STEP, "gradients are clipped number by number, not by their norm", "clip")
def clipped_by_number(grads, norms, limit):
    return [[g.clamp(-limit, limit) for g in pair] for pair in grads]


@mistake(STEP, "short gradients are stretched to the norm at which long ones are clipped", "clip")
def stretched(grads, norms, limit):
    return [[g * limit / n for g in pair] for pair, n in zip(grads, norms, strict=True)]


def norm_of_part(j):
    """A wrong `measure`: of the vectors (j = 0) or of the head (j = 1)"""

    def wrong(grads):
        return measure([[pair[j]] for pair in grads])

    return wrong


PART = "the norm is that of the vectors or of the head alone"
add(STEP, PART, "measure", norm_of_part(0))
add(STEP, PART, "measure", norm_of_part(1))


@mistake(STEP, "the norm lacks its root", "measure")
def squared(grads):
    return measure(grads).square()


@mistake(STEP, "gradients are not set to zero after a step, and add up", "gather")
def piled_up(grads, before):
    if before is None:
        return grads
    piles = []
    for pair, former in zip(grads, before, strict=True):
        piles.append([a + b for a, b in zip(pair, former, strict=True)])
    return piles


# ---- the rates ------------------------------------------------------------------------------


@mistake(STEP, "the rates do not warm up", "rate")
def no_warm_up(t, warm, total):
    return 1 if t <= warm else rate(t, warm, total)


@mistake(STEP, "the rates do not fall", "rate")
def no_fall(t, warm, total):
    return min(1, t / warm)


@mistake(STEP, "the rates neither warm up nor fall", "rate")
def constant(t, warm, total):
    return 1


@mistake(STEP, "the rates are one step late", "rate")
def late(t, warm, total):
    return rate(t - 1, warm, total)


@mistake(STEP, "the rates are one step early", "rate")
def early(t, warm, total):
    return rate(t + 1, warm, total)


@mistake(STEP, "the rates fall from the step after the warm-up, one too early", "rate")
def early_fall(t, warm, total):
    return t / warm if t <= warm else (total - t) / (total - warm)


@mistake(STEP, "the rates fall along a cosine, not a line", "rate")
def cosine(t, warm, total):
    if t <= warm:
        return t / warm
    return (1 + math.cos(math.pi * (t - warm) / (total - warm))) / 2


def other_warm_up(steps):
    """A wrong `rate`"""

    def wrong(t, warm, total):
        return rate(t, steps, total)

    return wrong


def other_total(steps):
    """A wrong `rate`"""

    def wrong(t, warm, total):
        return rate(t, warm, steps)

    return wrong


WARM = "the warm-up has another length than W"
LATER = "the rates fall towards another step than M"
for steps in (1, 2, 4, 5, 6, 10):
    add(STEP, WARM, "rate", other_warm_up(steps))
for steps in (10, 20, 51, 100):
    add(STEP, LATER, "rate", other_total(steps))


@mistake(STEP, "the head is trained at the rate of the vectors", "peaks")
def rate_of_vectors(k, lr, head_lr):
    return lr[k], lr[k]


@mistake(STEP, "the vectors are trained at the rate of the head", "peaks")
def rate_of_head(k, lr, head_lr):
    return head_lr, head_lr


@mistake(STEP, "the rates of vectors and head are exchanged", "peaks")
def rates_exchanged(k, lr, head_lr):
    return head_lr, lr[k]


def one_rate(j):
    """A wrong `peaks`: that of prompt j for all"""

    def wrong(k, lr, head_lr):
        return lr[j], head_lr

    return wrong


for j in range(4):
    add(STEP, "all prompts are trained at one rate", "peaks", one_rate(j))


@mistake(STEP, "the head is not trained", "peaks")
def head_kept(k, lr, head_lr):
    return lr[k], 0


@mistake(STEP, "the vectors are not trained", "peaks")
def vectors_kept(k, lr, head_lr):
    return 0, head_lr


# ---- Adam -----------------------------------------------------------------------------------

DECAY = "weight decay is on; the prompt has none"
BETA = "one of Adam's betas is not 0.9 or 0.999"
COUNTED = "Adam's t grows with every prompt or tensor, not with every step"
add(
    STEP,
    "Adam's moments are not corrected for their start",
    "adam",
    partial(adam, first=False, second=False),
)
add(
    STEP,
    "Adam's first moment is not corrected for its start",
    "adam",
    partial(adam, first=False),
)
add(
    STEP,
    "Adam's second moment is not corrected for its start",
    "adam",
    partial(adam, second=False),
)
add(STEP, "Adam's eps stands inside the root", "adam", partial(adam, inside=True))
for decay in (0.01, 0.1):
    add(STEP, DECAY, "adam", partial(adam, decay=decay))
for decay in (0.01, 0.1):
    add(STEP, DECAY, "adam", partial(adam, coupled=decay))
for beta in (0.9, 0.95, 0.98, 0.99, 0.9999):
    add(STEP, BETA, "adam", partial(adam, b2=beta))
for beta in (0.0, 0.5, 0.8, 0.85, 0.95, 0.99):
    add(STEP, BETA, "adam", partial(adam, b1=beta))
add(STEP, "Adam's betas are exchanged", "adam", partial(adam, b1=0.999, b2=0.9))


@mistake(STEP, "Adam's t begins at 0, and 1 - 0.9^0 is zero", "count")
def from_0(t, k, j, K):
    return t - 1


@mistake(STEP, "Adam's t begins at 2", "count")
def from_2(t, k, j, K):
    return t + 1


@mistake(STEP, COUNTED, "count")
def by_prompt(t, k, j, K):
    return (t - 1) * K + k + 1


@mistake(STEP, COUNTED, "count")
def by_tensor(t, k, j, K):
    return 2 * ((t - 1) * K + k) + j + 1


@mistake(STEP, "the step goes uphill", "adam")
def uphill(x, g, m, v, t, rate):
    return adam(x, g, m, v, t, -rate)


@mistake(STEP, "the step is plain gradient descent, not Adam's", "adam")
def plain_descent(x, g, m, v, t, rate):
    return x - rate * g, m, v


# ---- white space at the ends of a text ------------------------------------------------------

# What other languages take for white space: Rust, Go; Java; JavaScript.
RUST = "\t\n\v\f\r\x85 \xa0\u1680\u2028\u2029\u202f\u205f\u3000"
RUST += "".join(map(chr, range(0x2000, 0x200B)))
JAVA = "".join(c for c in RUST if c not in "\x85\xa0\u2007\u202f") + "\x1c\x1d\x1e\x1f"
SCRIPT = RUST.replace("\x85", "\ufeff")

add(TEXTS, "the text was not stripped", "clean", stay)


def strip_only(characters):
    """A wrong `clean`: these are white space, and no others"""

    def wrong(text):
        return text.strip(characters)

    return wrong


add(
    TEXTS,
    "the text was stripped as JavaScript does: U+FEFF goes, U+0085 and U+001C to U+001F stay",
    "clean",
    strip_only(SCRIPT),
)
add(
    TEXTS,
    "the text was stripped as Rust and Go do: U+001C to U+001F stay",
    "clean",
    strip_only(RUST),
)
add(
    TEXTS,
    "the text was stripped as Java does: U+0085 and hard spaces stay",
    "clean",
    strip_only(JAVA),
)
add(TEXTS, "only ASCII's white space was stripped", "clean", strip_only("\t\n\v\f\r "))
add(TEXTS, "only spaces were stripped", "clean", strip_only(" "))
add(TEXTS, "only one end of the text was stripped", "clean", str.rstrip)
add(TEXTS, "only one end of the text was stripped", "clean", str.lstrip)


# ---- other changes of a text ----------------------------------------------------------------

SPACES = "white space within the text was changed"
LETTERS = "the text was put into another Unicode form"
PUT = "a token was put before or after the text"


@mistake(TEXTS, "U+FEFF was taken from the text", "clean")
def without_bom(text):
    return clean(text.replace("\ufeff", ""))


@mistake(TEXTS, SPACES, "clean")
def space_joined(text):
    return " ".join(text.split())


@mistake(TEXTS, SPACES, "clean")
def spaces_joined(text):
    return regex.sub(" +", " ", clean(text))


@mistake(TEXTS, SPACES, "clean")
def lines_joined(text):
    return clean(text).replace("\r\n", "\n")


def in_form(form):
    """A wrong `clean`"""

    def wrong(text):
        return unicodedata.normalize(form, clean(text))

    return wrong


for form in ("NFC", "NFD", "NFKC", "NFKD"):
    add(TEXTS, LETTERS, "clean", in_form(form))


@mistake(TEXTS, "capitals were made small", "clean")
def lowered(text):
    return clean(text).lower()


@mistake(TEXTS, PUT, "encode")
def token_before(tokenizer, text):
    return [tokenizer.end_of_text, *tokenizer.encode(text)]


@mistake(TEXTS, PUT, "encode")
def token_after(tokenizer, text):
    return [*tokenizer.encode(text), tokenizer.end_of_text]


@mistake(TEXTS, "a space was put before the text", "encode")
def space_before(tokenizer, text):
    return tokenizer.encode(" " + text)


# ---- words ----------------------------------------------------------------------------------


def ranks_of(tokenizer):
    """{token: its id}"""
    return dict(zip(tokenizer.tokens, tokenizer.ids, strict=True))


@lru_cache
def other_bpe(tokenizer, pattern):
    """The tokenizer, with words cut by another pattern, and <|endoftext|> as one token"""
    ends = {"<|endoftext|>": tokenizer.end_of_text}
    ranks = ranks_of(tokenizer)
    return tiktoken.Encoding("other", pat_str=pattern, mergeable_ranks=ranks, special_tokens=ends)


def cut_by(old, new, special=()):
    """A wrong `encode`: in the pattern that cuts words, new stands for old.

    special: which texts are the token of this name.
    """
    pattern = Tokenizer.PATTERN.replace(old, new)

    def wrong(tokenizer, text):
        bpe = other_bpe(tokenizer, pattern)
        return bpe.encode(text, allowed_special=set(special), disallowed_special=())

    return wrong


NUMBERS = "numbers are cut into single digits or by three"
ASCII = Tokenizer.PATTERN.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")
add(
    TEXTS,
    "the pattern lacks \\s+(?!\\S), which leaves a word the space before it",
    "encode",
    cut_by(r"|\s+(?!\S)", ""),
)
for pattern in (r" ?\p{N}{1,3}", r"\p{N}{1,3}", r" ?\p{N}", r"\p{N}"):
    add(TEXTS, NUMBERS, "encode", cut_by(r" ?\p{N}+", pattern))
add(TEXTS, "'S and its like are cut off in capitals, too", "encode", cut_by("'(?:", "'(?i:"))
add(
    TEXTS,
    "the pattern takes ASCII alone for letters and numbers",
    "encode",
    cut_by(Tokenizer.PATTERN, ASCII),
)
add(TEXTS, "words do not begin with the space before them", "encode", cut_by(" ?", ""))
add(
    TEXTS,
    "the text is merged as a whole, not word by word",
    "encode",
    cut_by(Tokenizer.PATTERN, r"[\s\S]+"),
)
add(
    TEXTS,
    "<|endoftext|> in a text is read as the token, not as its characters",
    "encode",
    cut_by("", "", special=["<|endoftext|>"]),
)


# ---- ids and merges -------------------------------------------------------------------------


@mistake(TEXTS, "the first 256 ids are not in the order of the table of bytes", "encode")
def bytes_as_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    return [tokenizer.bytes_of[i][0] if i < 256 else i for i in ids]


@mistake(TEXTS, "#version, the first line of merges.txt, was counted as a merge", "encode")
def version_counted(tokenizer, text):
    return [i + (i > 255) for i in tokenizer.encode(text)]


def by_words(merge):
    """A wrong `encode`: merge(word, ranks) makes a list of tokens of a word in bytes"""

    def wrong(tokenizer, text):
        ranks = ranks_of(tokenizer)
        ids = []
        for word in regex.findall(Tokenizer.PATTERN, text):
            ids += [ranks[token] for token in merge(word.encode(), ranks)]
        return ids

    return wrong


@mistake(
    TEXTS,
    "the leftmost pair is merged, not the one that comes first in merges.txt",
    "encode",
)
@by_words
def leftmost(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    i = 0
    while i + 1 < len(parts):
        if parts[i] + parts[i + 1] in ranks:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            i = 0
        else:
            i += 1
    return parts


@mistake(TEXTS, "the longest token is taken, not the one that the merges make", "encode")
@by_words
def longest(word, ranks):
    parts = []
    while word:
        end = len(word)
        while word[:end] not in ranks:
            end -= 1
        parts.append(word[:end])
        word = word[end:]
    return parts
