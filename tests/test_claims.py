"""What README says about this checkout is true of it."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from checkpoints import TINY

import evaluate
import train
from model import load_prompt

ROOT = TINY.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def parsers(monkeypatch):
    """{program: {flag: its help}}"""
    found = {}
    for module in (train, evaluate):
        kept = []
        add = module.argparse.ArgumentParser.add_argument

        def spy(self, *names, add=add, kept=kept, **more):
            kept.append((names, more))
            return add(self, *names, **more)

        with monkeypatch.context() as patch:
            patch.setattr(module.argparse.ArgumentParser, "add_argument", spy)
            with pytest.raises(SystemExit):
                module.main(["--help"])
        found[module.__name__] = {n: more for names, more in kept for n in names if n.startswith("--")}
    return found


def test_flags_in_readme_exist_and_all_flags_have_help_and_are_used(monkeypatch):
    flags = parsers(monkeypatch)
    known = set().union(*flags.values()) | {"--help", "--nproc-per-node"}  # the last is torchrun's
    assert set(re.findall(r"--[a-z][a-z-]+", README)) - known == set()
    for program, its in flags.items():
        helps = [more["help"] for flag, more in its.items()]
        assert all(helps), program
        assert len(set(helps)) == len(helps) or program == "evaluate"  # its verbs share some flags
    code = (ROOT / "train.py").read_text() + (ROOT / "evaluate.py").read_text()
    for flag, more in [pair for its in flags.values() for pair in its.items() if pair[0] != "--help"]:
        name = more.get("dest", flag[2:].replace("-", "_"))
        assert f"args.{name}" in code, f"{flag} is parsed and never used"


def test_line_counts():
    rows = re.findall(r"^\| (\S+\.py) \| (\d+) \|", README, flags=re.M)
    assert [name for name, _ in rows] == ["model.py", "data.py", "train.py", "evaluate.py", "tests/oracle.py"]
    for name, lines in rows:
        assert len((ROOT / name).read_text().splitlines()) == int(lines), name


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


def test_the_predictions_shown_are_the_real_ones():
    """Labels to the letter; shares to .02, since bfloat16 and float32 machines differ in the last digits."""
    command, shown = next((c, out) for c, out in blocks() if "predict" in c)
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    real = done.stdout.splitlines()
    assert len(shown) == len(real) > 1, done.stderr
    for a, b in zip(shown, real):
        (label, share, text), (other, real_share, same) = a.split(None, 2), b.split("\t")
        assert (label, text) == (other, same) and abs(float(share) - float(real_share)) < 0.02


def test_the_training_output_shown_is_that_of_the_shipped_prompt():
    _, shown = next((c, out) for c, out in blocks() if "train.py" in c)
    row = next(line.split() for line in shown if line.startswith("p10-s0"))
    metadata = load_prompt(ROOT / "weights/tiny/prompts/reviews-p10/prompt.safetensors")[1]
    assert row[4] == f"{float(metadata['accuracy']):.4f}" and int(row[2]) == metadata["recipe"]["epoch"]
    defaults = train.parse_args([])
    assert metadata["recipe"] | {"dtype": ""} == {
        "data": defaults.data, "head_lr": defaults.head_lr, "batch_size": defaults.batch_size, "epochs": defaults.epochs,
        "steps": defaults.steps, "train": defaults.train, "select_on": defaults.select_on, "lr": defaults.lr[0],
        "seed": defaults.seeds[0], "epoch": metadata["recipe"]["epoch"], "dtype": "",
    }  # fmt: skip
    assert json.loads(metadata["prompt_tokens"]) == defaults.prompt_tokens[0]
