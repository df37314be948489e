"""support/first_vectors.py: what --init says, and how a prompt begins."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from helpers import TINY, contents
from run_helpers import BASE, SHORT, digest, end, prompt_path, refused, run
from support.checkpoint import open_checkpoint
from support.first_vectors import FirstVectors, is_prompt, resolve_init
from support.prompt_file import read_prompt

# ---- what --init means ----------------------------------------------------------------------


@pytest.fixture
def first(place):
    """A finished run `first` of one prompt of three vectors"""
    run("--prompt-tokens", 3, "--steps", 3, out="first")
    return prompt_path("p3-s0", place / "first")


@pytest.mark.parametrize("word", ["sample", "words", "eot"])
def test_a_known_word_is_itself_even_beside_a_folder_of_its_name(place, word):
    os.mkdir(word)
    assert resolve_init(word) == word
    assert not is_prompt(word)


@pytest.mark.parametrize("name", ["first", "first/prompts/p3-s0", "./first"])
def test_a_run_or_a_folder_is_the_whole_path_of_its_best_prompt(first, name):
    assert resolve_init(name) == str(first)
    assert is_prompt(resolve_init(name))


def test_a_file_is_its_whole_path(first):
    assert resolve_init(os.path.relpath(first)) == str(first)


@pytest.mark.parametrize("text", ["Classify this sentence:", "zeros", "a/b/c", "x" * 3000])
def test_what_is_nothing_else_is_a_text(place, text):
    assert resolve_init(text) == text
    assert not is_prompt(text)


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_is_refused_with_what_there_is(place, capsys, blank):
    sentence = refused(capsys, *SHORT, "--out", "run", "--init", blank, naming="--init is blank")
    assert "sample, words, eot" in sentence


def test_a_folder_without_a_prompt_is_refused(place, capsys):
    refused(capsys, *SHORT, "--out", "run", "--init", "d", naming="d is no finished run")


# ---- what is drawn --------------------------------------------------------------------------


def begun(init, P=9, seed=0):
    """The PromptFile of a run of one step that hardly moves"""
    flags = ["--prompt-tokens", P, "--seeds", seed, "--steps", 1, "--lr", 1e-12]
    run("--init", init, *flags, "--head-lr", 1e-12, "--overwrite")
    return read_prompt(prompt_path(f"p{P}-s{seed}"))


def drawn_ids(P, seed=0):
    """The random tokens of a seed: no byte, no end of text"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, 299, (P,), generator=generator).tolist()


def encoded(text):
    """The tokens of a text on the model m"""
    return open_checkpoint("m").tokenizer.encode(text)


def test_sample_draws_tokens_that_are_no_bytes_and_not_the_end(place):
    file = begun("sample")
    assert file.init_ids == drawn_ids(9)
    assert file.init == "sample"


def test_a_seed_begins_alike_whatever_else_is_drawn(place):
    run("--prompt-tokens", 4, "--seeds", 7, "--steps", 1)
    alone = read_prompt(prompt_path("p4-s7"))
    run("--prompt-tokens", 2, 4, "--seeds", 3, 7, "--steps", 1, "--overwrite")
    beside = read_prompt(prompt_path("p4-s7"))
    assert alone.init_ids == beside.init_ids
    other = read_prompt(prompt_path("p4-s3"))
    assert other.init_ids != alone.init_ids


def test_eot_is_the_end_of_text_everywhere(place):
    file = begun("eot")
    assert file.init_ids == [299] * 9
    assert file.init == "eot"


def test_words_are_the_names_of_the_labels_then_random_tokens(place):
    file = begun("words")
    assert file.init_ids == (encoded(" 0 1") + drawn_ids(9))[:9]
    assert file.init_ids != drawn_ids(9)
    assert file.init == "words"


def test_a_text_that_is_too_short_comes_again(place):
    file = begun("a film")
    ids = encoded("a film")
    assert file.init_ids == (ids * 9)[:9]
    assert file.init == "a film"


def test_a_text_that_is_too_long_is_cut(place):
    file = begun("a film of some length", P=2)
    assert file.init_ids == encoded("a film of some length")[:2]


@pytest.mark.parametrize("init", ["sample", "words", "eot", "a film"])
def test_the_vectors_are_those_of_the_tokens(place, init):
    file = begun(init)
    table = open_checkpoint("m").load().wte.weight
    difference = file.prompt.vectors - table[file.init_ids]
    assert difference.abs().max() < 1e-6


def test_a_head_begins_small(place):
    file = begun("sample")
    generator = torch.Generator().manual_seed(0)
    torch.randint(256, 299, (9,), generator=generator)
    head = torch.randn(2, 10, generator=generator) * 0.02
    assert (file.prompt.head - head).abs().max() < 1e-6


def test_vectors_of_a_bfloat16_body_are_float32(place):
    base = open_checkpoint("m")
    gpt2 = base.load(torch.bfloat16)
    vectors = FirstVectors("sample", ["0", "1"], 2, gpt2, base)
    prompt, _ = vectors.draw(3, 0)
    assert prompt.vectors.dtype == prompt.head.dtype == torch.float32


