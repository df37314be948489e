"""The run folder: what a run leaves on disk, how it stops, and how it goes on.

Only a fixed list of names is ever written, replaced or deleted, never through a link, and only in a
folder whose run.json carries our mark; whatever else lies there is the user's.
"""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from support import checks, fetch, machine
from support.files import damaged, ours, read_tree, sha256, tree_bytes, write_file
from support.machine import all_reduce, print_table, rank_and_world

try:
    import fcntl
except ImportError:  # Windows: two writers of one run are not told from each other
    fcntl = None

CHECKPOINT = "checkpoint/state.safetensors"
LINE = "step epoch prompt split loss accuracy lr examples_per_second".split()
TEMPORARY = ".prompt-training.tmp"  # under this name a file is written

# ---- what a run was asked -------------------------------------------------------------------


def refuse_folder(args):
    """Nothing but a run of ours is ever written over, and that when told to."""
    path = args.out
    if args.resume:
        return
    if ours(path, "run.json").exists():
        read_facts(path)
        if not args.overwrite:
            raise FileExistsError(
                f"{path} holds a run: add --overwrite, go on with it by --resume {path}, or name "
                "another with --out"
            )
        if path.resolve() in Path(args.init).resolve().parents:
            raise ValueError(f"--init {args.init} lies in the run that --overwrite would replace")
    elif path.exists():
        # A run that is killed before it begins leaves its temporary file.
        if not path.is_dir() or any(its.name != TEMPORARY for its in path.iterdir()):
            raise FileExistsError(f"--out {path} exists and holds no run; name another folder")


def read_facts(run):
    """What run.json says of a run that began."""
    return checks.read_json(ours(Path(run), "run.json"), "run")


