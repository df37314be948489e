"""What a port has to compute, written down, and the judge of what it computed.

    python porting/golden.py compare FILE      judge a port: FILE is its .safetensors, .npz or .json
    python porting/golden.py write             make golden.safetensors again, the same to the byte

A port reads its task from golden.safetensors (`weights.*`, `ids`, `lengths`, `labels`, `prompt.*`, `half`) and writes
what it makes of it under the names that porting/porting.md gives, any part of them.  The judge prints each tensor's distance
in the order of computation, so the first DIFF is where the mistake is, looks for a mistake that explains it, and says
what else it sees.  Exit code 0: all given tensors agree; 1: one does not; 2: there was nothing to judge.

The truth is that of minimal.py in float64: its logits, its gradients, its training curve.  The tensors on the way, which
it does not show, come from mistakes.py, whose logits and gradients have to be the same.  Stored are float32.
"""

import argparse
import json
import math
import random
import sys
import zipfile
from fnmatch import fnmatch
from functools import lru_cache, partial
from itertools import chain, permutations
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from mistakes import READING, STEP, TEXTS, WAY_BACK, ask, steps

from data import Tokenizer
from minimal import logits_of
from model import load_prompt
from support.fetch import ROOT
from support.files import open_safetensors, safetensors_bytes, write_file
from support.machine import one_sentence

GOLDEN = Path(__file__).parent / "golden.safetensors"
FORMAT = "prompt-training-golden/2"
TINY = ROOT / "weights" / "tiny"

# Of every dimension another size, so that no axis can stand for another: D = 5, S = 11.  The first text is so long that
# it leaves each of the four prompts another number of tokens.
B, K, T, H, C, N, L, V, POSITIONS, SIZES = 3, 4, 12, 2, 10, 6, 3, 37, 13, (1, 2, 3, 5)
LENGTHS, EPS = (12, 1, 4), 1e-5
# The first ten steps of a run of fifty, in which the rates rise for three; each prompt has a rate of its own.
RECIPE = {"steps": 10, "total": 50, "warm_up": 3, "lr": [0.03, 0.05, 0.02, 0.01], "head_lr": 0.005, "clip": 1.0,
          "optimizer": "AdamW", "betas": [0.9, 0.999], "adam_eps": 1e-8, "weight_decay": 0.0}  # fmt: skip
SENTENCES = [
    "a gentle, funny film that earns its tears",
    "two long hours without a single idea ",  # ends in a space
    "It's naïve, daft & 100 % wonderful 🎬",
    " ".join(["a slow , clumsy film about nothing at all , and"] * 12),  # 132 tokens, of which 118 leave a prompt room
]
TOKENS = [  # of these only the ids are asked for
    "", "a  film   of two  halves", "one line\nand\n\nanother\r\n  the end", "in 2024 , 19990 of 1000000 people",
    "IT'S fun, it's fun, THEY'RE, they're, O'There's", "ｆｕｌｌ ﬁlm ½ ² caf\xe9 cafe\u0301", "\ufeffa film\ufeff",
    "\x85\x1ca film\x1d\x1f\x85", "\xa0a\xa0film\u2007\u3000", " \t a film\t", "\r\na film \n", "<|endoftext|> is a text",
    "nai\u0308ve кино 映画 १२३ 🎬", "a\tb\x1cc\x85d\xa0 e", "'story-'standing well-made___film -- 'tis '",
    "unhappinesses reconsidered",
]  # fmt: skip
HALF = [0, 1, 2, 3, 0x3FF, 0x400, 0x401, 0x3555, 0x3C00, 0x7BFF]  # bits of float16s: five are subnormal, 65504 is the last

