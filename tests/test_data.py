"""data.py: the tokenizer against the official one, splits, batches, and downloads from stand-ins."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from checkpoints import SHARED, TINY
from servers import NOWHERE, archive, fetching, hub, redirect, serve

from data import Tokenizer, batches, clean, collate, hold_out, read_split
from model import load_gpt2
from support import cache as caching
from support.cache import TextCache
from support.fetch import checkpoint_folder
from support.files import sha256

NASTY = [
    "it's we'll they've I'd you're I'm can't DON'T won'tn't", "🙂👩‍👩‍👧 naïve café Ünïcödé ﬁ", "a  b   c    \n\n d\t\te",
    "日本語のテスト жизнь прекрасна مرحبا שלום हिन्दी", "3.14159 1,000,000 ½ ² Ⅷ", "!!! ... -- ``quoted'' (x) #$%&", "   ",
    "\u00a0\u2003wide\u200bspaces\u3000", "\x00\x7f\x80\xff", "tabs\tand\r\nlines\r", "x" * 300, "'s 's'S 'LL",
    "".join(map(chr, range(256))), "end  ", " \n",
]  # fmt: skip


def official_tokenizers():
    """(folder, texts): the bundled files, and the official ones on all of SST-2 where they lie about."""
    texts = [text for split in ("train", "dev") for text, _ in read_split("reviews", split)]
    yield pytest.param(TINY, texts, id="tiny")
    sst2 = [line for name in ("train", "dev") if (path := SHARED / "SST-2" / f"{name}.tsv").exists()
            for line in path.read_text(encoding="utf-8").split("\n")]  # fmt: skip
    official = SHARED / "gpt2-tokenizer"
    missing = pytest.mark.skipif(not official.exists(), reason="GPT-2's own tokenizer is not beside this checkout")
    yield pytest.param(official, texts + sst2, id="gpt2", marks=missing)


@pytest.mark.parametrize("folder,texts", list(official_tokenizers()))
def test_tokenizer_equals_transformers(folder, texts):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    ours, texts = Tokenizer(folder / "merges.txt"), texts + NASTY
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours.encode(text) == ids and ours.decode(ids) == text, text
    assert ours.size == len(json.loads((folder / "vocab.json").read_text())) == ours.end_of_text + 1


@pytest.mark.parametrize("line", ["Ġt h e", "justone", "日 本", "Ġ t", "zz qq", "", "#version: 0.2", "Ġ"])
def test_a_broken_merge_is_named_by_line(tmp_path, line):
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\nĠ t\n{line}\nh e\n", encoding="utf-8")
    with pytest.raises(ValueError, match="merges.txt, line 3"):
        Tokenizer(tmp_path / "merges.txt")


@pytest.mark.parametrize("form", ["#version: 0.2\n{}\n", "{}", "{}\n", "\ufeff#version: 0.2\n{}\n"])
def test_merges_with_and_without_a_first_line_and_a_last(tmp_path, form):
    (tmp_path / "merges.txt").write_text(form.format("Ġ t\nh e"), encoding="utf-8")
    ours = Tokenizer(tmp_path / "merges.txt")
    assert (ours.encode(" the"), ours.size, ours.end_of_text) == ([256, 257], 259, 258)


# ---- splits -----------------------------------------------------------------------------------

SAME = [("\"it 's\" good , mostly", 1), ("dull, dull", 0)]
NO_TEXT = "the row has no text in a column sentence or text (--text-column)"
NO_LABEL = "the row has no label in a column label (--label-column)"


@pytest.mark.parametrize("name,text", [
    ("dev.tsv", 'sentence\tlabel\n"it \'s" good , mostly \t1\ndull, dull\t0\n'),
    ("dev.tsv", '\ufefflabel\tidx\tsentence\r\n1\t7\t"it \'s" good , mostly \r\n0\t8\tdull, dull\r\n'),
    ("dev.csv", 'text,label\n"""it \'s"" good , mostly ",1\n"dull, dull",0\n'),
    ("dev.csv", '\ufefflabel,text,sentence\r\n\r\n1.0,no,"""it \'s"" good , mostly"\r\n0,no,"dull, dull"'),
    ("dev.jsonl", '{"text": "\\"it \'s\\" good , mostly ", "label": 1}\n\n{"sentence": "dull, dull", "label": "0"}\n'),
    ("dev.jsonl", '{"sentence": "\\"it \'s\\" good , mostly\u2028", "label": 1.0}\n{"text": "dull, dull", "label": 0}'),
])  # fmt: skip
def test_tsv_csv_and_jsonl_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_split(str(tmp_path), "dev") == SAME


