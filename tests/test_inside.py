"""report/inside.py: near tokens, attention and occlusion, against transformers and by hand."""

import dataclasses
import re
import shutil

import pytest
import torch

import evaluate
from desk import EXACT, NAMES, SHIPPED, ask, changed, number_prompt, told
from model import Prompt
from support.checkpoint import open_checkpoint
from support.prompt_file import read_prompt
from support.terminal import shown

P = 3  # vectors of the desk's prompt a

# ---- attention ------------------------------------------------------------------------------

WITH_ODD_SPACES = "tore ain  seat\nnose"
TOO_LONG = "xxxxxx yyyyyy zzzzzz qqqqqq"  # longer than the model has places
each_text = pytest.mark.parametrize("text", [WITH_ODD_SPACES, TOO_LONG])


def read_part(desk, text):
    """What the model reads of a text, beside prompt a: ids of tokens"""
    return desk.tokenizer.encode(text)[: desk.gpt2.config.n_positions - P]


def words_of_tokens(desk, text, ids):
    """The number of the word to which each token of a text belongs"""
    last = len(desk.tokenizer.decode(ids).split()) - 1
    numbers = []
    for i in range(len(ids)):
        start = len(desk.tokenizer.decode(ids[:i]))
        ended = re.findall(r"\S(?=\s)", text[: start + 1])  # words before this token
        numbers.append(min(len(ended), last))  # white space behind the last word is its own
    return numbers


@torch.no_grad()
def attended(desk, ids):
    """What the last vector of prompt a attends to, by transformers: (L, H, T+P)

    One eager pass over text and prompt, of which the last position's row is taken.
    """
    transformers = pytest.importorskip("transformers")
    fresh = transformers.GPT2Model.from_pretrained
    model = fresh(desk.model, attn_implementation="eager").eval()
    text = model.wte.weight[ids]  # (T, C)
    x = torch.cat([text, desk.prompts["a"].vectors])  # (T+P, C)
    layers = model(inputs_embeds=x[None], output_attentions=True).attentions
    every = torch.stack(layers)  # (L, 1, H, T+P, T+P)
    return every[:, 0, :, -1]


def attended_words(desk, text):
    """The same of words: the shares of their tokens, and of the prompt, added up: (L, H, W+1)"""
    ids = read_part(desk, text)
    numbers = words_of_tokens(desk, text, ids)
    prompt = numbers[-1] + 1
    tokens = attended(desk, ids)  # (L, H, T+P)
    shares = torch.zeros(*tokens.shape[:2], prompt + 1)
    for i, number in enumerate(numbers + [prompt] * P):
        shares[:, :, number] += tokens[:, :, i]
    return shares


@each_text
def test_attention_to_words_equals_that_of_transformers(capsys, desk, text):
    shares = attended_words(desk, text)
    (found,) = told(capsys, "attention", desk.a, text, *EXACT)
    layers = torch.tensor(found["layers"])
    assert (layers - shares).abs().max() < 1e-5
    mean = torch.tensor([*found["attention"], found["to_prompt"]])
    assert (mean - shares.mean(dim=(0, 1))).abs().max() < 1e-5


@each_text
def test_words_are_told_as_far_as_the_model_reads(capsys, desk, text):
    words = desk.tokenizer.decode(read_part(desk, text)).split()
    (found,) = told(capsys, "attention", desk.a, text, *EXACT)
    assert found["words"] == words
    assert found["text"].split() == words


@each_text
def test_for_a_person_each_word_is_a_line(capsys, desk, text):
    _, out, _ = ask(capsys, "attention", desk.a, text, *EXACT)
    header = out.splitlines()[1]
    assert re.split("  +", header) == ["word", "occlusion", "attention"]


def test_of_a_long_text_no_more_is_asked_than_the_model_reads(capsys, desk, monkeypatch):
    """Each word that is left out is a text: of thousands of words there would be millions."""
    asked = []
    real = evaluate.logits_of

    def count(gpt2, prompts, examples, batch_size):
        asked.extend(examples)
        return real(gpt2, prompts, examples, batch_size)

    monkeypatch.setattr(evaluate, "logits_of", count)
    (found,) = told(capsys, "attention", desk.a, "film " * 3000)
    assert 0 < len(found["words"]) <= 24
    assert len(asked) == len(found["words"]) + 1


# ---- occlusion ------------------------------------------------------------------------------

WHOLE = "a tin  , rose\tstain\nit"
WITHOUT_A_WORD = [
    "tin  , rose\tstain\nit",
    "a  , rose\tstain\nit",
    "a tin rose\tstain\nit",
    "a tin  ,\tstain\nit",
    "a tin  , rose\nit",
    "a tin  , rose\tstain",
]
FIELDS_OF_ATTENTION = [
    "text",
    "label",
    "label_name",
    "probability",
    "log_odds",
    "words",
    "occlusion",
    "attention",
    "to_prompt",
    "layers",
]


