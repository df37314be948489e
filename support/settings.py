"""Settings: what a run is asked.  Each field is a flag of train.py: its type, default and help."""

import argparse
import dataclasses
import functools
import re
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

from support.checkpoint import BUNDLED, OFFICIAL
from support.processes import default_device
from support.records import Count, Rate, Seed, hints_of, read

GROUPS = {  # of flags, each with an example
    "on what": "as in: --model gpt2 --data my-reviews --text-column review --label-column stars",
    "what is trained, and how": "as in: --prompt-tokens 1 5 20 --seeds 0 1 2 --lr 0.01 0.03",
    "what is written": "as in: --out runs/mine, and when that was stopped: --resume runs/mine",
    "where it runs": "as in: --device cuda --dtype bfloat16",
}
ON_WHAT, LEARNING, WRITTEN, MACHINE = GROUPS
INITS = ("sample", "words", "eot")


def flag(group, default, text, value=None):
    """A field that is a flag.

    text: its help, in which %(default)s is the default; value: what its values are called there.
    """
    about = {"group": group, "help": text, "value": value}
    if isinstance(default, list):
        return dataclasses.field(default_factory=functools.partial(list, default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """What a run is asked, as flags and as run.json's settings."""

    model: str = flag(
        ON_WHAT,
        BUNDLED,
        f"{BUNDLED} (bundled), {', '.join(OFFICIAL)} (downloaded once), a folder, or a hub id "
        "(%(default)s)",
        "NAME",
    )
    data: str = flag(
        ON_WHAT,
        "reviews",
        "reviews (bundled), sst2 (downloaded once), a folder with train and dev as tsv, csv or "
        "jsonl, or one such table, of which a part is held back as dev (%(default)s)",
        "NAME",
    )
    text_column: str | None = flag(
        ON_WHAT, None, "the column of the texts (sentence or text)", "NAME"
    )
    label_column: str | None = flag(
        ON_WHAT, None, "the column of their labels, numbers or names (label)", "NAME"
    )
    num_labels: Count | None = flag(
        ON_WHAT,
        None,
        "labels are 0 to N-1 (2); with 1 they are numbers, and a regression is trained; where "
        "train has names for labels, there are as many",
        "N",
    )
    max_examples: Count | None = flag(
        ON_WHAT, None, "train on so many random texts only (all)", "N"
    )
    select_on: Literal["hold-out", "dev"] = flag(
        ON_WHAT,
        "hold-out",
        "where the best epoch is chosen: on a part of train that shares no phrase with the rest, "
        "or on dev, which then flatters (%(default)s)",
    )
    select_by: Literal["accuracy", "macro-f1", "loss"] = flag(
        ON_WHAT,
        "accuracy",
        "what the best epoch is best in; macro-f1 counts rare labels as much as common ones; a "
        "regression goes by loss (%(default)s)",
    )
    prompt_tokens: list[Count] = flag(
        LEARNING,
        [10],
        "lengths of the prompts (%(default)s); a prompt is trained for every length, seed and "
        "rate, all of them on one reading of the texts",
        "P",
    )
    seeds: list[Seed] = flag(
        LEARNING, [0], "seeds of the first vectors and heads (%(default)s)", "SEED"
    )
    init: str = flag(
        LEARNING,
        "sample",
        "first vectors: sample (random tokens), words (the names of the labels, then random "
        "tokens), eot (<|endoftext|>); a prompt.safetensors, a prompt folder or a RUN, to go on "
        "from its prompt; or any other TEXT, whose tokens they are (%(default)s)",
        "WHAT",
    )
    train: Literal["prompt+head", "head"] = flag(
        LEARNING,
        "prompt+head",
        "head is the baseline that leaves the prompt as it began (%(default)s)",
    )
    lr: list[Rate] = flag(
        LEARNING, [3e-2], "peak learning rates of the vectors (%(default)s)", "LR"
    )
    head_lr: Rate = flag(LEARNING, 5e-3, "peak learning rate of the heads (%(default)s)", "LR")
    epochs: Count = flag(LEARNING, 6, "passes over the training texts (%(default)s)", "N")
    steps: Count | None = flag(LEARNING, None, "train for so many steps instead of --epochs", "N")
    patience: Count | None = flag(
        LEARNING, None, "stop a prompt after so many epochs without a better score (never)", "N"
    )
    cache_text: Literal["auto"] | Annotated[int, 0, 2**62] = flag(
        LEARNING,
        "auto",
        "memory for the texts' keys and values, so that later epochs cost only the prompts: off, a "
        "size such as 500M or 8G, or auto, a quarter of the memory (%(default)s)",
        "SIZE",
    )
    out: str | None = flag(WRITTEN, None, "run folder to write (runs/MODEL-DATA)", "FOLDER")
    device: str = flag(MACHINE, default_device(), "cpu, cuda, cuda:1 or mps (%(default)s)", "NAME")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        MACHINE,
        "auto",
        "of the frozen model; auto is bfloat16 where the hardware multiplies it fast (%(default)s)",
    )
    batch_size: Count = flag(MACHINE, 16, "texts of a batch, read at once (%(default)s)", "N")

    # No flags: what they came to.
    total_steps: Count | None = None
    processes: Count = 1


# ---- flags out of fields --------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence, as everything else here does."""

    def __init__(self, **how):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **how
        )

    def error(self, message):
        raise ValueError(f"{message} (see --help)")