@pytest.mark.parametrize("name,content,named", [
    ("dev.tsv", "sentence\tlabel\nfine\t1\nbad\t2\n", "line 3: label '2' is not in 0 to 1 (--num-labels)"),
    *[("dev.tsv", f"sentence\tlabel\nfine\t{label}\n", f"line 2: label '{label}'") for label in ("good", "0.5", "nan")],
    ("dev.tsv", "sentence\tlabel\nfine\t-1\n", "line 2: label '-1' is not in 0 to 1 (--num-labels); numbers count from 0, or all are names; -1 marks test rows"),
    ("dev.tsv", "sentence\tlabel\n \t1\n", "line 2: the row has a text that is blank"),
    ("dev.tsv", "text\tlabel\nfine\n", "line 2: 1 columns"), ("dev.tsv", "text\tlabel\na\t1\n\na\tb\t1\n", "line 4: 3 columns"),
    ("dev.tsv", "sentence\tlabel\tlabel\nfine\t0\t1\n", "line 2: 3 columns, but line 1 names 2"),
    ("dev.tsv", "text\tlabel\na\rb\t1\n", "line 2: 1 columns"), ("dev.jsonl", '{"text": "\\ud800", "label": 1}', "that is not UTF-8"),
    ("dev.tsv", "phrase\tlabel\nfine\t1\n", f"line 2: {NO_TEXT}"), ("dev.tsv", "id\ttext\n0\tfine\n", f"line 2: {NO_LABEL}"),
    ("dev.tsv", b"sentence\tlabel\ngood\t1\n\xff\xfe\t0\n", "line 3, is not UTF-8"),
    ("dev.tsv", "", " has no rows"), ("dev.tsv", "sentence\tlabel\n", " has no rows"),
    ("dev.csv", 'text,label\nfine,1\n"open,1\nmore,0\n', "line 3: unexpected end"),
    ("dev.csv", 'text,label\n"two\nlines",1\nbad,9\n', "line 4: label '9'"),
    ("dev.csv", 'text,label\n"closed"too early,1\n', "line 2: "), ("dev.csv", f'text,label\n"{"a" * 200_000}",1\n', "line 2: "),
    ("dev.jsonl", '{"text": "a", "label": 1}\n\n{"text": \n', "line 3: Expecting value"),
    ("dev.jsonl", "[1]\n", f"line 1: {NO_LABEL}"), ("dev.jsonl", '{"text": 5, "label": 1}\n', f"line 1: {NO_TEXT}"),
    ("dev.jsonl", '{"text": "a", "label": [1]}\n', "line 1: label [1]"), ("dev.jsonl", '{"text": "a"}\n', f"line 1: {NO_LABEL}"),
    ("dev.jsonl", '{"text": "a", "label": true}', "label True"), ("dev.jsonl", '{"text": "a", "label": "0_1"}', "label '0_1'"),
    *[("dev.jsonl", f'{{"text": "a", "label": {"9" * n}}}', f"line 1: {why}") for n, why in ((400, "label 99"), (5000, "Exc"))],
])  # fmt: skip
def test_bad_data_is_refused_by_file_and_line(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"{name}(,| has).*") as caught:
        read_split(str(tmp_path), "dev")
    assert named in str(caught.value)


