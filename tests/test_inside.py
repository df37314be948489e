"""report/inside.py: near tokens, attention and occlusion, against transformers and by hand."""

import dataclasses
import re
import shutil

import pytest
import torch

import evaluate
from desk import EXACT, NAMES, SHIPPED, ask, changed, number_prompt, told
from helpers import TINY
from support.checkpoint import open_checkpoint
from support.prompt_file import read_prompt
from support.terminal import shown

# ---- attention ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "tore ain  seat\nnose",
        "xxxxxx yyyyyy zzzzzz qqqqqq",  # longer than the model has places
    ],
)
def test_attention_of_words_equals_that_of_transformers(capsys, desk, text):
    """One eager pass over text and prompt; `output_attentions` shows the last position's row, whose
    shares words add up."""
    transformers = pytest.importorskip("transformers")
    fresh = transformers.GPT2Model.from_pretrained
    model = fresh(desk.model, attn_implementation="eager").eval()
    ids = desk.tokenizer.encode(text)[: 24 - 3]
    read = desk.tokenizer.decode(ids).split()  # what lies behind is nobody's
    words = []
    for i in range(len(ids)):
        start = len(desk.tokenizer.decode(ids[:i]))
        begun = len(re.findall(r"\S(?=\s)", text[: start + 1]))
        words.append(min(begun, len(read) - 1))
    words += [len(read)] * 3
    x = torch.cat([model.wte.weight[ids], desk.prompts["a"].vectors])[None]  # (1, T+P, C)
    with torch.no_grad():
        seen = model(inputs_embeds=x, output_attentions=True).attentions
    seen = torch.stack(seen)[:, 0, :, -1]  # (L, H, T+P)
    shares = torch.zeros(3, 2, len(read) + 1)  # (L, H, words and the prompt)
    for i, word in enumerate(words):
        shares[:, :, word] += seen[:, :, i]
    (found,) = told(capsys, "attention", desk.a, text, *EXACT)
    assert found["words"] == read == found["text"].split()
    assert (torch.tensor(found["layers"]) - shares).abs().max() < 1e-5
    real = torch.tensor([*found["attention"], found["to_prompt"]])
    assert (real - shares.mean(dim=(0, 1))).abs().max() < 1e-5
    out = ask(capsys, "attention", desk.a, text, *EXACT)[1]
    assert re.split("  +", out.splitlines()[1]) == ["word", "occlusion", "attention"]


def test_occlusion_is_what_the_answer_loses_without_a_word(capsys, desk):
    text = " a tin  , rose\tstain\nit "
    cut = ["tin  , rose\tstain\nit", "a  , rose\tstain\nit", "a tin rose\tstain\nit"]
    cut += ["a tin  ,\tstain\nit", "a tin  , rose\nit", "a tin  , rose\tstain"]
    _, out, _ = ask(capsys, "attention", desk.a, text, *EXACT)
    (found,) = told(capsys, "attention", desk.a, text, *EXACT)
    shares = desk.logits("a", [text.strip(), *cut]).softmax(dim=1)
    label, *others = shares.argmax(dim=1).tolist()
    assert others[-1] != label  # without the last word another label wins
    odds = (shares[:, label] / (1 - shares[:, label])).log()
    assert list(found) == (
        ["text", "label", "label_name", "probability", "log_odds", "words", "occlusion"]
        + ["attention", "to_prompt", "layers"]
    )
    assert found["text"] == text.strip()
    assert (found["label"], found["label_name"]) == (label, NAMES[label])
    assert found["probability"] == pytest.approx(shares[0, label].item(), abs=1e-4)
    assert found["log_odds"] == pytest.approx(odds[0].item(), abs=1e-3)
    assert found["occlusion"] == pytest.approx((odds[0] - odds[1:]).tolist(), abs=1e-3)
    assert min(map(abs, found["occlusion"])) > 0.01
    assert out.startswith(f"{NAMES[label]}, log-odds {found['log_odds']:.2f}; ")
    assert f"log-odds of {NAMES[label]} lost" in out
    assert told(capsys, "attention", desk.a, "fun")[0]["occlusion"] == [None]


def test_of_a_regression_it_is_what_the_number_loses(capsys, desk, tmp_path):
    path = number_prompt(desk, tmp_path)
    numbers = told(capsys, "predict", path, "tin rose", "rose", "tin", *EXACT)
    whole, *without = [one["label"] for one in numbers]
    (found,) = told(capsys, "attention", path, "tin rose", *EXACT)
    assert found["label"] == pytest.approx(whole, abs=1e-5)
    assert found["label_name"] is found["probability"] is found["log_odds"] is None
    lost = [whole - number for number in without]
    assert found["occlusion"] == pytest.approx(lost, abs=1e-4)
    out = ask(capsys, "attention", path, "tin rose", *EXACT)[1]
    assert out.startswith(f"{whole:.3f}; attention")
    assert "the number lost without the word" in out


