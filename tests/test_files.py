"""files.py: bytes on disk, whole or not at all; their hashes; safetensors."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors import SafetensorError

from helpers import contents, names_in, within
from hostile import cases
from support import files
from support.files import damaged, new_file, ours, read_bytes, unlinked, write_file

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such links, FIFOs and devices")
as_a_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)


def full_disk(descriptor):
    """Stands for os.fsync."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refusing(number):
    """Stands for os.link on a file system that answers by this errno."""

    def link(source, target):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    return link


def make(kind, path):
    """Something that is no regular file."""
    if kind == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "link to a file":
        path.with_name("elsewhere").write_bytes(b"theirs")
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


KINDS = ["link", "link to a file", "fifo", "folder"]

# ---- odd content ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*files.ODD, RecursionError, UnicodeDecodeError])
def test_odd_content_becomes_one_sentence_that_names_the_file(kind):
    error = kind("utf-8", b"", 0, 1, "why") if kind is UnicodeDecodeError else kind("why")
    sentence = "^a/b is damaged; fetch it again .*why"
    with pytest.raises(ValueError, match=sentence), damaged("a/b"):
        raise error


def test_a_file_that_is_not_there_is_not_damaged():
    with pytest.raises(FileNotFoundError, match="gone"), damaged("a/b"):
        Path("gone/away").read_bytes()


def test_what_is_no_fault_of_the_content_goes_on():
    for kind in (KeyboardInterrupt, MemoryError, AssertionError):
        with pytest.raises(kind), damaged("a/b"):
            raise kind


def test_of_a_reason_only_the_beginning_is_told():
    with pytest.raises(ValueError) as refusal, damaged("a/b"):
        raise ValueError("x" * 10**6)
    assert len(str(refusal.value)) < 300


# ---- whose file it is -----------------------------------------------------------------------


@posix
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_or_another_kind_is_not_taken_for_a_file_of_ours(tmp_path, kind):
    make(kind, tmp_path / "p")
    with pytest.raises(ValueError, match="p is a link or of another kind; remove it"):
        unlinked(tmp_path / "p")


def test_a_regular_file_and_nothing_at_all_may_be_ours(tmp_path):
    (tmp_path / "p").write_bytes(b"")
    assert unlinked(tmp_path / "p") == tmp_path / "p"
    assert unlinked(tmp_path / "q") == tmp_path / "q"


@posix
@pytest.mark.parametrize("linked", ["a", "a/b", "a/b/c"])
def test_no_part_of_a_path_of_ours_is_a_link(tmp_path, linked):
    folder = tmp_path / "run"
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/c").write_bytes(b"")
    assert ours(folder, "a/b/c") == folder / "a/b/c"
    (folder / linked).rename(tmp_path / "moved")
    (folder / linked).symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"{linked} is a link"):
        ours(folder, "a/b/c")


@posix
def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    assert ours(tmp_path / "run", "a") == tmp_path / "run/a"


# ---- reading --------------------------------------------------------------------------------


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "p").write_bytes(b"abc")
    assert read_bytes(tmp_path / "p") == b"abc"
    assert read_bytes(str(tmp_path / "p"), limit=4) == b"abc"


def test_a_file_that_is_too_large_is_refused_by_its_size(tmp_path):
    (tmp_path / "p").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="p has 2,000 bytes or more"):
        read_bytes(tmp_path / "p", limit=2000)


@posix
def test_a_pipe_to_which_nobody_writes_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "p")
    sentence = "p is a folder, a pipe or a device; name a file"
    with within(20), pytest.raises(ValueError, match=sentence):
        read_bytes(tmp_path / "p")


@posix
def test_a_device_without_end_is_refused():
    sentence = "/dev/zero is a folder, a pipe or a device"
    with within(20), pytest.raises(ValueError, match=sentence):
        read_bytes("/dev/zero")


def test_a_folder_is_refused_by_its_name(tmp_path):
    with pytest.raises((OSError, ValueError), match=tmp_path.name):
        read_bytes(tmp_path)


def test_a_fingerprint_is_of_all_bytes_in_order(tmp_path):
    parts = [bytes(range(256)) * 9000, b"", b"the end"]
    paths = []
    for i, part in enumerate(parts):
        paths.append(tmp_path / str(i))
        paths[i].write_bytes(part)
    assert files.sha256(*paths) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert files.sha256(*paths) != files.sha256(*reversed(paths))


# ---- writing over what may go ---------------------------------------------------------------


@posix
@pytest.mark.parametrize("kind", KINDS)
def test_only_a_regular_file_is_ever_written_over(tmp_path, kind):
    make(kind, tmp_path / "p")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="p is a link or of another kind"):
        write_file(tmp_path / "p", b"new")
    assert contents(tmp_path) == before


