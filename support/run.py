"""The run folder: what a run leaves on disk, how it stops, and how it goes on.

Only a fixed list of names is ever written, replaced or deleted, never through a link, and only in a
folder whose run.json carries our mark; whatever else lies there is the user's.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
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

# ---- what a run was asked -------------------------------------------------------------------


def run_folder(args):
    """The run folder of --resume, of --out, or named after model and data."""
    out = args.resume or args.out or f"runs/{Path(args.model).name}-{Path(args.data).name}"
    return Path(out)


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
        killed = r"\.run\.json\.[0-9a-f]{16}\.tmp"  # of a run that was killed before it began
        if not path.is_dir() or any(not re.fullmatch(killed, its.name) for its in path.iterdir()):
            raise FileExistsError(f"--out {path} exists and holds no run; name another folder")


def read_facts(run):
    """What run.json says of a run that began."""
    return checks.read_json(ours(Path(run), "run.json"), "run")


def describe(argv, args, base, texts, labels, total, gpt2, prompts):
    """What run.json says: all that it takes to repeat the run, or to refuse to resume another."""
    size, dtype = sum(p.numel() for p in gpt2.parameters()), str(gpt2.wte.weight.dtype)[6:]
    print(f"model {args.model}: {size:,} frozen parameters in {dtype} on {args.device}")
    settings = {k: v for k, v in vars(args).items() if k not in ("resume", "overwrite")}
    settings |= {"dtype": dtype, "total_steps": total, "processes": rank_and_world()[1]}
    settings |= {"out": args.out.absolute(), "device": args.device.type}
    data = {split: sha256(fetch.split_file(args.data, split)) for split in ("train", "dev")}
    if Path(args.init).is_file():
        data["init"] = sha256(args.init)
    facts = {
        "format": checks.FORM["run"]["properties"]["format"]["const"],
        "argv": argv,
        "settings": settings,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "base": base,
        "data": data,
        "texts": texts,
        "labels": labels,
        "prompts": prompts,
    }
    return json.loads(machine.to_json(facts))  # as it is read again


def refuse_changes(stored, facts, path):
    """A run goes on only where settings, weights and files are those with which it began."""
    for part in ("settings", "base", "data"):
        for key, value in facts[part].items():
            began = stored[part].get(key)
            if key not in ("out", "base_model") and began != value:
                was = f"{key} ({part}) was {began!r:.80} when it began and is {value!r:.80} now"
                raise ValueError(f"{path} cannot be resumed: {was}; start again with --overwrite")


# ---- what a run found -----------------------------------------------------------------------


def read_run(run):
    """The prompts of a finished run, best on selection first: summary.json's rows, each with the
    settings of run.json, which a row overrides, and the path of its file."""
    facts, summary = read_facts(run), checks.read_json(run / "summary.json", "summary")
    known = facts["settings"] | {"run": run, "majority": summary["baselines"]["majority"]}
    rows = []
    for row in summary["prompts"]:
        path = run / "prompts" / row["name"] / "prompt.safetensors"
        row = {key: row[key] for key in checks.FORM["row"]["required"]}
        rows.append(known | row | {"path": path, "selected": row["selection"]["accuracy"]})
    return sorted(rows, key=lambda row: -row["selected"])


def find_prompts(run, every=False):
    """RUN as a person names it -> prompt.safetensors: of a run folder the best, or every one."""
    run = Path(run)
    for path in (run, run / "prompt.safetensors"):
        if path.is_file():
            return [path]
    if (run / "summary.json").is_file():
        paths = [row["path"] for row in read_run(run)]
        return paths if every else paths[:1]
    raise FileNotFoundError(f"{run} is no finished run, no prompt folder and no prompt.safetensors")


def json_bytes(value):
    """A JSON file of ours."""
    return machine.to_json(value, indent=2).encode() + b"\n"


# ---- while it runs --------------------------------------------------------------------------


class Meter:
    """Loss, accuracy, health and speed of the active prompts since the last line of the log."""

    def __init__(self):
        self.since = None
        self.clear()

    def clear(self):
        self.sums, self.broke, self.seen = 0.0, 0, 0  # tensors (3, K) and (K,) after a step

    def add(self, step, loss, correct, norm, n, whole):
        """loss, correct and norm (K,) of a step; n of its `whole` texts were read here."""
        counts = [loss * n, correct * bool(n), torch.ones_like(loss) * n]
        # What a checkpoint gave back lies on the CPU.
        self.sums = torch.as_tensor(self.sums, device=loss.device) + torch.stack(counts)  # (3, K)
        broke = torch.as_tensor(self.broke, device=norm.device)
        fresh = ~norm.isfinite() & (broke == 0)
        self.broke = torch.where(fresh, step, broke)  # (K,)
        if self.since is None:  # the first step of an epoch is warm-up
            self.since = time.perf_counter()
        else:
            self.seen += whole

    def read(self):
        """Of each prompt (loss, accuracy, the step in which it broke, or 0); and texts a second."""
        all_reduce([self.sums])
        rows = [*zip(*(self.sums[:2] / self.sums[2]).tolist(), self.broke.tolist())]
        now = time.perf_counter()
        speed = self.seen / (now - self.since) if self.seen else None
        self.since = now
        self.clear()
        return rows, speed

    def state_dict(self):
        return {"sums": self.sums, "broke": self.broke}

    def load_state_dict(self, state):
        self.sums, self.broke = state["sums"], state["broke"]


class RunFolder:
    """What a run leaves on disk.  Only rank 0 writes, one process at a time, and files appear whole.

    run.json, metrics.jsonl, prompts/NAME/prompt.safetensors, checkpoint/state.safetensors (all that
    --resume needs), and summary.json, written last.  In a `with`, what ends the run in its middle
    comes with the command that goes on from there.
    """

    def __init__(self, args, facts):
        """facts: what run.json says of the run, here or to be written."""
        self.args, self.path, self.facts, self.device = args, args.out, facts, args.device
        self.rank, self.world = rank_and_world()
        self.signals = machine.signals()

    def __enter__(self):
        self.metrics, self.lock = None, None
        self.signals.held = True  # until the last step
        try:
            machine.rank_0_decides(self.open, self.device)
            self.identity = sha256(ours(self.path, "run.json"))
            self.stored = self.read_checkpoint()
        except BaseException:
            self.close()
            raise
        self.step = self.stored.get("step", 0)
        return self

    def close(self):
        """Let go of the signals, the log and the lock."""
        self.signals.held = False
        if self.metrics:
            self.metrics.close()
        if self.lock is not None:
            os.close(self.lock)

    def __exit__(self, kind, error, trace):
        self.close()
        hint = f"go on with: python train.py --resume {machine.shown(self.path)}"
        if isinstance(error, machine.Stopped):
            raise machine.Stopped(error.args[0], hint) from None
        if isinstance(error, OSError):  # a full disk
            why = f"{error.strerror or error}; mend that and {hint}"
            raise OSError(error.errno, why, error.filename or str(self.path)) from None
        if dist.is_initialized() and not error:
            dist.destroy_process_group()

    def open(self):
        """Lock the folder; make it, for a fresh run in the place of what is there.

        Killed at any moment, this leaves a run that starts afresh, or no run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl:
            self.lock = os.open(self.path, os.O_RDONLY)  # let go of when the process ends
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path} is in use by another process") from None
        refuse_folder(self.args)  # again, for nobody else can come in between now
        new = self.names(self.facts["prompts"])
        if self.args.resume:
            refuse_changes(read_facts(self.path), self.facts, self.path)
        else:
            if (self.path / "run.json").exists():
                self.remove(self.names(read_facts(self.path)["prompts"]))
            text = json_bytes(self.facts)
            self.identity = hashlib.sha256(text).hexdigest()
            self.write("run.json", text)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self.metrics = open(os.open(new[-1], flags, 0o666), "r+b")
        if os.fstat(self.metrics.fileno()).st_nlink > 1:
            raise ValueError(f"{new[-1]} has another name, too; copy it, so that one is ours")

    def names(self, prompts):
        """Our files but run.json: the checkpoint first, without which a run starts anew."""
        names = [CHECKPOINT, *(f"prompts/{name}/prompt.safetensors" for name in prompts)]
        return [ours(self.path, name) for name in (*names, "summary.json", "metrics.jsonl")]

    def remove(self, paths):
        """Delete the files of the run that was here, and what a kill left of their writing."""
        self.identity = sha256(self.path / "run.json")
        for path in paths:
            path.unlink(missing_ok=True)
            self.temporary(path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something of the user's is in the folder
                path.parent.rmdir()

    def temporary(self, path):
        """The name under which this run, and no other, writes a file."""
        return path.with_name(f".{path.name}.{self.identity[:16]}.tmp")

    def read_checkpoint(self):
        """The tree that `save` wrote, if it is this run's and whole; the log is cut to its length."""
        path, log, stored = ours(self.path, CHECKPOINT), ours(self.path, "metrics.jsonl"), {}
        if path.exists():
            with damaged(path, "is no checkpoint of this run; start again with --overwrite"):
                stored = read_tree(path)
                if stored["run"] != self.identity:
                    raise ValueError("it is another run's, or run.json was edited")
                before = log.read_bytes()[: stored["log"]]
                if hashlib.sha256(before).hexdigest() != stored["log_sha256"]:
                    raise ValueError("metrics.jsonl is not what it was")
        if self.rank == 0:
            self.metrics.seek(stored.get("log", 0))
            self.metrics.truncate()
        return stored

    # ---- what the loop needs ----------------------------------------------------------------

    def steps(self, first, total):
        """The steps first .. total-1; a signal waits for the end of one, see told_to_stop."""
        self.signals.held = True
        self.bar = tqdm(total=total, initial=first, unit="step", disable=self.rank > 0 or None)
        self.began, self.taken, self.last = time.perf_counter(), 0, {}
        try:
            for step in range(first, total):
                self.taken += 1
                yield step
                self.bar.update()
        finally:
            self.signals.held = False
            self.bar.close()
        if self.signals.noted:  # after the last look
            raise machine.Stopped(self.signals.noted, "")

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
        told = torch.tensor(float(self.signals.noted), device=self.device)
        if together:
            all_reduce([told])
        stops = told > 0 and (together or self.world == 1)
        return (self.signals.noted or int(signal.SIGTERM)) if stops else 0

    def check_base(self):
        """The model's files have to be what they were: no prompt is stamped with another's hash."""
        base = self.facts["base"]
        name = base["base_model"]
        if self.rank == 0 and fetch.base_of(name, fetch.checkpoint_folder(name)) != base:
            raise ValueError(f"{name} has changed since this run began; begin it anew")

    def log(self, step, epoch, prompt, split, loss, accuracy, lr=None, rate=None):
        """A line of metrics.jsonl."""
        self.last[prompt, split] = loss, accuracy
        line = dict(step=step, epoch=epoch, prompt=prompt, split=split, loss=loss)
        line |= dict(accuracy=accuracy, lr=lr, examples_per_second=rate)
        if self.metrics:
            self.metrics.write(machine.to_json(line).encode() + b"\n")
            self.metrics.flush()

    def write(self, name, data):
        """Write one of our files, whole or not at all; other processes write nothing."""
        if self.rank == 0:
            path = ours(self.path, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary(path).unlink(missing_ok=True)  # of a run that was killed
            write_file(path, data, temporary=self.temporary(path))

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
            for name, part in parts.items() if self.stored else ():
                part.load_state_dict(self.stored[name])
        return self.step

    def tell(self, epoch, split, name, best):
        """A line after an epoch, with or without a terminal: where the prompt that leads stands."""
        speed = self.taken / (time.perf_counter() - self.began)
        (loss, accuracy), (held, score) = self.last[name, "train"], self.last[name, split]
        with self.bar.external_write_mode():
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
            chosen, (low, high) = row["selection"], row["ci95"]
            cells = [row["name"], str(row["lr"]), row["epoch"], chosen["accuracy"]]
            table.append([*cells, row["accuracy"], f"{low:.3f} to {high:.3f}"])
        for name, value in summary["baselines"].items():
            table.append([name, "", "", "", value, ""])
        print_table(["prompt", "lr", "epoch", chosen["split"], "dev", "95 % interval"], table)
        for row in rows:
            if row["collapsed"]:
                print(f"warning: {row['name']}: {row['alarm']}")
        if not max(rows, key=lambda row: row["selection"]["accuracy"])["collapsed"]:
            print(f'try: python evaluate.py predict {self.path} "a delight from start to finish"')
