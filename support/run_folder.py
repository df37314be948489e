"""The run folder: what a run leaves on disk, and how it goes on.

Only a fixed list of names is ever written, replaced or deleted, never through a link, and only in a
folder whose run.json carries our mark; whatever else lies there is the user's.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shlex
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import filelock
import torch

from support.checkpoint import Base
from support.files import (
    damaged,
    ours,
    read_bytes,
    safetensors_bytes,
    sha256,
    split_safetensors,
    write_file,
)
from support.first_vectors import is_prompt
from support.processes import rank_0_decides, rank_and_world
from support.prompt_file import parse_prompt, prompt_bytes
from support.records import from_json, load, to_json
from support.settings import Settings
from support.stopping import Stopped
from support.summary import NAME, Summary
from support.terminal import command, path_word, warn

CHECKPOINT = "checkpoint/state.safetensors"
LOCK = ".prompt-training.lock"
TEMPORARY = ".prompt-training.tmp"  # under this name a file is written

# ---- what a run is --------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFacts:
    """run.json: all that it takes to repeat a run, or to refuse to go on with another."""

    format: Literal["prompt-training-run/1"]
    settings: Settings
    base: Base
    data: dict[str, str]  # sha256 of the files train and dev, and of --init's where it is one
    labels: list[str]
    prompts: list[Annotated[str, NAME]]
    texts: dict[str, int] = field(default_factory=dict)  # how many there are of each split
    versions: dict[str, str] = field(default_factory=dict)
    argv: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LogLine:
    """A line of metrics.jsonl: a prompt on some texts of a split, at a step of training."""

    step: int
    epoch: int
    prompt: str
    split: str
    loss: float | None
    accuracy: float | None
    lr: float | None = None
    examples_per_second: float | None = None
    norm: float | None = None  # of the gradient of the step it ends with, before the clipping


def new_facts(settings, base, dataset, sizes, prompts, argv):
    """The RunFacts of a run that begins, as they will be read again.

    dataset: the texts; sizes: how many there are of each split; prompts: their names.
    """
    data = dict(dataset.sha256)
    if is_prompt(settings.init):
        data["init"] = sha256(settings.init)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    facts = RunFacts(
        format="prompt-training-run/1",
        settings=settings,
        base=base,
        data=data,
        labels=dataset.labels,
        prompts=prompts,
        texts=sizes,
        versions=versions,
        argv=list(argv),
    )
    return from_json(RunFacts, to_json(facts), "run.json")


def read_facts(run):
    """What run.json says of a run that began."""
    return load(ours(Path(run), "run.json"), RunFacts)


def go_on_command(path):
    """The command that goes on with the run in a folder."""
    return command("train.py", "--resume", path_word(path))


def refuse_folder(path, overwrite, init):
    """Nothing but a run of ours is ever written over, and that when told to.

    init: what --init names, which may lie in the run that would be replaced.
    """
    if ours(path, "run.json").exists():
        read_facts(path)
        if not overwrite:
            raise FileExistsError(
                f"{path} holds a run: add --overwrite, go on with it by "
                f"{go_on_command(path)}, or name another with --out"
            )
        if path.resolve() in [Path(init).resolve(), *Path(init).resolve().parents]:
            raise ValueError(f"--init {init} lies in the run that --overwrite would replace")
        return
    # A run that is killed before it begins leaves its lock and its temporary file.
    if path.exists() and not is_empty(path):
        raise FileExistsError(f"--out {path} exists and holds no run; name another folder")


def is_empty(path):
    """Whether this is a folder without anything of the user's."""
    return path.is_dir() and all(own.name in (LOCK, TEMPORARY) for own in path.iterdir())


def refuse_second_name(path):
    """ValueError where a file has another name, under which it may be the user's."""
    if path.exists() and path.stat().st_nlink > 1:
        raise ValueError(f"{path} has another name, too; copy it, so that one is ours")


# Settings that change no bit of what a run comes to, and names of what is compared by content.
FREE = {"out", "cache_text", "model", "data", "init"}


def refuse_changes(stored, facts, checkpoint, path):
    """A run goes on only where settings, weights and texts are those with which it began.

    Contents are compared, not paths: everything may have moved.
    """
    if not checkpoint.accepts(stored.base.base_sha256):
        refuse_change(path, "the base model", "another", stored.base.base_model, stored)
    for split, began in stored.data.items():
        if facts.data.get(split) != began:
            refuse_change(path, f"the file of {split}", "another", "it", stored)
    if "init" not in stored.data and stored.settings.init != facts.settings.init:
        refuse_change(path, "init", facts.settings.init, stored.settings.init, stored)
    for item in dataclasses.fields(Settings):
        began = getattr(stored.settings, item.name)
        now = getattr(facts.settings, item.name)
        if item.name not in FREE and began != now:
            refuse_change(path, item.name, now, began, stored)
    for part, began in stored.versions.items():
        now = facts.versions.get(part)
        if began != now:
            warn(f"{part} was {began} when this run began and is {now} now: last digits may differ")


