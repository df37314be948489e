"""Questions: the command line of evaluate.py, its verbs and what they take; each is told once."""

from argparse import ArgumentTypeError

from support.records import Whole, read
from support.settings import GROUPS, MACHINE, Parser, Settings, add_flag

VERBS = {  # {verb: (what it tells, an example, what it takes)}
    "score": (
        "Accuracy with interval, loss, confusion, precision and recall on a labelled split.",
        "score runs/mine --split test --errors 5",
        ["run", "--data", "--split", "--text-column", "--label-column", "--errors", "--with"],
    ),
    "predict": (
        "Label texts: arguments, a table, or lines of a file or of standard input as they come.",
        "predict runs/mine --input reviews.csv --text-column review --out answers.csv",
        ["run", "texts", "--input", "--text-column", "--out", "--glue", "--with"],
    ),
    "table": (
        "Accuracies beside the baselines, as Markdown; McNemar's test of exactly two prompts.",
        "table runs/lengths runs/head",
        ["runs", "--data", "--split", "--text-column", "--label-column"],
    ),
    "plot": (
        "A picture of accuracy against prompt length, and of the learning curves.",
        "plot runs/lengths runs/head --out results.png",
        ["runs", "--picture"],
    ),
    "tokens": (
        "The tokens nearest to each vector of a prompt, and how far it has moved.",
        "tokens runs/mine",
        ["run"],
    ),
    "attention": (
        "What the prompt's last vector attends to; what the answer loses without each word.",
        'attention runs/mine "a fine film" --out attention.svg',
        ["run", "text", "--drawing"],
    ),
}
RUN = "a run folder, a prompt folder in it, or a prompt.safetensors"
PICTURE = {"dest": "out", "metavar": "FILE.png", "help": "the picture: .png, .svg or .pdf"}


def whole(text):
    """A number from 0 on."""
    try:
        return read(Whole, int(text), text)
    except ValueError:
        raise ArgumentTypeError(f"{text} is no whole number from 0 on") from None


ARGUMENTS = {  # {name: what argparse is told of it}
    "run": {"metavar": "RUN", "help": RUN},
    "runs": {"metavar": "RUN", "nargs": "+", "help": RUN},
    "text": {"metavar": "TEXT", "help": "the text it looks at"},
    "texts": {
        "metavar": "TEXT",
        "nargs": "*",
        "help": "texts to label; one that begins with -- stands behind a --",
    },
    "--data": {
        "metavar": "NAME",
        "help": "data set to answer, as in train.py (the one that the prompt was trained on)",
    },
    "--split": {
        "metavar": "NAME",
        "help": "which file of it: dev, train, test, or another (dev)",
    },
    "--text-column": {
        "metavar": "NAME",
        "help": "the column of the texts (that of the training; else sentence or text)",
    },
    "--label-column": {
        "metavar": "NAME",
        "help": "the column of the labels (that of the training; else label)",
    },
    "--errors": {
        "type": whole,
        "default": 0,
        "metavar": "N",
        "help": "show so many of the surest mistakes (0)",
    },
    "--input": {
        "dest": "path",
        "metavar": "FILE",
        "help": "a file with a text a line, or a table: .tsv, .csv or .jsonl",
    },
    "--out": {
        "metavar": "FILE.csv",
        "help": "write --input's rows with label and probability beside them: .csv, .tsv or .jsonl",
    },
    "--glue": {
        "metavar": "FILE.tsv",
        "help": "the file to write for GLUE's server, of --input's rows: GLUE's test.tsv",
    },
    "--with": {
        "dest": "others",
        "metavar": "RUN",
        "nargs": "+",
        "default": [],
        "help": "prompts that answer together with RUN's, by their mean logits, on one reading",
    },
    "--all": {
        "dest": "every",
        "action": "store_true",
        "help": "all prompts of a run answer together, not its best alone",
    },
    "--picture": PICTURE | {"required": True},
    "--drawing": PICTURE,
    "--json": {"dest": "as_json", "action": "store_true", "help": "print JSON, one object a line"},
    "--model": {"metavar": "FOLDER", "help": "where the base model lies now, if it moved"},
}


def parser_of(description):
    """The parser of evaluate.py."""
    parser = Parser(description=description)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (told, example, arguments) in VERBS.items():
        example = f"as in: python evaluate.py {example}"
        # No -h: it would take texts that begin so for itself.
        verb = verbs.add_parser(name, help=told, description=told, epilog=example, add_help=False)
        verb.add_argument("--help", action="help", help="show this and end")
        if "--with" in arguments:
            arguments = [*arguments, "--all"]
        for argument in [*arguments, "--json"]:
            add_argument(verb, argument)
        if name != "plot":  # which reads no text and no model
            add_argument(verb, "--model")
            group = verb.add_argument_group(MACHINE, GROUPS[MACHINE])
            for flag in ("device", "dtype", "batch_size"):
                if (name, flag) != ("tokens", "batch_size"):
                    add_flag(group, Settings, flag)
    return parser


def add_argument(parser, name):
    flag = "--out" if name in ("--picture", "--drawing") else name
    parser.add_argument(flag, **ARGUMENTS[name])


def asked(description, words):
    """The words of a command line -> (verb, {argument: value}).

    The texts of predict stand before or behind the flags, and may begin with a dash; behind -- all
    words are texts.
    """
    words = list(words)
    texts = []
    if words[:1] == ["predict"] and "--" in words:
        end = words.index("--")
        texts = words[end + 1 :]
        words = words[:end]
    if len(words) > 1:
        words = ["--help" if word == "-h" else word for word in words]
    found, rest = parser_of(description).parse_known_args(words)
    options = vars(found)
    verb = options.pop("verb")
    # argparse gives back what stands behind a flag, and what begins with a dash.
    odd = [word for word in rest if word.startswith("--") or verb != "predict"]
    if odd:
        raise ValueError(f"unrecognized arguments: {' '.join(odd)} (see {verb} --help)")
    if verb == "predict":
        options["texts"] += rest + texts
    return verb, options


def of_a_split(flags):
    """Flags -> (those that name a labelled split, those that say how to compute)."""
    where = {}
    machine = dict(flags)
    for name in ("data", "split", "text_column", "label_column"):
        where[name] = machine.pop(name)
    return where, machine
