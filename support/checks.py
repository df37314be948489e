"""What may be wrong with what came in: one raise and one sentence each."""

import json
import math
import re
from pathlib import Path

import torch

from support.files import damaged

# ---- JSON of ours ---------------------------------------------------------------------------


def number(value):
    return type(value) in (int, float) and -1e300 < value < 1e300


def count(value):
    return type(value) is int and 0 < value < 2**31


def text(value):
    return type(value) is str and value.isprintable()


def prompt_name(value):
    return type(value) is str and bool(re.fullmatch(r"p\d+-s\d+[\w.+-]*", value))


def fits(value, form):
    """Whether a JSON value has a form: a type, a test, a string of words one of which it is, a
    tuple of alternatives, a list of one form for all its elements, of which there are some, or a
    dictionary of forms for keys that have to be there."""
    if isinstance(form, str):
        return value in form.split()
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if isinstance(form, list):
        return type(value) is list and value != [] and all(fits(its, form[0]) for its in value)
    if isinstance(form, dict):
        return type(value) is dict and all(fits(value.get(key), form[key]) for key in form)
    return type(value) is form if isinstance(form, type) else form(value)


NONE = type(None)
SETTINGS = {
    **dict.fromkeys(("model", "data", "init"), str),
    **dict.fromkeys(("batch_size", "epochs", "num_labels", "total_steps", "processes"), count),
    **dict.fromkeys(("steps", "patience", "max_examples"), (count, NONE)),
    "train": "prompt+head head",
    "select_on": "hold-out dev",
    "dtype": "float32 bfloat16",
    "device": "cpu cuda mps xpu",
    "prompt_tokens": [count],
    "seeds": [lambda value: type(value) is int and 0 <= value < 2**63],
    "lr": [number],
    "head_lr": number,
    "cache_text": ("auto", lambda value: type(value) is int and value >= 0),
}
RUN = {
    "format": "prompt-training-run/1",
    "settings": SETTINGS,
    "base": {"base_model": str, "base_sha256": str},
    "data": {"train": str, "dev": str},
    "labels": [text],
    "prompts": [prompt_name],
}
SCORE = {"accuracy": number, "loss": (number, NONE), "n": count}
PROMPT = SCORE | {
    "name": prompt_name,
    "prompt_tokens": count,
    "seed": int,
    "lr": number,
    "epoch": count,
    "ci95": [number],
    "untrained": number,
    "selection": SCORE,
}
SUMMARY = {"prompts": [PROMPT], "baselines": {"majority": number, "untrained": number}}
POINT = {"epoch": int, "prompt": text, "split": text, "accuracy": number}


def typed(path, value, form):
    """value, if it has the form; else ValueError, which names the path."""
    if not fits(value, form):
        raise ValueError(f"{path} is damaged, or not of our making")
    return value


def read_json(path, form):
    """A JSON file of ours."""
    with damaged(path, "is damaged, or not of our making"):
        value = json.loads(path.read_bytes())
    return typed(path, value, form)


# ---- checkpoints ----------------------------------------------------------------------------

IMPLEMENTED = {  # what a config.json may say; the first stands where it says nothing
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new",),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}
SIZES = {  # name: (type, what it must be below)
    "vocab_size": (int, 2**24),
    "n_positions": (int, 2**24),
    "n_embd": (int, 2**24),
    "n_layer": (int, 100),
    "n_head": (int, 2**24),
    "layer_norm_epsilon": (float, 1),
}


def gpt2_sizes(path):
    """The sizes in a config.json; ValueError for a variant of GPT-2 that is not implemented.

    The number of labels is never read here: the official gpt2-large and distilgpt2 say
    `"_num_labels": 1`, and whoever believes them trains a head that can only answer 0.
    """
    with damaged(path, "is no JSON object; fetch it again"):
        given = {"layer_norm_epsilon": 1e-5, **json.loads(Path(path).read_bytes())}
    for name, (kind, limit) in SIZES.items():
        value = given.get(name)
        if type(value) is not kind or not 0 < value < limit:
            raise ValueError(f"{path}: {name} is missing or no usable size")
    implemented = IMPLEMENTED | {"n_inner": (None, 4 * given["n_embd"])}
    for key, values in implemented.items():
        if given.get(key, values[0]) not in values:
            raise ValueError(f"{path}: {key} = {given[key]!r:.40} is not implemented here")
    if given["n_embd"] % given["n_head"]:
        raise ValueError(f"{path}: n_head does not divide n_embd")
    return {name: given[name] for name in SIZES}


def weight(path, name, tensor, wanted):
    """A tensor of a checkpoint has to have the shape of `wanted`, and be of floating-point numbers."""
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if wanted is None or tensor.shape != wanted.shape or tensor.dtype not in floats:
        shape = "no (other) tensor of this name" if wanted is None else [*wanted.shape]
        raise ValueError(
            f"{path}: {name!r} is {tensor.dtype} {[*tensor.shape]}, but config.json wants {shape}"
        )
    if not tensor.sum(dtype=torch.float32).isfinite():
        raise ValueError(f"{path}: {name!r} holds NaN or infinity; fetch it again")


def vocabulary(path, tokens, rows):
    """A merges.txt must not make more tokens than the model has vectors for."""
    if tokens > rows:
        raise ValueError(f"{path} makes {tokens} tokens, but config.json has {rows}")


# ---- data -----------------------------------------------------------------------------------


def label(value, num_labels):
    """A label as it is used: an int below num_labels, or a float of float32 where that is 1."""
    try:
        number = float(str(value).replace("_", "?"))  # neither true nor 1_0 is a number
    except ValueError:
        number = math.nan
    if num_labels == 1 and not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"label {value!r:.40} is not a number of float32")
    if num_labels > 1 and number not in range(num_labels):
        hint = "; -1 marks test rows without labels: predict takes these" if number == -1 else ""
        wanted = f"0 to {num_labels - 1} (--num-labels){hint}"
        raise ValueError(f"label {value!r:.40} is not in {wanted}")
    return number if num_labels == 1 else int(number)


