"""The changes of docs/learn.md fit minimal.py, and each does what the page says of it."""

import re
import types

import pytest
import torch

import minimal
from helpers import ROOT, random_weights, sizes, write_checkpoint, write_data
from model import Prompt, classify
from support.checkpoint import open_checkpoint

PAGE = (ROOT / "docs" / "learn.md").read_text(encoding="utf-8")
SOURCE = (ROOT / "minimal.py").read_text(encoding="utf-8")
SECTIONS = re.split(r"(?m)^## (?=\d)", PAGE)
EACH = pytest.mark.parametrize("number", range(1, len(SECTIONS)))

# ---- from the page to a program -------------------------------------------------------------


def blocks(number):
    """The diffs of an exercise, in their order; exercise 0 has none"""
    return re.findall(r"(?s)```diff\n(.*?)```", SECTIONS[number])


def hunks(block):
    """What goes and what comes in its place, [(before, after)], each of whole lines"""
    found = []
    for go, come in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", block, re.MULTILINE):
        before = re.sub(r"(?m)^-", "", go)
        after = re.sub(r"(?m)^\+", "", come)
        found.append((before, after))
    return found


def change(source, block):
    """minimal.py's text after one block"""
    for before, after in hunks(block):
        assert source.count(f"\n{before}") == 1, before
        source = source.replace(f"\n{before}", f"\n{after}")
    return source


def program(folder, number, parts=9):
    """minimal.py after the first parts of an exercise, a module that reads from a folder"""
    source = SOURCE
    for block in blocks(number)[:parts]:
        source = change(source, block)
    module = types.ModuleType("changed")
    module.__file__ = str(folder / "minimal.py")
    exec(compile(source, f"exercise {number}", "exec"), module.__dict__)
    return module


# ---- what the programs get ------------------------------------------------------------------

