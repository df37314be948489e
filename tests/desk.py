"""A desk to ask at: a random model, small data sets, and runs with made-up scores."""

import dataclasses
import functools
import json
import random
from types import SimpleNamespace

import pytest
import torch

import evaluate
from data import TEXT_RULE
from helpers import TINY
from model import Prompt, classify
from support.checkpoint import Base, open_checkpoint
from support.prompt_file import PromptFile, Recipe, Scores, prompt_bytes, read_prompt
from support.records import to_json
from support.run_folder import LogLine
from support.summary import Selection, Summary, SummaryRow

SHIPPED = TINY / "prompts/reviews-p10"
EXACT = ("--dtype", "float32")  # where numbers are compared with numbers computed in another way
NAMES = ["bad", "fair", "good"]


def ask(capsys, *argv):
    """Run evaluate.py in this process -> (exit code, stdout, stderr)"""
    code = 0
    try:
        evaluate.main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def told(capsys, *argv):
    """Run evaluate.py -> the objects that it prints, one a line"""
    words = [str(word) for word in argv]
    place = words.index("--") if "--" in words else len(words)
    code, out, err = ask(capsys, *words[:place], "--json", *words[place:])
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def write_prompt(path, file):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(prompt_bytes(file))
    return path


def changed(folder, source, /, recipe=(), scores=(), **fields):
    """A copy of a prompt, with another recipe, other scores or other fields: its path."""
    file = read_prompt(source)
    new_recipe = dataclasses.replace(file.recipe, **dict(recipe))
    new_scores = dataclasses.replace(file.scores, **dict(scores))
    file = dataclasses.replace(file, recipe=new_recipe, scores=new_scores, **fields)
    return write_prompt(folder / "p.safetensors", file)


# ---- runs with made-up scores ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt of a made-up run: how it was trained, and what it scored."""

    name: str  # a letter; the prompt is p1-s0-a
    P: int = 1
    seed: int = 0
    accuracy: float | None = 0.7  # on dev
    selected: float | None = 0.7  # on the hold-out
    untrained: float | None = 0.5
    epoch: int = 2
    selected_loss: float | None = 0.6
    scores: dict = dataclasses.field(default_factory=dict)
    recipe: dict = dataclasses.field(default_factory=dict)
    fields: dict = dataclasses.field(default_factory=dict)  # of the PromptFile
    file: PromptFile | None = None  # whose tensors, labels and base it has


USUAL = {"data": "reviews", "train": "prompt+head", "select_on": "hold-out", "batch_size": 16}
USUAL |= {"epochs": 3, "lr": 0.03, "head_lr": 0.005, "dtype": "float32"}
CURVE = ((-0.2, 0.6), (0.0, 0.5), (-0.1, 0.55))  # accuracy beside the selected one, loss


def row_file(row):
    """The PromptFile of a made-up prompt."""
    old = row.file or read_prompt(SHIPPED / "prompt.safetensors")
    recipe = Recipe(**USUAL | {"seed": row.seed, "epoch": row.epoch} | row.recipe)
    scores = {"n": 400, "accuracy": row.accuracy, "loss": 0.6, "majority": 0.52}
    scores |= {"selected": row.selected, "selected_loss": row.selected_loss}
    scores |= {"untrained": row.untrained} | row.scores
    prompt = Prompt(old.prompt.vectors[: row.P], old.prompt.head)
    init_ids = old.init_ids[: row.P]
    more = {"prompt": prompt, "recipe": recipe, "scores": Scores(**scores), "init_ids": init_ids}
    return dataclasses.replace(old, **more | row.fields)


def row_log(row, name):
    """Lines of the log: on the hold-out after each of three epochs, and another split's."""
    lines = []
    for split in ("hold-out", "train"):
        for i, (beside, loss) in enumerate(CURVE, 1):
            accuracy = None if row.selected is None else row.selected + beside
            accuracy = accuracy if split == "hold-out" else 0.1
            lines.append(LogLine(10 * i, i, name, split, loss, accuracy))
    return lines


def write_run(folder, *rows):
    """A finished run of Rows: its prompts, its log and its summary."""
    summary = []
    log = []
    for row in rows:
        name = f"p{row.P}-s{row.seed}-{row.name}"
        write_prompt(folder / "prompts" / name / "prompt.safetensors", row_file(row))
        selection = Selection(row.selected, row.selected_loss, 90, "hold-out")
        summary.append(SummaryRow(name, selection, n=400, accuracy=row.accuracy))
        log += row_log(row, name)
    (folder / "summary.json").write_text(to_json(Summary(summary)))
    (folder / "metrics.jsonl").write_text("".join(to_json(line) + "\n" for line in log))
    return folder


def head(*rows):
    """The same, as heads alone."""
    return [dataclasses.replace(row, recipe=row.recipe | {"train": "head"}) for row in rows]