def test_a_split_is_in_one_file_of_a_folder_that_there_is(tmp_path):
    with pytest.raises(OSError, match="there is no data set .*elsewhere: name a folder, reviews, or sst2"):
        read_split(str(tmp_path / "elsewhere"), "dev")
    (tmp_path / "train.tsv").write_text("x")
    with pytest.raises(OSError, match="dev.jsonl, .* it has none of them"):
        read_split(str(tmp_path), "dev")
    for kind in ("tsv", "jsonl"):
        (tmp_path / f"dev.{kind}").write_text("x")
    with pytest.raises(OSError, match="dev.tsv and dev.jsonl"):
        read_split(str(tmp_path), "dev")


def test_labels_of_a_regression_are_numbers(tmp_path):
    (tmp_path / "dev.tsv").write_text("text\tlabel\na\t-2.5\nb\t1\n")
    assert read_split(str(tmp_path), "dev", num_labels=1) == [("a", -2.5), ("b", 1.0)]
    for label in ("nan", "-inf", "1e39", "much"):
        (tmp_path / "dev.tsv").write_text(f"text\tlabel\na\t1\nb\t{label}\n")
        with pytest.raises(ValueError, match=f"line 3: label '{label}' is not a number of float32"):
            read_split(str(tmp_path), "dev", num_labels=1)


def test_clean_strips_both_ends_only():
    assert clean(" \t a  b .\u00a0\n") == "a  b ." and clean(" a") == clean("a ") == "a"


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
    first = dict(reversed(examples))
    assert all(first[text] == label for text, label in held)  # of a text with two labels the first one counts
    assert (train, held) == hold_out(examples, 12, seed=seed) != hold_out(examples, 12, seed=seed + 1)


def test_hold_out_is_the_same_in_every_process_and_takes_half_at_most():
    examples = [(f"film {letter}", i) for i, letter in enumerate("abcdefghijk")] + [("film", 11)]
    train, held = hold_out(examples, 4)
    assert held == [("film k", 10), ("film g", 6), ("film e", 4), ("film a", 0)]
    assert train == [pair for pair in examples[:-1] if pair not in held]
    assert len(hold_out(examples, 100)[1]) == 5


@pytest.mark.skipif(not (SHARED / "SST-2").exists(), reason="SST-2 is not beside this checkout")
def test_hold_out_of_sst2_is_the_documented_one():
    examples = read_split(str(SHARED / "SST-2"), "train")
    train, held = hold_out(examples, 872)
    assert (len(held), len(train)) == (872, 57_549)
    texts = [f" {' '.join(text.split())} " for text, _ in examples]
    all_of_them = "\n".join(dict.fromkeys(texts))
    assert sum(all_of_them.count(text) > 1 for text in random.Random(0).sample(texts, 1000)) == 900


