"""data.py: the tokenizer against the official one, splits, batches, and downloads from stand-ins."""

import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile

import pytest
import torch
from checkpoints import SHARED, TINY
from servers import hub, serve

import data
from data import Tokenizer, batches, checkpoint_folder, clean, collate, download_sst2, hold_out, read_split

NASTY = [
    "it's we'll they've I'd you're I'm can't DON'T won'tn't", "🙂👩‍👩‍👧 naïve café Ünïcödé ﬁ", "a  b   c    \n\n d\t\te",
    "日本語のテスト жизнь прекрасна مرحبا שלום हिन्दी", "3.14159 1,000,000 ½ ² Ⅷ", "!!! ... -- ``quoted'' (x) #$%&", "   ",
    "\u00a0\u2003wide\u200bspaces\u3000", "\x00\x7f\x80\xff", "tabs\tand\r\nlines\r", "x" * 300, "'s 's'S 'LL",
]  # fmt: skip


def official_tokenizers():
    """(folder, texts): the bundled files, and the official ones on all of SST-2 where they lie about."""
    texts = [text for split in ("train", "dev") for text, _ in read_split("reviews", split)]
    yield pytest.param(TINY, texts, id="tiny")
    sst2 = [line for name in ("train", "dev") if (path := SHARED / "SST-2" / f"{name}.tsv").exists()
            for line in path.read_text(encoding="utf-8").split("\n")]  # fmt: skip
    official = SHARED / "gpt2-tokenizer"
    missing = pytest.mark.skipif(not official.exists(), reason="the official GPT-2 tokenizer is not here")
    yield pytest.param(official, texts + sst2, id="gpt2", marks=missing)


@pytest.mark.parametrize("folder,texts", list(official_tokenizers()))
def test_tokenizer_equals_transformers(folder, texts):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    ours, texts = Tokenizer(folder / "merges.txt"), texts + NASTY
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours.encode(text) == ids and ours.decode(ids) == text, text
    assert ours.size == len(json.loads((folder / "vocab.json").read_text())) == ours.end_of_text + 1


def test_end_of_text_in_a_text_is_ordinary_characters():
    ours = Tokenizer(TINY / "merges.txt")
    ids = ours.encode("<|endoftext|>")
    assert ours.end_of_text not in ids and ours.decode(ids) == "<|endoftext|>"


@pytest.mark.parametrize("line", ["Ġt h e", "justone", "日 本", "Ġ t", "zz qq"])
def test_a_broken_merge_is_named_by_line(tmp_path, line):
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\nĠ t\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3"):
        Tokenizer(tmp_path / "merges.txt")


# ---- splits -----------------------------------------------------------------------------------

SAME = [("it 's \"good\" , mostly", 1), ("dull, dull", 0)]


@pytest.mark.parametrize("name,text", [
    ("dev.tsv", 'sentence\tlabel\nit \'s "good" , mostly \t1\ndull, dull\t0\n'),
    ("dev.tsv", '\ufefflabel\tidx\tsentence\r\n1\t7\tit \'s "good" , mostly \r\n0\t8\tdull, dull\r\n'),
    ("dev.csv", 'text,label\n"it \'s ""good"" , mostly ",1\n"dull, dull",0\n'),
    ("dev.jsonl", '{"text": "it \'s \\"good\\" , mostly ", "label": 1}\n\n{"sentence": "dull, dull", "label": "0"}\n'),
])  # fmt: skip
def test_tsv_csv_and_jsonl_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_split(str(tmp_path), "dev") == SAME


@pytest.mark.parametrize("name,content,named", [
    ("dev.tsv", b"sentence\tlabel\nfine\t1\nbad\t2\n", "line 3: label '2'"),
    ("dev.tsv", b"sentence\tlabel\nfine\tgood\n", "line 2: label 'good'"),
    ("dev.tsv", b"sentence\tlabel\nfine\t0.5\n", "line 2: label '0.5'"),
    ("dev.tsv", b"sentence\tlabel\nfine\tnan\n", "line 2: label 'nan'"),
    ("dev.tsv", b"sentence\tlabel\nfine\t-1\n", "test rows without labels"),
    ("dev.tsv", b"sentence\tlabel\n \t1\n", "line 2: the text is blank"),
    ("dev.tsv", b"sentence\tlabel\nfine\n", "line 2: 1 columns"),
    ("dev.tsv", b"sentence\tlabel\na\tb\t1\n", "line 2: 3 columns"),
    ("dev.tsv", b"phrase\tlabel\nfine\t1\n", "columns sentence (or text) and label are needed"),
    ("dev.tsv", b"index\tsentence\n0\tfine\n", "columns sentence (or text) and label are needed"),
    ("dev.tsv", b"sentence\tlabel\ngood\t1\n\xff\xfe\t0\n", "line 3, is not UTF-8"),
    ("dev.tsv", b"", "no rows"), ("dev.tsv", b"sentence\tlabel\n", "no rows"),
    ("dev.csv", b'text,label\n"open,1\n', "dev.csv, line 2"),
    ("dev.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2"), ("dev.jsonl", b"[1]\n", "columns sentence (or text) and label are needed"),
    ("dev.jsonl", b'{"text": "a", "label": [1]}\n', "label"), ("dev.jsonl", b'{"text": 5, "label": 1}\n', "blank"),
    ("train.tsv", b"", "none of them"),
])  # fmt: skip
def test_bad_data_is_refused_by_file_and_line(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=re.escape(named)) as caught:
        read_split(str(tmp_path), "dev")
    assert "dev.tsv" in str(caught.value) or name in str(caught.value)


