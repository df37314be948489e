"""What a port has to compute, written down, and the judge of what it computed.

    python porting/golden.py compare FILE      judge a port: FILE is its .safetensors, .npz or .json
    python porting/golden.py write             make golden.safetensors again, the same to the byte

A port reads its task from golden.safetensors (`weights.*`, `ids`, `lengths`, `labels`, `prompt.*`,
`half`) and writes what it makes of it under the names that porting/porting.md gives, any part of
them.  The judge prints each tensor's distance in the order of computation, so the first DIFF is
where the mistake is, looks for a mistake that explains it, and says what else it sees.  Exit code
0: all given tensors agree; 1: one does not; 2: there was nothing to judge.

The truth is that of minimal.py in float64: its logits, its gradients, its training curve.  The
tensors on the way, which it does not show, come from method.py, whose logits and gradients have to
be the same.  Stored are float32.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import argparse
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import torch
from safetensors import SafetensorError

import minimal
from judge import Judge, some_of, times
from method import ask, steps
from support.files import read_bytes, safetensors_bytes, split_safetensors, write_file
from support.terminal import emit, ending
from task import (
    CONFIG,
    GOLDEN,
    LEVELS,
    RECIPE,
    SENTENCES,
    SIZE,
    SIZES,
    TEXTS,
    TINY,
    L,
    bundled_case,
    case_of,
    counts,
    draw,
    group,
    is_given,
    tolerances,
)

FORMAT = "prompt-training-golden/2"

# ---- the truth ------------------------------------------------------------------------------


def by_minimal(prompts, case, texts):
    """Logits (K, B, N) of K pairs after B lists of ids, with gradient"""
    config = {
        "n_layer": case.n_layer,
        "n_head": case.n_head,
        "layer_norm_epsilon": case.eps,
        "n_positions": len(case.weights["wpe.weight"]),
    }
    logits = []
    for vectors, head in prompts:
        each = [minimal.logits_of(ids, vectors, head, case.weights, config) for ids in texts]
        logits.append(torch.stack(each))  # (B, N)
    return torch.stack(logits)


def same(name, quick, slow):
    """slow, minimal.py's, where method.py has the same"""
    apart = (quick.double() - slow.double()).abs().max()
    assert apart < 1e-10, f"method.py and minimal.py differ in {name}"
    return slow


def truth_of_texts():
    """{name: tensor} of ids and logits by the bundled model"""
    case = bundled_case()
    made = dict(ask(case))
    bpe = minimal.tokenizer(TINY / "merges.txt")
    for i, text in enumerate(TEXTS):
        assert made[f"tokens.{i}"].tolist() == bpe.encode_ordinary(text.strip()), text
    for i in range(len(SENTENCES)):
        ids = made[f"real.{i}.ids"].tolist()
        slow = by_minimal(case.prompts, case, [ids])[0, 0]  # (N,)
        made[f"real.{i}.logits"] = same("real", made[f"real.{i}.logits"], slow)
    return made


def truth_of_task(case):
    """{name: tensor} of the small task, from the forward pass to the last step"""
    texts = []
    for row, length in zip(case.ids, case.lengths, strict=True):
        texts.append(row[:length].tolist())

    def respond_to(prompts):
        return {"logits": by_minimal(prompts, case, texts)}

    slow = dict(steps(case, respond_to=respond_to))
    slow["logits"] = by_minimal(case.prompts, case, texts)
    made = {}
    for name, quick in steps(case):
        made[name] = same(name, quick, slow.get(name, quick))
    made["curve"] = torch.stack([made.pop(f"curve[{t}]") for t in range(RECIPE["steps"])])
    return made


def place_in_file(name):
    """Names are sorted by this; those with equal ones stay in the order of computation"""
    return LEVELS.index(group(name).level), name.startswith("after.")


def truth(case):
    """{name: tensor} of the answer to the task: minimal.py's, or from a pass that has its logits"""
    made = truth_of_task(case) | truth_of_texts()
    return {name: made[name] for name in sorted(made, key=place_in_file)}