def test_a_file_is_written_and_written_over(tmp_path):
    for data in (b"one", b"", b"three"):
        write_file(tmp_path / "p", data)
        assert contents(tmp_path) == {tmp_path / "p": data}


def test_the_bytes_are_on_disk_before_they_take_their_place(tmp_path, monkeypatch):
    """A full disk leaves what was there, nothing else, and says which file it was."""
    write_file(tmp_path / "p", b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="p'") as refusal:
        write_file(tmp_path / "p", b"new")
    assert refusal.value.filename == str(tmp_path / "p")
    assert contents(tmp_path) == {tmp_path / "p": b"old"}


def test_a_file_is_never_seen_half_written(tmp_path, monkeypatch):
    """The name changes hands in one step, when all the bytes are there."""
    write_file(tmp_path / "p", b"old")
    replace = os.replace
    seen = []

    def look(source, target):
        seen.append((source.read_bytes(), target.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_file(tmp_path / "p", b"new")
    assert seen == [(b"new", b"old")]


def test_the_temporary_file_has_the_name_that_is_given(tmp_path, monkeypatch):
    temporary = tmp_path / "own.tmp"
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(temporary.exists()))
    write_file(tmp_path / "p", b"new", temporary=temporary)
    assert seen == [True]
    assert names_in(tmp_path) == ["p"]


def test_two_writers_use_different_temporary_files(tmp_path):
    assert files.beside(tmp_path / "p") != files.beside(tmp_path / "p")


def test_an_error_of_any_kind_takes_the_temporary_file_away(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "p", b"new")
    assert names_in(tmp_path) == []


# ---- new files: outputs ---------------------------------------------------------------------

LINKS = ["links", errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK]


@pytest.fixture(params=LINKS)
def any_file_system(request, monkeypatch):
    """One with hard links, and those that have none and say so in various ways."""
    if request.param != "links":
        monkeypatch.setattr(os, "link", refusing(request.param))


def test_an_output_stands_whole_at_its_name(any_file_system, tmp_path):
    with new_file(tmp_path / "o") as file:
        file.write(b"one ")
        file.write(b"two")
        assert not os.path.exists(tmp_path / "o")
    assert contents(tmp_path) == {tmp_path / "o": b"one two"}


def test_an_output_that_appears_during_the_work_stays(any_file_system, tmp_path):
    with pytest.raises(FileExistsError, match="o'"), new_file(tmp_path / "o") as file:
        file.write(b"ours")
        (tmp_path / "o").write_bytes(b"theirs")
    assert contents(tmp_path) == {tmp_path / "o": b"theirs"}


@posix
@pytest.mark.parametrize("kind", ["file", *KINDS])
def test_nothing_is_written_over_and_no_work_is_done_for_it(tmp_path, kind):
    if kind == "file":
        (tmp_path / "o").write_bytes(b"theirs")
    else:
        make(kind, tmp_path / "o")
    before = names_in(tmp_path)
    sentence = "o is there already; remove it, or name another"
    with pytest.raises(FileExistsError, match=sentence), new_file(tmp_path / "o"):
        pytest.fail("the work begins")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("name", ["no/such/folder/o", "file/o", "x" * 256, "é" * 128])
def test_what_can_not_be_written_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as refusal, new_file(tmp_path / name):
        pytest.fail("the work begins")
    assert refusal.value.filename == str(tmp_path / name)
    assert names_in(tmp_path) == ["file"]


@as_a_user
def test_a_folder_without_leave_to_write_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="o'"), new_file(tmp_path / "o"):
        pytest.fail("the work begins")


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\U0001f600" * 63, "a b'c\n"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path, name):
    with new_file(tmp_path / name) as file:
        file.write(b"data")
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt, MemoryError])
def test_work_that_ends_in_an_error_leaves_nothing(tmp_path, kind):
    with pytest.raises(kind), new_file(tmp_path / "o") as file:
        file.write(b"half")
        raise kind("why")
    assert names_in(tmp_path) == []


def test_an_error_of_the_work_keeps_the_name_of_its_own_file(tmp_path):
    with pytest.raises(FileNotFoundError) as refusal, new_file(tmp_path / "o"):
        (tmp_path / "input").read_bytes()
    assert refusal.value.filename == str(tmp_path / "input")


def test_a_full_disk_leaves_nothing_and_names_the_output(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError) as refusal, new_file(tmp_path / "o") as file:
        file.write(b"data")
    assert refusal.value.filename == str(tmp_path / "o")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_link_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", refusing(number))
    with pytest.raises(OSError) as refusal, new_file(tmp_path / "o"):
        pass
    assert refusal.value.errno == number
    assert refusal.value.filename == str(tmp_path / "o")
    assert names_in(tmp_path) == []