def test_two_files_of_one_split_are_refused(tmp_path):
    for kind in ("tsv", "csv"):
        (tmp_path / f"dev.{kind}").write_text("x")
    with pytest.raises(OSError, match="dev.tsv and dev.csv"):
        read_split(str(tmp_path), "dev")


def test_labels_of_a_regression_are_numbers(tmp_path):
    (tmp_path / "dev.tsv").write_text("text\tlabel\na\t-2.5\nb\t1\n")
    assert read_split(str(tmp_path), "dev", num_labels=1) == [("a", -2.5), ("b", 1.0)]


def test_clean_strips_both_ends_only():
    assert clean(" \t a  b .\u00a0\n") == "a  b ."


def contains(long, short):
    return f" {' '.join(short.split())} " in f" {' '.join(long.split())} "


@pytest.mark.parametrize("seed", range(5))
def test_hold_out_shares_no_phrase_with_train(seed):
    """Against brute force, on phrases cut from one another as SST-2's are."""
    draw = random.Random(seed)
    sentences = [" ".join(draw.choices("a b c d e f g h".split(), k=draw.randint(1, 9))) for _ in range(60)]
    phrases = [s for s in sentences for w in [s.split()] for _ in range(3) for i in [draw.randrange(len(w))]
               for s in (" ".join(w[i : i + draw.randint(1, 5)]), s)]  # fmt: skip
    examples = [(text, draw.randint(0, 1)) for text in phrases]
    train, held = hold_out(examples, 12, seed=seed)
    texts = [text for text, _ in held]
    assert len(set(texts)) == len(held) == 12 and set(held) <= set(examples)
    assert not any(contains(t, text) for t in texts for text, _ in train)
    assert not any(contains(other, t) for t in texts for other, _ in examples if other != t)
    assert set(train) == {pair for pair in examples if not any(contains(t, pair[0]) for t in texts)}
    assert (train, held) == hold_out(examples, 12, seed=seed) != hold_out(examples, 12, seed=seed + 1)


def test_hold_out_of_sst2_is_the_documented_one():
    if not (SHARED / "SST-2").exists():
        pytest.skip("SST-2 is not here")
    train, held = hold_out(read_split(str(SHARED / "SST-2"), "train"), 872)
    assert len(held) == 872 and 56_000 < len(train) < 58_500


