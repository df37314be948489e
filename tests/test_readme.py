"""What README says about this checkout is true of it: commands, flags, numbers, links."""

import ast
import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from helpers import ROOT
from support import questions
from support.checkpoint import open_checkpoint
from support.dataset import open_dataset
from support.prompt_file import read_prompt
from support.settings import Settings, parser_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
PORTING = (ROOT / "porting" / "porting.md").read_text(encoding="utf-8")

# ---- blocks ---------------------------------------------------------------------------------

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# What a block needs that is not here: a network, or a run or folder of the reader's.
ELSEWHERE = ("git clone", "pip install", "torchrun", "--model gpt2", "FOLDER", "RUN")


@dataclass(frozen=True)
class Block:
    """A fenced part of README, and the text that it should print, if that stands after it."""

    kind: str
    text: str
    shown: str | None

    def __str__(self):
        return self.text.strip().split("\n")[-1][:50]


def blocks(kind):
    """The blocks of one kind, in order"""
    found = list(FENCE.finditer(README))
    chosen = []
    for i, match in enumerate(found):
        shown = None
        if i + 1 < len(found) and found[i + 1][1] == "text":
            shown = found[i + 1][2]
        if match[1] == kind:
            chosen.append(Block(kind, match[2], shown))
    return chosen


def is_offline(block):
    return not any(word in block.text for word in ELSEWHERE)


OFFLINE = [block for block in blocks("sh") if is_offline(block)]
PYTHON = blocks("python")


def commands(block):
    """The words of each command in a block of sh, without comments"""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        command = []
        for word in shlex.split(line, comments=True):
            if word in ("&&", "|", ";"):
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    return [command for command in found if command]


# ---- what a block prints --------------------------------------------------------------------

MASKS = {  # what differs from run to run
    r"\b\d+:\d\d:\d\d\b": "TIME",
    r"\b[\d.,]+ (steps|texts|examples)/s": "SPEED",
    r"\b[\d.]+ (s|seconds|minutes)\b": "TIME",
}
PROGRESS = re.compile(r"\d[\d,]* of \d[\d,]* \w+")  # a line a minute, where there is no terminal
NUMBER = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)")
TRAINED = 0.05  # how far scores go apart in which machines round otherwise, step by step


def lines_of(text):
    """The lines of an output, without times and speeds, and with single spaces"""
    lines = []
    for line in text.rstrip("\n").splitlines():
        if PROGRESS.fullmatch(line):
            continue
        for pattern, mask in MASKS.items():
            line = re.sub(pattern, mask, line)
        lines.append(" ".join(line.split()))
    return lines


def is_near(shown, real, is_trained):
    """Whether numbers agree but for a unit of their last digit; after training within TRAINED"""
    if shown == real:
        return True
    decimals = len(shown.partition(".")[2])
    if decimals != len(real.partition(".")[2]):
        return False
    if not decimals:
        # The epoch that was the best.
        return is_trained and len(shown) == len(real) == 1
    limit = TRAINED if is_trained else 10**-decimals
    gap = abs(float(shown.replace(",", "")) - float(real.replace(",", "")))
    return gap <= limit * 1.001


def is_same_line(shown, real, is_trained):
    """Whether two lines agree: words to the letter, numbers nearly"""
    parts = NUMBER.split(shown)
    others = NUMBER.split(real)
    if parts[::2] != others[::2]:
        return False
    pairs = zip(parts[1::2], others[1::2], strict=True)
    return all(is_near(one, other, is_trained) for one, other in pairs)


def check_output(shown, real, is_trained=False):
    """What is shown is what was printed; a line of three dots stands for any lines."""
    shown = lines_of(shown)
    real = lines_of(real)
    if "..." in shown:
        place = shown.index("...")
        rest = len(shown) - place - 1
        assert len(real) >= place + rest, real
        real = real[:place] + ["..."] + real[len(real) - rest :]
    assert len(shown) == len(real), real
    for one, other in zip(shown, real, strict=True):
        assert is_same_line(one, other, is_trained), f"{one!r} is shown, {other!r} is real"


