"""The archive of SST-2: whatever comes in its place, nothing of it is unpacked.

That it is fetched once, and what a failed fetch says, is in test_dataset.py.
"""

import bz2
import contextlib
import functools
import hashlib
import lzma
import re
import struct
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import EDITS, cases, mutate, peak, read
from servers import archive, redirect
from support.dataset import read_split

MEMORY = 64 * 2**20  # bytes that a test may need above what the process had before it
ROWS = b"sentence\tlabel\na fine film \t1\ndull \t0\n"
CONTENT = {"train.tsv": ROWS * 30, "dev.tsv": ROWS}
GOOD = [(f"SST-2/{name}", data) for name, data in CONTENT.items()]


@settings(max_examples=1, database=None)
@given(st.text())
def draw_one(text):
    """hypothesis builds a table of all characters"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of this file; what is loaded here is not counted in `bounded`."""
    folder = tmp_path_factory.mktemp("sst2")
    draw_one()
    check_archive(folder, archive(GOOD))
    return folder


@pytest.fixture(autouse=True)
def bounded(folder, request):
    """No test of this file may need more than MEMORY, nor run fewer cases than it says."""
    peak()
    before = peak()
    yield
    assert peak() - before < MEMORY
    test = request.function
    assert getattr(test, "ran", 0) >= getattr(test, "asked", 0)


# ---- a download, and what comes of it -------------------------------------------------------


def download(folder, address, md5=None):
    """Fetch SST-2 from an address -> {path: bytes} of what came

    It comes into a folder that is empty again afterwards.
    """
    place = folder / "download"
    place.mkdir(exist_ok=True)
    around = sorted(folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        redirect(patch, place, address, md5)
        read(read_split, "sst2", "dev", naming="could not fetch SST-2")
    came = {}
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_file():
            came[path.relative_to(place).as_posix()] = path.read_bytes()
            path.unlink()
        else:
            path.rmdir()
            assert came, f"{path} is left"
    assert sorted(folder.iterdir()) == around
    return came


def never(*how):
    pytest.fail("it is opened")


def check_archive(folder, content):
    """Both files and nothing else of the right archive; any other one is never opened."""
    right = archive(GOOD)
    path = folder / "SST-2.zip"
    path.write_bytes(content)
    guard = contextlib.nullcontext()
    if content != right:
        guard = pytest.MonkeyPatch.context()
    with guard as patch:
        if patch:
            patch.setattr(zipfile, "ZipFile", never)
        came = download(folder, path.as_uri(), hashlib.md5(right).hexdigest())
    expected = {f"sst2/{name}": data for name, data in CONTENT.items()}
    assert came == (expected if content == right else {})


# ---- archives that are another --------------------------------------------------------------


@cases(150, edits=EDITS)
def test_a_mutated_archive_is_never_opened(folder, edits):
    check_archive(folder, mutate(archive(GOOD), edits))


NAMES = [
    "../evil",
    "/tmp/evil",
    "SST-2/../../evil",
    "SST-2/train.tsv",
    "SST-2/dev.tsv",
    "SST-2/",
    "SST-2\\dev.tsv",
    "sst2/dev.tsv",
    "SST-2/dev.tsv\0x",
    "x" * 300,
    "é",
    "\x1b[2J" * 900,
]
METHODS = [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
FIELDS = {  # of a zip: where in a local header, where in a central one, how many bits
    "flags": (6, 8, 16),
    "method": (8, 10, 16),
    "crc": (14, 16, 32),
    "packed": (18, 20, 32),
    "size": (22, 24, 32),
    "offset": (None, 42, 32),
    "extra": (28, 30, 16),
    "length": (26, 28, 16),
}
FORMS = {16: "<H", 32: "<I"}
VALUES = st.integers(0, 20) | st.sampled_from([95, 99, 2048, 2**16 - 1, 2**31, 2**32 - 1])


def patched(content, **fields):
    """A zip with fields of all its local and central headers set to the given values."""
    content = bytearray(content)
    for which, mark in enumerate((b"PK\x03\x04", b"PK\x01\x02")):
        for found in re.finditer(re.escape(mark), bytes(content)):
            for field, value in fields.items():
                place = FIELDS[field][which]
                bits = FIELDS[field][2]
                if place is not None:
                    start = found.start() + place
                    struct.pack_into(FORMS[bits], content, start, value % 2**bits)
    return bytes(content)


@cases(
    150,
    extra=st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=20)), max_size=3),
    first=st.booleans(),
    method=st.sampled_from(METHODS),
    fields=st.dictionaries(st.sampled_from(list(FIELDS)), VALUES, max_size=2),
)
def test_odd_members_are_never_unpacked(folder, extra, first, method, fields):
    """Names that lead elsewhere, names that come twice, and headers that lie."""
    members = extra + GOOD if first else GOOD + extra
    check_archive(folder, patched(archive(members, method), **fields))


def test_what_is_said_of_a_broken_archive_is_no_longer_than_a_sentence(folder):
    """The library repeats a name of any length.

    Here the two headers of a member have other names, and the md5 is right.
    """
    content = patched(archive([("\x1b" * 5000, b""), *GOOD]), offset=0)
    path = folder / "SST-2.zip"
    path.write_bytes(content)
    assert download(folder, path.as_uri(), hashlib.md5(content).hexdigest()) == {}


# ---- too much of it -------------------------------------------------------------------------


@functools.cache
def bomb(method):
    """A stream of a few megabytes at most that unpacks to more zeros than MEMORY."""
    zeros = bytes(2**20)
    if method == zipfile.ZIP_DEFLATED:
        # A block that is flushed is the same anywhere in a stream, so it unpacks to 4 GB.
        press = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = press.compress(zeros) + press.flush(zlib.Z_FULL_FLUSH)
        return block * 4096 + press.flush()
    times = 3 * MEMORY >> 21
    if method == zipfile.ZIP_BZIP2:
        return bz2.compress(zeros * times, 1)
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16, "mf": lzma.MF_HC3, "depth": 1}]
    start = b"\x09\x04\x05\x00\x5d" + struct.pack("<I", 2**16)  # what a zip puts before it
    return start + lzma.compress(zeros * times, lzma.FORMAT_RAW, filters=filters)


@pytest.fixture(scope="module", params=[METHODS[0], METHODS[2], METHODS[3]])
def packed(request, folder):
    """(method, archive): a member that unpacks to gigabytes; made before memory is counted"""
    method = request.param
    return method, archive([("SST-2/train.tsv", bomb(method))], zipfile.ZIP_STORED)


@pytest.mark.parametrize("claimed", [100, 2**32 - 2])
def test_a_member_that_unpacks_to_gigabytes_is_never_unpacked(packed, folder, claimed):
    method, content = packed
    check_archive(folder, patched(content, method=method, size=claimed))


def test_an_endless_download_is_cut(folder):
    """Sparse: it is longer than the memory that this test may take."""
    path = folder / "endless"
    with open(path, "wb") as file:
        file.truncate(2**33)
    assert download(folder, path.as_uri()) == {}
    path.unlink()