def test_collate_pads_right_and_carries_lengths():
    ids, lengths, labels = collate([([5, 6, 7], 1), ([8], 0)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and lengths.tolist() == [3, 1] and labels.tolist() == [1, 0]
    assert ids.dtype == lengths.dtype == labels.dtype == torch.int64
    assert collate([([5], 0.5)])[2].dtype == torch.float32


def test_batches_cover_an_epoch_once_and_stay_together_in_a_new_order():
    draw = random.Random(0)
    examples = [([0] * draw.randint(1, 60), 0) for _ in range(3001)]
    first, second = (batches(examples, 32, epoch) for epoch in (1, 2))
    assert sorted(i for batch in first for i in batch) == list(range(3001))
    assert sorted(map(len, first)) == [3001 % 32] + [32] * 93
    assert first == batches(examples, 32, epoch=1) != second and sorted(first) == sorted(second)
    assert sorted(first) != sorted(batches(examples, 32, epoch=1, seed=1))
    width = lambda batch: max(len(examples[i][0]) for i in batch) - min(len(examples[i][0]) for i in batch)
    assert sum(map(width, first)) / len(first) < 4  # near-equal lengths together
    assert [len(examples[b[0]][0]) for b in first] != sorted(len(examples[b[0]][0]) for b in first)


def test_batches_are_cut_from_pools_of_fifty():
    """Of 400 lengths, none like another, a pool of 100 has every fourth: closer together, and batches would not be random."""
    gaps = [abs(i - j) for i, j in batches([([0] * n, 0) for n in range(400)], 2, 1)]
    assert 3 < sum(gaps) / 200 < 5.3 and max(gaps) > 10


def test_the_order_of_batches_is_the_same_in_every_process():
    orders = [batches([([0] * (1 + i % 3), 0) for i in range(9)], 2, epoch, seed) for epoch, seed in ((1, 0), (2, 0), (1, 7))]
    assert orders[0] == [[5], [8, 2], [1, 7], [3, 4], [6, 0]] and orders[1] == [[1, 7], [6, 0], [5], [3, 4], [8, 2]]
    assert orders[2] == [[3, 0], [6, 4], [8], [5, 2], [7, 1]]


# ---- the cache of texts -----------------------------------------------------------------------


@pytest.mark.parametrize("limits,found", [
    ([], 8000), (["max\n"], 8000), (["3000\n"], 3000), (["max\n", "9223372036854771712\n"], 8000), (["\n", "400"], 400),
])  # fmt: skip
def test_a_container_may_have_less_memory_than_its_machine(monkeypatch, tmp_path, limits, found):
    """Files of cgroup 2 and 1, with a number or none, or not there."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8000))
    paths = [tmp_path / "no such file", *(tmp_path / str(i) for i in range(len(limits)))]
    for path, text in zip(paths[1:], limits):
        path.write_text(text)
    monkeypatch.setattr(caching, "LIMITS", paths)
    assert caching.memory_of(torch.device("cpu")) == found


def test_a_gpu_says_what_is_free(monkeypatch):
    """Whatever its kind, and of the one that is asked for."""
    free = SimpleNamespace(mem_get_info=lambda device: (100 + device.index, 10**12))
    monkeypatch.setattr(torch, "get_device_module", lambda device: free)
    assert caching.memory_of(torch.device("xpu", 3)) == 103


@pytest.mark.parametrize("room,world,readings", [(3, 1, 3), (2, 1, 4), (4, 2, 4), (0, 1, 6)])
def test_what_is_kept_is_read_once(monkeypatch, capsys, checkpoint, room, world, readings):
    """Three batches, each twice, with room for some: of several processes each has its share."""
    gpt2, read = load_gpt2(checkpoint[0]), []
    texts = torch.arange(30).view(3, 2, 5)
    truth = [gpt2.read(ids) for ids in texts]
    gpt2.wte.register_forward_hook(lambda *_: read.append(1))
    monkeypatch.setattr(caching, "rank_and_world", lambda: (0, world))
    cache = TextCache(room * truth[0].nbytes, gpt2)
    for _ in range(2):
        for i, ids in enumerate(texts):
            assert torch.equal(cache.read([i, i + 10], ids), truth[i])
    assert len(read) == readings
    assert ("keys and values of some texts are not kept" in capsys.readouterr().out) == (0 < room // world < 3)


# ---- downloads --------------------------------------------------------------------------------


@pytest.fixture
def glue():
    """A small archive in the shape of GLUE's, and its md5."""
    files = {"train.tsv": b"sentence\tlabel\na fine film \t1\n", "dev.tsv": b"sentence\tlabel\ndull \t0\n"}
    members = [(f"SST-2/{name}", content) for name, content in files.items()]
    content = archive([*members, ("SST-2/original/extra.txt", b"not wanted")])
    return content, hashlib.md5(content).hexdigest()


def test_sst2_is_fetched_once(glue, tmp_path, monkeypatch):
    """Also after a fetch that was killed."""
    (tmp_path / "sst2.part").mkdir()
    (tmp_path / "sst2.part" / "train.tsv").write_text("half of it, and then")
    with serve({"/SST-2.zip": glue[0]}) as (address, asked):
        redirect(monkeypatch, tmp_path, f"{address}/SST-2.zip", glue[1])
        assert read_split("sst2", "train") == [("a fine film", 1)] and read_split("sst2", "dev") == [("dull", 0)]
    assert asked == ["GET /SST-2.zip"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dev.tsv", "sst2", "train.tsv"]


@pytest.mark.parametrize("trouble,said", [
    ("cut", "IncompleteRead|came damaged"), ("another", "SST-2.zip came damaged"), ("missing", "404"),
    ("no network", "refused|urlopen"), ("not a zip", "not a zip"), ("no dev.tsv", "SST-2/dev.tsv"),
])  # fmt: skip
def test_a_failed_fetch_of_sst2_says_so_and_leaves_nothing(glue, tmp_path, monkeypatch, trouble, said):
    content, md5 = glue
    odd = {"not a zip": b"<html>sign in first</html>", "no dev.tsv": archive([("SST-2/train.tsv", b"sentence\tlabel\n")])}
    if trouble in odd:
        content, md5 = odd[trouble], hashlib.md5(odd[trouble]).hexdigest()
    if trouble == "another":
        md5 = "0" * 32
    with serve({"/SST-2.zip": content}, cut=["/SST-2.zip"] * (trouble == "cut")) as (address, _):
        place = {"no network": NOWHERE, "missing": f"{address}/other"}.get(trouble, f"{address}/SST-2.zip")
        redirect(monkeypatch, tmp_path, place, md5)
        with pytest.raises(OSError, match=f"could not fetch SST-2 .*({said}).*: check the network .* by hand"):
            read_split("sst2", "dev")
    assert list(tmp_path.iterdir()) == []


WHOLE = {"config.json": b"{}", "merges.txt": b"#version: 0.2\n", "model.safetensors": bytes(range(256)) * 2000}
SHARDS = {name: WHOLE[name] for name in ("config.json", "merges.txt")} | {"model.safetensors.index.json": b"{ }"}
SHARDS |= {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 1000 for i in (1, 2)}
UNWANTED = {"pytorch_model.bin": b"no pickle", "vocab.json": b"{}", "README.md": b"#"}


@pytest.mark.parametrize("name,wanted", [("gpt2", WHOLE), ("someone/small-gpt2", WHOLE), ("someone/large-gpt2", SHARDS)])
def test_checkpoints_come_from_the_hub_whole_and_once(tmp_path, monkeypatch, name, wanted):
    """At the pinned revision, from which the branch has gone on; or else at the branch's own."""
    repo, revision = fetching.OFFICIAL.get(name, (name, "2" * 40))
    others = dict.fromkeys(wanted, b"of another revision")
    offered = hub(repo, {revision: wanted | UNWANTED, "3" * 40: others}, "3" * 40 if name == "gpt2" else revision)
    with serve(offered) as (address, asked):
        redirect(monkeypatch, tmp_path, models=address)
        assert checkpoint_folder(name) == tmp_path / "weights" / name
        before = len(asked)
        assert checkpoint_folder(name) == tmp_path / "weights" / name and len(asked) == before
    found = {path.name: path.read_bytes() for path in (tmp_path / "weights" / name).iterdir()}
    assert found == wanted | {"revision": revision.encode()}
    assert not any(unwanted in path for path in asked for unwanted in UNWANTED)
    assert [path.name for path in (tmp_path / "weights" / name).parent.iterdir()] == [name.split("/")[-1]]


def test_a_fetch_that_was_cut_off_goes_on_from_there(tmp_path, monkeypatch):
    """Files that came whole are not fetched again, and there is no folder of this name before all have come."""
    repo, revision = fetching.OFFICIAL["gpt2"]
    weights = f"/{repo}/resolve/{revision}/model.safetensors"
    with serve(hub(repo, {revision: WHOLE}, revision), cut := [weights]) as (address, asked):
        redirect(monkeypatch, tmp_path, models=address)
        with pytest.raises(OSError, match=f"could not fetch {repo} .*: check the network and run again, it resumes"):
            checkpoint_folder("gpt2")
        assert not (tmp_path / "weights" / "gpt2").exists()
        cut.clear()
        asked.clear()
        found = {path.name: path.read_bytes() for path in checkpoint_folder("gpt2").iterdir()}
    assert found == WHOLE | {"revision": revision.encode()}
    assert [line.split(" from ")[0] for line in asked if line.startswith(f"GET /{repo}")] == [f"GET {weights}"]


@pytest.mark.parametrize("answer", ["no network", "not there", "merges.txt", "config.json"])
def test_a_failed_fetch_of_a_checkpoint_names_the_way_out(tmp_path, monkeypatch, answer):
    repo, revision = fetching.OFFICIAL["gpt2"]
    offered = hub(repo, {revision: {name: WHOLE[name] for name in WHOLE if name != answer}}, revision)
    with serve({} if answer == "not there" else offered) as (address, _):
        redirect(monkeypatch, tmp_path, models=NOWHERE if answer == "no network" else address)
        with pytest.raises(OSError) as caught:
            checkpoint_folder("gpt2")
    lacking = f"{repo} on the hub has no {answer}, so it is no GPT-2"
    wayout = rf"could not fetch {repo} \(.+\): check the network and run again, .*HF_HUB_DISABLE_XET=1.* put config.json, merges.txt, "
    wayout += f"model.safetensors of https://huggingface.co/{repo} into {re.escape(str(tmp_path))}.weights.gpt2"
    assert re.fullmatch(lacking if answer in WHOLE else wayout, str(caught.value))
    assert not (tmp_path / "weights" / "gpt2").exists()


def test_a_program_fetches_what_it_needs_or_ends_in_one_sentence(tmp_path, checkpoint):
    """From end to end, in a copy of the checkout that has no models."""
    copied = lambda name: name in ("support", "reviews") or name.endswith((".py", ".tsv", "schemas.json"))
    shutil.copytree(TINY.parent.parent, tmp_path / "copy", ignore=lambda _, names: {n for n in names if not copied(n)})
    files = {path.name: path.read_bytes() for path in checkpoint[0].iterdir()}
    environment = os.environ | {"HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    with serve(hub("someone/small", {"2" * 40: files}, "2" * 40)) as (address, _):
        for name, more in (("someone/small", {"HF_ENDPOINT": address}), ("someone/other", {"HF_HUB_OFFLINE": "1"})):
            command = [sys.executable, "train.py", "--model", name, "--steps", "1", "--out", name]
            environment |= more
            done = subprocess.run(command, env=environment, cwd=tmp_path / "copy", capture_output=True, text=True)
            if name == "someone/small":
                assert done.returncode == 0 and "model someone/small: " in done.stdout, done.stderr
    assert done.returncode == 2 and re.fullmatch(r"error: could not fetch someone/other \(.*\n", done.stderr), done.stderr
    assert [path.name for path in (tmp_path / "copy/weights/someone").iterdir()] == ["small"]


@pytest.mark.parametrize("name", [
    "nothing", "../etc", "/no/where", "/nowhere", "a/b/c", "", ".", "./x", "../x", "weights", "x/..", "x/../..", "x/.",
    "x/y\0", f"x/{'y' * 300}",
])  # fmt: skip
def test_what_is_no_model_is_refused_before_any_network(tmp_path, monkeypatch, name):
    """The last of these by the library; none leads out of the folder, and nothing is made."""
    redirect(monkeypatch, tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    said = r"there is no model .*: name a folder, a hub id, or tiny, gpt2, |without config.json|could not fetch x/.*Repo id"
    with pytest.raises(OSError, match=said) as caught:
        checkpoint_folder(name)
    assert len(str(caught.value).splitlines()) == 1 and [path.name for path in tmp_path.rglob("*")] == ["weights"]


def test_a_folder_here_goes_before_one_in_weights_and_that_before_the_network(tmp_path, monkeypatch):
    redirect(monkeypatch, tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    for place in ("gpt2", "root/weights/gpt2"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "root/weights/gpt2/config.json").write_text("{}")
    assert checkpoint_folder("gpt2") == tmp_path / "root/weights/gpt2"
    (tmp_path / "gpt2/config.json").write_text("{}")
    assert checkpoint_folder("gpt2").resolve() == (tmp_path / "gpt2").resolve()


def test_a_fingerprint_is_of_all_bytes_in_order(tmp_path):
    parts = [bytes(range(256)) * 9000, b"", b"the end"]
    for i, part in enumerate(parts):
        (tmp_path / str(i)).write_bytes(part)
    assert sha256(*(tmp_path / str(i) for i in range(3))) == hashlib.sha256(b"".join(parts)).hexdigest()