def test_the_comparison_knows_what_differs():
    """Here, so that a mask that hides too much is noticed."""
    shown = "epoch 1, 5.6 steps/s, 0:00:16 gone, 0:01:20 left, accuracy 0.6899"
    check_output(shown, "epoch 1, 12 steps/s, 0:10:16 gone, 1:01:20 left, accuracy  0.6900\n")
    for real in (
        shown.replace("0.6899", "0.6897"),
        shown.replace("0.6899", "0.690"),
        shown.replace("epoch 1", "epoch 2"),
        shown.replace("left", "right"),
        shown + "\nmore",
    ):
        with pytest.raises(AssertionError):
            check_output(shown, real)
    check_output(shown, shown.replace("0.6899", "0.6700"), is_trained=True)
    check_output("a\n...\nb", "a\nc\nd\nb")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, in which what README says may be done"""
    copy = tmp_path_factory.mktemp("readme") / "checkout"
    left_out = shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


def output_of(words, folder):
    """What a process prints, as a terminal would show it"""
    here = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONUNBUFFERED": "1"}  # so that lines of both streams come in order
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    how = {"cwd": folder, "env": environment, "encoding": "utf-8", "timeout": 600}
    done = subprocess.run(words, check=False, **streams, **how)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the blocks are for a POSIX shell")
@pytest.mark.parametrize("block", OFFLINE, ids=str)
def test_a_block_for_the_shell_prints_what_is_shown(block, checkout):
    """It is pasted as it stands."""
    real = output_of(["bash", "-e", "-c", block.text], checkout)
    if block.shown is not None:
        check_output(block.shown, real, "train.py" in block.text)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_of_python_runs(block, checkout):
    real = output_of([sys.executable, "-c", block.text], checkout)
    if block.shown is not None:
        check_output(block.shown, real)


def test_both_programs_are_shown_with_what_they_print():
    shown = [block.text for block in OFFLINE if block.shown]
    for program in ("python train.py", "python evaluate.py predict"):
        assert any(program in text for text in shown), program
    assert PYTHON


def test_the_bundled_prompt_is_of_the_command_that_is_shown():
    """`python train.py` without other flags; machines differ in an answer or two."""
    recipe = read_prompt(ROOT / "weights/tiny/prompts/reviews-p10/prompt.safetensors").recipe
    settings = Settings()
    for name in ("data", "head_lr", "batch_size", "epochs", "steps", "train", "select_on"):
        assert getattr(recipe, name) == getattr(settings, name), name
    assert [recipe.lr] == settings.lr
    assert [recipe.seed] == settings.seeds


def test_the_first_screen_holds_what_it_should():
    screen = "\n".join(README.splitlines()[:70])
    for piece in ("weights/tiny/prompts", "pip install -e .", "python train.py", "pytest"):
        assert piece in screen, piece
    assert re.search("(?m)^#+ Reading order", README)


def test_it_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 180
    assert len(README.split()) <= 1700


def test_each_page_begins_with_whom_it_is_for():
    for path in sorted((ROOT / "docs").glob("*.md")):
        _, _, first = path.read_text(encoding="utf-8").split("\n", 2)
        assert first.startswith("For whoever "), path.name


# ---- flags ----------------------------------------------------------------------------------

# Of torchrun, pip, ruff, and of bench/alternatives.py, whose command test_alternatives.py reads.
OF_OTHERS = {"--nproc-per-node", "--index-url", "--check", "--only"}


def parsers():
    """{name: parser}: that of train.py, and those of the verbs of evaluate.py"""
    found = {"train.py": parser_of("")}
    (verbs,) = [
        action
        for action in questions.parser_of("")._actions
        if isinstance(action.choices, dict) and action.dest == "verb"
    ]
    return found | verbs.choices


def test_every_flag_has_a_help_text():
    for name, parser in parsers().items():
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"


def test_no_two_flags_of_a_program_have_the_same_help():
    for name, parser in parsers().items():
        texts = [action.help for action in parser._actions]
        assert len(set(texts)) == len(texts), name


VALUES = {"NAME", "N", "P", "SEED", "LR", "WHAT", "SIZE", "FOLDER", "RUN", "TEXT", "FILE"}


def test_values_have_short_names_in_the_help():
    """P, not PROMPT_TOKENS; a list of choices is its own name."""
    for name, parser in parsers().items():
        for action in parser._actions:
            takes = action.nargs != 0 and action.choices is None
            said = (action.metavar or action.dest).partition(".")[0]  # FILE of FILE.csv
            assert not takes or said in VALUES, f"{name} {action.dest}"


def test_defaults_stand_in_the_help_in_words():
    """(10), not [10]; none is left to argparse's own signs."""
    for name, parser in parsers().items():
        text = parser.format_help()
        of_usage, _, rest = text.partition("\n\n")
        assert "None" not in text, name
        assert not re.search(r"%\(|\[\d|<class", text), name
        for bracket in re.findall(r"\[[^]]*\]", rest):
            assert re.fullmatch(r"\[\w+ \.\.\.\]", bracket), f"{name}: {bracket}"