# How many numbers are added up, one after the other, on the longest way to a tensor: there through all blocks of the small
# model, there and back, all that is trained on, and there through the bundled model.  A block adds up 2C in each LayerNorm,
# C in c_attn, D in a score, its keys in softmax and once more under v, C in attn.c_proj, C in c_fc, 4C in mlp.c_proj.
# Its way back: C and 4C in the MLP, 2C in each LayerNorm, C in attn.c_proj, D, its keys and once more, 3C in c_attn.
THERE = L * (11 * C + C // H + 2 * (T + sum(SIZES)))
BACK = THERE + L * (13 * C + C // H + 2 * (T + sum(SIZES)))
TRAINED = RECIPE["steps"] * BACK
BUNDLED = 6 * (11 * 256 + 64 + 2 * 128)

# Of names: (step of porting.md, numbers added up, level, of what it is made); the first pattern that fits counts.
GROUPS = {
    "weights.*": (1, 0, "task", "the reading of the file"), "half": (1, 0, "task", "the reading of the file"),
    "ids": (2, 0, "task", "the reading of the file"), "lengths": (2, 0, "task", "the reading of the file"),
    "labels": (2, 0, "task", "the reading of the file"), "prompt.*": (6, 0, "task", "the reading of the file"),
    "half.float32": (1, 0, "inference", "the 16 bits of each number"),
    "text.embed": (3, 2, "inference", "rows of wte and wpe"),
    "text.*.k": (4, THERE, "inference", "x, ln_1, c_attn, the split into q, k, v and heads"),
    "text.*.v": (4, THERE, "inference", "x, ln_1, c_attn, the split into q, k, v and heads"),
    "text.*.attn": (4, THERE, "inference", "q, the scale, the causal mask, softmax, v, the join of heads, attn.c_proj"),
    "text.*.mlp": (4, THERE, "inference", "x + attn, ln_2, c_fc, GELU, mlp.c_proj"),
    "text.*.x": (4, THERE, "inference", "the two residual additions, x + attn + mlp"),
    "pack.position": (5, 0, "inference", "min(lengths, n - P) + 0 .. P-1 of each prompt"),
    "pack.mask": (5, 0, "inference", "min(lengths, n - P) tokens of the text, and the prompt's own vectors 0 .. j"),
    "pack.embed": (6, 2, "inference", "the vectors, and rows of wpe"),
    "pack.*.k": (7, THERE, "inference", "x, ln_1, c_attn, the split into q, k, v and heads"),
    "pack.*.v": (7, THERE, "inference", "x, ln_1, c_attn, the split into q, k, v and heads"),
    "pack.*.attn": (7, THERE, "inference", "q, the text's and the pack's k and v, the mask, softmax, attn.c_proj"),
    "pack.*.mlp": (7, THERE, "inference", "x + attn, ln_2, c_fc, GELU, mlp.c_proj"),
    "pack.*.x": (7, THERE, "inference", "the two residual additions, x + attn + mlp"),
    "hidden": (8, THERE, "inference", "x at the last vector of each prompt, and ln_f"),
    "logits": (9, THERE, "inference", "hidden, and each prompt's own head"),
    "loss": (10, THERE, "training", "log(sum(exp(logits))) - logits[label], and the mean over the texts"),
    "grad.logits": (11, THERE, "training", "(softmax(logits) - 1 at the label) / B"),
    "grad.norm": (12, BACK, "training", "the root of the sum of the squares of a prompt's two gradients"),
    "grad.*.head": (11, THERE, "training", "grad.logits and hidden, summed over the texts"),
    "grad.hidden": (11, THERE, "training", "grad.logits and the heads"),
    f"grad.pack.{L - 1}.x": (11, THERE, "training", "the way back through ln_f, to the last vectors alone"),
    "grad.pack.*.attn": (11, BACK, "training", "the way back through the MLP of this block: c_proj, GELU, c_fc, ln_2, + x"),
    "grad.pack.*": (11, BACK, "training", "the way back through the attention of the block after: v, softmax, q, k, ln_1, + x"),
    "grad.*.vectors": (11, BACK, "training", "grad.pack.embed, summed over the texts"),
    "clipped.*": (12, BACK, "training", "the gradients, the norm of each prompt, min(1, clip / norm)"),
    "after1.*": (12, 10, "training", "the rates of step 1, and Adam's step with t = 1"),
    "curve": (12, TRAINED, "training", "the steps before: their gradients, clipping, rates, Adam's moments"),
    "after.*": (12, TRAINED, "training", "ten steps: gradients, clipping, rates, Adam's moments"),
    "tokens.*": (2, 0, "tokenizer", "white space stripped, words cut by the pattern, merges, ids"),
    "real.*.ids": (13, 0, "tokenizer", "white space stripped, words cut by the pattern, merges, ids"),
    "real.*.logits": (13, BUNDLED, "inference", "weights/tiny, its config.json, prompts/reviews-p10, and steps 3 to 9"),
}  # fmt: skip
LEVELS = ("tokenizer", "inference", "training")
# A known mistake has to give all given tensors of the stage in which it shows.
STAGES = (("half.*",), ("text.*",), ("pack.*", "hidden", "logits"), ("loss",), ("grad.[!n]*",),
          ("grad.norm", "clipped.*", "after*", "curve*"), ("tokens.*", "real.*.ids"), ("real.*",), ("*",))  # fmt: skip


@lru_cache(None)
def group(name):
    return next(values for pattern, values in GROUPS.items() if fnmatch(name.split("[")[0], pattern))


@lru_cache(None)
def stage(name):
    return next(patterns for patterns in STAGES if any(fnmatch(name, pattern) for pattern in patterns))


def tolerances(tensors):
    """{pattern: the largest error that rounding may make in float32}, from the right tensors

    After n additions the error is below 6 u root(n) times the largest number, but for one case in a hundred thousand, if
    roundings are as good as random; u is half of float32's eps, so it is 3 eps.  (Higham and Mary 2019, theorem 2.4.)  No
    library's order of addition has a part in this.  Small gradients come from large ones, so the largest number is that of
    all tensors of a pattern.
    """
    largest = {}
    for name, tensor in tensors.items():
        pattern = next(pattern for pattern in GROUPS if fnmatch(name, pattern))
        largest[pattern] = max(largest.get(pattern, 0.0), tensor.double().abs().max().item() if tensor.numel() else 0.0)
    eps = torch.finfo(torch.float32).eps
    return {pattern: float(f"{3 * eps * GROUPS[pattern][1] ** 0.5 * top:.0e}") for pattern, top in largest.items()}


@lru_cache(None)
def tolerance(name):
    """As it stands in golden.safetensors"""
    with open_safetensors(GOLDEN) as file:
        allowed = json.loads(file.metadata()["tolerances"])
    return next(allowed[pattern] for pattern in GROUPS if fnmatch(name.split("[")[0], pattern))


def is_given(name):
    return group(name)[2] == "task"


# ---- the task ---------------------------------------------------------------------------------


def draw(T=T, positions=POSITIONS, lengths=LENGTHS, former=False):
    """Weights, texts and prompts: multiples of 1/4096 by Python's own generator, so the same on every machine

    former: of format 1, which the judge knows when it sees it.
    """
    generator = random.Random(0)

    def uniform(*shape, scale=0.3, middle=0.0):
        steps = [generator.randrange(-4096, 4097) for _ in range(np.prod(shape))]
        return torch.tensor(steps).view(shape) / 4096 * scale + middle

    # Embeddings are small, so that LayerNorm's eps shows.  Nothing is zero or one, so nothing can hide.
    tensors = {"wte.weight": uniform(V, C, scale=0.1), "wpe.weight": uniform(positions, C, scale=0.1)}
    for i in range(L):
        for layer, (rows, columns) in {
            "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C),
        }.items():  # fmt: skip
            tensors[f"h.{i}.{layer}.weight"] = uniform(rows, columns, scale=2 * rows**-0.5)
            tensors[f"h.{i}.{layer}.bias"] = uniform(columns)
    for layer in [f"h.{i}.ln_{j}" for i in range(L) for j in (1, 2)] + ["ln_f"]:
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = uniform(C, middle=1.0), uniform(C)
    tensors = {f"weights.{name}": tensor for name, tensor in tensors.items()}
    tensors["ids"] = torch.tensor([[generator.randrange(V) for _ in range(T)] for _ in range(B)])  # pads are any ids
    tensors["lengths"], tensors["labels"] = torch.tensor(lengths), torch.tensor([1, 5, 0])
    for k, P in enumerate(SIZES):
        tensors[f"prompt.{k}.vectors"], tensors[f"prompt.{k}.head"] = uniform(P, C, scale=0.1), uniform(N, C, scale=1)
    tensors["half"] = torch.tensor(HALF + [bits - 2**15 for bits in HALF], dtype=torch.int16).view(torch.float16)
    if not former:
        # The last channel is small, but for one token and one vector; in the first block the second head attends to it,
        # so that these two attend to themselves with scores above 90, whose exp float32 can not hold.
        for name in ("weights.wte.weight", "weights.wpe.weight", *(f"prompt.{k}.vectors" for k in range(K))):
            tensors[name][:, -1] /= 8
        tensors["weights.wte.weight"][-1, -1] = tensors["prompt.3.vectors"][1, -1] = 1
        tensors["weights.h.0.attn.c_attn.weight"][-1, [*range(5, 10), *range(15, 20)]] = 3.25
        # The second prompt's gradients are so short that they are not clipped.
        generator.seed(18552)
        tensors["prompt.1.vectors"], tensors["prompt.1.head"] = tensors["prompt.1.vectors"] * 8, uniform(N, C, scale=1)
        tensors["ids"] %= V - 1
        tensors["ids"][0, 10] = V - 1
    return tensors


def case_of(tensors):
    """The task in float64, as mistakes.py takes it"""
    weights = {name[8:]: tensor.double() for name, tensor in tensors.items() if name.startswith("weights.")}
    prompts = [tuple(tensors[f"prompt.{k}.{name}"].double() for name in ("vectors", "head")) for k in range(K)]
    return SimpleNamespace(weights=weights, n_layer=L, n_head=H, eps=EPS, prompts=prompts, recipe=RECIPE,
                           half=tensors["half"].double(),
                           **{name: tensors[name].long() for name in ("ids", "lengths", "labels")})  # fmt: skip


def bundled_case(dtype=torch.float64):
    """The bundled model and prompt before the sentences"""
    config = json.loads((TINY / "config.json").read_text())
    with open_safetensors(TINY / "model.safetensors") as file:
        weights = {name: file.get_tensor(name).to(dtype) for name in file.keys()}
    prompt, _ = load_prompt(TINY / "prompts" / "reviews-p10" / "prompt.safetensors")
    prompts = [(prompt.vectors.detach().to(dtype), prompt.head.detach().to(dtype))]
    return SimpleNamespace(weights=weights, n_layer=config["n_layer"], n_head=config["n_head"],
                           eps=config["layer_norm_epsilon"], prompts=prompts, sentences=SENTENCES, texts=TOKENS,
                           tokenizer=Tokenizer(TINY / "merges.txt"))  # fmt: skip


# ---- the truth --------------------------------------------------------------------------------


def truth(case):
    """{name: tensor} of the answer to the task: minimal.py's, or from a pass that has its logits"""

    def slowly(prompts, case, texts):  # (K, B, N), with gradient
        config = {"n_layer": case.n_layer, "n_head": case.n_head, "layer_norm_epsilon": case.eps,
                  "n_positions": len(case.weights["wpe.weight"])}  # fmt: skip
        one = [[logits_of(ids, *pair, case.weights, config) for ids in texts] for pair in prompts]
        return torch.stack([torch.stack(logits) for logits in one])

    def same(name, quick, slow):
        assert (quick.double() - slow.double()).abs().max() < 1e-10, f"mistakes.py and minimal.py differ in {name}"
        return slow

    bundled = bundled_case()
    made = dict(ask(bundled))
    for i in range(len(SENTENCES)):
        slow = slowly(bundled.prompts, bundled, [made[f"real.{i}.ids"].tolist()])[0, 0]
        made[f"real.{i}.logits"] = same("real", made[f"real.{i}.logits"], slow)
    texts = [row[:length].tolist() for row, length in zip(case.ids, case.lengths)]
    by_minimal = dict(steps(case, respond_to=lambda prompts: {"logits": slowly(prompts, case, texts)}))
    by_minimal["logits"] = slowly(case.prompts, case, texts)
    small = {name: same(name, quick, by_minimal.get(name, quick)) for name, quick in steps(case)}
    small["curve"] = torch.stack([small.pop(f"curve[{t}]") for t in range(RECIPE["steps"])])  # (steps, K)
    order = lambda name: (LEVELS.index(group(name)[2]), name.startswith("after."))
    return {name: tensor for name, tensor in sorted((small | made).items(), key=lambda item: order(item[0]))}


def counts(name, shape, lengths):
    """Where a tensor of this shape counts: bool, false at the pads of texts"""
    if not (name.startswith("text.") or name == "ids"):
        return torch.ones(shape, dtype=torch.bool)
    axis = 2 if len(shape) == 4 else 1  # of T, in (B, H, T, D), in (B, T, C) and in (B, T)
    real = torch.arange(shape[axis]) < lengths[:, None]  # (B, T)
    return real.view([size if i in (0, axis) else 1 for i, size in enumerate(shape)]).expand(shape)


def golden_bytes():
    """golden.safetensors"""
    tensors = draw()
    for name, tensor in truth(case_of(tensors)).items():
        tensors[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
    for name in tensors:
        if name.startswith("text."):
            tensors[name] = tensors[name] * counts(name, tensors[name].shape, tensors["lengths"])
    config = {"activation_function": "gelu_new", "n_layer": L, "n_head": H, "n_embd": C, "n_positions": POSITIONS,
              "vocab_size": V, "layer_norm_epsilon": EPS}  # fmt: skip
    metadata = {"config": config, "sizes": SIZE | {"P": SIZES, "L": L}, "recipe": RECIPE, "sentences": SENTENCES,
                "texts": TOKENS}  # fmt: skip
    metadata["tolerances"] = tolerances(tensors)
    metadata = {name: json.dumps(value) for name, value in (metadata | {"order": [*tensors]}).items()}
    metadata |= {"format": FORMAT, "made_by": "python porting/golden.py write"}
    return safetensors_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


# ---- the judge --------------------------------------------------------------------------------

SIZE = {"B": B, "K": K, "T": T, "S": sum(SIZES), "H": H, "D": C // H, "C": C, "N": N, "V": V}
AXES = {"text": "bt", "pack": "bs", "hidden": "bk", "logits": "kb", "loss": "k", "norm": "k", "curve": "tk"}


def read_tensors(path):
    """{name: tensor in float64} of a safetensors, npz or JSON file; ValueError when it is none of them"""
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"PK":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
        elif data.lstrip()[:1] == b"{" and data[8:9] != b"{":  # of safetensors the ninth byte is the first brace
            arrays = json.loads(data)
        else:
            with open_safetensors(path) as file:
                return {name: file.get_tensor(name).double() for name in file.keys()}
        return {name: torch.from_numpy(np.array(array, dtype=np.float64)) for name, array in arrays.items()}
    except (ValueError, TypeError, KeyError, EOFError, RecursionError, OverflowError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no safetensors, npz or JSON file, or holds more than numbers: {error}") from None


def read_golden():
    """{name: tensor} in the order of computation"""
    with open_safetensors(GOLDEN) as file:
        return {name: file.get_tensor(name) for name in json.loads(file.metadata()["order"])}


def distance(name, ours, theirs, golden):
    """Largest absolute difference where it counts; infinite for another shape"""
    if ours.shape != theirs.shape:
        return math.inf
    apart = (ours.double() - theirs).abs()
    if name.startswith("text.") or name == "ids":
        apart = apart[counts(name, ours.shape, golden["lengths"])]
    return apart.max().item() if apart.numel() else 0.0


def row(tensors, name):
    """tensors[name], or one row of it where the name ends as curve[3] does; None where there is none"""
    name, _, t = name.partition("[")
    tensor = tensors.get(name)
    if tensor is None or not t:
        return tensor
    return tensor[int(t[:-1])] if tensor.dim() == 2 and int(t[:-1]) < len(tensor) else None


def as_stored(theirs, ours):
    """A port's tensor in float64, rounded to what `ours` has room for

    In JSON a float32 stands with as many digits as tell it from its neighbours, which as a float64 is another number.
    """
    return theirs.to(ours.dtype).double() if ours.is_floating_point() else theirs


class Judge:
    """What differs between a port's tensors and the golden ones, and why.

    theirs: {name: tensor in float64}; only: a level; allowed: a tolerance for all that is rounded, where it is larger.
    """

    def __init__(self, theirs, only=None, allowed=0.0):
        self.golden, self.allowed = read_golden(), allowed
        self.theirs = {name: as_stored(x, self.golden[name]) for name, x in theirs.items() if name in self.golden and (
            not only or group(name)[2] in (only, "task"))}  # fmt: skip
        self.errors, self.given = {}, [name for name in self.golden if name in self.theirs]
        self.wrong = [name for name in self.given if not self.agrees(name)]
        self.first = self.wrong[0] if self.wrong else None
        self.names = self.why() if self.first else []
        self.hints = [*self.seen()] if self.first else []

    def why(self):
        if is_former(self):
            return [FORMER]
        curve, right = (tensors.get("curve") for tensors in (self.theirs, self.golden))
        if self.first == "curve" and curve.shape == right.shape and (curve[:-1] - right[1:]).abs().max() < 1e-4:
            return [LATE]
        return self.known()

    def error(self, name):
        if name not in self.errors:
            self.errors[name] = distance(name, row(self.golden, name), row(self.theirs, name), self.golden)
        return self.errors[name]

    def tolerance(self, name):
        exact = stage(name) in (stage("tokens.0"), stage("half"), stage("ids")) or name in ("pack.position", "pack.mask")
        return tolerance(name) if exact and not name.startswith(("weights.", "prompt.")) else max(tolerance(name), self.allowed)

    def agrees(self, name):
        return self.error(name) <= self.tolerance(name)  # NaN does not

    def fits(self, name, ours, slack):
        """Whether a known mistake, which makes `ours`, explains this tensor; NaN explains NaN"""
        theirs, error = row(self.theirs, name), self.error(name)  # rounding grows with it
        error = error if math.isfinite(error) else 0.0
        gap = distance(name, ours, theirs, self.golden)
        if gap != gap:
            gap = distance(name, *(x.double().nan_to_num(1e30, 2e30, -2e30) for x in (ours, theirs)), self.golden)
        return gap <= max(tolerance(name) * slack, error * slack / 1e5, min(self.allowed, error / 10))

    def reach(self, made, unchanged):
        """0: these (name, tensor) do not give the first that differs; 1: they do; 2: and all given ones of its stage

        unchanged: stages that this mistake leaves as they are, so that there is nothing to compare.
        """
        met = 0
        try:
            for name, tensor in made:
                if met and stage(name) != stage(self.first):
                    break
                if stage(name) not in unchanged and row(self.theirs, name) is not None:
                    if not self.fits(name, tensor.detach(), 10 if met else 1):
                        return met
                    met = met or int(name.split("[")[0] == self.first and not self.agrees(name))
        except (IndexError, RuntimeError, ValueError):  # so wrong that nothing goes on from there
            pass
        return 2 * met

    def known(self):
        """The mistake, or the two of them, that give all given tensors up to the first that differs and in its stage"""
        first, given = self.first, {stage(name) for name in self.theirs}
        text = {name: x.double() for name, x in self.golden.items() if name.startswith("text.")}
        if is_given(first):
            return []
        if stage(first) == stage("tokens.0"):
            case, make, mistakes = bundled_case(), partial(ask, only=()), TEXTS
        elif stage(first) == stage("real.0.logits"):  # a large model: what shows in the small one is not looked for
            few = stage("logits") in given or first[5] in "23" or self.error(first) == math.inf
            mistakes = [mistake for mistake in READING if mistake[1] == "seen" or not few]
            case, make = bundled_case(torch.float32), ask
        else:
            case, make = case_of(self.golden), steps
            training = group(first)[2] == "training"  # where logits are given then, they agree, and so does all before
            mistakes = READING * (not training or "logits" not in self.theirs) + (WAY_BACK + STEP) * training
            if first.startswith("after.") and "curve" not in self.theirs:
                return []  # ten steps for each mistake would take too long

        def run(*wrong):
            parts = {part: change for _, parts, change in wrong for part in parts.split()}
            reading = group(first)[2] != "training" or any(mistake in READING for mistake in wrong)
            unchanged = STAGES[: 0 if reading else 5 if all(mistake in STEP for mistake in wrong) else 3]
            if stage(first) in unchanged:
                return 0
            return self.reach(make(case, parts, **({} if reading else {"text": text})), unchanged)

        reached = [(mistake, run(mistake)) for mistake in mistakes]
        found = {mistake[0] for mistake, reach in reached if reach == 2}
        for one in [mistake for mistake, reach in reached if reach == 1 and not found]:
            for two in mistakes:
                if not {*one[1].split()} & {*two[1].split()} and run(one, two) == 2:
                    return [one[0], two[0]]
        return [*found] if len(found) == 1 else []  # where two explain it, neither is certain

    def seen(self):
        """Sentences about the first tensor that differs, each of which is true whatever the mistake is"""
        name, made = self.first, group(self.first)[3]
        ours, theirs = self.golden[name].double(), self.theirs[name]
        for order in [*permutations(range(ours.dim()))][1:] if ours.dim() == theirs.dim() else []:
            if distance(name, ours, theirs.permute(order), self.golden) <= self.tolerance(name):
                yield f"the numbers are right, but the axes have to be put in the order {order}"
        if theirs.shape != ours.shape:
            yield f"its shape is {times(theirs)}, not {times(ours)}"
        else:
            where = counts(name, ours.shape, self.golden["lengths"])
            off = ~((ours - theirs).abs() <= self.tolerance(name)) & where
            if nan := int((theirs.isnan() & where).sum()):
                yield f"{nan} of its {int(where.sum())} numbers are NaN"
                whole = theirs.isnan().all(-1).any() and not theirs.isnan().all() and torch.equal(off, theirs.isnan() & where)
                if name.endswith(".attn") and whole:
                    yield "these are whole rows, as after a row of a mask that may look nowhere, or after exp of more than 88"
            elif ours[where].numel() > 1 and tolerance(name):
                ratio = ((ours * theirs)[where].sum() / (ours * ours)[where].sum()).item()
                if not theirs[where].any():
                    yield "all its numbers are 0"
                elif abs(ratio - 1) > 1e-3 and distance(name, ours * ratio, theirs, self.golden) <= self.tolerance(name):
                    yield f"it is exactly {ratio:.4g} times what it should be{letters(ratio)}"
            kind = "norm" if name == "grad.norm" else name.removeprefix("grad.").split(".")[0]
            for axis, letter in enumerate(AXES.get(kind, "")):
                axis += axis * (ours.dim() == 4)  # (B, H, T, D)
                some = off.transpose(0, axis).flatten(1).any(1) if off.dim() > 1 else off
                if not some.all():
                    yield f"it differs only where {letter} is {', '.join(map(str, some.nonzero().flatten().tolist()))}"
        if not is_given(name):
            yield f"it is made of: {made}"
            other_task = ("tokens", "real", "half")
            order = [x for x in self.golden if not is_given(x) and x.startswith(other_task) == name.startswith(other_task)]
            before = [x in self.theirs for x in order[: order.index(name)]]
            missing = order[len(before) - before[::-1].index(True) if True in before else 0 : len(before)]
            if missing and group(name)[2] != "tokenizer":
                yield f"what is made before it is not given, so the mistake may be there, too: {some_of(missing)}"


FORMER, LATE = "these are the answers to format 1: read the task again", "the losses are those after each step, not before it"


def is_former(judge):
    """Whether the first tensor that differs is that of the small task in format 1"""
    task = draw(7, 24, (7, 1, 4), former=True)
    case, name = case_of(task), judge.first
    case.recipe = RECIPE | {"lr": [0.03, 0.1, 0.02, 0.05]}
    for other, tensor in chain(task.items(), steps(case)):
        if other.split("[")[0] == name and not name.startswith(("half", "labels", "lengths")):
            theirs = row(judge.theirs, other)
            return theirs is not None and distance(other, tensor.detach(), theirs, task) <= 10 * tolerance(name)
    return False


def letters(ratio):
    """Which size of the task a factor may be: ": B?" """
    sizes = {letter: float(n) for letter, n in SIZE.items()} | {"the root of C": C**0.5, "the root of D": (C / H) ** 0.5}
    forms = sizes | {f"1/{letter}": 1 / n for letter, n in sizes.items()}
    guess = [form for form, n in forms.items() if abs(ratio / n - 1) < 1e-3]
    return ": the wrong sign?" if abs(ratio + 1) < 1e-3 else f": {' or '.join(guess)}?" if guess else ""


def some_of(names):
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def compare(path, only=None, allowed=0.0):
    """Print what there is to say about a port's tensors -> exit code"""
    theirs = read_tensors(path)
    judge = Judge(theirs, only, allowed)
    answer = [name for name in judge.golden if not is_given(name) and (not only or group(name)[2] == only)]
    if not {*answer} & {*judge.theirs}:
        raise ValueError(f"{path} has nothing computed, none of the names {some_of(answer)}; it has: {some_of([*theirs])}")
    print(f"{'tensor':32}{'shape':16}{'max error':>10}{'allowed':>10}")
    for name in judge.given:
        verdict = "ok" if name not in judge.wrong else "DIFF  <- the first" if name == judge.first else "DIFF"
        print(f"{name:32}{times(theirs[name]):16}{judge.error(name):10.1e}{judge.tolerance(name):10.0e}  {verdict}")
    if strange := sorted(theirs.keys() - judge.golden.keys()):
        print(f"not judged, since porting.md has no such name: {', '.join(strange)}")
    for level in [only] if only else LEVELS:
        names = [name for name in answer if group(name)[2] == level]
        missing = [name for name in names if name not in theirs]
        wrong = [name for name in names if name in judge.wrong]
        state = f"{len(wrong)} differ" if wrong else "complete" if not missing else f"{len(names) - len(missing)} agree"
        print(f"{level}: {state}" + (f"; {len(missing)} of {len(names)} are not given: {some_of(missing)}" if missing else ""))
    if not judge.first:
        print(f"all {len(judge.given)} agree")
        return 0
    print(f"{len(judge.wrong)} of {len(judge.given)} differ, first {judge.first}: step {group(judge.first)[0]} of porting.md")
    for sentence in judge.names or ["no mistake known here gives these numbers"]:
        print(f"    {sentence}")
    for sentence in judge.hints:
        print(f"    {sentence}")
    return 1


def times(tensor):
    return " x ".join(map(str, tensor.shape)) or "a number"


@one_sentence
def main(argv=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("compare", help="judge a port's tensors")
    verb.add_argument("file", help=".safetensors, .npz or .json")
    verb.add_argument("--only", choices=LEVELS, help="judge this level alone")
    verb.add_argument("--tolerance", type=float, default=0.0, metavar="X",
                      help="allow errors up to X in all that is rounded, as for float16 or quantised weights")  # fmt: skip
    verbs.add_parser("write", help="make golden.safetensors again")
    args = parser.parse_args(argv)
    if args.verb == "write":
        return write_file(GOLDEN, golden_bytes())
    torch.set_num_threads(1)  # all is small
    sys.exit(compare(args.file, args.only, args.tolerance))


if __name__ == "__main__":
    main()
