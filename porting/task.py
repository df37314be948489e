"""The task that golden.safetensors sets, and what is asked for, name by name.

The task: a small model, three texts and four prompts, of which each dimension has another size; and
some texts before the bundled model.  For each name that a port may give: the step of porting.md
that makes it, and how large an error rounding may make in it.
"""

import json
import math
import random
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache

import torch

from method import Case
from support.checkpoint import ROOT, open_checkpoint
from support.files import read_safetensors
from support.prompt_file import read_prompt

GOLDEN = ROOT / "porting" / "golden.safetensors"
TINY = ROOT / "weights" / "tiny"

# ---- the sizes ------------------------------------------------------------------------------

# Of every dimension another size, so that no axis can stand for another: D = 5, S = 11.  The first
# text is so long that it leaves each of the four prompts another number of tokens.
B = 3
K = 4
T = 12
H = 2
C = 10
N = 6
L = 3
V = 37
POSITIONS = 13
SIZES = (1, 2, 3, 5)  # K x P
LENGTHS = (12, 1, 4)
LABELS = (1, 5, 0)
EPS = 1e-5
SIZE = {"B": B, "K": K, "T": T, "S": sum(SIZES), "H": H, "D": C // H, "C": C, "N": N, "V": V}
CONFIG = {
    "activation_function": "gelu_new",
    "n_layer": L,
    "n_head": H,
    "n_embd": C,
    "n_positions": POSITIONS,
    "vocab_size": V,
    "layer_norm_epsilon": EPS,
}

# The first ten steps of a run of fifty, in which the rates rise for three; each prompt has a rate
# of its own.
RECIPE = {
    "steps": 10,
    "total": 50,
    "warm_up": 3,
    "lr": [0.03, 0.05, 0.02, 0.01],
    "head_lr": 0.005,
    "clip": 1.0,
    "optimizer": "AdamW",
    "betas": [0.9, 0.999],
    "adam_eps": 1e-8,
    "weight_decay": 0.0,
}

# ---- the texts ------------------------------------------------------------------------------

SENTENCES = [
    "a gentle, funny film that earns its tears",
    "two long hours without a single idea ",  # ends in a space
    "It's naïve, daft & 100 % wonderful 🎬",
    " ".join(["a slow , clumsy film about nothing at all , and"] * 12),  # 132 tokens, 118 are read
]
TEXTS = [  # of these only the ids are asked for
    "",
    "a  film   of two  halves",
    "one line\nand\n\nanother\r\n  the end",
    "in 2024 , 19990 of 1000000 people",
    "IT'S fun, it's fun, THEY'RE, they're, O'There's",
    "ｆｕｌｌ ﬁlm ½ ² caf\xe9 cafe\u0301",
    "\ufeffa film\ufeff",
    "\x85\x1ca film\x1d\x1f\x85",
    "\xa0a\xa0film\u2007\u3000",
    " \t a film\t",
    "\r\na film \n",
    "<|endoftext|> is a text",
    "nai\u0308ve кино 映画 १२३ 🎬",
    "a\tb\x1cc\x85d\xa0 e",
    "'story-'standing well-made___film -- 'tis '",
    "unhappinesses reconsidered",
]

# Bits of float16s: five are subnormal, 65504 is the last.
HALF = [0, 1, 2, 3, 0x3FF, 0x400, 0x401, 0x3555, 0x3C00, 0x7BFF]

# ---- what is asked for ----------------------------------------------------------------------

# How many numbers are added up, one after the other, on the longest way to a tensor: there through
# all blocks of the small model, there and back, all that is trained on, and there through the
# bundled model.  A block adds up 2C in each LayerNorm, C in c_attn, D in a score, its keys in
# softmax and once more under v, C in attn.c_proj, C in c_fc, 4C in mlp.c_proj.  Its way back: C and
# 4C in the MLP, 2C in each LayerNorm, C in attn.c_proj, D, its keys and once more, 3C in c_attn.
KEYS = T + sum(SIZES)
THERE = L * (11 * C + C // H + 2 * KEYS)
BACK = THERE + L * (13 * C + C // H + 2 * KEYS)
TRAINED = RECIPE["steps"] * BACK
BUNDLED = 6 * (11 * 256 + 64 + 2 * 128)

LEVELS = ("tokenizer", "inference", "training")


@dataclass(frozen=True)
class Group:
    """What names of one pattern have in common."""

    pattern: str
    step: int  # of porting.md
    additions: int
    level: str
    made_of: str

    def fits(self, name):
        return fnmatch(name, self.pattern)


def task_groups():
    """What is given, and no answer"""
    reading = "the reading of the file"
    return [
        Group("weights.*", 1, 0, "task", reading),
        Group("half", 1, 0, "task", reading),
        Group("ids", 2, 0, "task", reading),
        Group("lengths", 2, 0, "task", reading),
        Group("labels", 2, 0, "task", reading),
        Group("prompt.*", 6, 0, "task", reading),
    ]


def inference_groups():
    """The forward pass"""
    parts = "x, ln_1, c_attn, the split into q, k, v and heads"
    attention = "q, the scale, the causal mask, softmax, v, the join of heads, attn.c_proj"
    mlp = "x + attn, ln_2, c_fc, GELU, mlp.c_proj"
    sums = "the two residual additions, x + attn + mlp"
    position = "min(lengths, n - P) + 0 .. P-1 of each prompt"
    mask = "min(lengths, n - P) tokens of the text, and the prompt's own vectors 0 .. j"
    pack = "q, the text's and the pack's k and v, the mask, softmax, attn.c_proj"
    hidden = "x at the last vector of each prompt, and ln_f"
    return [
        Group("half.float32", 1, 0, "inference", "the 16 bits of each number"),
        Group("text.embed", 3, 2, "inference", "rows of wte and wpe"),
        Group("text.*.k", 4, THERE, "inference", parts),
        Group("text.*.v", 4, THERE, "inference", parts),
        Group("text.*.attn", 4, THERE, "inference", attention),
        Group("text.*.mlp", 4, THERE, "inference", mlp),
        Group("text.*.x", 4, THERE, "inference", sums),
        Group("pack.position", 5, 0, "inference", position),
        Group("pack.mask", 5, 0, "inference", mask),
        Group("pack.embed", 6, 2, "inference", "the vectors, and rows of wpe"),
        Group("pack.*.k", 7, THERE, "inference", parts),
        Group("pack.*.v", 7, THERE, "inference", parts),
        Group("pack.*.attn", 7, THERE, "inference", pack),
        Group("pack.*.mlp", 7, THERE, "inference", mlp),
        Group("pack.*.x", 7, THERE, "inference", sums),
        Group("hidden", 8, THERE, "inference", hidden),
        Group("logits", 9, THERE, "inference", "hidden, and each prompt's own head"),
    ]


def training_groups():
    """The loss, the gradients on the way back, and ten steps"""
    loss = "log(sum(exp(logits))) - logits[label], and the mean over the texts"
    norm = "the root of the sum of the squares of a prompt's two gradients"
    end = "the way back through ln_f, to the last vectors alone"
    mlp = "the way back through the MLP of this block: c_proj, GELU, c_fc, ln_2, + x"
    attention = "the way back through the attention of the block after: v, softmax, q, k, ln_1, + x"
    clipped = "the gradients, the norm of each prompt, min(1, clip / norm)"
    curve = "the steps before: their gradients, clipping, rates, Adam's moments"
    after = "ten steps: gradients, clipping, rates, Adam's moments"
    return [
        Group("loss", 10, THERE, "training", loss),
        Group("grad.logits", 11, THERE, "training", "(softmax(logits) - 1 at the label) / B"),
        Group("grad.norm", 12, BACK, "training", norm),
        Group(
            "grad.*.head", 11, THERE, "training", "grad.logits and hidden, summed over the texts"
        ),
        Group("grad.hidden", 11, THERE, "training", "grad.logits and the heads"),
        Group(f"grad.pack.{L - 1}.x", 11, THERE, "training", end),
        Group("grad.pack.*.attn", 11, BACK, "training", mlp),
        Group("grad.pack.*", 11, BACK, "training", attention),
        Group("grad.*.vectors", 11, BACK, "training", "grad.pack.embed, summed over the texts"),
        Group("clipped.*", 12, BACK, "training", clipped),
        Group("after1.*", 12, 10, "training", "the rates of step 1, and Adam's step with t = 1"),
        Group("curve", 12, TRAINED, "training", curve),
        Group("after.*", 12, TRAINED, "training", after),
    ]


def groups_of_texts():
    """Ids, and the logits of the bundled model"""
    ids = "white space stripped, words cut by the pattern, merges, ids"
    logits = "weights/tiny, its config.json, prompts/reviews-p10, and steps 3 to 9"
    return [
        Group("tokens.*", 2, 0, "tokenizer", ids),
        Group("real.*.ids", 13, 0, "tokenizer", ids),
        Group("real.*.logits", 13, BUNDLED, "inference", logits),
    ]


# The first that fits a name counts.
GROUPS = task_groups() + inference_groups() + training_groups() + groups_of_texts()

# What is made by the same code: a known mistake has to give all given tensors of the stage in which
# it shows.
STAGES = (
    ("half.*",),
    ("text.*",),
    ("pack.*", "hidden", "logits"),
    ("loss",),
    ("grad.[!n]*",),
    ("grad.norm", "clipped.*", "after*", "curve*"),
    ("tokens.*", "real.*.ids"),
    ("real.*",),
    ("*",),
)
PACK = STAGES[2]
TOKENS = STAGES[6]
BUNDLED_LOGITS = STAGES[7]
GIVEN = STAGES[8]


@lru_cache(None)
def group(name):
    """The Group of a name, or of a row of it as curve[3]"""
    whole = name.split("[")[0]
    return next(group for group in GROUPS if group.fits(whole))


@lru_cache(None)
def stage(name):
    """The one of STAGES in which a name is made"""
    for patterns in STAGES:
        if any(fnmatch(name, pattern) for pattern in patterns):
            return patterns


def is_given(name):
    return group(name).level == "task"


def tolerances(tensors):
    """{pattern: the largest error that rounding may make in float32}, from the right tensors.

    After n additions the error is below 6 u root(n) times the largest number, but for one case in a
    hundred thousand, if roundings are as good as random; u is half of float32's eps, so it is
    3 eps.  (Higham and Mary 2019, theorem 2.4.)  No library's order of addition has a part in this.
    Small gradients come from large ones, so the largest number is that of all tensors of a pattern.
    """
    largest = {}
    for name, tensor in tensors.items():
        top = tensor.double().abs().max().item() if tensor.numel() else 0.0
        largest[group(name)] = max(largest.get(group(name), 0.0), top)
    eps = torch.finfo(torch.float32).eps
    allowed = {}
    for group_, top in largest.items():
        allowed[group_.pattern] = float(f"{3 * eps * group_.additions**0.5 * top:.0e}")
    return allowed


@lru_cache(None)
def stored_tolerances():
    """{pattern: tolerance}, as they stand in golden.safetensors"""
    return json.loads(read_safetensors(GOLDEN)[1]["tolerances"])


def tolerance(name):
    return stored_tolerances()[group(name).pattern]


def read_golden():
    """{name: tensor} in the order of computation"""
    tensors, metadata = read_safetensors(GOLDEN)
    return {name: tensors[name] for name in json.loads(metadata["order"])}


def counts(name, shape, lengths):
    """Where a tensor of this shape counts: bool, false at the pads of texts"""
    if not (name.startswith("text.") or name == "ids"):
        return torch.ones(shape, dtype=torch.bool)
    axis = 2 if len(shape) == 4 else 1  # of T, in (B, H, T, D), in (B, T, C) and in (B, T)
    real = torch.arange(shape[axis]) < lengths[:, None]  # (B, T)
    view = [1] * len(shape)
    view[0] = shape[0]
    view[axis] = shape[axis]
    return real.view(view).expand(shape)


# ---- the numbers ----------------------------------------------------------------------------


class Draw:
    """Multiples of 1/4096 by Python's own generator, so the same on every machine."""

    def __init__(self):
        self.generator = random.Random(0)

    def uniform(self, *shape, scale=0.3, middle=0.0):
        steps = [self.generator.randrange(-4096, 4097) for _ in range(math.prod(shape))]
        return torch.tensor(steps).view(shape) / 4096 * scale + middle

    def weights(self, positions):
        """{official name: tensor}.  Nothing is zero or one, so nothing can hide"""
        # Embeddings are small, so that LayerNorm's eps shows.
        weights = {}
        weights["wte.weight"] = self.uniform(V, C, scale=0.1)
        weights["wpe.weight"] = self.uniform(positions, C, scale=0.1)
        linear = {
            "attn.c_attn": (C, 3 * C),
            "attn.c_proj": (C, C),
            "mlp.c_fc": (C, 4 * C),
            "mlp.c_proj": (4 * C, C),
        }
        norms = []
        for i in range(L):
            for layer, (rows, columns) in linear.items():
                scale = 2 * rows**-0.5
                weights[f"h.{i}.{layer}.weight"] = self.uniform(rows, columns, scale=scale)
                weights[f"h.{i}.{layer}.bias"] = self.uniform(columns)
            norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        for layer in [*norms, "ln_f"]:
            weights[f"{layer}.weight"] = self.uniform(C, middle=1.0)
            weights[f"{layer}.bias"] = self.uniform(C)
        return weights

    def task(self, T, positions, lengths):
        """{name: tensor} of the whole task, as format 1 had it"""
        tensors = {}
        for name, tensor in self.weights(positions).items():
            tensors[f"weights.{name}"] = tensor
        rows = []
        for _ in range(B):
            rows.append([self.generator.randrange(V) for _ in range(T)])
        tensors["ids"] = torch.tensor(rows)  # pads are any ids
        tensors["lengths"] = torch.tensor(lengths)
        tensors["labels"] = torch.tensor(LABELS)
        for k, P in enumerate(SIZES):
            tensors[f"prompt.{k}.vectors"] = self.uniform(P, C, scale=0.1)
            tensors[f"prompt.{k}.head"] = self.uniform(N, C, scale=1)
        negative = [bits - 2**15 for bits in HALF]
        tensors["half"] = torch.tensor(HALF + negative, dtype=torch.int16).view(torch.float16)
        return tensors


def draw_former():
    """The task of format 1, whose answers the judge knows when it sees them"""
    return Draw().task(T=7, positions=24, lengths=(7, 1, 4))


def draw():
    """{name: tensor} of the task"""
    numbers = Draw()
    tensors = numbers.task(T, POSITIONS, LENGTHS)
    wte = tensors["weights.wte.weight"]

    # The last channel is small, but for one token and one vector; in the first block the second
    # head attends to it, so that these two attend to themselves with scores above 90, whose exp
    # float32 can not hold.
    vectors = [tensors[f"prompt.{k}.vectors"] for k in range(K)]
    for table in [wte, tensors["weights.wpe.weight"], *vectors]:
        table[:, -1] /= 8
    wte[-1, -1] = 1
    vectors[3][1, -1] = 1
    second_head = [*range(5, 10), *range(15, 20)]  # its columns of q and of k
    tensors["weights.h.0.attn.c_attn.weight"][-1, second_head] = 3.25
    tensors["ids"] %= V - 1
    tensors["ids"][0, 10] = V - 1

    # The second prompt's gradients are so short that they are not clipped.
    numbers.generator.seed(18552)
    tensors["prompt.1.vectors"] = tensors["prompt.1.vectors"] * 8
    tensors["prompt.1.head"] = numbers.uniform(N, C, scale=1)
    return tensors


# ---- the task, as method.py takes it --------------------------------------------------------


def case_of(tensors):
    """The small task in float64"""
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("weights."):
            weights[name.removeprefix("weights.")] = tensor.double()
    prompts = []
    for k in range(K):
        pair = (tensors[f"prompt.{k}.vectors"], tensors[f"prompt.{k}.head"])
        prompts.append([tensor.double() for tensor in pair])
    return Case(
        weights=weights,
        n_layer=L,
        n_head=H,
        eps=EPS,
        prompts=prompts,
        ids=tensors["ids"].long(),
        lengths=tensors["lengths"].long(),
        labels=tensors["labels"].long(),
        half=tensors["half"].double(),
        recipe=RECIPE,
    )


def bundled_case(dtype=torch.float64):
    """The bundled model and prompt before the sentences and texts"""
    checkpoint = open_checkpoint("tiny")
    weights, _ = read_safetensors(TINY / "model.safetensors")
    prompt = read_prompt(TINY / "prompts" / "reviews-p10" / "prompt.safetensors").prompt
    config = checkpoint.config
    return Case(
        weights={name: tensor.to(dtype) for name, tensor in weights.items()},
        n_layer=config.n_layer,
        n_head=config.n_head,
        eps=config.layer_norm_epsilon,
        prompts=[[prompt.vectors.detach().to(dtype), prompt.head.detach().to(dtype)]],
        sentences=SENTENCES,
        texts=TEXTS,
        tokenizer=checkpoint.tokenizer,
    )