def test_flags_that_readme_names_exist():
    known = set(OF_OTHERS)
    for parser in parsers().values():
        known |= set(parser._option_string_actions)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known


def test_every_command_is_understood_by_its_program():
    """Also those that are not run here, for what they need is elsewhere."""
    understood = []
    for block in blocks("sh"):
        for words in commands(block):
            for program in {"train.py", "evaluate.py"} & set(words):
                argv = words[words.index(program) + 1 :]
                if program == "train.py":
                    parser_of("").parse_args(argv)  # or ValueError
                else:
                    questions.asked("", argv)
                understood.append(program)
    assert understood.count("train.py") > 5
    assert understood.count("evaluate.py") > 5


def folder_of(words):
    """The run folder that a command of train.py writes, as README names it"""
    argv = words[words.index("train.py") + 1 :]
    settings = parser_of("").parse_args(argv)
    return settings.resume or settings.out or f"runs/{settings.model}-{settings.data}"


def test_no_two_commands_of_readme_write_one_run_folder():
    """Pasted one after the other, the second would be refused; --resume goes on with the first."""
    folders = []
    for block in blocks("sh"):
        for words in commands(block):
            if "train.py" in words and "--resume" not in words:
                folders.append(folder_of(words))
    assert len(set(folders)) == len(folders) > 5, folders


# ---- every flag is looked at ----------------------------------------------------------------

# One that is parsed and then forgotten promises what nobody does.

SOURCES = [ROOT / "train.py", ROOT / "evaluate.py", ROOT / "metrics.py"]
SOURCES += sorted((ROOT / "support").glob("*.py")) + sorted((ROOT / "report").glob("*.py"))


