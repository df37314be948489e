"""What a port has to compute, written down, and the judge of what it computed.

    python tests/golden.py compare FILE      judge a port: FILE is its .safetensors or .npz
    python tests/golden.py write             make golden.safetensors again, the same to the byte

A port reads its task from golden.safetensors (`weights.*`, `ids`, `lengths`, `labels`, `prompt.*`) and writes what it
makes of it under the names that PORTING.md gives, any part of them.  The judge prints each tensor's distance in the
order of computation, so the first DIFF is where the mistake is, and looks for a mistake that explains it.  Exit code
0: all given tensors agree; 1: one does not; 2: there was nothing to judge.

The truth is that of oracle.py in float64: its logits, its gradients, its training curve.  The tensors on the way, which
it does not show, come from pitfalls.py, whose logits and gradients have to be the oracle's.  Stored are float32.
"""

import argparse
import json
import random
import sys
import zipfile
from fnmatch import fnmatch
from itertools import islice, permutations
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import oracle
import torch
from pitfalls import PITFALLS, READING, TEXTS, TRAINING, ask, steps

from data import ROOT, Tokenizer
from evaluate import one_sentence
from model import load_prompt, open_safetensors, safetensors_bytes, write_file

GOLDEN = Path(__file__).parent / "golden.safetensors"
FORMAT = "prompt-training-golden/1"
TINY = ROOT / "weights" / "tiny"

# Of every dimension another size, so that no axis can stand for another: D = 5, S = 11.
B, K, T, H, C, N, L, V, POSITIONS, SIZES = 3, 4, 7, 2, 10, 6, 3, 37, 24, (1, 2, 3, 5)
LENGTHS, EPS = (7, 1, 4), 1e-5
# The first ten steps of a run of fifty, in which the rates rise for three; each prompt has a rate of its own.
RECIPE = {"steps": 10, "total": 50, "warm_up": 3, "lr": [0.03, 0.1, 0.02, 0.05], "head_lr": 0.005, "clip": 1.0,
          "optimizer": "AdamW", "betas": [0.9, 0.999], "adam_eps": 1e-8, "weight_decay": 0.0}  # fmt: skip
SENTENCES = [
    "a gentle, funny film that earns its tears",
    "two long hours without a single idea ",  # ends in a space
    "It's naïve, daft & 100 % wonderful 🎬",
    " ".join(["a slow , clumsy film about nothing at all , and"] * 12),  # 132 tokens, of which 118 leave a prompt room
]
# Largest absolute error of a port in float32.  Rounding takes the ports in tests/ports to a fifth of these at most, and
# every mistake in PITFALLS takes the first tensor that it changes ten times beyond: tests hold both.
GROUPS = {  # of names: (step of PORTING.md, tolerance); the first pattern that fits a name counts
    "weights.*": (1, 0.0), "ids": (2, 0.0), "lengths": (2, 0.0), "labels": (2, 0.0), "prompt.*": (6, 0.0),
    "text.embed": (3, 1e-6), "text.*": (4, 2e-5),
    "pack.position": (5, 0.0), "pack.mask": (5, 0.0), "pack.embed": (6, 1e-6), "pack.*": (7, 2e-5),
    "hidden": (8, 2e-5), "logits": (9, 2e-5), "loss": (10, 1e-5), "grad.*": (11, 1e-4),
    "curve": (12, 3e-5), "after.*": (12, 3e-5),
    "real.*.ids": (13, 0.0), "real.*.logits": (13, 1e-4),
}  # fmt: skip
GIVEN = ("weights.*", "ids", "lengths", "labels", "prompt.*")  # the task; all other names are its answer


def group(name):
    return next(values for pattern, values in GROUPS.items() if fnmatch(name, pattern))


def tolerance(name):
    return group(name)[1]


def is_given(name):
    return any(fnmatch(name, pattern) for pattern in GIVEN)


# ---- the task ---------------------------------------------------------------------------------