@pytest.fixture(scope="module")
def shares(desk):
    """Probabilities of WHOLE, and of it without each word, by prompt a: (W+1, N)"""
    logits = desk.logits("a", [WHOLE, *WITHOUT_A_WORD])
    return logits.softmax(dim=1)


@pytest.fixture
def found(capsys, desk):
    """What evaluate.py says of WHOLE, with blanks around it."""
    (one,) = told(capsys, "attention", desk.a, f" {WHOLE} ", *EXACT)
    return one


def test_the_answer_to_the_whole_text_is_told(found, shares):
    label = int(shares[0].argmax())
    share = shares[0, label].item()
    assert list(found) == FIELDS_OF_ATTENTION
    assert found["text"] == WHOLE
    assert found["label"] == label
    assert found["label_name"] == NAMES[label]
    assert found["probability"] == pytest.approx(share, abs=1e-4)


def test_occlusion_is_what_the_answer_loses_without_a_word(found, shares):
    label, *others = shares.argmax(dim=1).tolist()
    assert others[-1] != label  # without the last word another label wins
    share = shares[:, label]  # (W+1,)
    odds = (share / (1 - share)).log()
    lost = odds[0] - odds[1:]  # (W,)
    assert found["log_odds"] == pytest.approx(odds[0].item(), abs=1e-3)
    assert found["occlusion"] == pytest.approx(lost.tolist(), abs=1e-3)
    assert lost.abs().min() > 0.01
    assert min(map(abs, found["occlusion"])) > 0.01


def test_a_person_reads_whose_log_odds_are_lost(capsys, desk, found):
    _, out, _ = ask(capsys, "attention", desk.a, f" {WHOLE} ", *EXACT)
    name = found["label_name"]
    assert out.startswith(f"{name}, log-odds {found['log_odds']:.2f}; ")
    assert f"log-odds of {name} lost" in out


def test_without_its_only_word_no_text_is_left(capsys, desk):
    (found,) = told(capsys, "attention", desk.a, "fun")
    assert found["occlusion"] == [None]


def test_of_a_regression_it_is_what_the_number_loses(capsys, desk, tmp_path):
    path = number_prompt(desk, tmp_path)
    answers = told(capsys, "predict", path, "tin rose", "rose", "tin", *EXACT)
    whole, *without = [answer["label"] for answer in answers]
    lost = [whole - number for number in without]
    (found,) = told(capsys, "attention", path, "tin rose", *EXACT)
    assert found["label"] == pytest.approx(whole, abs=1e-5)
    assert found["occlusion"] == pytest.approx(lost, abs=1e-4)
    for name in ("label_name", "probability", "log_odds"):
        assert found[name] is None, name
    _, out, _ = ask(capsys, "attention", path, "tin rose", *EXACT)
    assert out.startswith(f"{whole:.3f}; attention")
    assert "the number lost without the word" in out


# ---- the picture ----------------------------------------------------------------------------


def names_of(axes):
    """What the bars of a panel are called"""
    return [label.get_text() for label in axes.get_yticklabels()]


def widths_of(axes):
    """How long the bars of a panel are"""
    return [bar.get_width() for bar in axes.patches]


def test_the_picture_shows_occlusion_beside_attention(capsys, desk, drawn):
    (found,) = told(capsys, "attention", desk.a, "great fun")
    figure = drawn("attention", desk.a, "great fun", kind="svg")
    lost, share = figure.axes
    assert widths_of(lost) == pytest.approx([*found["occlusion"], 0])
    assert widths_of(share) == pytest.approx([*found["attention"], found["to_prompt"]])
    assert names_of(lost) == ["great", "fun", "(the prompt)"]
    assert "log-odds" in lost.get_xlabel()
    assert share.get_xlabel() == "attention"
    assert lost.yaxis_inverted()
    assert share.yaxis_inverted()


def test_the_picture_says_what_the_answer_is_and_whose(capsys, desk, drawn):
    (found,) = told(capsys, "attention", desk.a, "great fun")
    figure = drawn("attention", desk.a, "great fun", kind="svg")
    answer = f"{found['label_name']} {found['probability']:.3f}"
    assert figure.get_suptitle() == f"{answer}, {desk.a}"


def test_the_picture_of_a_long_text_wraps(drawn):
    """Ninety words in three columns, which share their scales; not a strip of ninety rows."""
    words = [*"abcdefghijklmnopqrstuvwxyz"] * 3 + [*"abcdefghijk"]
    figure = drawn("attention", SHIPPED, " ".join(words))
    names = []
    for axes in figure.axes[::2]:
        names += names_of(axes)
    assert names == [*words, "(the prompt)"]
    assert [len(axes.patches) for axes in figure.axes] == [30] * 6
    for kind in (0, 1):
        scales = {axes.get_xlim() for axes in figure.axes[kind::2]}
        assert len(scales) == 1
    width, height = figure.get_size_inches()
    assert 2 < width / height < 4


def test_a_dollar_in_a_text_is_a_dollar(drawn):
    """And no formula, nor a wrong one."""
    words = ["\\frac", "$\\frac$", "$$", "$x_"]
    figure = drawn("attention", SHIPPED, " ".join(words), kind="svg")
    wanted = [shown(word) for word in words]
    assert names_of(figure.axes[0]) == [*wanted, "(the prompt)"]