def test_the_picture_of_attention(capsys, desk, drawn):  # noqa: F811
    (found,) = told(capsys, "attention", desk.a, "great fun")
    figure = drawn("attention", desk.a, "great fun", kind="svg")
    panels = figure.axes
    shown = [[bar.get_width() for bar in axes.patches] for axes in panels]
    lost = pytest.approx([*found["occlusion"], 0])
    assert shown == [lost, pytest.approx([*found["attention"], found["to_prompt"]])]
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ["great", "fun", "(the prompt)"]
    assert "log-odds" in panels[0].get_xlabel()
    assert panels[1].get_xlabel() == "attention"
    assert all(axes.yaxis_inverted() for axes in panels)
    title = f"{found['label_name']} {found['probability']:.3f}, {desk.a}"
    assert figure.get_suptitle() == title


def test_the_picture_of_a_long_text_wraps(drawn):  # noqa: F811
    """Ninety words in three columns, which share their scales; not a strip of ninety rows."""
    words = [*"abcdefghijklmnopqrstuvwxyz"] * 3 + [*"abcdefghijk"]
    figure = drawn("attention", SHIPPED, " ".join(words))
    left = figure.axes[::2]
    right = figure.axes[1::2]
    shown = [label.get_text() for axes in left for label in axes.get_yticklabels()]
    assert shown == [*words, "(the prompt)"]
    assert [len(axes.patches) for axes in figure.axes] == [30] * 6
    for panels in (left, right):
        assert len({axes.get_xlim() for axes in panels}) == 1
    width, height = figure.get_size_inches()
    assert 2 < width / height < 4


def test_a_dollar_in_a_text_is_a_dollar(drawn):  # noqa: F811
    """And no formula, nor a wrong one."""
    words = ["\\frac", "$\\frac$", "$$", "$x_"]
    figure = drawn("attention", SHIPPED, " ".join(words), kind="svg")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [shown(word) for word in words] + ["(the prompt)"]


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


# ---- tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype,far,near", [("float32", 1e-4, 1e-5), ("bfloat16", 0.01, 1e-3)])
def test_tokens_beside_each_vector(capsys, dtype, far, near):
    """A table that was rounded has other distances."""
    rows = told(capsys, "tokens", SHIPPED, "--dtype", dtype)
    file = read_prompt(SHIPPED / "prompt.safetensors")
    opened = open_checkpoint("tiny")
    words = opened.load().wte.weight  # (V, C)
    tokenizer = opened.tokenizer
    vectors = file.prompt.vectors.detach()
    for i, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
        cosines = torch.cosine_similarity(vector[None], words)  # (V,)
        values = [value for _, value in row["nearest"]]
        best = cosines.sort(descending=True).values[:5].tolist()
        assert values == pytest.approx(best, abs=near)
        for name, value in row["nearest"]:
            known = cosines[tokenizer.encode(name)[:1]].item()
            assert "\ufffd" in name or value == pytest.approx(known, abs=near)
        start = file.init_ids[i]
        moved = (vector - words[start]).square().sum().sqrt().item()
        assert row["began"] == tokenizer.decode([start])
        assert row["vector"] == i
        assert row["moved"] == pytest.approx(moved, abs=far)
        assert row["norm"] == pytest.approx(vector.square().sum().sqrt().item(), abs=1e-4)
    out = ask(capsys, "tokens", SHIPPED, "--dtype", dtype)[1]
    median = words.square().sum(dim=1).sqrt().median().item()
    shown = float(re.search(r"median norm of (\d+\.\d\d)", out)[1])
    assert shown == pytest.approx(median, abs=0.006 + far)


def test_rows_of_the_table_that_are_no_tokens_are_nobodys_neighbour(capsys, desk, tmp_path):
    """Some checkpoints have more rows than the tokenizer has tokens.  And a vector that came from a
    file began as no token."""
    folder = shutil.copytree(desk.model, tmp_path / "padded")
    lines = (folder / "merges.txt").read_text("utf-8").splitlines(keepends=True)[:-20]
    (folder / "merges.txt").write_text("".join(lines), "utf-8")
    opened = open_checkpoint(str(folder))
    file = read_prompt(desk.a)
    vectors = opened.load().wte.weight[[279, 295]].clone()
    prompt = type(file.prompt)(vectors, file.prompt.head)
    more = {"prompt": prompt, "init_ids": [], "base": opened.base}
    path = changed(tmp_path, desk.a, **more)
    last, odd = told(capsys, "tokens", path, *EXACT)
    assert last["nearest"][0] == ["<|endoftext|>", pytest.approx(1)]
    assert odd["nearest"][0][1] < 0.99
    assert last["began"] is last["moved"] is None
    assert ask(capsys, "tokens", path)[1].splitlines()[1].split()[1:3] == ["-", "-"]
    assert dataclasses.is_dataclass(file)
    assert TINY.exists()