@pytest.fixture
def runs(tmp_path):
    """Two runs on one data set: prompts of two lengths, seeds and rates; and heads alone."""
    slow = Row("e", 5, 0, 0.90, 0.64, 0.47, epoch=3, recipe={"lr": 0.01})
    one = [Row("a", 1, 0, 0.70, 0.71, 0.50), Row("b", 1, 1, 0.74, 0.69, 0.48)]
    five = Row("c", 5, 0, 0.80, 0.66, 0.49)
    heads = head(Row("d", 5, 0, 0.60, 0.65, 0.53), Row("f", 1, 0, 0.55, 0.75, 0.53))
    full = write_run(tmp_path / "full", five, *one, slow)
    return full, write_run(tmp_path / "head", *heads)


# ---- a model to ask -------------------------------------------------------------------------


def write_split(folder, split, rows):
    """A tsv of (text, label)."""
    folder.mkdir(exist_ok=True)
    lines = [f"{text}\t{label}\n" for text, label in rows]
    (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines))


def odd_rows(draw, n):
    """Texts of three short words, whose labels are wrong as often as right."""
    rows = []
    for _ in range(n):
        words = ["".join(draw.choices("aeinorst", k=draw.randint(1, 4))) for _ in range(3)]
        rows.append((" ".join(words), draw.choice([0, 1, 1, 2, 2, 2])))
    return rows


@pytest.fixture(scope="module")
def desk(checkpoint, tmp_path_factory):
    """A random model, data sets d and e, and a run of three prompts a, b and c, which were trained
    on d and tell three labels apart.  Asking costs milliseconds."""
    home = tmp_path_factory.mktemp("desk")
    draw = random.Random(1)
    data = {}
    for name, split, n in (
        ("d", "dev", 50),
        ("d", "other", 30),
        ("e", "dev", 40),
        ("e", "other", 20),
    ):
        data[name, split] = odd_rows(draw, n)
        write_split(home / name, split, data[name, split])
    opened = open_checkpoint(str(checkpoint[0]))
    gpt2 = opened.load()
    generator = torch.Generator().manual_seed(2)
    prompts = {}
    rows = []
    for name, P, accuracy, selected in (("a", 3, 0.9, 0.5), ("b", 2, 0.4, 0.9), ("c", 5, 0.6, 0.7)):
        vectors = torch.randn(P, 10, generator=generator)
        prompts[name] = Prompt(vectors, torch.randn(3, 10, generator=generator))
        file = PromptFile(prompts[name], NAMES, opened.base, text_rule=TEXT_RULE)
        file = dataclasses.replace(file, init_ids=list(range(40, 40 + P)))
        recipe = {"data": str(home / "d"), "train": "head"}
        rows.append(Row(name, P, 0, accuracy, selected, 0.3, recipe=recipe, file=file))
    run = write_run(home / "run", *rows)

    @functools.cache
    def read(text):
        ids = torch.tensor([opened.tokenizer.encode(text)])
        return classify(gpt2, [*prompts.values()], ids, torch.tensor([ids.shape[1]]))[:, 0].detach()

    def logits(names, texts):
        """(n, N), read one by one: the mean over the prompts named"""
        which = ["abc".index(name) for name in names]
        return torch.stack([read(text)[which].mean(dim=0) for text in texts])

    paths = {path.parent.name[-1]: path for path in run.glob("prompts/*/prompt.safetensors")}
    return SimpleNamespace(
        home=home,
        run=run,
        d=home / "d",
        e=home / "e",
        data=data,
        prompts=prompts,
        logits=logits,
        gpt2=gpt2,
        tokenizer=opened.tokenizer,
        model=checkpoint[0],
        stranger=Base("elsewhere", "", "0"),
        **paths,
    )


def number_prompt(desk, folder, **scores):
    """A prompt of one column, a regression, on the desk's model: its path."""
    generator = torch.Generator().manual_seed(5)
    prompt = Prompt(desk.prompts["a"].vectors, torch.randn(1, 10, generator=generator))
    file = read_prompt(desk.a)
    file = dataclasses.replace(file, prompt=prompt, labels=["0", "1"], scores=Scores(**scores))
    return write_prompt(folder / "number.safetensors", file)


def number_rows(desk, tmp_path):
    """Two seeds of a regression."""
    file = read_prompt(number_prompt(desk, tmp_path))
    scores = {"majority": None, "constant_loss": 2.5, "untrained_loss": 3.5}
    rows = []
    for name, loss in (("a", 1.25), ("b", 1.75)):
        more = scores | {"loss": loss, "pearson": 0.5}
        known = {"accuracy": None, "selected": None, "untrained": None, "selected_loss": loss + 1}
        rows.append(Row(name, 3, len(rows), scores=more, file=file, **known))
    return rows


@pytest.fixture
def drawn(monkeypatch, capsys, tmp_path):
    """A function that runs a command which writes a picture, and gives its figure."""
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig

    def spy(self, *to, **how):
        kept.append(self)
        return save(self, *to, **how)

    def run(*argv, kind="png"):
        monkeypatch.setattr(Figure, "savefig", spy)
        out = tmp_path / f"picture{len(kept)}.{kind}"
        code, _, err = ask(capsys, *argv, "--out", out)
        assert code == 0, err
        return kept[-1]

    return run