def draw():
    """Weights, texts and prompts: multiples of 1/4096 by Python's own generator, so the same on every machine"""
    generator = random.Random(0)

    def uniform(*shape, scale=0.3, middle=0.0):
        steps = [generator.randrange(-4096, 4097) for _ in range(np.prod(shape))]
        return torch.tensor(steps).view(shape) / 4096 * scale + middle

    # Embeddings are small, so that LayerNorm's eps shows.  Nothing is zero or one, so nothing can hide.
    tensors = {"wte.weight": uniform(V, C, scale=0.1), "wpe.weight": uniform(POSITIONS, C, scale=0.1)}
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
    tensors["lengths"], tensors["labels"] = torch.tensor(LENGTHS), torch.tensor([1, 5, 0])
    for k, P in enumerate(SIZES):
        tensors[f"prompt.{k}.vectors"], tensors[f"prompt.{k}.head"] = uniform(P, C, scale=0.1), uniform(N, C, scale=1)
    return tensors


def case_of(tensors):
    """The task in float64, as pitfalls.py takes it"""
    weights = {name[8:]: tensor.double() for name, tensor in tensors.items() if name.startswith("weights.")}
    prompts = [tuple(tensors[f"prompt.{k}.{name}"].double() for name in ("vectors", "head")) for k in range(K)]
    return SimpleNamespace(weights=weights, n_layer=L, n_head=H, eps=EPS, prompts=prompts, recipe=RECIPE,
                           **{name: tensors[name].long() for name in ("ids", "lengths", "labels")})  # fmt: skip


def bundled_case():
    """The bundled model and prompt before the sentences, in float64"""
    config = json.loads((TINY / "config.json").read_text())
    with open_safetensors(TINY / "model.safetensors") as file:
        weights = {name: file.get_tensor(name).double() for name in file.keys()}
    prompt, _ = load_prompt(TINY / "prompts" / "reviews-p10" / "prompt.safetensors")
    prompts = [(prompt.vectors.detach().double(), prompt.head.detach().double())]
    return SimpleNamespace(weights=weights, n_layer=config["n_layer"], n_head=config["n_head"],
                           eps=config["layer_norm_epsilon"], prompts=prompts, sentences=SENTENCES,
                           tokenizer=Tokenizer(TINY / "merges.txt"))  # fmt: skip


# ---- the truth --------------------------------------------------------------------------------


def truth(case):
    """Every (name, tensor) of the answer to the task: the oracle's, or from a pass that has the oracle's logits"""

    def slowly(prompts, case, texts):  # (K, B, N), with gradient
        one = [[oracle.logits(case.weights, case.n_head, case.eps, ids, *pair) for ids in texts] for pair in prompts]
        return torch.stack([torch.stack(logits) for logits in one])

    def same(name, quick, slow):
        assert (quick.double() - slow.double()).abs().max() < 1e-10, f"pitfalls.py and oracle.py differ in {name}"
        return name, slow

    texts = [row[:length].tolist() for row, length in zip(case.ids, case.lengths)]
    by_oracle = steps(case, logits_of=lambda prompts: slowly(prompts, case, texts))
    for (name, quick), (_, slow) in zip(steps(case), by_oracle, strict=True):
        yield same(name, quick, slowly(case.prompts, case, texts) if name == "logits" else slow)
    bundled = bundled_case()
    for name, tensor in ask(bundled):
        if name.endswith("ids"):
            texts = [tensor.tolist()]
        yield same(name, tensor, slowly(bundled.prompts, bundled, texts)[0, 0] if name.endswith("logits") else tensor)


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
    for name, tensor in truth(case_of(tensors)):
        tensors[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
    for name in tensors:
        if name.startswith("text."):
            tensors[name] = tensors[name] * counts(name, tensors[name].shape, tensors["lengths"])
    config = {"activation_function": "gelu_new", "n_layer": L, "n_head": H, "n_embd": C, "n_positions": POSITIONS,
              "vocab_size": V, "layer_norm_epsilon": EPS}  # fmt: skip
    sizes = {"B": B, "K": K, "T": T, "P": SIZES, "S": sum(SIZES), "H": H, "D": C // H, "C": C, "N": N, "L": L, "V": V}
    metadata = {"config": config, "sizes": sizes, "recipe": RECIPE, "sentences": SENTENCES}
    metadata["tolerances"] = {pattern: limit for pattern, (_, limit) in GROUPS.items()}
    metadata = {name: json.dumps(value) for name, value in (metadata | {"order": [*tensors]}).items()}
    metadata |= {"format": FORMAT, "made_by": "python tests/golden.py write"}
    return safetensors_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


# ---- the judge --------------------------------------------------------------------------------


def read_tensors(path):
    """{name: tensor in float64} of a safetensors or npz file; ValueError when it is neither"""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(np.array(file[name], dtype=np.float64)) for name in file}
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name).double() for name in file.keys()}
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is neither safetensors nor npz, or holds more than numbers: {error}") from None


