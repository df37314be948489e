"""Hostile files: whatever bytes come in, the outcome is a correct result or one sentence that names the file.

Valid files are mutated, byte by byte and by those who know the format: JSON values of the wrong type, numbers out of
all proportion, offsets that lie, archives that lie about their members.  Every reader may answer in two ways only, see
`read`; what it accepts is checked against a reader of the format written anew here.  The cases are the same in every
run, and each test counts those that it really ran.
"""

import bz2
import csv
import functools
import hashlib
import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_weights, sizes, write_checkpoint
from conftest import ask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import archive, redirect

import evaluate
import train
from data import LONGEST, Tokenizer, clean, read_split
from model import GPT2Config, Prompt, load_gpt2, load_prompt, save_prompt
from support.fetch import base_of
from support.files import sha256, weight_files

MEMORY = 64 * 2**20  # bytes that a test may need above what the process had before it
ASKED, RAN = {}, Counter()  # name of a test: how many cases there are to be, how many ran


def cases(number, **strategies):
    """A test of the `number` cases that hypothesis draws from the strategies, always the same."""

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            RAN[test.__name__] += 1
            test(*args, **kwargs)

        ASKED[test.__name__] = number
        ways = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
        return settings(max_examples=number, **ways)(given(**strategies)(counted))

    return decorate


def peak():
    """The most memory, in bytes, that this process had in use since it was last asked; 0 where that is not to be had."""
    try:
        high = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]
        Path("/proc/self/clear_refs").write_text("5")
        return int(high) * 1024
    except (OSError, TypeError):
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(autouse=True)
def bounded(warm, request):
    """No test of this file may need more than MEMORY, nor run fewer cases than it says."""
    peak()
    before, name = peak(), request.node.originalname
    yield
    assert peak() - before < MEMORY
    assert RAN[name] >= ASKED.get(name, 0)


def read(reader, *args, naming):
    """What reader(*args) gives, or None where it refuses by a sentence with `naming` in it: nothing else may happen.

    A panic of a library is a BaseException, which pytest reports like any other.
    """
    try:
        return reader(*args)
    except (ValueError, OSError) as error:
        sentence = str(error)
    assert naming in sentence and 10 < len(sentence) < 1000 and len(sentence.splitlines()) == 1, sentence
    assert sentence.isprintable()  # no control sequences of a terminal either
    return None


# ---- mutations --------------------------------------------------------------------------------

SPOTS = st.floats(0, 1, exclude_max=True)
PIECES = st.one_of(st.binary(max_size=8), st.sampled_from([
    b"\0", b"\r", b"\n", b"\r\n", b"\t", b'"', b"\\", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xe9", b" ",
    b"{", b"[", b"}", b",", b"-", b"NaN", b"1e999", b"\\ud800", b"\x1b[2J", "١".encode(), b"\xff" * 8, b"\0" * 8, b"PK\x01\x02",
]))  # fmt: skip
KINDS = st.sampled_from(["flip", "delete", "double", "insert", "swap", "cut"])
EDITS = st.lists(st.tuples(KINDS, SPOTS, SPOTS, PIECES), min_size=1, max_size=4)