def refuse_change(path, what, now, began, stored):
    """The sentence of a run that cannot go on, with a way that loses nothing.

    stored: the facts of the run that lies at path.
    """
    way = "begin a new run, with another --out"
    for name in stored.prompts:
        prompt = Path(path) / "prompts" / name
        if (prompt / "prompt.safetensors").exists():
            word = shlex.quote(path_word(prompt))
            way = f"to train on from what it has learned, begin a new run with --init {word}"
            break
    raise ValueError(
        f"{path} cannot be resumed: {what} was {began!r:.80} when it began and is {now!r:.80} now; "
        f"{way}"
    )


# ---- the state of a run, as one file --------------------------------------------------------


def state_bytes(tree):
    """A tree of dictionaries and lists: JSON in the metadata, and the tensors in it beside.

    A hash of both stands in the file, so that one bit more or less is noticed.
    """
    tensors = {}

    def keep(tensor):
        name = str(len(tensors))
        tensors[name] = tensor.detach().cpu()
        return {"tensor": name}

    told = {"tree": json.dumps(tree, default=keep)}
    whole = hashlib.sha256(safetensors_bytes(tensors, told)).hexdigest()
    return safetensors_bytes(tensors, told | {"sha256": whole})


def state_of(data, device="cpu"):
    """The tree that state_bytes wrote, its tensors on device; ValueError where a bit differs.

    Keys that are numbers come back as numbers.
    """
    tensors, metadata = split_safetensors(data)

    def find(node):
        if node.keys() == {"tensor"}:
            return tensors[node["tensor"]].to(device)
        return {int(key) if key.isdecimal() else key: value for key, value in node.items()}

    tree = json.loads(metadata["tree"], object_hook=find)
    if state_bytes(tree) != data:
        raise ValueError("it is not as it was written")
    return tree


# ---- the folder -----------------------------------------------------------------------------