def test_a_copy_that_can_not_be_finished_is_taken_away(tmp_path, monkeypatch):
    """Without hard links the name is taken first."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    fsync = os.fsync
    synced = []

    def full_at_the_second(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            full_disk(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OSError, match="No space left"), new_file(tmp_path / "o") as file:
        file.write(b"data")
    assert names_in(tmp_path) == []


def test_of_two_that_write_one_output_at_once_one_is_refused(any_file_system, tmp_path):
    both_are_open = threading.Barrier(2)
    ended = []

    def write(text):
        try:
            with new_file(tmp_path / "o") as file:
                file.write(text * 1000)
                both_are_open.wait()
            ended.append(text)
        except FileExistsError:
            ended.append(b"refused")

    threads = [threading.Thread(target=write, args=[text]) for text in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"refused" in ended
    winner = max(set(ended) - {b"refused"})
    assert contents(tmp_path) == {tmp_path / "o": winner * 1000}


# ---- any name a system can have -------------------------------------------------------------

BYTES = st.integers(1, 255).filter(ord("/").__ne__)
NAMES = st.lists(BYTES, min_size=1, max_size=40).map(bytes)


@posix
@cases(100, raw=NAMES, data=st.binary(max_size=20))
def test_any_name_does_also_one_that_is_not_utf_8(tmp_path_factory, raw, data):
    """D5 of EDGES: what was written under such a name can be read, and hashed."""
    folder = tmp_path_factory.mktemp("odd")
    name = "x" + os.fsdecode(raw)  # not . or ..
    write_file(folder / name, data)
    assert read_bytes(folder / name) == data
    assert files.sha256(ours(folder, name)) == hashlib.sha256(data).hexdigest()
    with new_file(folder / f"{name}.new") as file:
        file.write(data)
    assert read_bytes(folder / f"{name}.new") == data
    tensors = {"t": torch.arange(3)}
    write_file(folder / name, files.safetensors_bytes(tensors, {"a": "b"}))
    found, metadata = files.read_safetensors(folder / name)
    assert torch.equal(found["t"], tensors["t"])
    assert metadata == {"a": "b"}
    assert len(names_in(folder)) == 2


# ---- safetensors ----------------------------------------------------------------------------

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([True]), "empty": torch.ones(0, 2)}


def test_tensors_and_metadata_come_back_as_they_were():
    tensors, metadata = files.split_safetensors(files.safetensors_bytes(TENSORS, {"k": "é\n"}))
    assert metadata == {"k": "é\n"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, TENSORS[name])


def test_the_same_content_is_the_same_bytes():
    """Whatever the order of the keys; and tensors are aligned."""
    metadata = {str(i): "x" * i for i in range(30)}
    data = files.safetensors_bytes(TENSORS, metadata)
    turned = dict(reversed(metadata.items()))
    others = dict(reversed(TENSORS.items()))
    assert files.safetensors_bytes(others, turned) == data
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_a_tensor_that_is_a_view_is_written_as_it_is_seen():
    view = torch.arange(6).view(2, 3).T[1:]
    tensors, _ = files.split_safetensors(files.safetensors_bytes({"v": view}, {}))
    assert torch.equal(tensors["v"], view)


@pytest.mark.parametrize("claimed", [0, 1, 10**8 - 1, 10**8, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("rest", [b"", b"{}", b" " * 100])
def test_a_header_of_any_claimed_size_is_refused(tmp_path, claimed, rest):
    path = tmp_path / "p"
    path.write_bytes(claimed.to_bytes(8, "little") + rest)
    sentence = "p is no whole safetensors file"
    with pytest.raises(ValueError, match=sentence):
        files.read_safetensors(path)
    with pytest.raises(ValueError, match=sentence), files.open_safetensors(path):
        pytest.fail("it is opened")


def test_a_cut_file_is_refused(tmp_path):
    data = files.safetensors_bytes(TENSORS, {"k": "v"})
    for size in range(len(data)):
        (tmp_path / "p").write_bytes(data[:size])
        with pytest.raises(ValueError, match="p is no whole safetensors file"):
            files.read_safetensors(tmp_path / "p")


def test_a_file_is_opened_without_being_read(tmp_path):
    write_file(tmp_path / "p", files.safetensors_bytes(TENSORS, {}))
    with files.open_safetensors(tmp_path / "p") as file:
        assert sorted(file.keys()) == sorted(TENSORS)
        assert torch.equal(file.get_tensor("b"), TENSORS["b"])


def test_a_folder_in_place_of_a_safetensors_file_is_named(tmp_path):
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        files.read_safetensors(tmp_path)
    with pytest.raises(ValueError, match=tmp_path.name), files.open_safetensors(tmp_path):
        pytest.fail("it is opened")


def test_the_errors_of_the_library_count_as_odd_content():
    assert not issubclass(SafetensorError, (ValueError, RuntimeError, OSError))
    assert SafetensorError in files.ODD
