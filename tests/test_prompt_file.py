"""prompt_file.py: a trained prompt on disk, and what it says of itself."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers import ROOT
from hostile import (
    CHANGES,
    EDITS,
    ODD,
    assembled,
    cases,
    change,
    mutate,
    numbers,
    parts,
    peak,
    plain_reading,
    spliced,
)
from hostile import read as answer_of
from model import Prompt
from support.checkpoint import Base
from support.files import write_file
from support.prompt_file import (
    PromptFile,
    Recipe,
    Scores,
    parse_prompt,
    prompt_bytes,
    read_prompt,
    refuse_misfit,
)

MEMORY = 64 * 2**20  # bytes that a hostile file may make a test need


def example(P=2, N=2, C=4, **more):
    """A PromptFile of random numbers"""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(P, C, generator=generator)
    head = torch.randn(N, C, generator=generator)
    file = PromptFile(
        prompt=Prompt(vectors, head),
        labels=[f"label {i}" for i in range(max(N, 2))],
        base=Base("tiny", "abc", "0" * 64),
        recipe=Recipe(data="reviews", lr=0.1, seed=3, epoch=2, train="head"),
        scores=Scores(n=2, accuracy=0.5, loss=0.25, selected=1.0),
        init="sample",
        init_ids=list(range(260, 260 + P)),
        text_rule="strip",
    )
    return dataclasses.replace(file, **more)


def same(first, second):
    """Whether two PromptFiles are equal, to the bit, but for where they lie"""
    said = {field.name for field in dataclasses.fields(PromptFile)} - {"prompt", "path"}
    for name in said:
        if getattr(first, name) != getattr(second, name):
            return False
    vectors = torch.equal(first.prompt.vectors, second.prompt.vectors)
    return vectors and torch.equal(first.prompt.head, second.prompt.head)


# ---- there and back -------------------------------------------------------------------------


def test_a_prompt_that_is_written_is_read_as_it_was(tmp_path):
    file = example(P=3, N=5)
    write_file(tmp_path / "p", prompt_bytes(file))
    found = read_prompt(tmp_path / "p")
    assert same(found, file)
    assert found.path == tmp_path / "p"
    assert found.prompt_tokens == 3
    assert found.num_labels == 5


def test_the_same_prompt_is_the_same_bytes_whatever_it_was_made_in():
    file = example()
    doubled = Prompt(file.prompt.vectors.double(), file.prompt.head.double())
    assert prompt_bytes(dataclasses.replace(file, prompt=doubled)) == prompt_bytes(file)
    assert prompt_bytes(file) == prompt_bytes(example())
    assert int.from_bytes(prompt_bytes(file)[:8], "little") % 8 == 0


def test_what_is_not_known_of_a_prompt_is_left_out(tmp_path):
    scores = Scores(accuracy=0.5, loss=math.nan)
    file = example(recipe=Recipe(), scores=scores, base=Base("tiny"), init="", init_ids=[])
    write_file(tmp_path / "p", prompt_bytes(file))
    metadata, _ = plain_reading(tmp_path / "p")
    assert "loss" not in metadata
    assert "macro_f1" not in metadata
    found = read_prompt(tmp_path / "p")
    assert found.scores == Scores(accuracy=0.5)
    assert found.recipe == Recipe()


def test_the_metadata_are_what_porting_describes(tmp_path):
    """Texts as they are, all else as JSON."""
    write_file(tmp_path / "p", prompt_bytes(example()))
    metadata, tensors = plain_reading(tmp_path / "p")
    assert tensors.keys() == {"prompt", "head.weight"}
    assert metadata["format"] == "prompt-training/1"
    assert metadata["position_rule"] == "after-text"
    assert metadata["text_rule"] == "strip"
    assert metadata["base_model"] == "tiny"
    assert metadata["base_revision"] == "abc"
    assert metadata["base_sha256"] == "0" * 64
    assert metadata["init"] == "sample"
    assert json.loads(metadata["init_ids"]) == [260, 261]
    assert json.loads(metadata["labels"]) == ["label 0", "label 1"]
    assert json.loads(metadata["prompt_tokens"]) == 2
    assert json.loads(metadata["num_labels"]) == 2
    assert json.loads(metadata["accuracy"]) == 0.5
    recipe = json.loads(metadata["recipe"])
    assert recipe["lr"] == 0.1
    assert recipe["seed"] == 3


ANY_TEXT = st.text(max_size=10) | st.sampled_from(
    ["می\u200cخواهم", "\U0001f468\u200d\U0001f469", "a\tb", "two\nlines", "\u2028", "\x1b[2J", ""]
)


@cases(300, labels=st.lists(ANY_TEXT, min_size=2, max_size=5, unique=True), column=ANY_TEXT)
def test_labels_of_any_text_come_back_as_they_were(labels, column):
    """D3 of EDGES: a day of training could not be used because of a joiner in a name."""
    recipe = Recipe(data=column, text_column=column)
    file = example(N=len(labels), labels=labels, recipe=recipe, init=column, text_rule=column)
    assert same(parse_prompt(prompt_bytes(file), "p"), file)


COUNTS = st.none() | st.integers(1, 2**31 - 1)
SHARES = st.none() | st.floats(0, 1)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
RECIPES = st.builds(
    Recipe,
    data=st.none() | ANY_TEXT,
    label_column=st.none() | ANY_TEXT,
    max_examples=COUNTS,
    batch_size=COUNTS,
    epochs=COUNTS,
    steps=COUNTS,
    patience=COUNTS,
    train=st.sampled_from([None, "prompt+head", "head"]),
    select_on=st.sampled_from([None, "hold-out", "dev"]),
    select_by=st.sampled_from([None, "accuracy", "macro-f1", "loss"]),
    dtype=st.none() | ANY_TEXT,
    lr=NUMBERS,
    head_lr=NUMBERS,
    seed=st.none() | st.integers(0, 2**63 - 1),
    epoch=COUNTS,
)
SCORES = st.builds(
    Scores,
    n=COUNTS,
    accuracy=SHARES,
    loss=NUMBERS,
    macro_f1=SHARES,
    pearson=NUMBERS,
    majority=SHARES,
    constant_loss=NUMBERS,
    untrained=SHARES,
    untrained_loss=NUMBERS,
    selected=SHARES,
    selected_loss=NUMBERS,
)


@cases(200, recipe=RECIPES, scores=SCORES)
def test_recipe_and_scores_come_back_as_they_were(recipe, scores):
    file = example(recipe=recipe, scores=scores)
    assert same(parse_prompt(prompt_bytes(file), "p"), file)


@pytest.mark.parametrize("path", sorted(ROOT.glob("weights/tiny/prompts/*/prompt.safetensors")))
def test_the_prompts_that_are_shipped_are_read(path):
    found = read_prompt(path)
    assert found.base.base_model == "tiny"
    assert found.num_labels == 2
    assert 0.5 < found.scores.accuracy < 1
    assert same(parse_prompt(prompt_bytes(found), path), found)


# ---- a file that differs in one thing is no prompt ------------------------------------------

TENSORS = {"prompt": torch.ones(2, 3), "head.weight": torch.ones(2, 3)}
METADATA = {
    "format": "prompt-training/1",
    "position_rule": "after-text",
    "labels": '["no", "yes"]',
    "init_ids": "[]",
    "recipe": "{}",
}


def without_none(parts):
    return {key: value for key, value in parts.items() if value is not None}


def read_changed(folder, tensors=None, metadata=None):
    """Read a prompt file after these changes; None takes a part away -> PromptFile"""
    kept = without_none(TENSORS | (tensors or {}))
    told = without_none(METADATA | (metadata or {}))
    save_file(kept, folder / "p.safetensors", metadata=told)
    return read_prompt(folder / "p.safetensors")


def test_a_file_of_the_fewest_parts_is_a_prompt(tmp_path):
    found = read_changed(tmp_path)
    assert found.labels == ["no", "yes"]
    assert found.scores == Scores()
    assert found.text_rule == ""


def test_a_word_more_does_no_harm(tmp_path):
    """A later version may say more."""
    assert read_changed(tmp_path, metadata={"more": "x"}).labels == ["no", "yes"]


def test_a_regression_names_two_labels_too(tmp_path):
    found = read_changed(tmp_path, tensors={"head.weight": torch.ones(1, 3)})
    assert found.num_labels == 1
    assert len(found.labels) == 2


@pytest.mark.parametrize("key", METADATA)
def test_a_word_less_is_refused(tmp_path, key):
    sentence = key if key in ("format", "position_rule") else "lacks"
    with pytest.raises(ValueError, match=f"p.safetensors.* {sentence}"):
        read_changed(tmp_path, metadata={key: None})


WRONG_RULES = [("position_rule", "before-text"), ("format", "prompt-training/2")]


@pytest.mark.parametrize("key,value", WRONG_RULES)
def test_a_prompt_by_other_rules_is_refused_by_what_differs(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"p.safetensors is no prompt of ours: its {key} is not"):
        read_changed(tmp_path, metadata={key: value})


WRONG_WORDS = [
    ("labels", '["a", "b", "c"]'),
    ("labels", '["a"]'),
    ("labels", "no"),
    ("labels", '"no"'),
    ("labels", '{"a": 1, "b": 2}'),
    ("labels", "[1, 2]"),
    ("labels", '["\\ud800", "b"]'),
    ("recipe", '{"data": 5}'),
    ("recipe", "[1]"),
    ("recipe", "null"),
    ("recipe", '{"lr": NaN}'),
    ("recipe", '{"colour": 1}'),
    ("init_ids", "[true]"),
    ("init_ids", "[true, 1]"),
    ("init_ids", "[1]"),
    ("init_ids", "[1, 2, 3]"),
    ("init_ids", ""),
    ("init_ids", "{}"),
    ("init_ids", '["1", "2"]'),
    ("init_ids", "[-1, 1]"),
    ("init_ids", "[1.0, 1]"),
    ("init_ids", "[4294967296, 1]"),
    ("accuracy", "1.5"),
    ("accuracy", "x"),
    ("n", "0.5"),
    ("loss", "NaN"),
    ("loss", "1e999"),
]


@pytest.mark.parametrize("key,value", WRONG_WORDS)
def test_a_word_that_is_wrong_is_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=r"p.safetensors lacks a finite prompt .* or metadata \("):
        read_changed(tmp_path, metadata={key: value})


WRONG_TENSORS = [
    {"prompt": None},
    {"head.weight": None},
    {"other": torch.ones(1)},
    {"head.weight": torch.ones(2, 4)},
    {"prompt": torch.ones(0, 3)},
    {"prompt": torch.ones(3)},
    {"prompt": torch.ones(1, 2, 3)},
    {"head.weight": torch.ones(0, 3)},
    {"prompt": torch.ones(2, 0), "head.weight": torch.ones(2, 0)},
]
OTHER_DTYPES = [
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.float8_e4m3fn,
    torch.bool,
]
for other in OTHER_DTYPES:
    WRONG_TENSORS.append({"prompt": torch.ones(2, 3).to(other)})
for name in TENSORS:
    for number in (torch.inf, -torch.inf, torch.nan):
        spoilt = torch.ones(2, 3)
        spoilt[1, 2] = number
        WRONG_TENSORS.append({name: spoilt})


@pytest.mark.parametrize("tensors", WRONG_TENSORS, ids=range(len(WRONG_TENSORS)))
def test_a_tensor_that_is_wrong_is_refused(tmp_path, tensors):
    with pytest.raises(ValueError, match="p.safetensors lacks a finite prompt"):
        read_changed(tmp_path, tensors=tensors)


def test_a_folder_in_place_of_a_prompt_is_named(tmp_path):
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        read_prompt(tmp_path)


# ---- hostile files --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place for hostile files; everything has been loaded once, so that no library counts."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "good").write_bytes(prompt_bytes(example()))
    read_prompt(folder / "good")
    return folder


@pytest.fixture
def bounded(request, folder):
    """No test may need more than MEMORY, nor run fewer cases than it says."""
    peak()
    before = peak()
    yield
    assert peak() - before < MEMORY
    test = getattr(request.module, request.node.originalname)
    assert test.ran >= test.asked


def check_prompt(path):
    """A prompt that loads is finite and of one width, is what the file says, and survives being
    saved."""
    found = answer_of(read_prompt, path, naming=path.name)
    if found is None:
        return
    vectors = found.prompt.vectors
    head = found.prompt.head
    assert vectors.dtype == head.dtype == torch.float32
    assert vectors.isfinite().all() and head.isfinite().all()
    assert vectors.shape[1] == head.shape[1]
    assert vectors.numel() * head.numel() > 0
    # As a plain reading of the file finds it.
    said, tensors = plain_reading(path)
    assert tensors.keys() == {"prompt", "head.weight"}
    assert numbers(*tensors["prompt"]).tobytes() == vectors.detach().numpy().tobytes()
    assert numbers(*tensors["head.weight"]).tobytes() == head.detach().numpy().tobytes()
    assert said["position_rule"] == "after-text"
    assert said.get("text_rule", "") == found.text_rule
    assert len(found.labels) == max(len(head), 2)
    for name in found.labels:
        assert type(name) is str
        assert name.encode() is not None
    assert len(found.init_ids) in (0, len(vectors))
    for i in found.init_ids:
        assert type(i) is int
    # And once more.
    assert same(parse_prompt(prompt_bytes(found), path), found)


@cases(150, edits=EDITS, in_header=st.booleans())
def test_mutated_bytes_are_a_prompt_or_refused(bounded, folder, edits, in_header):
    content = (folder / "good").read_bytes()
    _, body = parts(folder / "good")
    reach = len(content) - len(body) * in_header
    (folder / "p.safetensors").write_bytes(mutate(content, edits, reach))
    check_prompt(folder / "p.safetensors")


@cases(200, name=st.sampled_from(["prompt", "head.weight"]), what=CHANGES)
def test_a_header_that_lies_is_a_prompt_or_refused(bounded, folder, name, what):
    header, body = parts(folder / "good")
    header, body = change(header, body, name, "prompt", *what)
    (folder / "p.safetensors").write_bytes(assembled(header, body))
    check_prompt(folder / "p.safetensors")


KEYS = [
    "labels",
    "init_ids",
    "recipe",
    "recipe.data",
    "base_model",
    "base_sha256",
    "base_revision",
    "text_rule",
    "accuracy",
    "n",
    "init",
    "format",
    "position_rule",
    "prompt_tokens",
]


@cases(250, key=st.sampled_from(KEYS), odd=ODD, raw=st.booleans())
def test_odd_metadata_are_a_prompt_or_refused(bounded, folder, key, odd, raw):
    """Odd JSON in the text of a value, and odd values where the format allows only text."""
    header, body = parts(folder / "good")
    if key == "recipe.data":
        key = "recipe"
        odd = f'{{"data": {odd}}}'
    value = odd if raw else json.dumps(odd)
    inner = spliced(header["__metadata__"], key, value).decode("utf-8", "surrogatepass")
    (folder / "p.safetensors").write_bytes(assembled(spliced(header, "__metadata__", inner), body))
    check_prompt(folder / "p.safetensors")


# ---- does it fit a model --------------------------------------------------------------------


def model(C=4, n_positions=24, hashed="0" * 64):
    """Stands for a base model that is open"""
    config = SimpleNamespace(n_embd=C, n_positions=n_positions)
    return SimpleNamespace(name="a model", config=config, accepts=hashed.__eq__)


def test_a_prompt_fits_the_model_it_was_trained_on():
    refuse_misfit(example(), model())
    refuse_misfit(example(P=23, init_ids=[]), model())


MISFITS = [
    ({"C": 5}, "strip", "holds 2 vectors of 4 channels, which do not fit a model"),
    ({"n_positions": 2}, "strip", "holds 2 vectors of 4 channels, which do not fit a model"),
    ({"hashed": "1" * 64}, "strip", "trained on another model than a model .* with --model"),
    ({}, "lower", "trained under another text rule than 'strip'"),
]


@pytest.mark.parametrize("sizes,rule,sentence", MISFITS)
def test_a_prompt_that_does_not_fit_is_refused_by_what_differs(sizes, rule, sentence):
    with pytest.raises(ValueError, match=f"^a/p .*{sentence}"):
        refuse_misfit(example(path="a/p", text_rule=rule), model(**sizes))