class RunFolder:
    """What a run leaves on disk.  Only rank 0 writes, one process at a time, and files but the log
    appear whole.

    run.json; metrics.jsonl, which grows; prompts/NAME/prompt.safetensors;
    checkpoint/state.safetensors, all that --resume needs; summary.json, written last.
    """

    def __init__(self, path, facts, checkpoint, device):
        """facts: the RunFacts; checkpoint: the base model, opened; device: where tensors go."""
        self.path = Path(path)
        self.facts = facts
        self.checkpoint = checkpoint
        self.device = device
        rank, _ = rank_and_world()
        self.writes = rank == 0
        self.identity = None  # sha256 of run.json, which a checkpoint has to carry
        self.stored = None  # the checkpoint
        self.log_file = None
        self.log_length = 0  # bytes
        self.log_hash = hashlib.sha256()
        self.lock = None

    # ---- opening and closing ----------------------------------------------------------------

    @contextlib.contextmanager
    def at_work(self, stop, resume, overwrite):
        """The folder, locked, with its log open; what ends the run comes with the way to go on.

        stop: the StopRequest; resume: whether the run that lies here goes on.
        """
        try:
            # What is still to be written when the log is closed may find no room, too.
            with contextlib.ExitStack() as closing:
                with stop.hold():
                    rank_0_decides(lambda: self.open(closing, resume, overwrite))
                    self.identity = sha256(ours(self.path, "run.json"))
                    self.stored = self.read_checkpoint(resume)
                yield self
        except Stopped as stopped:
            raise Stopped(stopped.number, f"stopped; {self.way_on()}") from None
        except OSError as error:  # a full disk, say
            why = f"{error.strerror or error}; mend that and {self.way_on()}"
            where = error.filename or str(self.path)
            raise OSError(error.errno, why, where) from None
        finally:
            if self.lock is not None:
                self.lock.release()

    def way_on(self):
        """How to go on with this run, if it has begun."""
        if self.identity is None or not self.is_ours():
            return "give the same command again"
        return f"go on with: {go_on_command(self.path)}"

    def open(self, closing, resume, overwrite):
        """Lock the folder; make it, for a fresh run in the place of what is there.

        Killed at any moment, this leaves a run that starts afresh, or no run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = ours(self.path, LOCK)
        refuse_second_name(lock)
        self.lock = FolderLock(lock)
        # Looked at once more, since nobody else can come in between now.
        if resume:
            refuse_changes(read_facts(self.path), self.facts, self.checkpoint, self.path)
        else:
            refuse_folder(self.path, overwrite, self.facts.settings.init)
            if (self.path / "run.json").exists():
                self.remove(self.names(read_facts(self.path).prompts))
            self.write("run.json", to_json(self.facts, indent=2).encode() + b"\n")
        log = self.names(self.facts.prompts)[-1]
        refuse_second_name(log)
        self.log_file = open(log, "ab")  # noqa: SIM115
        closing.callback(self.log_file.close)

    def names(self, prompts):
        """Our files but run.json: the checkpoint first, without which a run starts anew."""
        names = [CHECKPOINT]
        for name in prompts:
            names.append(f"prompts/{name}/prompt.safetensors")
        names += [TEMPORARY, "summary.json", "metrics.jsonl"]
        return [ours(self.path, name) for name in names]

    def remove(self, paths):
        """Delete the files of the run that was here, and what a kill left of their writing."""
        for path in paths:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something of the user's is in the folder
                path.parent.rmdir()

    def is_ours(self):
        """Whether the folder of this name is still the one that was locked, as far as is known."""
        return self.lock is None or self.lock.is_at(self.path / LOCK)

    # ---- writing ----------------------------------------------------------------------------

    def write(self, name, data):
        """Write one of our files, whole or not at all; other processes write nothing."""
        if not self.writes:
            return
        if not self.is_ours():
            raise ValueError(f"{self.path} was moved or replaced while the run was at work there")
        path = ours(self.path, name)
        temporary = ours(self.path, TEMPORARY)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a run that was killed
        write_file(path, data, temporary=temporary)

    def log(self, line):
        """Add a LogLine to metrics.jsonl."""
        if self.log_file is None:
            return
        data = to_json(line).encode() + b"\n"
        self.log_file.write(data)
        self.log_file.flush()
        self.log_hash.update(data)
        self.log_length += len(data)

    def write_prompt(self, name, prompt_file):
        """prompts/NAME/prompt.safetensors, which has to be what is read here before it counts."""
        if not self.writes:
            return
        self.checkpoint.refuse_changes()  # or a prompt would be stamped with another model's hash
        data = prompt_bytes(prompt_file)
        parse_prompt(data, name)
        self.write(f"prompts/{name}/prompt.safetensors", data)

    def write_summary(self, summary):
        """summary.json, the last file of a run."""
        text = to_json(summary, indent=2)
        from_json(Summary, text, self.path / "summary.json")
        self.write("summary.json", text.encode() + b"\n")

    # ---- the checkpoint ---------------------------------------------------------------------

    def save(self, step, parts):
        """Where the run stands after `step` steps; parts: {name: what has a state_dict}."""
        if not self.writes:
            return
        os.fsync(self.log_file.fileno())
        tree = {name: part.state_dict() for name, part in parts.items()}
        tree["step"] = step
        tree["run"] = self.identity
        tree["log"] = self.log_length
        tree["log_sha256"] = self.log_hash.hexdigest()
        data = state_bytes(tree)
        if step == 0:
            state_of(data)  # what is written has to be what can be read
        self.write(CHECKPOINT, data)

    def read_checkpoint(self, resume):
        """The tree that `save` wrote, if it is this run's and whole; the log is cut to fit."""
        path = ours(self.path, CHECKPOINT)
        log = ours(self.path, "metrics.jsonl")
        stored = {"step": 0, "log": 0}
        before = b""
        if path.exists():
            with damaged(path, "is no checkpoint of this run; start again with --overwrite"):
                stored = state_of(read_bytes(path), self.device)
                if stored["run"] != self.identity:
                    raise ValueError("it is another run's, or run.json was edited")
                before = read_bytes(log)[: stored["log"]]
                if hashlib.sha256(before).hexdigest() != stored["log_sha256"]:
                    raise ValueError("metrics.jsonl is not what it was")
        elif resume:
            warn(f"{self.path} has no checkpoint: the run begins again")
        self.log_hash = hashlib.sha256(before)
        self.log_length = len(before)
        if self.log_file:
            self.log_file.truncate(self.log_length)
        return stored

    def load(self, parts):
        """Put every part back as it was saved -> the step at which the run goes on."""
        with damaged(self.path, "holds no checkpoint of this run; start again with --overwrite"):
            for name, part in parts.items():
                if name in self.stored:
                    part.load_state_dict(self.stored[name])
        return self.stored["step"]


class FolderLock:
    """The lock of a run folder: one process writes there; a file that is locked, and kept open.

    Kept open, so that nobody else's file can be taken for it where the folder has been replaced.
    """

    def __init__(self, path):
        self.lock = filelock.FileLock(path, timeout=0, thread_local=False)
        try:
            with warnings.catch_warnings():
                # Where flock is missing the library takes what the file says for a lock: as good.
                warnings.simplefilter("ignore")
                self.lock.acquire()
        except filelock.Timeout:
            raise ValueError(f"{path.parent} is in use by another process") from None
        except (NotImplementedError, OSError):
            # A file system without locks.  One run at a time is then up to the user.
            warn(f"{path.parent} cannot be locked; let no other run write there")
            path.touch()
        self.file = open(path, "rb")  # noqa: SIM115

    def is_at(self, path):
        """Whether the locked file still has this name."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(path))
        except OSError:
            return False

    def release(self):
        """Unlock, and take the file away where it is ours."""
        path = Path(self.lock.lock_file)
        if self.is_at(path):
            with contextlib.suppress(OSError):  # Windows deletes no open file
                path.unlink()
        self.file.close()
        self.lock.release()