# ---- tokens ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Tokens:
    """What evaluate.py says of the bundled prompt's vectors, and what that is computed from."""

    rows: list  # as told
    text: str  # as a person reads it
    vectors: torch.Tensor  # (P, C)
    table: torch.Tensor  # (V, C)
    tokenizer: object
    init_ids: list
    far: float  # how exact distances are
    near: float  # how exact cosines are


# A table that was rounded has other distances, and other cosines.
FAR = {"float32": 1e-4, "bfloat16": 0.01}
NEAR = {"float32": 1e-5, "bfloat16": 1e-3}


@pytest.fixture(params=["float32", "bfloat16"])
def tokens(request, capsys):
    dtype = request.param
    rows = told(capsys, "tokens", SHIPPED, "--dtype", dtype)
    _, text, _ = ask(capsys, "tokens", SHIPPED, "--dtype", dtype)
    file = read_prompt(SHIPPED / "prompt.safetensors")
    opened = open_checkpoint("tiny")
    return Tokens(
        rows=rows,
        text=text,
        vectors=file.prompt.vectors.detach(),
        table=opened.load().wte.weight,
        tokenizer=opened.tokenizer,
        init_ids=file.init_ids,
        far=FAR[dtype],
        near=NEAR[dtype],
    )


def length_of(vectors):
    """Euclid's, of the last axis"""
    return vectors.square().sum(dim=-1).sqrt()


def test_the_nearest_tokens_are_those_of_the_highest_cosines(tokens):
    for row, vector in zip(tokens.rows, tokens.vectors, strict=True):
        cosines = torch.cosine_similarity(vector[None], tokens.table)  # (V,)
        best = cosines.sort(descending=True).values[:5]
        values = [value for _, value in row["nearest"]]
        assert values == pytest.approx(best.tolist(), abs=tokens.near)
        for name, value in row["nearest"]:
            first = tokens.tokenizer.encode(name)[:1]
            known = cosines[first].item()
            # Part of a letter has no name by which to find it.
            assert "\ufffd" in name or value == pytest.approx(known, abs=tokens.near)


def test_each_vector_says_where_it_began_and_how_far_it_moved(tokens):
    for i, row in enumerate(tokens.rows):
        vector = tokens.vectors[i]
        start = tokens.init_ids[i]
        moved = length_of(vector - tokens.table[start]).item()
        norm = length_of(vector).item()
        assert row["vector"] == i
        assert row["began"] == tokens.tokenizer.decode([start])
        assert row["moved"] == pytest.approx(moved, abs=tokens.far)
        assert row["norm"] == pytest.approx(norm, abs=1e-4)


def test_the_median_norm_of_tokens_is_told_beside_them(tokens):
    median = length_of(tokens.table).median().item()
    said = re.search(r"median norm of (\d+\.\d\d)", tokens.text)
    assert float(said[1]) == pytest.approx(median, abs=0.006 + tokens.far)


def test_the_nearest_five_share_one_heading(tokens):
    """It stands over the first of them, and the others have none."""
    header, first, *_ = tokens.text.splitlines()
    assert header.split() == ["vector", "began", "as", "moved", "norm", "nearest"]
    names = re.findall(r"'[^']*' [01]\.\d\d", first)
    assert len(names) == 5
    assert header.index("nearest") + len("nearest") == first.index(names[0]) + len(names[0])


@pytest.fixture
def padded(desk, tmp_path):
    """The desk's model with more rows than its tokenizer has tokens, as some checkpoints have."""
    folder = shutil.copytree(desk.model, tmp_path / "padded")
    merges = folder / "merges.txt"
    lines = merges.read_text("utf-8").splitlines(keepends=True)
    merges.write_text("".join(lines[:-20]), "utf-8")
    return open_checkpoint(str(folder))


@pytest.fixture
def from_a_file(desk, padded, tmp_path):
    """A prompt for it, of vectors that came from a file: a token's, and those of a row of none"""
    head = read_prompt(desk.a).prompt.head
    vectors = padded.load().wte.weight[[279, 295]].clone()
    more = {"prompt": Prompt(vectors, head), "init_ids": [], "base": padded.base}
    return changed(tmp_path, desk.a, **more)


def test_rows_of_the_table_that_are_no_tokens_are_nobodys_neighbour(capsys, from_a_file):
    last, odd = told(capsys, "tokens", from_a_file, *EXACT)
    assert last["nearest"][0] == ["<|endoftext|>", pytest.approx(1)]
    _, cosine = odd["nearest"][0]
    assert cosine < 0.99


def test_a_vector_that_came_from_a_file_began_as_no_token(capsys, from_a_file):
    for row in told(capsys, "tokens", from_a_file, *EXACT):
        assert row["began"] is None
        assert row["moved"] is None
    _, out, _ = ask(capsys, "tokens", from_a_file)
    first = out.splitlines()[1]
    assert first.split()[1:3] == ["-", "-"]
