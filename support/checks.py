"""What may be wrong with what came in: one raise and one sentence each."""

import functools
import json
import math
from pathlib import Path

import torch
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import best_match

from support.files import damaged

# ---- JSON -----------------------------------------------------------------------------------

SCHEMAS = json.loads(Path(__file__).with_name("schemas.json").read_text())
FORM = SCHEMAS["$defs"]
TYPES = {  # stricter than JSON Schema's own, for which 1.0 is an integer, and NaN a number
    "integer": lambda checker, value: type(value) is int and abs(value) < 2**63,
    "number": lambda checker, value: type(value) in (int, float) and abs(value) < 1e300,
}


@functools.cache
def validator(form):
    """What tells whether a value has a form, one of schemas.json."""
    checker = Draft202012Validator.TYPE_CHECKER.redefine_many(TYPES)
    strict = validators.extend(Draft202012Validator, type_checker=checker)
    return strict(SCHEMAS | {"$ref": f"#/$defs/{form}"})


def valid(path, value, form):
    """value, if it has the form; else ValueError, which names the file and the place in it."""
    error = best_match(validator(form).iter_errors(value))
    if error:
        why = f"{error.json_path[:99]}: {error.message:.200}"
        raise ValueError(f"{path} is damaged, or not what is read here: {why}")
    return value


def read_json(path, form):
    """A JSON file that has a form."""
    with damaged(path, "is no JSON"):
        value = json.loads(path.read_bytes())
    return valid(path, value, form)


# ---- checkpoints ----------------------------------------------------------------------------


def gpt2_sizes(path):
    """The sizes in a config.json; ValueError for a variant of GPT-2 that is not implemented.

    The number of labels is never read here: the official gpt2-large and distilgpt2 say
    `"_num_labels": 1`, and whoever believes them trains a head that can only answer 0.
    """
    with damaged(path, "is no JSON object; fetch it again"):
        config = {"layer_norm_epsilon": 1e-5, **json.loads(Path(path).read_bytes())}
    C = valid(path, config, "config")["n_embd"]
    if config.get("n_inner") not in (None, 4 * C) or C % config["n_head"]:
        raise ValueError(f"{path}: n_inner is not 4 n_embd, or n_head does not divide n_embd")
    return {name: config[name] for name in FORM["config"]["required"]}


def weight(path, name, tensor, wanted):
    """A tensor of a checkpoint has to have the shape of `wanted`, and be of floating-point numbers."""
    real = tensor.is_floating_point() and tensor.element_size() > 1
    if wanted is None or tensor.shape != wanted.shape or not real:
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


KNOWN = ["negative", "positive"]  # labels that need no names: 0 and 1 of a sentiment


def is_number(value):
    """Whether a label is one; neither true nor 1_0 is."""
    try:
        return float(str(value).replace("_", "?")) is not None
    except ValueError:
        return False


def label(value, num_labels, names=()):
    """A label as it is used: an int below num_labels, or a float of float32 where that is 1.

    names: what labels are called; one of these is an int, too, and where num_labels is 0, no number
    is.
    """
    if isinstance(value, bool):
        raise ValueError(f"label {value} is a boolean; write 0 and 1, or names in quotation marks")
    number = float(str(value)) if is_number(value) else math.nan
    if num_labels == 1:
        if abs(number) <= torch.finfo(torch.float32).max:
            return number
        raise ValueError(f"label {value!r:.40} is not a number of float32")
    if isinstance(value, str) and value.strip() in names:
        return names.index(value.strip())
    if number in range(num_labels):
        return int(number)
    wanted = f"in 0 to {num_labels - 1} (--num-labels); numbers count from 0, or all are names"
    if number == -1:
        wanted += "; -1 marks test rows without labels: predict takes these"
    if not num_labels:
        wanted = f"one of {', '.join(names):.200}"
    raise ValueError(f"label {value!r:.40} is not {wanted}")


def label_count(args, names):
    """How many labels there are: as many as there are names, else --num-labels, else two."""
    asked = args.num_labels or len(names) or 2
    if len(names) == 1:
        raise ValueError(f"{args.data} has the label {names[0]!r:.40} alone: nothing to tell apart")
    if names and asked != len(names):
        raise ValueError(f"--num-labels {asked}, but {args.data} has {len(names)} names of labels")
    return asked


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


def recipe_of(values):
    """What belongs to the recipe of a prompt, of settings or of what a file calls its recipe."""
    return {key: values[key] for key in FORM["recipe"]["properties"] if key in values}


def prompt_metadata(path, tensors, metadata):
    """The metadata of a prompt.safetensors, its lists and its dictionary read; or ValueError."""
    for key, value in PROMPT_FORMAT.items():
        if metadata.get(key) != value:
            raise ValueError(f"{path} is no prompt of ours: its {key} is not {value!r}")
    with damaged(path, "lacks a finite prompt (P, C), head.weight (N, C) or metadata"):
        read = {key: json.loads(metadata[key]) for key in ("labels", "init_ids", "recipe")}
        valid("its metadata", metadata | read, "prompt")
        (P, C), (N, width) = tensors["prompt"].shape, tensors["head.weight"].shape
        whole = all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values())
        fits = C == width and P * N * C > 0 and len(read["labels"]) == max(N, 2)
        if not whole or not fits or len(tensors) != 2:
            raise ValueError("they are not float32, not finite, or do not fit together")
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
