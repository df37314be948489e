"""Hostile files, for the tests of every room that reads some.

Valid files are mutated, byte by byte and by those who know the format.  Whatever bytes come in, a
reader may answer in two ways only: with a right result, or with one sentence that names the file.
The cases are the same in every run.
"""

import json
import re
import struct
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def cases(number, **strategies):
    """A test of the `number` cases that hypothesis draws from the strategies, always the same.

    Its attribute `ran` counts those that really ran.
    """

    def decorate(test):
        def counted(*args, **kwargs):
            chosen.ran += 1
            test(*args, **kwargs)

        counted.__name__ = test.__name__
        counted.__doc__ = test.__doc__
        counted.__wrapped__ = test
        fixed = settings(
            max_examples=number,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        chosen = fixed(given(**strategies)(counted))
        chosen.ran = 0
        chosen.asked = number
        return chosen

    return decorate


def peak():
    """The most memory, in bytes, that this process had since it was last asked.

    0 where that is not to be had.
    """
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return 0


def read(reader, *args, naming):
    """What reader(*args) gives, or None where it refuses by a sentence with `naming` in it.

    Nothing else may happen.  A panic of a library is a BaseException, which pytest reports.
    """
    try:
        return reader(*args)
    except (ValueError, OSError) as error:
        sentence = str(error)
    assert naming in sentence
    assert 10 < len(sentence) < 1000
    assert len(sentence.splitlines()) == 1
    assert sentence.isprintable()  # no control sequences of a terminal either
    return None


# ---- mutations ------------------------------------------------------------------------------

SPOTS = st.floats(0, 1, exclude_max=True)
ODD_BYTES = [
    *(b"\0", b"\r", b"\n", b"\r\n", b"\t", b'"', b"\\", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\xed\xa0\x80", b"\xe9", b" ", b"{", b"[", b"}", b",", b"-", b"NaN", b"1e999"),
    *(b"\\ud800", b"\x1b[2J", "١".encode(), b"\xff" * 8, b"\0" * 8, b"PK\x01\x02"),
]
PIECES = st.one_of(st.binary(max_size=8), st.sampled_from(ODD_BYTES))
KINDS = st.sampled_from(["flip", "delete", "double", "insert", "swap", "cut"])
EDITS = st.lists(st.tuples(KINDS, SPOTS, SPOTS, PIECES), min_size=1, max_size=4)


def mutate(content, edits, reach=None):
    """content with each edit done to it, within its first `reach` bytes."""
    rest = content[reach:] if reach else b""
    content = bytearray(content[:reach])
    for kind, first, second, piece in edits:
        size = len(content) + 1
        i, j = sorted((int(first * size), int(second * size)))
        if kind == "flip" and content:
            content[min(i, len(content) - 1)] ^= 1 << j % 8
        elif kind == "delete":
            del content[i : min(j, i + 20)]
        elif kind == "double":
            content[j:j] = content[i:j]
        elif kind == "insert":
            content[i:i] = piece
        elif kind == "swap":
            middle = (i + j) // 2
            content[i:j] = content[middle:j] + content[i:middle]
        elif kind == "cut":
            del content[j:]
    return bytes(content) + rest


# JSON that no one writes: as text, because json.dumps would not write it either.
def nested(some):
    return st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ODD_JSON = [
    *("NaN", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "1e-400", "-0.0", "1.0"),
    *("16777215", "99", "{}", '""', "9223372036854775807", "18446744073709551616"),
    *("[" * 10**5, "[" * 10**5 + "]" * 10**5, '{"a":' * 500 + "1" + "}" * 500),
    *("[" * 800 + "]" * 800, '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"' + "x" * 10**5 + '"'),
    *('"1_0"', '"\u0661"', "[]", '["a", "b"]', '["\\ud800", "b"]', '"ab"', '{"a": 1, "b": 2}'),
    *("[1, 2]", "true", "null", '[["a", 1]]', '"../x"'),
]
ODD = st.one_of(
    st.recursive(LEAVES, nested, max_leaves=5).map(json.dumps),
    st.integers(-3, 300).map(str),
    st.sampled_from(ODD_JSON),
)


def spliced(value, key, odd):
    """The JSON text of a dictionary, with odd text as the value of one key."""
    text = json.dumps(value | {key: "@@"}).replace('"@@"', odd)
    return text.encode("utf-8", "surrogatepass")


# ---- safetensors, read anew -----------------------------------------------------------------


def parts(path):
    """A safetensors file: header and body"""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def plain_reading(path):
    """A safetensors file by the rules: metadata and {name: (dtype, shape, bytes)}"""
    header, body = parts(path)
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        content = body[slice(*entry["data_offsets"])]
        tensors[name] = entry["dtype"], entry["shape"], content
    return metadata, tensors


def assembled(header, body):
    """header: bytes; the length field always fits."""
    return struct.pack("<Q", len(header)) + header + body


def numbers(dtype, shape, content):
    """Bytes of a safetensors tensor -> float32 array"""
    if dtype == "BF16":
        wide = np.frombuffer(content, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    with np.errstate(all="ignore"):
        return np.frombuffer(content, kind).astype("<f4").reshape(shape)


NUMBER = st.integers(-2, 2000) | st.sampled_from([2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**30])
DTYPES = ["F64", "F16", "BF16", "F8_E4M3", "F4", "F6_E2M3", "I64", "I32", "BOOL", "C64", "f32", ""]
NAMES = [
    *("wte.weight", "transformer.wte.weight", "lm_head.weight", "h.0.attn.bias", "prompt"),
    *("../x", "", "\0", "\x1b[2J", "score.weight", "h.0.ln_1.bias", "__metadata__"),
]
CHANGES = st.one_of(
    st.tuples(st.just("dtype"), st.sampled_from(DTYPES)),
    st.tuples(st.just("shape"), st.lists(NUMBER, max_size=3)),
    st.tuples(st.just("data_offsets"), st.lists(NUMBER, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["dtype", "shape", "data_offsets", "entry"]), ODD),
    st.tuples(st.just("name"), st.sampled_from(NAMES)),
    st.tuples(
        st.sampled_from(["drop", "transpose", "exchange", "narrow", "again", "zero"]), st.none()
    ),
)


def change(header, body, name, other, kind, value):
    """(header text, body) after one change to the entry `name` of a safetensors header."""
    header = {key: dict(entry) for key, entry in header.items()}
    entry = header[name]
    odd_list = kind in ("shape", "data_offsets") and not isinstance(value, str)
    if odd_list or kind == "dtype" and '"' not in value:
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
    elif kind == "narrow":
        # A whole file, of which one tensor has half its floats and twice their width.
        entry["dtype"] = "F64"
        entry["shape"] = [*entry["shape"][:-1], entry["shape"][-1] // 2]
    elif kind == "again":
        # One tensor twice, under both of its names.
        start, end = entry["data_offsets"]
        place = [len(body), len(body) + end - start]
        header[f"transformer.{name}"] = entry | {"data_offsets": place}
        body += body[start:end][::-1]
    elif kind == "zero":
        place = [len(body), len(body)]
        header["nothing"] = {"dtype": "F32", "shape": [0, 4], "data_offsets": place}
    return json.dumps(header).encode(), body