CONFIG = sizes()
TEXT = [5, 6, 7, 8]
T = len(TEXT)
P = 3
EXAMPLES = [([40 + i % 2, i], i % 2) for i in range(20)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a random model and two words a text; 7 of 13 dev labels are 0"""
    folder = tmp_path_factory.mktemp("home")
    tiny = folder / "weights" / "tiny"
    write_checkpoint(tiny, CONFIG, random_weights(CONFIG))
    write_data(folder / "reviews", dev=13)
    return folder


@pytest.fixture
def weights():
    return random_weights(CONFIG)


@pytest.fixture
def drawn():
    """Two prompts: vectors (2, P, C), heads (2, N, C)"""
    generator = torch.Generator().manual_seed(0)
    C = CONFIG["n_embd"]
    vectors = torch.randn(2, P, C, generator=generator)
    return vectors, torch.randn(2, 2, C, generator=generator)


def watch(module):
    """A list that fills with what each block of the model gives, (Q, C) each"""
    seen = []
    block = module.block

    def watched(*given):
        seen.append(block(*given))
        return seen[-1]

    module.block = watched
    return seen


def score(module, steps, capsys):
    """The accuracy that the program prints"""
    module.main(steps=steps)
    last = capsys.readouterr().out.splitlines()[-1]
    return re.match(r"accuracy (\d\.\d{4}) of 13 texts", last)[1]


# ---- all exercises --------------------------------------------------------------------------


def test_there_are_six_exercises_and_each_has_a_change():
    assert len(SECTIONS) == 7
    assert all(blocks(number) for number in range(1, 7))


@EACH
def test_every_line_of_a_block_goes_or_comes(number):
    """A line that belongs to no pair would go unnoticed."""
    for block in blocks(number):
        pairs = hunks(block)
        assert all(before != after for before, after in pairs)
        lines = "".join(before + after for before, after in pairs).splitlines()
        assert len(lines) == len(block.splitlines())


@EACH
def test_each_change_trains_finite_numbers(home, weights, number):
    module = program(home, number)
    for tensor in module.train(EXAMPLES, weights, CONFIG, steps=2):
        assert tensor.isfinite().all()


@EACH
def test_each_changed_program_runs_to_its_end(home, number, capsys):
    assert score(program(home, number), 2, capsys)


def test_the_page_is_short():
    lines = PAGE.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 130


# ---- 1. the prompt before the text ----------------------------------------------------------


def how_far_rows_move(module, rows, weights, drawn):
    """By how much each of the given rows differs under two prompts, at most"""
    seen = watch(module)
    for vectors, head in zip(*drawn, strict=True):
        module.logits_of(TEXT, vectors, head, weights, CONFIG)
    L = CONFIG["n_layer"]
    return (seen[L - 1][rows] - seen[-1][rows]).abs().amax(dim=1)


def test_a_text_after_the_prompt_depends_on_it(home, weights, drawn):
    rows = slice(P, P + T)
    module = program(home, 1)
    assert how_far_rows_move(module, rows, weights, drawn).min() > 0.1


def test_a_text_before_the_prompt_does_not(home, weights, drawn):
    module = program(home, 0)
    assert how_far_rows_move(module, slice(T), weights, drawn).max() < 1e-5


# ---- 2. a head of one column ----------------------------------------------------------------


def test_one_column_under_argmax_answers_0_to_everything(home, capsys):
    argmax = program(home, 2, parts=1)
    assert score(argmax, 3, capsys) == f"{7 / 13:.4f}"


@pytest.mark.parametrize(("parts", "accuracy"), [(1, "0.5385"), (2, "1.0000")])
def test_a_column_that_is_right_each_time_needs_a_threshold(home, capsys, parts, accuracy):
    module = program(home, 2, parts)
    module.read = lambda *_: [([i % 2], i % 2) for i in range(13)]
    module.train = lambda *_, steps: (None, None)
    module.logits_of = lambda ids, *_: torch.tensor([0.4 + ids[0] / 5])
    assert score(module, 0, capsys) == accuracy


def test_the_share_of_label_0_is_as_the_page_says():
    tsv = (ROOT / "reviews" / "dev.tsv").read_text(encoding="utf-8")
    labels = re.findall(r"(?m)\t([01])$", tsv)
    share = labels.count("0") / len(labels)
    assert f"{share:.4f}".lstrip("0") in SECTIONS[2]


# ---- 3. positions that begin anew -----------------------------------------------------------


def logits_with_other_positions(module, weights, drawn):
    """Logits of a text, and the same when all positions after the text's are others"""
    vectors, heads = drawn
    given = [TEXT, vectors[0], heads[0], weights, CONFIG]
    logits = module.logits_of(*given)
    weights["wpe.weight"][T:] *= 2
    return logits, module.logits_of(*given)


def test_a_prompt_that_begins_anew_reads_no_later_position(home, weights, drawn):
    module = program(home, 3)
    a, b = logits_with_other_positions(module, weights, drawn)
    assert torch.equal(a, b)


def test_a_prompt_that_goes_on_reads_the_positions_after_the_text(home, weights, drawn):
    module = program(home, 0)
    a, b = logits_with_other_positions(module, weights, drawn)
    assert (a - b).abs().max() > 0.01


# ---- 4. no prompt ---------------------------------------------------------------------------


def test_the_head_alone_is_trained(home, weights):
    module = program(home, 4)
    vectors, head = module.train(EXAMPLES, weights, CONFIG, steps=2)
    assert vectors.shape == (0, CONFIG["n_embd"])
    assert head.shape == (2, CONFIG["n_embd"])


@pytest.mark.parametrize("number", [0, 4])
def test_without_a_prompt_no_gradient_passes_through_the_model(home, weights, number):
    module = program(home, number)
    seen = watch(module)
    module.train(EXAMPLES, weights, CONFIG, steps=1)
    gradient = {x.requires_grad for x in seen}
    assert gradient == {number == 0}


# ---- 5. nothing frozen ----------------------------------------------------------------------


def moved(module, weights):
    """The names of the weights that training changes"""
    module.train(EXAMPLES, weights, CONFIG, steps=2)
    before = random_weights(CONFIG)
    return {name for name in before if not torch.equal(before[name], weights[name])}


def test_fine_tuning_moves_every_weight(home, weights):
    assert moved(program(home, 5), weights) == set(weights)


def test_prompt_tuning_moves_none(home, weights):
    assert moved(program(home, 0), weights) == set()


# ---- 6. two prompts in one pass -------------------------------------------------------------


def together(module, weights, drawn):
    """Logits (K, N) of all prompts in one pass"""
    return module.logits_of(TEXT, *drawn, weights, CONFIG)


def test_two_prompts_in_one_pass_answer_as_each_alone(home, weights, drawn):
    both = together(program(home, 6), weights, drawn)
    for logits, vectors, head in zip(both, *drawn, strict=True):
        alone = minimal.logits_of(TEXT, vectors, head, weights, CONFIG)
        assert (logits - alone).abs().max() < 1e-5


def test_two_prompts_in_one_pass_are_what_model_py_computes(home, weights, drawn):
    both = together(program(home, 6), weights, drawn)
    prompts = [Prompt(*pair) for pair in zip(*drawn, strict=True)]
    ids = torch.tensor([TEXT])
    gpt2 = open_checkpoint(str(home / "weights" / "tiny")).load()
    packed = classify(gpt2, prompts, ids, torch.tensor([T]))  # (K, 1, N)
    assert (packed[:, 0] - both).abs().max() < 1e-5


def test_without_the_mask_they_do_not(home, weights, drawn):
    masked = together(program(home, 6), weights, drawn)
    module = program(home, 6)
    attention = module.attention
    module.attention = lambda *given: attention(*given[:-1], torch.zeros(T + 2 * P))
    assert (together(module, weights, drawn) - masked).abs().max() > 0.01