# ---- from another prompt --------------------------------------------------------------------


@pytest.mark.parametrize("init", ["first", "first/prompts/p3-s0", "the file"])
def test_a_run_goes_on_from_where_a_prompt_ended(first, place, init):
    begin = first if init == "the file" else init
    flags = ["--prompt-tokens", 3, "--steps", 1, "--lr", 1e-12, "--head-lr", 1e-12]
    facts, _, _ = run(*flags, "--init", begin)
    before = read_prompt(first).prompt
    after = read_prompt(prompt_path("p3-s0")).prompt
    assert (before.vectors - after.vectors).abs().max() < 1e-6
    assert (before.head - after.head).abs().max() < 1e-6
    assert facts["data"]["init"] == digest(first)
    assert facts["settings"]["init"] == str(first)


def test_of_several_prompts_a_run_gives_the_best(place):
    run("--prompt-tokens", 3, "--seeds", 1, 2, 0, "--epochs", 2, "--lr", 0.3, out="first")
    assert resolve_init("first") != str(prompt_path("p3-s1", place / "first"))
    best = read_prompt(resolve_init("first"))
    scores = []
    for path in (place / "first").glob("prompts/*/prompt.safetensors"):
        found = read_prompt(path).scores
        scores.append((found.selected, -found.selected_loss))
    assert (best.scores.selected, -best.scores.selected_loss) == max(scores)


def test_another_length_is_refused_with_the_flag_that_fits(first, capsys):
    flags = [*BASE, "--out", "run", "--init", "first", "--prompt-tokens", "4"]
    refused(capsys, *flags, naming="say --prompt-tokens 3")


def test_another_number_of_labels_is_refused(first, capsys):
    flags = ["--init", "first", "--prompt-tokens", "3", "--num-labels", "3", "--out", "run"]
    refused(capsys, *BASE, *flags, naming="answers 2 labels")


def test_a_prompt_of_another_model_is_refused(place, capsys):
    path = TINY / "prompts" / "sst2-p10" / "prompt.safetensors"
    refused(capsys, *BASE, "--out", "run", "--init", path, naming="do not fit")
    assert not os.path.exists("run")


def write_named(folder, names):
    """A data set whose labels have names, which come in this order"""
    os.mkdir(folder)
    for split, rows in (("train", 40), ("dev", 8)):
        lines = [f"{split} {i}\t{names[i % 2]}\n" for i in range(rows)]
        Path(folder, f"{split}.tsv").write_text("text\tlabel\n" + "".join(lines))


def test_the_rows_of_a_head_go_by_the_names_of_labels(place):
    """In the other data set the names come in another order."""
    write_named("one", ["spam", "fine"])
    write_named("two", ["fine", "spam"])
    run("--data", "one", "--prompt-tokens", 3, "--steps", 3, "--head-lr", 0.2, out="first")
    flags = ["--prompt-tokens", 3, "--steps", 1, "--lr", 1e-12, "--head-lr", 1e-12]
    run("--data", "two", *flags, "--init", "first")
    before = read_prompt(prompt_path("p3-s0", "first"))
    after = read_prompt(prompt_path("p3-s0"))
    assert before.labels == ["spam", "fine"]
    assert after.labels == ["fine", "spam"]
    turned = before.prompt.head.flip(0)
    assert (after.prompt.head - turned).abs().max() < 1e-6
    assert (before.prompt.head - turned).abs().max() > 1e-3


def test_other_names_of_labels_are_refused_by_both(place, capsys):
    write_named("one", ["spam", "fine"])
    write_named("two", ["good", "bad"])
    run("--data", "one", "--prompt-tokens", 3, "--steps", 1, out="first")
    flags = ["--data", "two", "--prompt-tokens", "3", "--init", "first", "--out", "run"]
    sentence = refused(capsys, *BASE, *flags, naming="spam, fine")
    assert "good, bad" in sentence


def test_a_regression_begins_from_a_regression(place):
    flags = ["--num-labels", 1, "--prompt-tokens", 3, "--steps", 1]
    run(*flags, out="first")
    run(*flags, "--init", "first", "--lr", 1e-12, "--head-lr", 1e-12)
    before = read_prompt(prompt_path("p3-s0", "first")).prompt
    after = read_prompt(prompt_path("p3-s0")).prompt
    assert (before.head - after.head).abs().max() < 1e-6


def test_a_prompt_file_is_only_read(first, place):
    before = contents(place / "first")
    run("--prompt-tokens", 3, "--steps", 1, "--init", "first")
    assert contents(place / "first") == before


def test_a_prompt_that_moved_is_told_by_init_when_a_run_goes_on(first, place, capsys):
    flags = [*BASE, "--prompt-tokens", "3", "--steps", "2", "--init", "first"]
    assert end(*flags, "--out", "run") == 0
    shutil.move("first", "moved")
    refused(capsys, "--resume", "run", naming="say by --init")
    assert end("--resume", "run", "--init", "moved") == 0
