"""Files: bytes on disk, whole or not at all; their hashes; safetensors."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

# All that reading the content of a file can raise, where the content is odd.
ODD = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError)
LARGEST = 2**31  # bytes of a file that is read into memory at once


@contextlib.contextmanager
def damaged(path, what="is damaged; fetch it again"):
    """All the ways in which the content of a file can be odd, as one ValueError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except ODD as error:
        raise ValueError(f"{path} {what} ({str(error)[:200]!r})") from None


# ---- whose file it is -----------------------------------------------------------------------


def unlinked(path, is_right=Path.is_file):
    """path, where nothing lies there, or what is right and no link, which could lead elsewhere."""
    if path.is_symlink() or path.exists() and not is_right(path):
        raise ValueError(f"{path} is a link or of another kind; remove it, or name another")
    return path


def ours(folder, name):
    """The path of one of our files in a folder, of which no part is a link."""
    path = folder / name
    depth = name.count("/")
    for above in path.parents[:depth]:
        unlinked(above, Path.is_dir)
    return unlinked(path)


# ---- reading --------------------------------------------------------------------------------


def read_bytes(path, limit=LARGEST):
    """A whole regular file of fewer than `limit` bytes; no pipe or device, which might not end."""
    with open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is a folder, a pipe or a device; name a file")
        data = file.read(limit)
    if len(data) == limit:
        raise ValueError(f"{path} has {limit:,} bytes or more")
    return data


def open_at_once(path, flags):
    """Open without waiting: a pipe to which nobody writes would make us wait without end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def sha256(*paths):
    """The hash, in hex, of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# ---- writing --------------------------------------------------------------------------------


def write_file(path, data, temporary=None):
    """Write bytes so that path holds all of them or what it held before: new file, sync, rename.

    No more than a regular file is ever written over.  temporary: a name that nothing has yet.
    """
    path = unlinked(Path(path))
    with whole_file(path, temporary or beside(path), os.replace) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path):
    """A binary file to write an output to, which stands at path once it is whole.

    Its temporary file is made beside path at once, so what would be refused is refused before the
    work.  Nothing that is there is written over.  Where the work ends in an error, nothing stays.
    """
    path = Path(path)
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # OSError, too, where no file can have this name
        raise FileExistsError(f"{path} is there already; remove it, or name another file")
    with whole_file(path, beside(path), place_new) as file:
        yield file


@contextlib.contextmanager
def whole_file(path, temporary, place):
    """A binary file to write, which stands at path once all of it is on disk.

    Until then it is called `temporary`, and place(temporary, path) gives it its name.
    """
    try:
        with open(temporary, "xb") as file:
            yield file
            flush_to_disk(file)
        place(temporary, path)
    except OSError as error:
        # A full disk does not say itself which file it was.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # where it has its name, or was never made
            temporary.unlink()


def beside(path):
    """A name for a temporary file in the folder of path, which nothing has yet.

    Of a long name a part has to do: no name may have more than 255 bytes.
    """
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")


def flush_to_disk(file):
    file.flush()
    os.fsync(file.fileno())


def place_new(temporary, path):
    """Give a whole file its name, where nothing has that name yet.

    A hard link does so in one step.  Some file systems have none (FAT, network drives): there the
    file is copied to a name that is taken first.
    """
    try:
        os.link(temporary, path)
        return
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG):
            raise
    with open(path, "xb") as file:
        try:
            file.write(temporary.read_bytes())
            flush_to_disk(file)
        except BaseException:
            path.unlink()  # ours, and not whole
            raise


# ---- safetensors ----------------------------------------------------------------------------


@contextlib.contextmanager
def open_safetensors(path):
    """safetensors.safe_open on the CPU, memory-mapped, with errors that name the file."""
    with damaged(path, "is no whole safetensors file"):  # noqa: SIM117
        with safe_open(path, framework="pt") as file:
            yield file


def read_safetensors(path):
    """(tensors, metadata) of a file, two dictionaries, from one reading of its bytes."""
    data = read_bytes(path)
    with damaged(path, "is no whole safetensors file"):
        return split_safetensors(data)


def split_safetensors(data):
    """(tensors, metadata) of a safetensors file in bytes."""
    tensors = safetensors.torch.load(data)
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:end]).get("__metadata__")
    return tensors, metadata or {}


def safetensors_bytes(tensors, metadata):
    """A safetensors file as bytes, the same for the same content: the library shuffles metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[end:]
