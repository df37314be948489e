"""What README says about this checkout is true of it."""

import argparse
import importlib
import io
import json
import re
import shlex
import sys

import pytest
from checkpoints import TINY

import evaluate
import train
from model import load_prompt
from support import flags

ROOT = TINY.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_flags_in_readme_exist_and_all_flags_have_help(monkeypatch):
    known = {"--help", "--nproc-per-node"}  # the last is torchrun's
    for module in (train, evaluate):
        kept, add = [], argparse._ActionsContainer.add_argument  # parsers and their groups are such
        with monkeypatch.context() as patch:
            spy = lambda self, *names, add=add, kept=kept, **more: kept.append((names, more)) or add(self, *names, **more)
            patch.setattr(argparse._ActionsContainer, "add_argument", spy)
            with pytest.raises(SystemExit):
                module.main(["--help"])
        helps = {name: more["help"] for names, more in kept for name in names if name.startswith("--")}
        assert all(helps.values())
        assert len({*helps.values()}) == len(helps) > 5 or module is evaluate  # whose verbs share some flags
        known |= {*helps}
    assert {*re.findall(r"--[a-z][a-z-]+", README)} <= known


def test_every_flag_is_looked_at(monkeypatch, place):
    """One that is parsed and then forgotten promises what nobody does."""
    pytest.importorskip("matplotlib")
    seen, parsed = set(), []

    class Watched(argparse.Namespace):
        def __getattribute__(self, name):
            seen.add(name)
            return super().__getattribute__(name)

    for module, name in ((train, "parse_args"), (flags, "asking")):
        watch = lambda *argv, parse=getattr(module, name): parsed.append(Watched(**vars(parse(*argv)))) or parsed[-1]
        monkeypatch.setattr(module, name, watch)
    (place / "test.tsv").write_text("index\tsentence\n0\tlovely\n")
    new = "--model m --data d --epochs 2 --prompt-tokens 2 --seeds 0 1 --out run"
    for module, argv, unread in (
        (train, new, {"overwrite"}), (train, new + " --overwrite", set()),
        (evaluate, "score run", {"verb"}), (evaluate, "predict run lovely", {"verb"}),
        (evaluate, "predict run --input test.tsv --glue x.tsv", {"verb"}), (evaluate, "plot run --out x.svg", {"verb"}),
        (evaluate, "table run/prompts/p2-s0 run/prompts/p2-s1", {"verb"}), (evaluate, "attention run lovely", {"verb"}),
        (evaluate, "tokens run", {"verb", "batch_size"}),  # which reads no text
    ):  # fmt: skip
        seen.clear()
        module.main(argv.split())
        assert {*vars(parsed[-1])} - seen <= unread, argv


def test_line_counts():
    rows = re.findall(r"^\| (\S+\.py) \| (\d+) \|", README, flags=re.M)
    assert [name for name, _ in rows] == ["model.py", "data.py", "train.py", "evaluate.py", "report.py", "minimal.py"]
    for name, lines in rows:
        assert len((ROOT / name).read_text().splitlines()) == int(lines), name
    told = re.search(r"one prompt, in (\d+) lines", (ROOT / "porting/porting.md").read_text())
    assert int(told[1]) == len((ROOT / "minimal.py").read_text().splitlines())


def test_dependencies():
    text = (ROOT / "setup.cfg").read_text()
    named = re.search(r"install_requires =\n((?:    .+\n)+)", text)[1].split()
    for name in (re.split(r"[<>=]", word)[0] for word in named):
        assert name in README.replace("\n", " "), name


def blocks():
    """[(command, output lines)] of every `$ command` in README"""
    found = re.findall(r"^    \$ ((?:.*\\\n)*.*)\n((?:    (?!\$).*\n)*)", README, flags=re.M)
    return [(command.replace("\\\n", " "), [line[4:] for line in out.splitlines()]) for command, out in found]


def test_the_first_screen_holds_what_it_should():
    screen = "\n".join(README.splitlines()[:40])
    for piece in ("predict weights/tiny/prompts", "pip install -e . && python train.py", "pytest", "Reading order"):
        assert piece in screen, piece


def near(a, b):
    """Whether two words are the same, or numbers of one form, nearly so: bfloat16 and float32 differ in the last digits."""
    forms = [re.fullmatch(r"([+-]?)\d+(?:\.(\d+))?", word) for word in (a, b)]
    if not all(forms) or len({(bool(form[1]), len(form[2] or "")) for form in forms}) > 1:
        return a == b
    return abs(float(a) - float(b)) <= (0.03 * max(1, abs(float(a))) if "." in a else 4)


def test_the_answers_shown_are_the_real_ones(monkeypatch, capsys):
    """Words to the letter, numbers nearly: of a neighbour of a vector, the nearest alone."""
    monkeypatch.chdir(ROOT)
    ran = []
    for command, shown in blocks():
        before, _, command = command.rpartition(" | ")
        _, program, *argv = shlex.split(command) + ["", ""]
        if program not in ("evaluate.py", "report.py"):
            continue
        stdin = shlex.split(before)[-1].replace("\\n", "\n") if before else ""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        importlib.import_module(program.removesuffix(".py")).main([word for word in argv if word])
        out, err = capsys.readouterr()
        real = (err + out).splitlines()
        if argv[0] == "tokens":
            shown, real = ([re.sub(r"(' *\d\.\d\d) .*", r"\1", line) for line in lines] for lines in (shown, real))
        assert len(shown) == len(real) > 0
        for a, b in zip(shown, real):
            words = [re.split(r"[\s,:;]+", line.rstrip()) for line in (a, b)]
            assert len(words[0]) == len(words[1]) and all(map(near, *words)), f"{a!r} is shown, {b!r} is real"
        ran.append(argv[0])
    assert {*ran} >= {"score", "predict", "attention", "tokens"}


def test_the_training_output_shown_is_that_of_the_shipped_prompt():
    """To four of 399 answers: machines differ in the last digits of a float, and so in an answer or two."""
    _, shown = next((c, out) for c, out in blocks() if "train.py" in c)
    row = next(line.split() for line in shown if line.startswith("p10-s0"))
    metadata = load_prompt(ROOT / "weights/tiny/prompts/reviews-p10/prompt.safetensors")[1]
    assert abs(float(row[4]) - float(metadata["accuracy"])) < 0.011 and int(row[2]) == metadata["recipe"]["epoch"]
    defaults = train.parse_args([])
    assert metadata["recipe"] | {"dtype": ""} == {
        "data": defaults.data, "head_lr": defaults.head_lr, "batch_size": defaults.batch_size, "epochs": defaults.epochs,
        "steps": defaults.steps, "train": defaults.train, "select_on": defaults.select_on, "lr": defaults.lr[0],
        "seed": defaults.seeds[0], "epoch": metadata["recipe"]["epoch"], "dtype": "",
    }  # fmt: skip
    assert json.loads(metadata["prompt_tokens"]) == defaults.prompt_tokens[0]