def nodes_of(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def name_of(node):
    """settings of settings.lr, and of request.settings.lr; None of another expression"""
    return getattr(node, "id", None) or getattr(node, "attr", None)


def attributes_read(owner):
    """The names x of every owner.x that is read somewhere in the source"""
    names = set()
    for path in SOURCES:
        for node in nodes_of(path):
            is_read = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            if is_read and name_of(node.value) == owner:
                names.add(node.attr)
    return names


def test_every_setting_is_looked_at():
    flags = {field.name for field in fields(Settings) if "group" in field.metadata}
    assert flags <= attributes_read("settings")
    assert {"settings", "resume", "overwrite"} <= attributes_read("request")


def unread(function):
    """The parameters of a function that it never reads"""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    body = [node for statement in function.body for node in ast.walk(statement)]
    read = {node.id for node in body if isinstance(node, ast.Name)}
    return names - read


# Where the flags of evaluate.py go.  Each is a keyword: Python sees to it that somebody takes it.
ASKED = ["evaluate.py", "metrics.py", "support/answers.py"]
ASKED += [f"report/{path.name}" for path in sorted((ROOT / "report").glob("*.py"))]


@pytest.mark.parametrize("name", ASKED)
def test_no_function_is_given_what_it_does_not_read(name):
    for node in nodes_of(ROOT / name):
        if isinstance(node, ast.FunctionDef):
            assert unread(node) <= {"self"}, f"{node.name}, line {node.lineno}"


# ---- numbers, dependencies, links -----------------------------------------------------------


def numbers_of_a_prompt():
    """Of ten vectors and two labels on gpt2."""
    return (10 + 2) * 768


def millions_of_parameters():
    tensors = open_checkpoint("tiny").each_tensor()
    return round(sum(tensor.numel() for _, tensor in tensors) / 1e6)


def texts_to_train_on():
    return len(open_dataset("reviews").train)


def lines_of_tables():
    return sum(len(path.read_text("utf-8").splitlines()) - 1 for path in ROOT.glob("reviews/*.tsv"))


def kilobytes_of_prompts():
    paths = ROOT.glob("weights/tiny/prompts/*/prompt.safetensors")
    (size,) = {round(path.stat().st_size / 1000) for path in paths}
    return size


TOLD = {  # what README says, if it says so -> the truth
    r"\(10 \+ 2\) x 768 = ([\d,]+)": numbers_of_a_prompt,
    r"\(([\d]+) million parameters\)": millions_of_parameters,
    r"prompts of (\d+) kB": kilobytes_of_prompts,
    r"on ([\d,]+) sentences": texts_to_train_on,
    r"\[([\d,]+) sentences\]": lines_of_tables,
}


def test_numbers_about_what_is_bundled():
    found = 0
    for pattern, truth in TOLD.items():
        for said in re.findall(pattern, README):
            found += 1
            assert int(said.replace(",", "")) == truth(), pattern
    assert found >= 3


def test_line_counts():
    """In a table, and in a sentence after the link to a file."""
    told = [(ROOT, row) for row in re.findall(r"(?m)^\| (\S+\.py) \| (\d+) \|", README)]
    in_a_sentence = r"\]\((\S+minimal\.py)\)[^.]*? in (\d+) lines"
    for folder, text in ((ROOT, README), (ROOT / "porting", PORTING)):
        told += [(folder, row) for row in re.findall(in_a_sentence, text)]
    assert told
    for folder, (name, count) in told:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == int(count), name


def setup():
    """setup.cfg"""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def names_in(requirements):
    """The names of packages in a list of requirements, as they are imported"""
    found = set()
    for line in requirements.splitlines():
        name = re.match(r"[A-Za-z][\w-]*", line)
        if name:
            found.add(name[0].replace("-", "_").lower())
    return found


def test_what_is_installed_is_what_is_imported():
    """`pip install -e .` brings all that the programs need, and nothing else."""
    imported = set()
    for path in SOURCES + [ROOT / "model.py", ROOT / "data.py", ROOT / "minimal.py"]:
        for node in nodes_of(path):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    ours = {path.stem for path in ROOT.iterdir()}
    foreign = imported - set(sys.stdlib_module_names) - ours
    required = names_in(setup()["options"]["install_requires"])
    extra = names_in(setup()["options.extras_require"]["plot"])
    assert foreign - extra == required - {"numpy"}  # through which torch gives tensors to others
    for name in required:
        assert "brings torch" not in README or name in README, name


def test_the_oldest_python_is_the_one_that_is_told():
    oldest = setup()["options"]["python_requires"].removeprefix(">=")
    told = re.findall(r"Python (3\.\d+)", README)
    assert set(told) <= {oldest}


LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_every_link_leads_somewhere():
    for target in LINK.findall(README):
        path = target.partition("#")[0]
        if path and "://" not in target:
            assert (ROOT / path).exists(), target


def test_every_folder_in_the_map_is_there():
    for cell in re.findall(r"(?m)^\| ([^|]+) \|", README):
        for name in re.findall(r"[\w/]+/", cell):
            assert Path(ROOT, name).is_dir(), name