def golden_bytes():
    """golden.safetensors"""
    tensors = draw()
    for name, tensor in truth(case_of(tensors)).items():
        tensors[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
    for name in tensors:
        if name.startswith("text."):
            real = counts(name, tensors[name].shape, tensors["lengths"])
            tensors[name] = tensors[name] * real
    told = {
        "config": CONFIG,
        "sizes": SIZE | {"P": SIZES, "L": L},
        "recipe": RECIPE,
        "sentences": SENTENCES,
        "texts": TEXTS,
        "tolerances": tolerances(tensors),
        "order": list(tensors),
    }
    metadata = {name: json.dumps(value) for name, value in told.items()}
    metadata["format"] = FORMAT
    metadata["made_by"] = "python porting/golden.py write"
    return safetensors_bytes(tensors, metadata)


# ---- a port's file --------------------------------------------------------------------------

# All that reading such a file can raise, where its content is odd.
NO_TENSORS = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    OverflowError,
    SafetensorError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_tensors(path):
    """{name: tensor in float64} of a safetensors, npz or JSON file; ValueError: it is none"""
    data = read_bytes(path)
    try:
        if data[:2] == b"PK":
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
        elif data.lstrip()[:1] == b"{" and data[8:9] != b"{":  # safetensors has its brace there
            arrays = json.loads(data)
        else:
            tensors, _ = split_safetensors(data)
            return {name: tensors[name].double() for name in sorted(tensors)}
        tensors = {}
        for name, array in arrays.items():
            tensors[name] = torch.from_numpy(np.array(array, dtype=np.float64))
        return tensors
    except NO_TENSORS as error:
        raise ValueError(
            f"{path} is no safetensors, npz or JSON file, or holds more than numbers: {error}"
        ) from None


# ---- what a person reads --------------------------------------------------------------------


def compare(path, only=None, allowed=0.0):
    """Print what there is to say about a port's tensors -> exit code"""
    theirs = read_tensors(path)
    judge = Judge(theirs, only, allowed)
    answer = []
    for name in judge.golden:
        if not is_given(name) and (not only or group(name).level == only):
            answer.append(name)
    if not set(answer) & set(judge.theirs):
        raise ValueError(
            f"{path} has nothing computed, none of the names {some_of(answer)}; it has: "
            f"{some_of(list(theirs))}"
        )

    print_table(judge, theirs)
    for level in [only] if only else LEVELS:
        print_level(level, judge, [name for name in answer if group(name).level == level])
    if not judge.first:
        emit(f"all {len(judge.given)} agree")
        return 0
    emit(
        f"{len(judge.wrong)} of {len(judge.given)} differ, first {judge.first}: step "
        f"{group(judge.first).step} of porting.md"
    )
    for sentence in judge.names or ["no mistake known here gives these numbers"]:
        emit(f"    {sentence}")
    for sentence in judge.hints:
        emit(f"    {sentence}")
    return 1


def print_table(judge, theirs):
    """A line for each tensor, and one for names that porting.md does not have"""
    emit(f"{'tensor':32}{'shape':16}{'max error':>10}{'allowed':>10}")
    for name in judge.given:
        verdict = "ok"
        if name in judge.wrong:
            verdict = "DIFF  <- the first" if name == judge.first else "DIFF"
        shape = times(theirs[name])
        numbers = f"{judge.error(name):10.1e}{judge.tolerance(name):10.0e}"
        emit(f"{name:32}{shape:16}{numbers}  {verdict}")
    strange = sorted(theirs.keys() - judge.golden.keys())
    if strange:
        emit(f"not judged, since porting.md has no such name: {', '.join(strange)}")


def print_level(level, judge, names):
    """A line on the tensors of a level, all of which are asked for"""
    missing = [name for name in names if name not in judge.theirs]
    wrong = [name for name in names if name in judge.wrong]
    state = "complete"
    if missing:
        state = f"{len(names) - len(missing)} agree"
    if wrong:
        state = f"{len(wrong)} differ"
    if missing:
        state += f"; {len(missing)} of {len(names)} are not given: {some_of(missing)}"
    emit(f"{level}: {state}")


@ending()
def main(argv=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("compare", help="judge a port's tensors")
    verb.add_argument("file", help=".safetensors, .npz or .json")
    verb.add_argument("--only", choices=LEVELS, help="judge this level alone")
    verb.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="allow errors up to X in all that is rounded, as for float16 or quantised weights",
    )
    verbs.add_parser("write", help="make golden.safetensors again")
    args = parser.parse_args(argv)
    if args.verb == "write":
        write_file(GOLDEN, golden_bytes())
        return
    torch.set_num_threads(1)  # all is small
    sys.exit(compare(args.file, args.only, args.tolerance))


if __name__ == "__main__":
    main()