def describe(argv, args, gpt2, total, known):
    """What run.json says: all that it takes to repeat the run, or to refuse to resume another.

    known: what the run found out: base, texts, labels, prompts.
    """
    size, dtype = sum(p.numel() for p in gpt2.parameters()), str(gpt2.wte.weight.dtype)[6:]
    print(f"model {args.model}: {size:,} frozen parameters in {dtype} on {args.device}")
    texts = [f"{n:,} {split}" for split, n in known["texts"].items()]
    print(f"data {args.data}: {', '.join(texts)} texts")
    settings = vars(args) | {"out": args.out.absolute(), "device": args.device.type, "dtype": dtype}
    settings |= {"total_steps": total, "processes": rank_and_world()[1]}
    del settings["resume"], settings["overwrite"]
    data = {split: sha256(fetch.split_file(args.data, split)) for split in ("train", "dev")}
    if Path(args.init).is_file():
        data["init"] = sha256(args.init)
    facts = {
        "format": "prompt-training-run/1",
        "argv": argv,
        "settings": settings,
        "data": data,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return json.loads(machine.to_json(facts | known))  # as it is read again


def refuse_changes(stored, facts, path):
    """A run goes on only where settings, weights and files are those with which it began."""
    for part in ("settings", "base", "data"):
        for key, value in facts[part].items():
            began = stored[part].get(key)
            if key not in ("out", "base_model") and began != value:
                was = f"{key} ({part}) was {began!r:.80} when it began and is {value!r:.80} now"
                raise ValueError(f"{path} cannot be resumed: {was}; start again with --overwrite")


# ---- what a run found -----------------------------------------------------------------------


def find_prompts(run, every=False):
    """RUN as a person names it -> prompt.safetensors: of a run folder the best on the selection
    split, or every one, best first."""
    run = Path(run)
    for path in (run, run / "prompt.safetensors"):
        if path.is_file():
            return [path]
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(
            f"{run} is no finished run, no prompt folder and no prompt.safetensors"
        )
    rows = checks.read_json(run / "summary.json", "summary")["prompts"]
    rows.sort(key=lambda row: -row["selection"]["accuracy"])
    paths = [run / "prompts" / row["name"] / "prompt.safetensors" for row in rows]
    return paths if every else paths[:1]


def json_bytes(value):
    """A JSON file of ours."""
    return machine.to_json(value, indent=2).encode() + b"\n"


# ---- while it runs --------------------------------------------------------------------------


class Meter:
    """Loss, accuracy, health and speed of the active prompts since the last line of the log."""

    def __init__(self):
        self.sums, self.seen, self.since = 0.0, 0, None

    def add(self, loss, correct, norm, n, whole):
        """loss, correct and norm (K,) of a step; n of its `whole` texts were read here."""
        parts = [loss * n, correct * (n > 0), norm, torch.full_like(loss, n)]
        self.sums = self.sums + torch.stack(parts)  # (4, K)
        if self.since is None:  # the first step of an epoch is warm-up
            self.since = time.perf_counter()
        else:
            self.seen += whole

    def read(self):
        """Of each prompt (loss, accuracy, health), and texts a second.

        health is finite if all norms were.
        """
        all_reduce([self.sums])
        rows = zip(*(self.sums[:3] / self.sums[3]).tolist())
        now = time.perf_counter()
        speed = self.seen / (now - self.since) if self.seen else None
        self.sums, self.seen, self.since = 0.0, 0, now
        return rows, speed

    def state_dict(self):
        return {"sums": self.sums}

    def load_state_dict(self, state):
        self.sums = state["sums"]


@contextlib.contextmanager
def running(args, facts):
    """The RunFolder of a run at work.  facts: what run.json says of it, here or to be written.

    What ends the run in its middle comes with the command that goes on from there.
    """
    run = RunFolder(args, facts)
    hint = f"go on with: python train.py --resume {machine.shown(run.path)}"
    try:
        with run.closing:
            machine.signals.held = True  # until the last step
            machine.rank_0_decides(run.open)
            run.identity = sha256(ours(run.path, "run.json"))
            run.stored = run.read_checkpoint()
            yield run
    except machine.Stopped as stop:
        raise machine.Stopped(stop.args[0], f"stopped; {hint}") from None
    except OSError as error:  # a full disk
        why = f"{error.strerror or error}; mend that and {hint}"
        raise OSError(error.errno, why, error.filename or str(run.path)) from None
    if dist.is_initialized():
        dist.destroy_process_group()


class RunFolder:
    """What a run leaves on disk.  Only rank 0 writes, one process at a time, and files appear whole.

    run.json, metrics.jsonl, prompts/NAME/prompt.safetensors, checkpoint/state.safetensors (all that
    --resume needs), and summary.json, written last.
    """

    def __init__(self, args, facts):
        self.args, self.path, self.facts, self.device = args, args.out, facts, args.device
        self.rank, self.world = rank_and_world()
        self.metrics, self.closing = None, contextlib.ExitStack()
        self.closing.callback(setattr, machine.signals, "held", False)

    def open(self):
        """Lock the folder; make it, for a fresh run in the place of what is there.

        Killed at any moment, this leaves a run that starts afresh, or no run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl:
            lock = os.open(self.path, os.O_RDONLY)
            self.closing.callback(os.close, lock)  # as the end of the process does
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path} is in use by another process") from None
        refuse_folder(self.args)  # again, for nobody else can come in between now
        new = self.names(self.facts["prompts"])
        if self.args.resume:
            refuse_changes(read_facts(self.path), self.facts, self.path)
        else:
            if (self.path / "run.json").exists():
                self.remove(self.names(read_facts(self.path)["prompts"]))
            self.write("run.json", json_bytes(self.facts))
        log = new[-1]
        if log.exists() and log.stat().st_nlink > 1:
            raise ValueError(f"{log} has another name, too; copy it, so that one is ours")
        self.metrics = open(log, "ab")
        self.closing.callback(self.metrics.close)

    def names(self, prompts):
        """Our files but run.json: the checkpoint first, without which a run starts anew."""
        names = [CHECKPOINT, *(f"prompts/{name}/prompt.safetensors" for name in prompts)]
        names += [TEMPORARY, "summary.json", "metrics.jsonl"]
        return [ours(self.path, name) for name in names]

    def remove(self, paths):
        """Delete the files of the run that was here, and what a kill left of their writing."""
        for path in paths:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something of the user's is in the folder
                path.parent.rmdir()

    def read_checkpoint(self):
        """The tree that `save` wrote, if it is this run's and whole; the log is cut to its length."""
        path, log = ours(self.path, CHECKPOINT), ours(self.path, "metrics.jsonl")
        stored = {"step": 0, "log": 0}
        if path.exists():
            with damaged(path, "is no checkpoint of this run; start again with --overwrite"):
                stored = read_tree(path, self.device)
                if stored["run"] != self.identity:
                    raise ValueError("it is another run's, or run.json was edited")
                before = log.read_bytes()[: stored["log"]]
                if hashlib.sha256(before).hexdigest() != stored["log_sha256"]:
                    raise ValueError("metrics.jsonl is not what it was")
        if self.metrics:
            self.metrics.truncate(stored["log"])
        return stored

    # ---- what the loop needs ----------------------------------------------------------------

    def steps(self, first, total):
        """The steps first .. total-1; a signal waits for the end of one, see told_to_stop."""
        self.began, self.last = time.perf_counter(), {}
        try:
            steps = machine.progress(range(first, total), "steps", first)
            for self.taken, step in enumerate(steps, 1):
                yield step
        finally:
            machine.signals.held = False
        if machine.signals.noted:  # after the last look
            raise machine.Stopped(machine.signals.noted)

    def part_of(self, batch):
        """This process's part of a batch of indices, and how many of it count.

        One without any takes a text that counts as none, so that all do the same work.
        """
        mine = batch[self.rank :: self.world]
        return mine or batch[:1], len(mine)

    def told_to_stop(self, together):
        """The number of a signal to any of the processes, or 0.

        Alone a process knows at once; several ask each other where all of them are `together`.
        """
        noted = machine.signals.noted
        if self.world > 1:
            told = torch.tensor(float(noted), device=self.device)
            if together:
                all_reduce([told])
            noted = together and told and (noted or signal.SIGTERM)
        return noted

    def check_base(self):
        """The model's files have to be what they were: no prompt is stamped with another's hash."""
        base = self.facts["base"]
        name = base["base_model"]
        if self.rank == 0 and fetch.base_of(name, fetch.checkpoint_folder(name)) != base:
            raise ValueError(f"{name} has changed since this run began; begin it anew")

    def log(self, *values):
        """A line of metrics.jsonl; values: of LINE, of which the last two may be missing."""
        line = dict(itertools.zip_longest(LINE, values))
        self.last[line["prompt"], line["split"]] = line["loss"], line["accuracy"]
        if self.metrics:
            self.metrics.write(machine.to_json(line).encode() + b"\n")
            self.metrics.flush()

    def write(self, name, data):
        """Write one of our files, whole or not at all; other processes write nothing."""
        if self.rank == 0:
            path, temporary = ours(self.path, name), ours(self.path, TEMPORARY)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # of a run that was killed
            write_file(path, data, temporary=temporary)

    def save(self, step, parts):
        """Where the run stands; parts: {name: what has a state_dict}."""
        if self.rank == 0:
            os.fsync(self.metrics.fileno())
            log = ours(self.path, "metrics.jsonl").read_bytes()
            tree = {name: part.state_dict() for name, part in parts.items()}
            tree |= {"step": step, "run": self.identity, "log": len(log)}
            tree["log_sha256"] = hashlib.sha256(log).hexdigest()
            self.write(CHECKPOINT, tree_bytes(tree))

    def load(self, parts):
        """Put every part back as it was saved -> the step at which the run goes on."""
        with damaged(self.path, "holds no checkpoint of this run; start again with --overwrite"):
            for name in self.stored.keys() & parts.keys():
                parts[name].load_state_dict(self.stored[name])
        return self.stored["step"]

    def tell(self, epoch, split, name, best):
        """A line after an epoch, with or without a terminal: where the prompt that leads stands."""
        speed = self.taken / (time.perf_counter() - self.began)
        (loss, accuracy), (held, score) = self.last[name, "train"], self.last[name, split]
        with tqdm.external_write_mode():
            print(
                f"epoch {epoch}, {speed:.1f} steps/s, {name}: train loss {loss:.3f} accuracy "
                f"{accuracy:.3f}, {split} loss {held:.3f} accuracy {score:.4f}, best {best:.4f}",
                flush=True,
            )

    def finish(self, summary):
        """summary.json, and the table at the end of a run."""
        self.write("summary.json", json_bytes(summary))
        table, rows = [], summary["prompts"]
        for row in rows:
            chosen, interval = row["selection"], f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}"
            scores = chosen["accuracy"], row["accuracy"], interval
            table.append([row["name"], str(row["lr"]), row["epoch"], *scores])
        for name, value in summary["baselines"].items():
            table.append([name, "", "", "", value, ""])
        print_table(["prompt", "lr", "epoch", chosen["split"], "dev", "95 % interval"], table)
        for row in rows:
            if row["collapsed"]:
                print(f"warning: {row['name']}: {row['alarm']}")
        if not max(rows, key=lambda row: row["selection"]["accuracy"])["collapsed"]:
            print(f'try: python evaluate.py predict {self.path} "a delight from start to finish"')