def mutate(content, edits, reach=None):
    """content with each edit done to it, within its first `reach` bytes."""
    rest, content = content[reach:] if reach else b"", bytearray(content[:reach])
    for kind, first, second, piece in edits:
        i, j = sorted((int(first * (len(content) + 1)), int(second * (len(content) + 1))))
        if kind == "flip" and content:
            content[min(i, len(content) - 1)] ^= 1 << j % 8
        elif kind == "delete":
            del content[i : min(j, i + 20)]
        elif kind == "double":
            content[j:j] = content[i:j]
        elif kind == "insert":
            content[i:i] = piece
        elif kind == "swap":
            content[i:j] = content[(i + j) // 2 : j] + content[i : (i + j) // 2]
        elif kind == "cut":
            del content[j:]
    return bytes(content) + rest


# JSON that no one writes: as text, because json.dumps would not write it either.
NESTED = lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ODD = st.one_of(
    st.recursive(LEAVES, NESTED, max_leaves=5).map(json.dumps), st.integers(-3, 300).map(str),
    st.sampled_from([
        "NaN", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "1e-400", "-0.0", "1.0", "16777215", "99", "{}", '""',
        "9223372036854775807", "18446744073709551616", "[" * 10**5, "[" * 10**5 + "]" * 10**5, '{"a":' * 500 + "1" + "}" * 500,
        "[" * 800 + "]" * 800, '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"' + "x" * 10**5 + '"', '"1_0"', '"\u0661"', "[]",
        '["a", "b"]', '["\\ud800", "b"]', '"ab"', '{"a": 1, "b": 2}', "[1, 2]", "true", "null", '[["a", 1]]', '"../x"',
    ]),
)  # fmt: skip


def spliced(value, key, odd):
    """The JSON text of a dictionary, with odd text as the value of one key."""
    return json.dumps(value | {key: "@@"}).replace('"@@"', odd).encode("utf-8", "surrogatepass")


# ---- config.json ------------------------------------------------------------------------------

CONFIG = sizes(C=4, H=2, L=1, V=300, n_positions=8)
WEIGHTS = random_weights(CONFIG)


def check_config(path):
    """An accepted config.json is one that a strict reading finds all right, and nothing is made of it but its sizes."""
    config = read(GPT2Config.from_json, path, naming="config.json")
    if config:
        given = json.loads(path.read_bytes())
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            assert type(given[name]) is int and 0 < given[name] < 2**24 and getattr(config, name) == given[name]
        assert config.n_layer < 100 and config.n_embd % config.n_head == 0 and 0 < config.layer_norm_epsilon < 1
        assert given.get("model_type", "gpt2") == "gpt2" and given.get("activation_function", "gelu_new") == "gelu_new"
        assert given.get("n_inner") in (None, 4 * config.n_embd) and given.get("scale_attn_weights", True) == 1
        assert not any(map(given.get, ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention")))
    return config


@pytest.fixture(scope="module")
def checkpoint_files(folder):
    return write_checkpoint(folder / "good", CONFIG, WEIGHTS)


@pytest.fixture(scope="module")
def warm(folder, checkpoint_files):
    """Load everything once, so that the memory of libraries is not counted."""
    load_gpt2(checkpoint_files)
    save_prompt(folder / "warm.safetensors", Prompt(torch.ones(2, 4), torch.ones(2, 4)), METADATA)
    load_prompt(folder / "warm.safetensors")
    clean(Tokenizer(checkpoint_files / "merges.txt").decode([0]))
    settings(max_examples=1, database=None)(given(st.text())(lambda text: None))()  # it builds a table of all characters


@cases(150, edits=EDITS)
def test_config_bytes(folder, edits):
    path = folder / "config.json"
    path.write_bytes(mutate(json.dumps(CONFIG, indent=2).encode(), edits))
    check_config(path)


@cases(250, key=st.sampled_from([*CONFIG, "n_inner", "scale_attn_weights", "add_cross_attention"]), odd=ODD)
def test_config_values(folder, checkpoint_files, key, odd):
    """Sizes that are accepted cost nothing before the weights are seen to be others."""
    bad = folder / "sized"
    bad.mkdir(exist_ok=True)
    (bad / "model.safetensors").write_bytes((checkpoint_files / "model.safetensors").read_bytes())
    (bad / "config.json").write_bytes(spliced(CONFIG, key, odd))
    config = check_config(bad / "config.json")
    gpt2 = read(load_gpt2, bad, naming=str(bad))
    if gpt2:
        assert gpt2.config == config
        assert (config.vocab_size, config.n_positions, config.n_embd, config.n_layer) == (300, 8, 4, 1)


# ---- merges.txt -------------------------------------------------------------------------------

TEXTS = ["the film is good, isn't it?", "  a\t\tb\r\n\0", "日本 naïve 🙂 'S", "<|endoftext|>"]


@cases(200, edits=EDITS, text=st.text(max_size=20))
def test_merges(folder, checkpoint_files, edits, text):
    """Any merges.txt that loads makes each text into known ids, of which the text can be told again."""
    path = folder / "merges.txt"
    path.write_bytes(mutate((checkpoint_files / "merges.txt").read_bytes(), edits))
    tokenizer = read(Tokenizer, path, naming="merges.txt")
    if tokenizer:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
        assert 256 < tokenizer.size <= 257 + len(lines) and tokenizer.end_of_text == tokenizer.size - 1
        for each in [*TEXTS, text]:
            ids = tokenizer.encode(each)
            assert tokenizer.decode(ids) == each and all(0 <= i < tokenizer.end_of_text for i in ids)


@pytest.mark.parametrize("space", [" ", "\n", "\u3000", "a"])
def test_the_longest_texts_are_tokenized_and_longer_ones_refused(folder, checkpoint_files, space):
    """On a million spaces in a row the tokenizer's library panics, and a panic passes every `except Exception`."""
    tokenizer, text = Tokenizer(checkpoint_files / "merges.txt"), "a" + space * (LONGEST - 2) + "b"
    assert tokenizer.decode(tokenizer.encode(clean(text))) == text
    (folder / "long").mkdir(exist_ok=True)
    for size, accepted in ((0, True), (1, False), (10**6, False)):
        row = {"text": text[:-1] + space * size + "b", "label": 1}
        (folder / "long" / "dev.jsonl").write_text('{"text": "a", "label": 0}\n' + json.dumps(row))
        found = read(read_split, str(folder / "long"), "dev", naming="dev.jsonl, line 2: the row has a text that is too long: the text has")
        assert found == ([("a", 0), (text, 1)] if accepted else None)


# ---- safetensors ------------------------------------------------------------------------------

def parts(path):
    """A safetensors file: header and body"""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def plain_reading(path):
    """A safetensors file by the rules of the format: metadata and {name: (dtype, shape, bytes)}"""
    header, body = parts(path)
    metadata, cut = header.pop("__metadata__", {}), lambda entry: body[slice(*entry["data_offsets"])]
    return metadata, {name: (entry["dtype"], entry["shape"], cut(entry)) for name, entry in header.items()}


def assembled(header, body):
    """header: bytes; the length field always fits."""
    return struct.pack("<Q", len(header)) + header + body


def numbers(dtype, shape, content):
    """Bytes of a safetensors tensor -> float32 array"""
    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    with np.errstate(all="ignore"):
        return np.frombuffer(content, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype("<f4").reshape(shape)


def check_weights(folder):
    """A checkpoint that loads holds what a plain reading of its files finds, and every name and shape of CONFIG."""
    gpt2 = read(load_gpt2, folder, naming=str(folder))
    if gpt2 is None:
        return
    stored = {}
    for path in weight_files(folder):
        assert path.parent == folder
        stored |= {name.removeprefix("transformer."): entry for name, entry in plain_reading(path)[1].items()}
    loaded = gpt2.state_dict()
    assert loaded.keys() == WEIGHTS.keys() <= stored.keys()
    for name, tensor in loaded.items():
        flip = WEIGHTS[name].dim() == 2 and ".h." in f".{name}"
        truth = numbers(*stored[name])
        assert truth.shape == tuple(WEIGHTS[name].shape)
        np.testing.assert_array_equal(tensor.numpy(), truth.T if flip else truth)


@pytest.fixture(scope="module")
def bad_checkpoint(folder, checkpoint_files):
    """A folder with a good config.json, for weights that are not."""
    bad = folder / "bad"
    bad.mkdir()
    (bad / "config.json").write_bytes((checkpoint_files / "config.json").read_bytes())
    return bad


@cases(150, edits=EDITS, in_header=st.booleans())
def test_weights_bytes(checkpoint_files, bad_checkpoint, edits, in_header):
    good, (_, body) = (read(checkpoint_files / "model.safetensors") for read in (Path.read_bytes, parts))
    (bad_checkpoint / "model.safetensors").write_bytes(mutate(good, edits, len(good) - len(body) * in_header))
    check_weights(bad_checkpoint)


NUMBER = st.integers(-2, 2000) | st.sampled_from([2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**30])
DTYPES_OF_OTHERS = ["F64", "F16", "BF16", "F8_E4M3", "F4", "F6_E2M3", "I64", "I32", "BOOL", "C64", "f32", ""]
OTHER_NAMES = ["wte.weight", "transformer.wte.weight", "lm_head.weight", "h.0.attn.bias", "prompt", "../x", "", "\0", "\x1b[2J",
               "score.weight", "h.0.ln_1.bias", "__metadata__"]  # fmt: skip
CHANGES = st.one_of(
    st.tuples(st.just("dtype"), st.sampled_from(DTYPES_OF_OTHERS)), st.tuples(st.just("shape"), st.lists(NUMBER, max_size=3)),
    st.tuples(st.just("data_offsets"), st.lists(NUMBER, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["dtype", "shape", "data_offsets", "entry"]), ODD),
    st.tuples(st.just("name"), st.sampled_from(OTHER_NAMES)),
    st.tuples(st.sampled_from(["drop", "transpose", "exchange", "narrow", "again", "zero"]), st.none()),
)  # fmt: skip


def change(header, body, name, other, kind, value):
    """(header text, body) after one change to the entry `name` of a safetensors header."""
    header = {key: dict(entry) for key, entry in header.items()}
    entry = header[name]
    if kind in ("shape", "data_offsets") and not isinstance(value, str) or kind == "dtype" and '"' not in value:
        entry[kind] = value
    elif kind == "entry":
        return spliced(header, name, value), body
    elif kind in ("dtype", "shape", "data_offsets"):
        inner = spliced(entry, kind, value).decode("utf-8", "surrogatepass")
        return spliced(header, name, inner), body
    elif kind == "name":
        header[value] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "transpose":
        entry["shape"] = entry["shape"][::-1]
    elif kind == "exchange":
        header[name], header[other] = header[other], header[name]
    elif kind == "narrow":  # a whole file, of which one tensor has half its floats and twice their width
        entry["dtype"], entry["shape"] = "F64", [*entry["shape"][:-1], entry["shape"][-1] // 2]
    elif kind == "again":  # one tensor twice, under both of its names
        start, end = entry["data_offsets"]
        header[f"transformer.{name}"] = entry | {"data_offsets": [len(body), len(body) + end - start]}
        body += body[start:end][::-1]
    elif kind == "zero":
        header["nothing"] = {"dtype": "F32", "shape": [0, 4], "data_offsets": [len(body), len(body)]}
    return json.dumps(header).encode(), body


@cases(250, name=st.sampled_from(sorted(WEIGHTS)), other=st.sampled_from(sorted(WEIGHTS)), what=CHANGES)
def test_weights_header(checkpoint_files, bad_checkpoint, name, other, what):
    header, body = parts(checkpoint_files / "model.safetensors")
    (bad_checkpoint / "model.safetensors").write_bytes(assembled(*change(header, body, name, other, *what)))
    check_weights(bad_checkpoint)


@pytest.mark.parametrize("claimed", [0, 1, 10**8 - 1, 10**8, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_any_claimed_size(bad_checkpoint, claimed):
    for rest in (b"", b"{}", b" " * 100):
        (bad_checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + rest)
        assert read(load_gpt2, bad_checkpoint, naming="model.safetensors") is None


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for reader, path in ((load_gpt2, tmp_path), (load_prompt, tmp_path / "model.safetensors"), (Tokenizer, tmp_path)):
        assert read(reader, path, naming=str(path)) is None


SHARDS = ["../good/model.safetensors", "/etc/passwd", "..", ".", "", "a\0b", "a/b", "\ud800", "shard", "none", "x" * 300,
          "..\\x", "bad\n", "config.json"]  # fmt: skip


@cases(100, odd=ODD, where=st.sampled_from(["weight_map", "tensor", "name"]), edits=EDITS, name=st.sampled_from(SHARDS))
def test_shards(folder, checkpoint_files, odd, where, edits, name):
    """A list of shards leads to no file outside its folder."""
    bad = folder / "shards"
    bad.mkdir(exist_ok=True)
    for file, source in (("config.json", "config.json"), ("shard", "model.safetensors")):
        (bad / file).write_bytes((checkpoint_files / source).read_bytes())
    listed = {each: "shard" for each in WEIGHTS}
    if where == "weight_map":
        index = spliced({}, "weight_map", odd)
    elif where == "tensor":
        index = mutate(json.dumps({"weight_map": listed | {"wte.weight": name}}).encode(), edits[:1])
    else:
        index = json.dumps({"weight_map": {"wte.weight": name}}).encode()
    (bad / "model.safetensors.index.json").write_bytes(index)
    files = read(weight_files, bad, naming="model.safetensors.index.json")
    if files:
        assert all(path.parent == bad and path.name not in ("", ".", "..") for path in files)
        read(sha256, *files, naming=str(bad))
    check_weights(bad)


# ---- prompt.safetensors -----------------------------------------------------------------------

METADATA = {
    "labels": ["no", "yes"], "init_ids": [260, 261], "recipe": {"lr": 0.1, "data": "reviews"}, "base_model": "tiny",
    "base_sha256": "0" * 64, "text_rule": "strip", "accuracy": 0.5, "n": 2, "init": "sample", "base_revision": "",
}  # fmt: skip


@functools.cache
def good_prompt(path):
    """The bytes of a prompt, as a whole, its header and its body"""
    vectors, head = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    save_prompt(path, Prompt(vectors, head), METADATA)
    return path.read_bytes(), *parts(path)


def check_prompt(path):
    """A prompt that loads is finite and of one width, is what the file says, and survives being saved."""
    found = read(load_prompt, path, naming=path.name)
    if found is None:
        return
    prompt, metadata = found
    (P, C), (N, same) = prompt.vectors.shape, prompt.head.shape
    assert C == same and P * C * N > 0 and prompt.vectors.dtype == prompt.head.dtype == torch.float32
    assert prompt.vectors.isfinite().all() and prompt.head.isfinite().all()
    said, tensors = plain_reading(path)
    assert tensors.keys() == {"prompt", "head.weight"}
    for name, tensor in (("prompt", prompt.vectors), ("head.weight", prompt.head)):
        assert numbers(*tensors[name]).tobytes() == tensor.detach().numpy().tobytes()
    assert metadata.keys() == said.keys() and metadata["position_rule"] == "after-text"
    assert type(metadata["labels"]) is list and len(metadata["labels"]) == max(N, 2)
    assert all(type(name) is str and "\x1b" not in name and name.encode() is not None for name in metadata["labels"])
    assert type(metadata["init_ids"]) is list and all(type(i) is int for i in metadata["init_ids"])
    assert type(metadata["recipe"]) is dict and type(metadata["recipe"].get("data", "")) is str
    save_prompt(path.with_name("again.safetensors"), prompt, metadata)
    again, same = load_prompt(path.with_name("again.safetensors"))
    assert torch.equal(again.vectors, prompt.vectors) and torch.equal(again.head, prompt.head)
    assert {key: repr(same[key]) for key in metadata.keys() - {"prompt_tokens", "num_labels"}} == {  # for NaN is not itself
        key: repr(value) for key, value in metadata.items() if key not in ("prompt_tokens", "num_labels")}  # fmt: skip


@cases(150, edits=EDITS, in_header=st.booleans())
def test_prompt_bytes(folder, edits, in_header):
    content, _, body = good_prompt(folder / "prompt.safetensors")
    (folder / "p.safetensors").write_bytes(mutate(content, edits, len(content) - len(body) * in_header))
    check_prompt(folder / "p.safetensors")


@cases(200, name=st.sampled_from(["prompt", "head.weight"]), what=CHANGES)
def test_prompt_header(folder, name, what):
    _, header, body = good_prompt(folder / "prompt.safetensors")
    (folder / "p.safetensors").write_bytes(assembled(*change(header, body, name, "prompt", *what)))
    check_prompt(folder / "p.safetensors")


@cases(250, key=st.sampled_from([*METADATA, "format", "position_rule", "recipe.data"]), odd=ODD, raw=st.booleans())
def test_prompt_metadata(folder, key, odd, raw):
    """Odd JSON in the text of a value, and odd values where the format allows only text."""
    _, header, body = good_prompt(folder / "prompt.safetensors")
    if key == "recipe.data":
        key, odd = "recipe", f'{{"data": {odd}}}'
    value = odd if raw else json.dumps(odd)
    inner = spliced(header["__metadata__"], key, value).decode("utf-8", "surrogatepass")
    (folder / "p.safetensors").write_bytes(assembled(spliced(header, "__metadata__", inner), body))
    check_prompt(folder / "p.safetensors")


# ---- tsv, csv, jsonl --------------------------------------------------------------------------

ROWS = [("it 's \"good\" , mostly", 1), ("dull, dull", 0), ("naïve 🙂", 1)]
FILES = {
    "tsv": "sentence\tlabel\n" + "".join(f"{text} \t{label}\n" for text, label in ROWS),
    "csv": "text,label\n" + "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in ROWS),
    "jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS),
}


def fresh(folder, kind, content):
    """A data set folder with content as its only split -> its name"""
    folder = folder / "set"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / f"dev.{kind}").write_bytes(content)
    return str(folder)


def check_rows(folder, kind, content, num_labels):
    """What read_split gives keeps its promises, and says the same when it is written down and read again."""
    found = read(read_split, fresh(folder, kind, content), "dev", num_labels, naming=f"dev.{kind}")
    if found is not None:
        assert 0 < len(found) <= len(re.split(rb"\r\n|\r|\n", content))
        for text, label in found:
            assert text and text == text.strip() and len(text) <= LONGEST and text.encode()
            if num_labels == 1:
                assert type(label) is float and np.isfinite(np.float32(label))
            else:
                assert type(label) is int and 0 <= label < num_labels
        again = "".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in found)
        assert read_split(fresh(folder, "jsonl", again.encode()), "dev", num_labels) == found
    return found


CODINGS = ["utf-8"] * 5 + ["utf-8-sig", "utf-16", "cp1252"]
LABELS = st.sampled_from([1, 2, 11])  # how many there are


@cases(300, kind=st.sampled_from(sorted(FILES)), edits=EDITS, coding=st.sampled_from(CODINGS), num_labels=LABELS)
def test_rows_bytes(folder, kind, edits, coding, num_labels):
    check_rows(folder, kind, mutate(FILES[kind].encode(coding, "replace"), edits), num_labels)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@cases(150, rows=st.lists(st.tuples(CELLS, st.integers(0, 10)), min_size=1, max_size=4), kind=st.sampled_from(["csv", "tsv"]))
def test_rows_of_any_text(folder, rows, kind):
    """Whatever a text holds, csv gives it back; tsv does, unless it holds what ends a cell or a line."""
    out = io.StringIO(newline="")
    if kind == "csv":
        csv.writer(out).writerows([("text", "label"), *rows])
    else:
        out.write("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    found = check_rows(folder, kind, out.getvalue().encode(), 11)
    plain = [text for text, _ in rows if text.strip() and not (kind == "tsv" and re.search("[\t\r\n]", text))]
    if len(plain) == len(rows):
        assert found == [(text.strip(), label) for text, label in rows]
    elif kind == "csv" or any(not text.strip() and not re.search("[\t\r\n]", text) for text, _ in rows):
        assert found is None


@cases(250, key=st.sampled_from(["text", "label", "sentence"]), odd=ODD, num_labels=LABELS)
def test_rows_json(folder, key, odd, num_labels):
    content = FILES["jsonl"].encode() + spliced({"text": "fine", "label": 1}, key, odd) + b"\n"
    found = check_rows(folder, "jsonl", content, num_labels)
    if found:
        row = json.loads(content.split(b"\n")[3])
        text, label = row.get("sentence", row["text"]), row["label"]
        assert found[:3] == ROWS and found[3][0] == text.strip() and found[3][1] == float(label) and label is not True


# ---- the downloaded archive -------------------------------------------------------------------

CONTENT = {"train.tsv": FILES["tsv"].encode() * 30, "dev.tsv": FILES["tsv"].encode()}
GOOD = [(f"SST-2/{name}", content) for name, content in CONTENT.items()]


@functools.cache
def bomb(method):
    """A stream of a few megabytes at most that unpacks to more zeros than MEMORY, or to gigabytes of them."""
    if method == zipfile.ZIP_DEFLATED:
        press = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = press.compress(bytes(2**20)) + press.flush(zlib.Z_FULL_FLUSH)  # the same anywhere in a stream
        return block * 4096 + press.flush()
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16, "mf": lzma.MF_HC3, "depth": 1}]
    start = b"\x09\x04\x05\x00\x5d" + struct.pack("<I", 2**16)  # what a zip puts before such a stream
    press = bz2.BZ2Compressor(1) if method == zipfile.ZIP_BZIP2 else lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    packed = b"".join([press.compress(bytes(2**20)) for _ in range(3 * MEMORY >> 21)] + [press.flush()])
    return packed if method == zipfile.ZIP_BZIP2 else start + packed


def patched(content, **fields):
    """A zip with fields of all its local and central headers set to the given values."""
    places = {  # in a local header, in a central one, form
        "flags": (6, 8, "<H"), "method": (8, 10, "<H"), "crc": (14, 16, "<I"), "packed": (18, 20, "<I"), "size": (22, 24, "<I"),
        "offset": (None, 42, "<I"), "extra": (28, 30, "<H"), "length": (26, 28, "<H"),
    }  # fmt: skip
    content = bytearray(content)
    for which, mark in enumerate((b"PK\x03\x04", b"PK\x01\x02")):
        for found in re.finditer(re.escape(mark), bytes(content)):
            for field, value in fields.items():
                place, form = places[field][which], places[field][2]
                if place is not None:
                    struct.pack_into(form, content, found.start() + place, value % (1 << 8 * struct.calcsize(form)))
    return bytes(content)


def download(folder, address, md5=None):
    """Fetch SST-2 from there -> what came, {path: bytes}, in a folder that is empty again afterwards."""
    place = folder / "download"
    place.mkdir(exist_ok=True)
    around = sorted(folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        redirect(patch, place, address, md5)
        read(read_split, "sst2", "dev", naming="could not fetch SST-2")
    made = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert bool(made) == any(place.iterdir()) and sorted(folder.iterdir()) == around
    for path in sorted(place.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return made


def check_archive(folder, content):
    """Both files and nothing else of the right archive; of any other one a sentence, and nothing of it is unpacked."""
    right = archive(GOOD)
    (folder / "SST-2.zip").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        if content != right:
            patch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it is opened"))
        made = download(folder, (folder / "SST-2.zip").as_uri(), hashlib.md5(right).hexdigest())
    assert made == ({f"sst2/{name}": each for name, each in CONTENT.items()} if content == right else {})


@cases(150, edits=EDITS)
def test_zip_bytes(folder, edits):
    check_archive(folder, mutate(archive(GOOD), edits))


NAMES = ["../evil", "/tmp/evil", "SST-2/../../evil", "SST-2/train.tsv", "SST-2/dev.tsv", "SST-2/", "SST-2\\dev.tsv",
         "sst2/dev.tsv", "SST-2/dev.tsv\0x", "x" * 300, "é", "\x1b[2J" * 900]  # fmt: skip
FIELDS = st.sampled_from(["flags", "method", "crc", "packed", "size", "offset", "extra", "length"])
METHODS = [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@cases(150, extra=st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=20)), max_size=3), first=st.booleans(),
       method=st.sampled_from(METHODS),
       fields=st.dictionaries(FIELDS, st.integers(0, 20) | st.sampled_from([95, 99, 2048, 2**16 - 1, 2**31, 2**32 - 1]),
                              max_size=2))  # fmt: skip
def test_zip_members(folder, extra, first, method, fields):
    """Names that lead elsewhere, names that come twice, and headers that lie."""
    check_archive(folder, patched(archive(extra + GOOD if first else GOOD + extra, method), **fields))


def test_what_is_said_of_a_broken_archive_is_no_longer_than_a_sentence(folder):
    """The library repeats a name of any length: here the two headers of a member have other ones, and the md5 is right."""
    content = patched(archive([("\x1b" * 5000, b""), *GOOD]), offset=0)
    (folder / "SST-2.zip").write_bytes(content)
    assert download(folder, (folder / "SST-2.zip").as_uri(), hashlib.md5(content).hexdigest()) == {}


@pytest.mark.parametrize("method", [METHODS[0], *METHODS[2:]])
@pytest.mark.parametrize("claimed", [100, 2**32 - 2])
def test_a_member_that_unpacks_to_gigabytes(folder, method, claimed):
    content = archive([("SST-2/train.tsv", bomb(method))], zipfile.ZIP_STORED)
    check_archive(folder, patched(content, method=method, size=claimed))


def test_an_endless_download_is_cut(folder):
    """Sparse: it is longer than the memory that this test may take."""
    with open(folder / "endless", "wb") as file:
        file.truncate(2**33)
    assert download(folder, (folder / "endless").as_uri()) == {}
    (folder / "endless").unlink()


# ---- from the command line --------------------------------------------------------------------


@pytest.fixture
def bench(place):
    """The model m and the data d of conftest.py, and a prompt p.safetensors for them: all in order, as the first test shows."""
    facts = base_of("m", Path("m")) | {"recipe": {"data": "d"}}
    save_prompt("p.safetensors", Prompt(torch.ones(2, 10), torch.eye(2, 10)), METADATA | facts)


def main(capsys, program, *argv):
    """(exit code, standard error) of train.py or evaluate.py"""
    code, _, err = ask(capsys, program, *argv)
    return code, err


SCORE = (evaluate, "score", "p.safetensors")
TRAIN = (train, "--model", "m", "--data", "d", "--out", "run", "--select-on", "dev", "--steps", "1")
HOSTILE = {  # what is done to the bytes of which file, the words that the one sentence must hold
    "one bit": ("m/model.safetensors", lambda old: old[:-1] + bytes([old[-1] ^ 1]), "trained on another model"),
    "half a prompt": ("p.safetensors", lambda old: old[: len(old) // 2], "p.safetensors is no whole safetensors file"),
    "too many layers": ("m/config.json", lambda old: old.replace(b'"n_layer": 3', b'"n_layer": 99'), "lacks h.10"),
    "deep config": ("m/config.json", lambda old: b"[" * 10**5, "config.json is no JSON object"),
    "broken merges": ("m/merges.txt", lambda old: old + b"a b c\n", "merges.txt, line"),
    "binary data": ("d/dev.tsv", lambda old: old + b"\xff\0\n", "dev.tsv, line 14"),
    "a million spaces": ("d/dev.tsv", lambda old: old + b"a" + b" " * 10**6 + b"b\t1\n", "dev.tsv, line 14"),
}


def test_the_bench_is_in_order(bench, capsys):
    for command in (SCORE, (evaluate, "predict", "p.safetensors", "a fine film")):
        assert main(capsys, *command) == (0, "")
    assert main(capsys, *TRAIN)[0] == 0


@pytest.mark.parametrize("command", [SCORE, TRAIN])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_program_ends_in_one_sentence(bench, place, capsys, kind, command):
    name, change, named = HOSTILE[kind]
    (place / name).write_bytes(change((place / name).read_bytes()))
    code, err = main(capsys, *command)
    if command is TRAIN and kind in ("one bit", "half a prompt"):
        assert code == 0  # nothing is wrong for a new prompt
    else:
        assert code == 2 and named in err and err.count("error: ") == 1 and err.count("\n") == 1, err


@pytest.mark.parametrize("text", ["a" + " " * 10**6 + "b", "\udcff"])
def test_predict_refuses_what_the_tokenizer_cannot_read(bench, capsys, text):
    code, err = main(capsys, evaluate, "predict", "p.safetensors", text)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 200, err
