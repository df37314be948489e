"""What the tests of several rooms share: programs in this process, small models, folders."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
TINY = ROOT / "weights" / "tiny"
SHARED = ROOT.parent / "shared" / "data"  # official files, where they lie about

# ---- programs -------------------------------------------------------------------------------


def ask(capsys, program, *argv):
    """Run train.py or evaluate.py in this process -> (exit code, stdout, stderr)"""
    capsys.readouterr()
    code = 0
    try:
        program.main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def python(script, shell='exec "$@"', **how):
    """Run a text of Python in a process of its own -> what subprocess.run gives.

    shell: how bash starts it, for the sake of redirections.  how: what subprocess.run is to know.
    """
    words = ["bash", "-c", shell, "bash", sys.executable, "-c", script]
    settings = {"capture_output": True, "text": True, "timeout": 120, "env": environment()}
    return subprocess.run(words, check=False, **settings | how)


def environment(**more):
    """The environment for a process that finds our modules."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": paths} | more


def team(number, script):
    """Run a text of Python in as many processes as torchrun would start

    -> [(exit code, stdout, stderr)] by rank.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "one",
        "WORLD_SIZE": str(number),
    }
    processes = []
    for rank in range(number):
        own = environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", script], env=own, **pipes))
    results = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        results.append((process.returncode, out, err))
    return results


@contextlib.contextmanager
def within(seconds):
    """What takes longer fails, instead of hanging; not on Windows."""

    def hangs(number, frame):
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- folders --------------------------------------------------------------------------------


def contents(folder):
    """{path: bytes} of every file below a folder"""
    paths = sorted(Path(folder).rglob("*"))
    return {path: path.read_bytes() for path in paths if path.is_file()}


def entries(folder):
    """{name: (kind, content)} of all that lies in a folder, links not followed"""
    found = {}
    for path in folder.rglob("*"):
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = (path.lstat().st_mode >> 12, content)
    return found


def names_in(folder):
    """The names of all that lies in a folder, in order"""
    return sorted(os.listdir(folder))


def rewrite(path, change):
    """Replace the bytes of a file by what change makes of them."""
    path = Path(path)
    path.write_bytes(change(path.read_bytes()))


GOOD = ["fine", "lovely", "great", "warm", "witty"]
BAD = ["dull", "awful", "cold", "flat", "stale"]


def write_data(folder, train=60, dev=12):
    """train.tsv and dev.tsv in a folder: two words a text, of which the first tells the label."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("dev", dev)):
        lines = ["sentence\tlabel"]
        for i in range(rows):
            words = (BAD, GOOD)[i % 2]
            lines.append(f"{words[i // 2 % 5]} {split[0]}{i}\t{i % 2}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_reviews(folder, **rows):
    """A split.tsv in a folder for each split=rows: so many of the bundled sentences, the first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in rows.items():
        source = "train" if split == "train" else "dev"
        lines = (ROOT / "reviews" / f"{source}.tsv").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.tsv").write_text("".join(lines[: count + 1]), "utf-8")
    return folder


# ---- models ---------------------------------------------------------------------------------


def sizes(C=10, H=2, L=3, V=300, n_positions=24, **more):
    """A config.json as a dictionary; V - 257 of the bundled merges make the vocabulary."""
    config = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": V,
        "n_positions": n_positions,
        "n_embd": C,
        "n_layer": L,
        "n_head": H,
        "layer_norm_epsilon": 1e-5,
    }
    return config | more


def random_weights(config, seed=0, dtype=torch.float32):
    """Official names and (in, out) layout.  Nothing is zero or one, so nothing goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    C = config["n_embd"]

    def normal(*shape, scale=0.3, mean=0.0):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float32)
        return drawn.mul_(scale).add_(mean).to(dtype)

    weights = {}
    weights["wte.weight"] = normal(config["vocab_size"], C)
    weights["wpe.weight"] = normal(config["n_positions"], C)
    linear = {
        "attn.c_attn": (C, 3 * C),
        "attn.c_proj": (C, C),
        "mlp.c_fc": (C, 4 * C),
        "mlp.c_proj": (4 * C, C),
    }
    for i in range(config["n_layer"]):
        for name, (rows, columns) in linear.items():
            weights[f"h.{i}.{name}.weight"] = normal(rows, columns, scale=rows**-0.5)
            weights[f"h.{i}.{name}.bias"] = normal(columns)
        for name in ("ln_1", "ln_2"):
            weights[f"h.{i}.{name}.weight"] = normal(C, mean=1.0)
            weights[f"h.{i}.{name}.bias"] = normal(C)
    weights["ln_f.weight"] = normal(C, mean=1.0)
    weights["ln_f.bias"] = normal(C)
    return weights


def mask_buffers(config):
    """What older official files carry beside the weights."""
    n = config["n_positions"]
    mask = torch.ones(n, n).tril().view(1, 1, n, n)
    return {f"h.{i}.attn.bias": mask.clone() for i in range(config["n_layer"])}


def write_unaligned(path, tensors, size):
    """A safetensors file of exactly `size` bytes, with a header as early writers left it.

    That is without metadata and of any length: the official gpt2's floats begin at byte 14,291, an
    odd place.
    """
    names = sorted(tensors, key=lambda name: tensors[name].numel())
    header = {}
    end = 0
    for name in names:
        start = end
        end += 4 * tensors[name].numel()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(size - 8 - end)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensors[name].numpy().tofile(file)


def write_checkpoint(folder, config, weights):
    """config.json, model.safetensors and a fitting merges.txt in a folder -> folder"""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lines = (TINY / "merges.txt").read_text(encoding="utf-8").splitlines()
    text = "\n".join(lines[: config["vocab_size"] - 256]) + "\n"
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    return folder


def write_shards(folder, weights):
    """Five shards and their index in place of the one file of a checkpoint folder."""
    folder = Path(folder)
    names = sorted(weights)
    weight_map = {}
    (folder / "model.safetensors").unlink()
    for i in range(5):
        file = f"model-0000{i + 1}-of-00005.safetensors"
        part = {name: weights[name] for name in names[i::5]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def copy_tree(source, target):
    """Copy a folder, also onto one that is there."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    return Path(target)
