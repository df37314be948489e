"""Bytes in and out: files whole or not at all, safetensors, hashes, rows, lines of a stream."""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

ODD = ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError


@contextlib.contextmanager
def damaged(path, what="is damaged; fetch it again"):
    """All the ways in which the content of a file can be odd, as one ValueError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except ODD as error:
        raise ValueError(f"{path} {what} ({str(error)[:200]!r})") from None


def unlinked(path, is_right=Path.is_file):
    """path, where nothing lies there, or what is right and no link, which could lead elsewhere."""
    if path.is_symlink() or path.exists() and not is_right(path):
        raise ValueError(f"{path} is a link or of another kind; remove it, or name another")
    return path


def ours(folder, name):
    """The path of one of our files in a folder, of which no part is a link."""
    path = folder / name
    for above in path.parents[: name.count("/")]:
        unlinked(above, Path.is_dir)
    return unlinked(path)


def write_file(path, data, replace=True, temporary=None):
    """Write bytes so that path holds all of them or what it held before: new file, sync, rename.

    replace: whether a regular file that is there may go.  temporary: a name that nothing has yet.
    """
    path = unlinked(Path(path))
    place = os.replace if replace else os.link  # link fails where something is
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say itself which file it was
        raise
    finally:
        with contextlib.suppress(OSError):  # where it has been renamed, or was never made
            temporary.unlink()


def sha256(*paths):
    """The hash, in hex, of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# ---- safetensors ----------------------------------------------------------------------------


@contextlib.contextmanager
def open_safetensors(path):
    """safetensors.safe_open on the CPU, memory-mapped, with errors that name the file."""
    with damaged(path, "is no whole safetensors file"):
        with safe_open(path, framework="pt") as file:
            yield file


def read_safetensors(path):
    """(tensors, metadata), two dictionaries; nothing stays mapped, so the file may be replaced."""
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        return tensors, file.metadata() or {}


def each_tensor(path):
    """(name, tensor) of a file, the largest of a checkpoint first; each leaves memory in its turn."""
    with open_safetensors(path) as file:
        names = sorted(file.keys(), reverse=True)  # wte while memory is empty
    for name in names:
        with open_safetensors(path) as file:  # anew: what was read leaves memory with its mapping
            yield name, file.get_tensor(name)


def safetensors_bytes(tensors, metadata):
    """A safetensors file as bytes, the same for the same content: the library shuffles metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


def weight_files(folder):
    """The safetensors files of a checkpoint folder, in order: model.safetensors, or its shards."""
    whole = Path(folder) / "model.safetensors"
    index = whole.with_name("model.safetensors.index.json")
    if whole.exists() or not index.exists():
        return [whole]
    with damaged(index, "does not list the shards of a checkpoint; fetch it again"):
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not names or not all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names):
            raise ValueError("it names none, or one that is in another folder")
    return [index.with_name(name) for name in names]


# ---- trees: what has a state, as one file ---------------------------------------------------


def tree_bytes(tree):
    """JSON in the metadata, the tensors in it as safetensors, and a hash of both: one file."""
    tensors = {}

    def keep(tensor):
        name = str(len(tensors))
        tensors[name] = tensor.detach().cpu()
        return {"tensor": name}

    text = {"tree": json.dumps(tree, default=keep)}
    whole = hashlib.sha256(safetensors_bytes(tensors, text)).hexdigest()
    return safetensors_bytes(tensors, text | {"sha256": whole})


def read_tree(path, device="cpu"):
    """The tree that tree_bytes wrote, its tensors on device; ValueError where a bit differs.

    Keys that are numbers come back as numbers.
    """
    tensors, metadata = read_safetensors(path)

    def find(node):
        if node.keys() == {"tensor"}:
            return tensors[node["tensor"]].to(device)
        return {int(key) if key.isdecimal() else key: value for key, value in node.items()}

    tree = json.loads(metadata["tree"], object_hook=find)
    if tree_bytes(tree) != Path(path).read_bytes():
        raise ValueError("it is not as it was written")
    return tree


# ---- text -----------------------------------------------------------------------------------


def read_text(path, limit=-1):
    """A UTF-8 file without its byte order mark; ValueError, naming the line, if it is none.

    limit: bytes, of which it must have fewer.
    """
    with open(path, "rb") as file:
        data = file.read(limit)
    if len(data) == limit:
        raise ValueError(f"{path} has {limit:,} bytes or more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 ({error.reason})") from None


TABLES = (".tsv", ".csv", ".jsonl")


def rows_of(path):
    """tsv, csv or jsonl -> (line number, {column: value}) for each row; line 1 names the columns.

    tsv is GLUE's: no quoting, so a quotation mark is a quotation mark.  csv is a spreadsheet's.
    """
    text, number = read_text(path), 1
    try:
        if path.suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    row = json.loads(line)
                    yield number, row if isinstance(row, dict) else {}
            return
        tsv = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, **tsv)
        columns = dict.fromkeys(next(reader, []))  # a name that comes twice is one
        number = 2
        for row in filter(None, reader):
            number = reader.line_num
            if len(row) != len(columns):
                raise ValueError(f"{len(row)} columns, but line 1 names {len(columns)}")
            yield number, dict(zip(columns, row))
            number += 1  # where a quotation that never ends begins
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: {error}") from None


def lines_of(stream, longest):
    """The lines of a stream of UTF-8, in lists of what has arrived: a pipe that trickles is answered
    as it goes.  Bytes that are not UTF-8 come as surrogates.

    Of a line without end `longest` characters and a piece are kept.
    """
    decoder, rest = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape"), ""
    while data := stream.read1(2**16):
        *lines, rest = (rest[: longest + 1] + decoder.decode(data)).split("\n")
        yield lines
    rest += decoder.decode(b"", final=True)
    if rest:
        yield [rest]