def test_collate_pads_right_and_carries_lengths():
    ids, lengths, labels = collate([([5, 6, 7], 1), ([8], 0)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and lengths.tolist() == [3, 1] and labels.tolist() == [1, 0]
    assert ids.dtype == lengths.dtype == labels.dtype == torch.int64
    assert collate([([5], 0.5)])[2].dtype == torch.float32
    assert [collate([([5] * n, 1)], 8)[0].shape[1] for n in (1, 8, 9)] == [8, 8, 16]


def test_batches_cover_an_epoch_once_and_stay_together_in_a_new_order():
    draw = random.Random(0)
    examples = [([0] * draw.randint(1, 60), 0) for _ in range(3001)]
    first, second = (batches(examples, 32, epoch) for epoch in (1, 2))
    assert sorted(i for batch in first for i in batch) == list(range(3001)) and len(first) == 94
    assert first == batches(examples, 32, epoch=1) != second and sorted(first) == sorted(second)
    assert sorted(first) != sorted(batches(examples, 32, epoch=1, seed=1))
    width = lambda batch: max(len(examples[i][0]) for i in batch) - min(len(examples[i][0]) for i in batch)
    assert sum(map(width, first)) / len(first) < 4  # near-equal lengths together
    assert [len(examples[b[0]][0]) for b in first] != sorted(len(examples[b[0]][0]) for b in first)


# ---- downloads --------------------------------------------------------------------------------


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """A small archive in the shape of GLUE's, and data.py expecting just that."""
    files = {"train.tsv": b"sentence\tlabel\na fine film \t1\n", "dev.tsv": b"sentence\tlabel\ndull \t0\n"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"SST-2/{name}", content)
        archive.writestr("SST-2/original/extra.txt", "not wanted")
    files["SST-2.zip"] = buffer.getvalue()
    monkeypatch.setattr(data, "SST2_MD5", {name: hashlib.md5(files[name]).hexdigest() for name in data.SST2_MD5})
    monkeypatch.setattr(data, "ROOT", tmp_path)
    return files


def test_sst2_is_fetched_once(glue, tmp_path, monkeypatch, capsys):
    with serve({"/SST-2.zip": glue["SST-2.zip"]}) as (address, asked):
        monkeypatch.setattr(data, "SST2_URL", f"{address}/SST-2.zip")
        assert read_split("sst2", "train") == [("a fine film", 1)] and read_split("sst2", "dev") == [("dull", 0)]
    assert asked == ["/SST-2.zip"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dev.tsv", "sst2", "train.tsv"]


@pytest.mark.parametrize("trouble", ["cut", "wrong", "missing", "no network", "not a zip"])
def test_a_failed_fetch_of_sst2_says_so_and_leaves_nothing(glue, tmp_path, monkeypatch, trouble):
    body = glue["SST-2.zip"]
    if trouble == "wrong":
        monkeypatch.setitem(data.SST2_MD5, "dev.tsv", "0" * 32)
    if trouble == "not a zip":
        body = b"<html>sign in first</html>"
        monkeypatch.setitem(data.SST2_MD5, "SST-2.zip", hashlib.md5(body).hexdigest())
    with serve({"/SST-2.zip": body}, cut=["/SST-2.zip"] if trouble == "cut" else []) as (address, _):
        monkeypatch.setattr(data, "SST2_URL", address + ("/other" if trouble == "missing" else "/SST-2.zip"))
        if trouble == "no network":
            monkeypatch.setattr(data, "SST2_URL", "http://127.0.0.1:9/SST-2.zip")
        with pytest.raises(OSError, match="could not fetch SST-2 .*by hand"):
            download_sst2(tmp_path / "sst2")
    assert list(tmp_path.iterdir()) == []


FETCH = "import sys, pathlib, data; data.ROOT = pathlib.Path(sys.argv[1]); print(data.checkpoint_folder(sys.argv[2]))"


def fetch(root, name, address):
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", FETCH, str(root), name]
    return subprocess.run(command, env=environment, cwd=TINY.parent.parent, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("name,cut", [("gpt2", False), ("gpt2", True), ("someone/small-gpt2", False)])
def test_checkpoints_come_from_the_hub_whole_and_once(tmp_path, name, cut):
    repo, revision = data.OFFICIAL.get(name, (name, "2" * 40))
    wanted = {"config.json": b"{}", "merges.txt": b"#version: 0.2\n", "model.safetensors": bytes(range(256)) * 2000}
    offered = hub(repo, revision, wanted | {"pytorch_model.bin": b"no pickle", "vocab.json": b"{}"})
    weights = f"/{repo}/resolve/{revision}/model.safetensors"
    with serve(offered, cut=[weights] if cut else []) as (address, asked):
        done = fetch(tmp_path, name, address)
        if cut and done.returncode:
            assert not (tmp_path / "weights" / name).exists()
            done = fetch(tmp_path, name, address)
        assert done.returncode == 0, done.stderr
        before = len(asked)
        assert fetch(tmp_path, name, address).stdout == done.stdout and len(asked) == before
    folder = tmp_path / "weights" / name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted | {"revision": revision.encode()}
    assert not any("pytorch_model.bin" in path and "resolve" in path for path in asked)


@pytest.mark.parametrize("answer", ["no network", "not there", "no merges"])
def test_a_failed_fetch_of_a_checkpoint_names_the_way_out(tmp_path, answer):
    offered = hub("openai-community/gpt2", data.OFFICIAL["gpt2"][1], {"config.json": b"{}"})
    with serve({} if answer == "not there" else offered) as (address, _):
        done = fetch(tmp_path, "gpt2", "http://127.0.0.1:9" if answer == "no network" else address)
    assert done.returncode and not (tmp_path / "weights" / "gpt2").exists()
    assert ("has no merges.txt" if answer == "no merges" else "check the network and run again") in done.stderr


@pytest.mark.parametrize("name", ["nothing", "../etc", "/no/where", "a/b/c", ""])
def test_unknown_models_are_refused_before_any_network(name):
    with pytest.raises(OSError, match="there is no model|without config.json"):
        checkpoint_folder(name)