def add_flag(container, kind, name, **other):
    """Add the flag of one field.  other: what add_argument is to be told otherwise."""
    field = kind.__dataclass_fields__[name]
    how = {"default": field.default, "help": field.metadata["help"]}
    if field.default is dataclasses.MISSING:
        values = field.default_factory()
        how["default"] = values
        how["help"] = how["help"].replace("%(default)s", " ".join(map(str, values)))
        how["nargs"] = "+"
    hint = hints_of(kind)[name]
    if typing.get_origin(hint) is Literal:
        how["choices"] = typing.get_args(hint)
    else:
        how["type"] = checked(kind, name)
        how["metavar"] = field.metadata["value"]
    container.add_argument("--" + name.replace("_", "-"), **how | other)


def checked(kind, name):
    """A type of argparse that takes what the field takes, and nothing else."""
    hint = hints_of(kind)[name]
    if typing.get_origin(hint) is list:
        hint = typing.get_args(hint)[0]

    def parse(text):
        value = size(text) if name == "cache_text" else number_in(text, hint)
        try:
            return read(hint, value, "value")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def number_in(text, hint):
    """A word as an int or a float, where the type wants one and the word is one; else as it is."""
    wanted = str(hint)
    for kind in (int, float):
        if kind.__name__ in wanted:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def size(text):
    """auto, off (0), or a size in bytes with K, M or G; any other word as it is."""
    if text == "off":
        return 0
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if match is None:
        return text
    return int(match[1]) * 1000 ** " KMG".index(match[2])


# ---- the command line of train.py -----------------------------------------------------------


def parser_of(description):
    """The parser of train.py."""
    parser = Parser(description=description)
    groups = {}
    for group, example in GROUPS.items():
        groups[group] = parser.add_argument_group(group, example)
    for field in dataclasses.fields(Settings):
        if "group" in field.metadata:
            add_flag(groups[field.metadata["group"]], Settings, field.name)
    written = groups[WRITTEN]
    written.add_argument(
        "--overwrite", action="store_true", help="replace the run that the run folder holds"
    )
    written.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with this run, by its own flags; the results are those of one never stopped",
    )
    return parser


def settings_of(namespace):
    """What argparse found -> Settings; a value that comes twice in a list is one."""
    values = {}
    for field in dataclasses.fields(Settings):
        if "group" not in field.metadata:
            continue
        value = getattr(namespace, field.name)
        values[field.name] = list(dict.fromkeys(value)) if isinstance(value, list) else value
    return read(Settings, values, "flags")