def input_text(number, text, clean):
    """The text that `clean` makes of one of several; it must not be blank, nor half a character."""
    try:
        cleaned = clean(text)
    except UnicodeEncodeError:
        raise ValueError(f"text {number} is not UTF-8") from None
    if not cleaned:
        raise ValueError(f"text {number} is blank")
    return cleaned


def enough(args, train, held):
    """There must be texts to learn from, to choose on, and one for each label."""
    if not train or not held:
        raise ValueError(
            f"{args.data} has too few training texts to hold some out; use --select-on dev"
        )
    if args.num_labels > len(train):
        raise ValueError(f"--num-labels {args.num_labels} is more than {args.data} has texts")


# ---- prompts --------------------------------------------------------------------------------

PROMPT_FORMAT = {"format": "prompt-training/1", "position_rule": "after-text"}


RECIPE = {
    **dict.fromkeys(("batch_size", "epochs", "epoch"), count),
    **dict.fromkeys(("steps", "max_examples"), (count, NONE)),
    **dict.fromkeys(("lr", "head_lr"), number),
    "data": str,
    "train": SETTINGS["train"],
    "select_on": SETTINGS["select_on"],
}


def recipe(value):
    """Of a recipe any part may be missing, but what is there has its form."""
    form = {key: RECIPE[key] for key in RECIPE if type(value) is dict and key in value}
    return fits(value, form)


METADATA = {
    "labels": [text],
    "init_ids": list,
    "recipe": recipe,
}


def prompt_metadata(path, tensors, metadata):
    """The metadata of a prompt.safetensors, its lists and its dictionary read; or ValueError."""
    for key, value in PROMPT_FORMAT.items():
        if metadata.get(key) != value:
            raise ValueError(f"{path} is no prompt of ours: its {key} is not {value!r}")
    lacks = "lacks a finite prompt (P, C), head.weight (N, C) or metadata"
    with damaged(path, lacks):
        read = {key: json.loads(metadata[key]) for key in METADATA}
        (P, C), (N, width) = tensors["prompt"].shape, tensors["head.weight"].shape
        whole = len(tensors) == 2 and C == width and P * N * C > 0
        whole = whole and len(read["labels"]) == max(N, 2) and fits(read, METADATA)
        whole = whole and all(type(i) is int and 0 <= i < 2**24 for i in read["init_ids"])
    for tensor in tensors.values():
        whole = whole and tensor.dtype == torch.float32 and tensor.isfinite().all()
    if not whole:
        raise ValueError(f"{path} {lacks}")
    return metadata | read


def prompt_on_model(path, prompt, metadata, text_rule, base, config):
    """A prompt answers on the model that it was trained on, and under the same text rule."""
    (P, C), folder = prompt.vectors.shape, base["base_model"]
    if metadata.get("text_rule") != text_rule:
        raise ValueError(f"{path} was trained under another text rule than {text_rule!r}")
    if metadata.get("base_sha256") != base["base_sha256"]:
        raise ValueError(
            f"{path} was trained on another model than {folder} (the sha256 of weights, merges.txt and sizes differ); "
            "name the right one with --model"
        )
    if C != config.n_embd or P >= config.n_positions:
        raise ValueError(f"{path} holds {P} vectors of {C} channels, which do not fit {folder}")


def init_fits(path, wanted, found):
    """--init FILE has to hold what is asked for: (tokens, labels, channels)."""
    if found != wanted:
        raise ValueError(
            f"--init {path} has (tokens, labels, channels) {found}, but this run asks for {wanted}"
        )


def room(longest, positions, folder):
    """The positions of a model, of which a prompt must leave some to a text."""
    if longest >= positions:
        raise ValueError(
            f"--prompt-tokens {longest} leaves no room for a text: {folder} has {positions} positions"
        )
    return positions


def resume_alone(args):
    """A run goes on where it lies."""
    if args.out or args.overwrite:
        raise ValueError(f"--resume {args.resume} takes neither --out nor --overwrite")
