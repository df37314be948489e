"""porting/story.py: what it prints of a text is what this project computes of it."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import evaluate
import story
from helpers import ROOT, TINY
from model import classify, losses
from support.checkpoint import open_checkpoint
from support.prompt_file import read_prompt

REVIEWS = TINY / "prompts" / "reviews-p10" / "prompt.safetensors"


@pytest.fixture(scope="module")
def told():
    """What the program prints of "great fun" """
    words = [sys.executable, "porting/story.py", "great fun"]
    how = {"cwd": ROOT, "capture_output": True, "text": True}
    return subprocess.run(words, check=True, **how).stdout


@pytest.fixture(scope="module")
def prompt():
    return read_prompt(REVIEWS).prompt.double()


def our_logits(prompt):
    """(1, 1, N) of "great fun", in float64"""
    checkpoint = open_checkpoint("tiny")
    ids = torch.tensor([checkpoint.tokenizer.encode("great fun")])
    lengths = torch.tensor([ids.shape[1]])
    return classify(checkpoint.load(torch.float64), [prompt], ids, lengths)


def numbers_after(word, out):
    """The two numbers that stand after a word"""
    found = re.search(rf"{word} +([-\d.]+) +([-\d.]+)", out)
    return [float(number) for number in found.groups()]


def test_it_fits_on_one_screen(told):
    lines = told.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_its_logits_are_those_of_model_py(told, prompt):
    """To the digits shown."""
    truth = our_logits(prompt)[0, 0].tolist()
    assert numbers_after("logits", told) == pytest.approx(truth, abs=1e-5)


def test_its_probabilities_are_those_of_model_py(told, prompt):
    truth = our_logits(prompt)[0, 0].softmax(0).tolist()
    assert numbers_after("probabilities", told) == pytest.approx(truth, abs=6e-4)


def test_it_ends_as_predict_does(told, capsys):
    """In float32, to the digits shown."""
    flags = ["--json", "--dtype", "float32", "--device", "cpu"]
    evaluate.main(["predict", str(REVIEWS), "great fun", *flags])
    said = json.loads(capsys.readouterr().out)
    assert numbers_after("logits", told) == pytest.approx(said["logits"], abs=2e-5)
    shares = numbers_after("probabilities", told)
    assert shares == pytest.approx(said["probabilities"], abs=6e-4)


@pytest.mark.parametrize("label", [0, 1])
def test_its_gradients_are_those_of_model_py(told, prompt, label):
    loss = losses(our_logits(prompt), torch.tensor([label])).sum()
    pair = (prompt.vectors, prompt.head)
    of_vectors, of_head = torch.autograd.grad(loss, pair)
    truth = [label, loss.item(), of_head.norm().item(), of_vectors.norm().item()]
    truth += of_vectors.norm(dim=1).tolist()
    line = told.splitlines()[label - 2]
    assert list(map(float, line.split())) == pytest.approx(truth, abs=6e-4)


# ---- one thing changed ----------------------------------------------------------------------


def roll_positions(tensors):
    tensors["wpe.weight"] = tensors["wpe.weight"].roll(1, 0)


def transpose_a_square(tensors):
    name = "h.3.attn.c_proj.weight"
    tensors[name] = tensors[name].t().contiguous()


def nudge_a_bias(tensors):
    tensors["h.5.ln_2.bias"][7] += 0.1


def nudge_a_vector(tensors):
    tensors["prompt"][9, 0] += 0.1


def turn_the_prompt(tensors):
    tensors["prompt"] = tensors["prompt"].flip(0)


def turn_the_head(tensors):
    tensors["head.weight"] = tensors["head.weight"].flip(0)


def change_nothing(tensors):
    """So that the other changes are seen for what they are"""


@pytest.fixture
def copy(tmp_path):
    """A folder with a copy of the bundled model and of the prompt"""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    shutil.copy(REVIEWS, tmp_path)
    return tmp_path


def is_the_same_story(capsys, folder, told):
    """Whether another folder gives other logits than the bundled one"""
    story.tell("great fun", folder, folder / "prompt.safetensors")
    out = capsys.readouterr().out
    truth = numbers_after("logits", told)
    return numbers_after("logits", out) == pytest.approx(truth, abs=1e-4)


CHANGES = [
    ("model.safetensors", roll_positions),
    ("model.safetensors", transpose_a_square),
    ("model.safetensors", nudge_a_bias),
    ("prompt.safetensors", nudge_a_vector),
    ("prompt.safetensors", turn_the_prompt),
    ("prompt.safetensors", turn_the_head),
    ("model.safetensors", change_nothing),
]


@pytest.mark.parametrize("name,change", CHANGES)
def test_one_changed_tensor_changes_the_story(capsys, copy, told, name, change):
    tensors = load_file(copy / name)
    change(tensors)
    save_file(tensors, copy / name)
    changed = change is not change_nothing
    assert is_the_same_story(capsys, copy, told) != changed


def test_two_exchanged_merges_change_the_story(capsys, copy, told):
    """ "reat", of id 496, is made in the latter."""
    path = copy / "merges.txt"
    lines = path.read_text("utf-8").split("\n")
    lines[240:242] = reversed(lines[240:242])
    path.write_text("\n".join(lines), "utf-8")
    assert not is_the_same_story(capsys, copy, told)


# ---- texts ----------------------------------------------------------------------------------

TEXTS = [
    "it's 1999 , they'LL SAY",
    " naïve 電影 🎬 ²Ⅷ\u00ad\u00a0. ",
    "a\n\n  b\t c_d--",
    "<|endoftext|>",
    "x " * 300,  # 118 of its tokens leave the prompt room
]


@pytest.mark.parametrize("text", TEXTS)
def test_it_has_the_tokens_of_the_tokenizer(capsys, text):
    story.tell(text)
    first = capsys.readouterr().out.splitlines()[0]
    ids = [int(number) for number in re.findall(r" \(id (\d+)\)", first)]
    truth = open_checkpoint("tiny").tokenizer.encode(text.strip())
    assert ids == truth[:118]


def test_what_it_can_not_read_is_one_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        story.main(["great fun", str(tmp_path)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(tmp_path) in err
