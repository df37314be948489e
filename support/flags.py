"""The flags of both programs, in groups; each is defined once."""

import math
import os
import re
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter

import torch

from support.fetch import BUNDLED, OFFICIAL
from support.machine import default_device

# ---- types: each refuses by a sentence ------------------------------------------------------


def number(kind, low, high=math.inf):
    """A type of int or float that refuses what is not from low to below high."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value < high:
            raise ArgumentTypeError(f"{text} is not a number from {low:g} on")
        return value

    return parse


count, seed, positive = number(int, 1), number(int, 0, 2**63), number(float, 1e-30)


def size(text):
    """auto, off (0), or a size in bytes with K, M or G."""
    if text in ("auto", "off"):
        return 0 if text == "off" else text
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if not match:
        raise ArgumentTypeError(f"{text} is neither auto, off nor a size such as 8G")
    return int(match[1]) * 1000 ** " KMG".index(match[2])


def device_of(text):
    """A device that is there; of several GPUs each process of torchrun takes its own."""
    try:
        device = torch.device(text)
        if text == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise ArgumentTypeError(f"this machine has no device {text}; try cpu") from None
    return device


# ---- both programs --------------------------------------------------------------------------


def parser_of(description):
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def add_machine_flags(parser):
    """How to compute."""
    example = "as in: --device cuda --dtype bfloat16 --batch-size 32"
    add = parser.add_argument_group("where it runs", example).add_argument
    add("--device", type=device_of, default=default_device(), help="cpu, cuda:1, mps (%(default)s)")
    add(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the frozen model; auto is bfloat16 where the hardware multiplies it fast",
    )
    add("--batch-size", type=count, default=16, help="texts read at once (%(default)s)")


# ---- train.py -------------------------------------------------------------------------------


def training(description):
    """The parser of train.py."""
    parser = parser_of(description)
    example = "as in: --model gpt2 --data my-reviews --text-column review --label-column stars"
    add = parser.add_argument_group("on what", example).add_argument
    add(
        "--model",
        default=BUNDLED,
        help=f"{BUNDLED} (bundled), {', '.join(OFFICIAL)} (downloaded once), a folder, or a hub id "
        "(%(default)s)",
    )
    add(
        "--data",
        default="reviews",
        help="reviews (bundled), sst2 (downloaded once), or a folder with train and dev as tsv, "
        "csv or jsonl (%(default)s)",
    )
    add("--text-column", help="of the texts (sentence or text)")
    add("--label-column", help="of their labels, numbers or names (label)")
    add(
        "--num-labels",
        type=count,
        help="labels are 0 to N-1 (2); with 1 they are numbers, a regression is trained; where train "
        "has names for labels, there are as many",
    )
    add("--max-examples", type=count, help="train on so many random texts only")
    add(
        "--select-on",
        choices=["hold-out", "dev"],
        default="hold-out",
        help="where the best epoch is chosen: on a part of train that shares no phrase with the "
        "rest, or on dev, which then flatters (%(default)s)",
    )
    add_learning_flags(parser)
    example = "as in: --out runs/mine, and when that was stopped: --resume runs/mine"
    add = parser.add_argument_group("what is written", example).add_argument
    add("--out", help="run folder to write (runs/MODEL-DATA)")
    add("--overwrite", action="store_true", help="replace the run that the run folder holds")
    add(
        "--resume",
        metavar="RUN",
        help="go on with this run, by its own flags; the results are those of one never stopped",
    )
    add_machine_flags(parser)
    return parser


def add_learning_flags(parser):
    """What is trained, and how."""
    example = "as in: --prompt-tokens 1 5 20 --seeds 0 1 2 --lr 0.01 0.03 --epochs 3"
    add = parser.add_argument_group("what is trained, and how", example).add_argument
    add(
        "--prompt-tokens",
        type=count,
        nargs="+",
        default=[10],
        help="lengths of the prompts (%(default)s); a prompt is trained for every length, seed and "
        "rate, all of them on one reading of the texts",
    )
    add("--seeds", type=seed, nargs="+", default=[0], help="of the first vectors (%(default)s)")
    add(
        "--init",
        default="sample",
        help="first vectors: sample (random tokens), words (the names of the labels, then random "
        "tokens), eot (<|endoftext|>), or a FILE, another prompt.safetensors (%(default)s)",
    )
    add(
        "--train",
        choices=["prompt+head", "head"],
        default="prompt+head",
        help="head is the baseline that leaves the prompt as it began (%(default)s)",
    )
    add("--lr", type=positive, nargs="+", default=[3e-2], help="peak learning rates (%(default)s)")
    add("--head-lr", type=positive, default=5e-3, help="the same, of the heads (%(default)s)")
    add("--epochs", type=count, default=6, help="passes over the training texts (%(default)s)")
    add("--steps", type=count, help="train for so many steps instead of --epochs")
    add("--patience", type=count, help="stop a prompt after so many epochs without a better score")
    add(
        "--cache-text",
        type=size,
        default="auto",
        help="memory for the texts' keys and values, so that later epochs cost only the prompts: "
        "off, a size such as 500M or 8G, or auto, a quarter of the memory (%(default)s)",
    )


# ---- evaluate.py ----------------------------------------------------------------------------

RUN = "a run folder, a prompt folder in it, or a prompt.safetensors"


def asking(description, answers, argv):
    """Parse the command line of evaluate.py; answers: {verb: what answers it}."""
    parser = parser_of(description)
    subparsers, verbs = parser.add_subparsers(dest="verb", required=True), {}
    for name, answer in answers.items():
        told = answer.__doc__.split("\n")[0]
        verb = verbs[name] = subparsers.add_parser(name, help=told, description=told)
        verb.set_defaults(answer=answer)
        verb.add_argument("--json", action="store_true", help="print JSON, one object a line")
        if name != "plot":
            verb.add_argument("--model", help="where the base model lies now, if it moved")
            add_machine_flags(verb)
    add_arguments(verbs)
    args, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or rest and args.verb != "predict":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse does not see texts that stand behind a flag
        args.texts += rest
    return args


def add_arguments(verbs):
    """What only some verbs take, each argument once.  verbs: {name: parser}"""

    def add(takers, *names, **how):
        for taker in takers.split():
            verbs[taker].add_argument(*names, **how)

    add("score predict tokens attention", "run", metavar="RUN", help=RUN)
    add("table plot", "runs", metavar="RUN", nargs="+", help=RUN)
    add("predict", "texts", metavar="TEXT", nargs="*", help="texts to label, before any --with")
    add("attention", "text", metavar="TEXT", help="the text it looks at")
    add("predict score table", "--text-column", help="of the texts (sentence or text)")
    add("score table", "--label-column", help="of the labels (label)")
    add("score table", "--data", help="data set to answer (the one it was trained on)")
    add("score table", "--split", default="dev", help="which file of it (%(default)s)")
    add("score", "--errors", type=count, default=0, help="show so many of the surest mistakes")
    add("predict", "--input", help="a file with a text a line, or a table: .tsv, .csv or .jsonl")
    add("predict", "--glue", help="the file to write for GLUE's server; --input: GLUE's test.tsv")
    add(
        "score predict",
        "--with",
        dest="others",
        metavar="RUN",
        nargs="+",
        default=[],
        help="prompts that answer together with RUN's, by their mean logits, on one reading",
    )
    add("score predict", "--all", action="store_true", help="all prompts of a run, not its best")
    add(
        "predict",
        "--out",
        metavar="FILE.csv",
        help="write --input's rows with label and probability",
    )
    add("plot attention", "--out", help="the picture: .png, .svg or .pdf; needs matplotlib")
