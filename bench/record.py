"""A record: the figures of a measurement as JSON, and which command on what machine gave them."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import time
from pathlib import Path

import torch

from support import processes
from support.files import new_file

LIBRARIES = ("torch", "transformers", "peft", "scikit-learn")


def keep(words, path, measure):
    """What measure() gives, behind the facts of this run; also into a new file, if path names one.

    words: the command.  A file that cannot be written is told before the work.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(new_file(path)) if path else None
        figures = facts_of(words) | measure()
        if file:
            file.write(json.dumps(figures, indent=1).encode() + b"\n")
    return figures


def facts_of(words):
    """Which command, at which commit, when, and on what."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return {
        "command": shlex.join(without(words, "--json")),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{chip_of(torch.device('cpu'))}, {os.cpu_count()} cores",
        "versions": versions,
    }


def without(words, flag):
    """The words of a command but for a flag and its value."""
    words = list(words)
    if flag in words:
        at = words.index(flag)
        del words[at : at + 2]
    return words


def commit():
    """The commit of this checkout, with a + where files differ from it; None outside of git."""
    here = Path(__file__).resolve().parent
    words = ["git", "describe", "--always", "--dirty=+", "--abbrev=7"]
    try:
        done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def chip_of(device):
    """Its name; of a CPU also which instructions it has of those that matter here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = processes.cpu_flags()
    named = re.search(r"^model name\s*: (.+)", info, re.MULTILINE)
    words = [named[1] if named else platform.machine()]
    for flag in ("avx2", "avx512_bf16", "amx_bf16"):
        if re.search(rf"\b{flag}\b", info):
            words.append(flag)
    return " ".join(words)