def read_golden():
    """{name: tensor} in the order of computation"""
    with open_safetensors(GOLDEN) as file:
        return {name: file.get_tensor(name) for name in json.loads(file.metadata()["order"])}


def distance(name, ours, theirs, golden):
    """Largest absolute difference where it counts; infinite for another shape"""
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs)[counts(name, ours.shape, golden["lengths"])].abs().max().item()


def causes(first, golden, theirs):
    """Sentences that explain the first difference: mistakes that give all of their tensors up to it"""
    real = first.startswith("real.")
    case, make = (bundled_case(), ask) if real else (case_of(golden), steps)
    parts = READING | (TEXTS if real else TRAINING)

    def close(name, tensor):
        return distance(name, tensor.detach(), theirs[name], golden) <= tolerance(name)

    def explains(wrong):
        for name, tensor in make(case, wrong):
            if name in theirs and not close(name, tensor):
                return False
            if name == first:
                return True

    found, axes = [], range(golden[first].dim())
    if theirs[first].isnan().any():
        found.append("it holds NaN, as after a row of a mask that may look nowhere")
    for order in [*permutations(axes)][1:] if theirs[first].dim() == len(axes) else []:
        if distance(first, golden[first], theirs[first].permute(order), golden) <= tolerance(first):
            found.append(f"the numbers are right, but the axes have to be put in the order {order}")
    if not is_given(first):  # no two pitfalls give the same numbers, so the first that fits is the one
        fit = (sentence for sentence, part, wrong in PITFALLS if part in parts and explains({part: wrong}))
        found += islice(fit, 1)
    return found


def judge(theirs):
    """{name: tensor} -> ({name: error} in the order of computation, names that differ, what explains the first)"""
    golden = read_golden()
    errors = {name: distance(name, golden[name], theirs[name], golden) for name in golden if name in theirs}
    wrong = [name for name, error in errors.items() if not error <= tolerance(name)]  # NaN is wrong, too
    return errors, wrong, causes(wrong[0], golden, theirs) if wrong else []


def compare(path):
    """Print what there is to say about a port's tensors -> exit code"""
    theirs, golden = read_tensors(path), read_golden()
    errors, wrong, sentences = judge(theirs)
    if not errors:
        raise ValueError(f"{path} has none of the names in PORTING.md, such as logits; it has: {', '.join(theirs)}")
    print(f"{'tensor':32}{'shape':16}{'max error':>10}{'allowed':>10}")
    for name, error in errors.items():
        verdict = "ok" if name not in wrong else "DIFF  <- the first" if name == wrong[0] else "DIFF"
        print(f"{name:32}{times(theirs[name]):16}{error:10.1e}{tolerance(name):10.0e}  {verdict}")
    if strange := sorted(theirs.keys() - golden.keys()):
        print(f"not judged, since PORTING.md has no such name: {', '.join(strange)}")
    if not wrong:
        answer = {name for name in golden if not is_given(name)}
        print(f"all {len(errors)} agree; {len(answer - errors.keys())} of the answer's {len(answer)} are not given")
        return 0
    first = wrong[0]
    if theirs[first].shape != golden[first].shape:
        sentences = [f"its shape is {times(theirs[first])}, not {times(golden[first])}", *sentences]
    print(f"{len(wrong)} of {len(errors)} differ, first {first}: step {group(first)[0]} of PORTING.md")
    for sentence in sentences or ["no mistake known here gives these numbers"]:
        print(f"    {sentence}")
    return 1


def times(tensor):
    return " x ".join(map(str, tensor.shape)) or "a number"


@one_sentence
def main(argv=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("compare", help="judge a port's tensors").add_argument("file", help=".safetensors or .npz")
    verbs.add_parser("write", help="make golden.safetensors again")
    args = parser.parse_args(argv)
    if args.verb == "write":
        return write_file(GOLDEN, golden_bytes())
    sys.exit(compare(args.file))


if __name__ == "__main__":
    main()
